"""A hub on a real socket, as far as one upload of a dataset asks: it makes a repository, takes one
commit of plain files, and refuses whoever has another token."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class Hub:
    """The server in a thread of its own, from `with` to the end of it. `created` are the bodies of
    the calls that make repositories, `files` what was committed, by repository and path."""

    def __init__(self, token: str):
        self.token = token
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, dict[str, bytes]] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                allowed = self.headers["Authorization"] == f"Bearer {hub.token}"
                self._send(200 if allowed else 403, hub.answer(self.path, body) if allowed else {})

            def do_GET(self) -> None:
                self._send(404, {"error": "no such repository"})

            def _send(self, status: int, value: dict[str, Any]) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """What a call that is allowed gets."""
        if path == "/api/repos/create":
            made = json.loads(body)
            self.created.append(made)
            return {"url": f"{self.url}/datasets/{made['organization']}/{made['name']}"}
        parts = path.split("/")
        repo = "/".join(parts[3:5])
        if "preupload" in parts:
            asked = json.loads(body)["files"]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            return {"files": [{"path": file["path"], **plain} for file in asked]}
        if "commit" in parts:
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    content = base64.b64decode(row["value"]["content"])
                    self.files.setdefault(repo, {})[row["value"]["path"]] = content
            oid = "a" * 40
            return {"commitOid": oid, "commitUrl": f"{self.url}/datasets/{repo}/commit/{oid}"}
        # The card's metadata are in order.
        return {"errors": [], "warnings": []}
