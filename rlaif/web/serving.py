"""A socket that is listened on, and an application served on it with limits of time."""

from __future__ import annotations

import asyncio
import os
import resource
import socket

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from rlaif.core.errors import ConfigError

HEAD_SECONDS = 20.0
"""How long a client may take over the head of a request."""
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


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, on a free port for 0. Raises ConfigError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=WAITING)
    except OSError as error:
        # Python's own text names the address once more.
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ConfigError(
            f"{host}:{port} cannot be listened on: {why}. Choose another --port, or 0 for a free "
            "one."
        ) from None


class SocketServer:
    """An application on a socket that is listened on from the start. No request is logged:
    addresses may have secrets in them."""

    def __init__(self, listening: socket.socket, app: ASGIApp):
        self.socket = listening
        config = uvicorn.Config(
            app,
            http=PatientProtocol,
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
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
