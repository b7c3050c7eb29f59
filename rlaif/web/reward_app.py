"""A served reward model's HTTP: limits of size and time, and an answer to every request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from rlaif.core.errors import RlaifError
from rlaif.web.reward_server import READERS, BadRequest, RewardService, all_scored, asked
from rlaif.web.serving import SocketServer, listen

MOST_BYTES = 64 * 1024 * 1024
BODY_SECONDS = 60.0
"""How long a client may take over a body."""


class RewardServer(SocketServer):
    """A server for a reward model on a socket that it listens on from the start. Raises ConfigError
    where the port is taken."""

    def __init__(self, service: RewardService, host: str, port: int):
        super().__init__(listen(host, port), make_app(service))


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
