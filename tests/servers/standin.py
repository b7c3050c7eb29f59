"""Stands in for `vllm serve`: the same command line and key, answers at once, and a process of its
own, as vLLM has.

It leaves a temporary file, and answers with the folder that it serves and the prompt. A file beside
the folder's own says how it fails: `dies` (with its text), `hangs`, `stubborn` (SIGTERM is
ignored); in a folder of other weights, `torn` (it does not take them).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

SLEEP = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder = ""
    count = 0
    updates: ClassVar[list[str]] = []
    """The steps of the update in progress."""

    def do_GET(self) -> None:
        known = self.path == "/health" or self._key_is_right()
        self._send(200 if known else 401, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._key_is_right():
            self._send(401, {"error": {"message": "wrong key"}})
            return
        if self.path.count("/") == 1:
            self._update(self.path.strip("/"), body)
            return
        text = f"{self.folder} {body['messages'][-1]['content']}"
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        choice["message"] = {"role": "assistant", "content": text}
        if "logprob_token_ids" in body:
            count = len(body["logprob_token_ids"])
            tops = [{"token": word, "logprob": -count} for word in ("Yes", "No")]
            choice["logprobs"] = {"content": [{**tops[0], "top_logprobs": tops}]}
        Handler.count += 1
        usage = {"prompt_tokens": 3, "completion_tokens": 5}
        self._send(200, {"id": f"a{Handler.count}", "choices": [choice], "usage": usage})

    def _update(self, step: str, body: dict[str, Any]) -> None:
        """Weights in place, in the order that vLLM wants."""
        order = ["start_weight_update", "update_weights", "finish_weight_update"]
        order.append("reset_prefix_cache")
        self.updates.append(step)
        expected = order[: len(self.updates)] == self.updates
        if step == "update_weights":
            folder = Path(body["update_info"]["folder"])
            expected = expected and not (folder / "torn").exists()
            Handler.folder = folder.name if expected else self.folder
        if self.updates == order:
            self.updates.clear()
        self._send(200 if expected else 500, {"success": True})

    def _key_is_right(self) -> bool:
        return self.headers["authorization"] == f"Bearer {os.environ['VLLM_API_KEY']}"

    def _send(self, status: int, reply: dict[str, Any]) -> None:
        payload = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main(folder: Path, port: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", SLEEP])
    with tempfile.NamedTemporaryFile(delete=False) as left:
        print(f"pids {os.getpid()} {child.pid}\nleft {left.name}", flush=True)
    if (folder / "dies").exists():
        sys.exit((folder / "dies").read_text())
    if (folder / "stubborn").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if (folder / "hangs").exists():
        time.sleep(600)
    Handler.folder = folder.name
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    given = {key: sys.argv[sys.argv.index(key) + 1] for key in ("--model", "--port")}
    main(Path(given["--model"]), int(given["--port"]))
