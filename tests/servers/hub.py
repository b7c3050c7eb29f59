"""A hub on a real socket, as far as one upload of a dataset and its loading ask: it makes a
repository, takes one commit of plain files, refuses whoever has another token, and gives the files
of a dataset to everybody."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


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

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                parts = unquote(urlsplit(self.path).path).strip("/").split("/")
                if parts[0] == "datasets" and parts[3:4] == ["resolve"]:
                    files = hub.files.get("/".join(parts[1:3]), {})
                    self._file(files.get("/".join(parts[5:])))
                    return
                found = hub.about("/".join(parts[2:4]), parts[4:])
                missing = {"error": "not found"}
                self._send(*((404, missing) if found is None else (200, found)))

            def _file(self, data: bytes | None) -> None:
                self.send_response(404 if data is None else 200)
                if data is None:
                    self.send_header("X-Error-Code", "EntryNotFound")
                else:
                    self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                    self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data or b"")

            def _send(self, status: int, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
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

    def about(self, repo: str, rest: list[str]) -> Any:
        """What is said of a dataset: its names, or its tree; None of one that is not here."""
        files = self.files.get(repo)
        if files is None:
            return None
        if rest[:1] == ["tree"]:
            return [
                {"type": "file", "path": name, "size": len(data), "oid": "b" * 40}
                for name, data in files.items()
                if name.startswith("/".join(rest[2:]))
            ]
        if rest[:1] not in ([], ["revision"]):
            return None
        names = [{"rfilename": name} for name in files]
        return {"id": repo, "sha": COMMIT, "private": False, "tags": [], "siblings": names}

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
            oid = COMMIT
            return {"commitOid": oid, "commitUrl": f"{self.url}/datasets/{repo}/commit/{oid}"}
        # The card's metadata are in order.
        return {"errors": [], "warnings": []}
