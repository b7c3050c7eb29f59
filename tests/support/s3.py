"""An S3 server on loopback (moto's), whose requests are counted and which can be out of order."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "runs"
App = Callable[..., Iterable[bytes]]


class _Silent(WSGIRequestHandler):
    def log(self, *args: Any) -> None:
        pass


@dataclass
class Server:
    """`puts` and `deletes` count what succeeded, by key; with `down` every request is refused."""

    down: bool = False
    puts: Counter[str] = field(default_factory=Counter)
    deletes: Counter[str] = field(default_factory=Counter)

    def counted(self, app: App) -> App:
        """`app`, whose requests are counted."""

        def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            if self.down:
                start("403 Forbidden", [("Content-Type", "text/plain")])
                return [b"down"]
            key = unquote(quote(environ["PATH_INFO"], encoding="latin-1"))

            def started(status: str, *rest: Any) -> Any:
                counts = {"PUT": self.puts, "DELETE": self.deletes}.get(environ["REQUEST_METHOD"])
                if status.startswith("2") and counts is not None:
                    counts[key.removeprefix(f"/{BUCKET}/")] += 1
                return start(status, *rest)

            return app(environ, started)

        return answer


@contextmanager
def serve_s3(set_variable: Callable[[str, str], None]) -> Iterator[Server]:
    """A server with an empty bucket; `set_variable` sets what clients find it by."""
    server = Server()
    app = server.counted(DomainDispatcherApplication(create_backend_app))
    http = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Silent)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    set_variable("AWS_ENDPOINT_URL", f"http://127.0.0.1:{http.server_port}")
    set_variable("AWS_ACCESS_KEY_ID", "id")
    set_variable("AWS_SECRET_ACCESS_KEY", "key")
    set_variable("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
