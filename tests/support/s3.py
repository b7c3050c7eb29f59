"""An S3 server on loopback (moto's), whose requests are counted and which can be out of order."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import boto3
import s3fs
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "runs"
Watch = Callable[[str, str], None]


@dataclass
class Server:
    """The server; `puts` counts the successful PUTs by key, and `down` refuses every request."""

    address: str = ""
    down: bool = False
    puts: Counter[str] = field(default_factory=Counter)
    deleted: Counter[str] = field(default_factory=Counter)
    watch: Watch = field(default=lambda method, key: None)

    def count(self, app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        """`app`, counted."""

        def counted(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            method, path = environ["REQUEST_METHOD"], unquote(environ["PATH_INFO"])
            key = path.removeprefix(f"/{BUCKET}/").encode("latin-1", "replace").decode("utf-8")
            self.watch(method, key)
            if self.down:
                start("403 Forbidden", [("Content-Type", "text/plain")])
                return [b"down"]

            def started(status: str, *rest: Any) -> Any:
                if status.startswith("2") and method == "PUT":
                    self.puts[key] += 1
                if status.startswith("2") and method == "DELETE":
                    self.deleted[key] += 1
                return start(status, *rest)

            return app(environ, started)

        return counted


@contextmanager
def serve_s3(environment: Callable[[str, str], None]) -> Iterator[Server]:
    """A server with an empty bucket; `environment` sets the variables by which clients find it."""
    server = Server()
    app = DomainDispatcherApplication(create_backend_app)
    http = make_server("127.0.0.1", 0, server.count(app), threaded=True)
    server.address = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    for name, value in (
        ("AWS_ENDPOINT_URL", server.address),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "key"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        environment(name, value)
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    # Clients of an earlier server are not taken again.
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield server
    finally:
        boto3.client("s3", endpoint_url=server.address)
        http.shutdown()
        thread.join()
        os.environ.pop("MOTO_RESET", None)
