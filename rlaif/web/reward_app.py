"""A served reward model's HTTP: limits of size and time, and an answer to every request."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from collections.abc import Mapping
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from rlaif.core.errors import RlaifError
from rlaif.web.reward_server import READERS, BadRequest, RewardService, all_scored, asked

MOST_BYTES = 64 * 1024 * 1024
HEAD_SECONDS = 20.0
"""How long a client may take over the head of a request."""
BODY_SECONDS = 60.0
"""How long a client may take over a body."""
WAITING = 2048
"""Connections that may wait to be accepted."""
OPEN_FILES = 8192


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which waits `HEAD_SECONDS` for the head of a request and no longer."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Go on waiting until a head is whole."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._head is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


class RewardServer:
    """A server for a reward model on a socket that it listens on from the start."""

    def __init__(self, service: RewardService, host: str, port: int):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.create_server((host, port), family=family, backlog=WAITING)
        config = uvicorn.Config(
            make_app(service),
            http=PatientProtocol,
            lifespan="off",
            log_level="error",
            access_log=False,
            backlog=WAITING,
            timeout_keep_alive=int(HEAD_SECONDS),
            timeout_graceful_shutdown=5,
        )
        self._server = uvicorn.Server(config)

    @property
    def port(self) -> int:
        """The port, also where a free one was asked for."""
        return int(self.socket.getsockname()[1])

    def serve_forever(self) -> None:
        """Answer until `shutdown`, or until Ctrl-C in the main thread."""
        _allow_files()
        self._server.run(sockets=[self.socket])

    def shutdown(self) -> None:
        """Answer what was asked, then stop."""
        self._server.should_exit = True


def _allow_files() -> None:
    """As many open connections as the system lets a process have, up to `OPEN_FILES`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def make_app(service: RewardService) -> Starlette:
    """The service's paths as an ASGI application."""

    async def answer_rewards(request: Request) -> Response:
        service.count(requests=1)
        status, found = await _compute_answer(service, request)
        if status != 200:
            service.count(refused=1)
        # What a refused client still sends cannot be told from its next request.
        headers = {"Connection": "close"} if status in (408, 413) else None
        return JSONResponse(found, status, headers)

    async def answer_health(_request: Request) -> Response:
        return JSONResponse({"healthy": service.healthy}, 200 if service.healthy else 503)

    async def answer_metrics(_request: Request) -> Response:
        return PlainTextResponse(service.counts.text(), media_type="text/plain; version=0.0.4")

    async def answer_models(_request: Request) -> Response:
        model = {"id": service.engine.name, "object": "model", "owned_by": "rlaif"}
        return JSONResponse({"object": "list", "data": [model]})

    async def answer_refused(request: Request, error: Exception) -> Response:
        service.count(requests=1, refused=1)
        status = error.status_code if isinstance(error, HTTPException) else 500
        said = {404: f"no such path: {request.url.path}", 405: f"not with {request.method}"}
        return JSONResponse(_error_body(said.get(status, "the server failed")), status)

    routes = [Route(path, answer_rewards, methods=["POST"]) for path in READERS]
    routes += [
        Route("/health", answer_health),
        Route("/metrics", answer_metrics),
        Route("/v1/models", answer_models),
    ]
    return Starlette(
        routes=routes, exception_handlers={HTTPException: answer_refused, Exception: answer_refused}
    )


async def _compute_answer(
    service: RewardService, request: Request
) -> tuple[int, Mapping[str, Any]]:
    """The status and the answer to a request for rewards."""
    try:
        data = await asyncio.wait_for(_read_body(request), BODY_SECONDS)
        if data is None:
            return 413, _error_body(f"a body of 1 to {MOST_BYTES} bytes was expected")
        found = await run_in_threadpool(lambda: asked(service, request.url.path, _parse_json(data)))
        assert found is not None, "only these paths are routed here"
        results = await asyncio.wrap_future(service.submit(found.rows)) if found.rows else []
        return 200, found.answer(all_scored(results))
    except BadRequest as error:
        return 400, _error_body(str(error))
    except (TimeoutError, ClientDisconnect):
        return 408, _error_body(f"the body did not come within {BODY_SECONDS:g} seconds")
    except RlaifError as error:
        return 500, _error_body(str(error))


async def _read_body(request: Request) -> bytes | None:
    """The body; None where it is empty or larger than is read."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MOST_BYTES:
        return None
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            return None
        parts.append(part)
    return b"".join(parts) or None


def _parse_json(data: bytes) -> Any:
    """The value in a body. Raises BadRequest."""
    try:
        return json.loads(data)
    except RecursionError:
        raise BadRequest("the JSON is nested too deep") from None
    except ValueError as error:
        raise BadRequest(f"not valid JSON: {error}") from None


def _error_body(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}
