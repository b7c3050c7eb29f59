"""A server of our own on this machine: started, waited for, and ended with all its processes."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.core.errors import EngineError
from rlaif.engines.vllm.keeper import GRACE_SECONDS

POLL_SECONDS = 0.25
HEALTH_SECONDS = 5.0
"""How long one look at the server's health may take."""
LAST_LINES = 12


class Server:
    """A server on a free loopback port that answers those alone who have its `key`.

    `url` is where it speaks the OpenAI protocol. It ends with `stop`, and with this process however
    that ends (`rlaif.engines.vllm.keeper`).
    """

    def __init__(
        self,
        name: str,
        command: Callable[[int], Sequence[str]],
        environment: Callable[[str], Mapping[str, str]],
        log: Path,
    ):
        """Start `command` of the port, with `environment` of the key beside this process's own.
        What it writes is appended to `log`."""
        port = free_port()
        self.name = name
        self.key = secrets.token_urlsafe(32)
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/v1"
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._from = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            self._keeper = subprocess.Popen(
                [sys.executable, "-m", "rlaif.engines.vllm.keeper", *command(port)],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment(self.key)},
                # Ctrl-C at the terminal is for us: what we do about it ends the server.
                start_new_session=True,
            )

    def wait(self, seconds: float) -> None:
        """Wait until the server is healthy. Raises EngineError, with the last lines that it wrote,
        when it ends or is not healthy after `seconds`; it is stopped then."""
        until = time.monotonic() + seconds
        try:
            while not self.healthy():
                if not self.alive():
                    raise EngineError(f"model {self.name}: its server ended. {self.last_words()}")
                if time.monotonic() > until:
                    raise EngineError(
                        f"model {self.name}: its server does not answer after {seconds:g} s "
                        f"(`start_seconds`). {self.last_words()}"
                    )
                time.sleep(POLL_SECONDS)
        except BaseException:
            self.stop()
            raise

    def alive(self) -> bool:
        """Whether the server's process runs."""
        return self._keeper.poll() is None

    def healthy(self) -> bool:
        """Whether the server is healthy and is ours. Another one, which took the port before ours
        did, does not know the key, or wants none."""
        models = f"{self.url}/models"
        return (
            self._is_healthy(f"{self.root}/health", self.key)
            and self._is_healthy(models, self.key)
            and not self._is_healthy(models, "no key")
        )

    def _is_healthy(self, url: str, key: str) -> bool:
        asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
        try:
            with _open_direct(asked, HEALTH_SECONDS) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError, ValueError):
            return False

    def post(self, path: str, body: Mapping[str, Any], seconds: float) -> Any:
        """What the server answers to `body`, both JSON. Raises EngineError where that is an error,
        or takes longer than `seconds`."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        data = json.dumps(body).encode()
        asked = urllib.request.Request(self.root + path, data, headers, method="POST")
        try:
            with _open_direct(asked, seconds) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", "replace")
            raise EngineError(f"{path} answers {error.code}: {text}") from None
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise EngineError(f"{path} does not answer: {error}") from None

    def last_words(self) -> str:
        """The last lines that the server wrote since this start, and where all of them are."""
        with self.log.open("rb") as file:
            file.seek(self._from)
            text = file.read().decode("utf-8", "replace").replace(self.key, "[key]")
        lines = [line for line in text.splitlines() if line.strip()][-LAST_LINES:]
        said = "\n".join(f"  {line}" for line in lines) or "  (nothing)"
        return f"Its last lines, of {self.log}:\n{said}"

    def stop(self) -> None:
        """End the server and all its processes."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        try:
            self._keeper.wait(GRACE_SECONDS + 5)
        except subprocess.TimeoutExpired:
            self._keeper.terminate()
            self._keeper.wait()


def _open_direct(request: urllib.request.Request, seconds: float) -> Any:
    # A proxy of the environment is not for this machine's own addresses.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(request, timeout=seconds)


class RequireKey:
    """Middleware of the server: every path but /health needs the key of this start. vLLM itself
    guards a few paths, and not those by which weights come."""

    def __init__(self, app: Any):
        self.app = app
        self.wanted = f"Bearer {os.environ['VLLM_API_KEY']}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 401 without the key, and else what the server answers."""
        if scope["type"] in ("http", "websocket") and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(given, self.wanted):
                from starlette.responses import JSONResponse

                await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port
