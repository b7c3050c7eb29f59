"""A reward model behind HTTP: OpenRLHF's `/get_reward`, an OpenAI-style chat endpoint that answers
with the reward, `/health` and `/metrics`.

Requests that come while a batch is computed wait and are computed together.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import perf_counter, time
from typing import Any

from rlaif.engines.base import RewardResult
from rlaif.engines.reward import RewardEngine
from rlaif.errors import EngineError, RlaifError
from rlaif.records import Message, content_hash

MOST_BYTES = 64 * 1024 * 1024
Row = tuple[list[int], int]
"""Token ids of prompt and answer, and how many are the prompt's."""


class BadRequest(RlaifError):
    """What a client sent cannot be scored; the message says why."""


@dataclass
class _Job:
    rows: Sequence[Row]
    done: threading.Event = field(default_factory=threading.Event)
    results: list[RewardResult] = field(default_factory=list)
    error: str | None = None


@dataclass
class Counts:
    """What the server did, as `/metrics` says it."""

    requests: int = 0
    refused: int = 0
    answers: int = 0
    batches: int = 0
    seconds: float = 0.0

    def text(self) -> str:
        """The counts in Prometheus' text format."""
        about = {
            "requests": "HTTP requests for rewards.",
            "refused": "Requests that could not be answered.",
            "answers": "Answers scored.",
            "batches": "Batches computed.",
            "seconds": "Seconds of computing.",
        }
        lines = []
        for name, said in about.items():
            full = f"rlaif_reward_{name}_total"
            lines += [f"# HELP {full} {said}", f"# TYPE {full} counter"]
            lines.append(f"{full} {getattr(self, name)}")
        return "\n".join(lines) + "\n"


class RewardService:
    """One reward model, asked by many threads and computed by one."""

    def __init__(self, engine: RewardEngine):
        self.engine = engine
        self.counts = Counts()
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    @property
    def healthy(self) -> bool:
        """Whether the thread that computes is alive."""
        return self._worker.is_alive()

    def close(self) -> None:
        """Answer what was asked, then stop."""
        self._jobs.put(None)
        self._worker.join()
        self.engine.close()

    def text_rows(self, texts: Sequence[str], prompts: Sequence[str] | None) -> list[Row]:
        """Rendered texts of prompt and answer, as trainers hold them. Raises BadRequest."""
        if prompts is None and self.engine.reads_prompt:
            raise BadRequest("this model's gate looks at the prompt: send `prompts` as well")
        given = prompts if prompts is not None else [""] * len(texts)
        if len(given) != len(texts):
            raise BadRequest(f"{len(texts)} texts in `query` and {len(given)} in `prompts`")
        rows = []
        for text, prompt in zip(texts, given, strict=True):
            if not text.startswith(prompt):
                raise BadRequest("a text of `query` does not begin with its text in `prompts`")
            row = self.engine.text_row(text, prompt)
            if not row[0]:
                raise BadRequest("a text of `query` is empty")
            rows.append(row)
        return rows

    def chat_row(self, messages: list[Message]) -> Row:
        """A conversation that ends with the answer. Raises BadRequest."""
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise BadRequest("`messages` must end with the assistant's turn that is to be scored")
        try:
            return self.engine.rendered(messages)[1:]
        except EngineError as error:
            raise BadRequest(str(error)) from None

    def rewards(self, rows: Sequence[Row]) -> list[RewardResult]:
        """The rows' rewards, in their order. Raises BadRequest where one is too long."""
        job = _Job(rows)
        self._jobs.put(job)
        job.done.wait()
        if job.error is not None:
            raise RlaifError(job.error)
        for result in job.results:
            if result.reward is None:
                raise BadRequest(result.error or "an answer could not be scored")
        return job.results

    def count(self, **more: int) -> None:
        """Add to the counts."""
        with self._lock:
            for name, value in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + value)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs, last = [job], False
            while not self._jobs.empty():
                following = self._jobs.get()
                if following is None:
                    last = True
                    break
                jobs.append(following)
            self._compute(jobs)
            if last:
                return

    def _compute(self, jobs: Sequence[_Job]) -> None:
        rows = {f"{i}/{k}": row for i, job in enumerate(jobs) for k, row in enumerate(job.rows)}
        began = perf_counter()
        try:
            found = {r.request_id: r for batch in self.engine.reward_ids(rows) for r in batch}
            for i, job in enumerate(jobs):
                job.results = [found[f"{i}/{k}"] for k in range(len(job.rows))]
        except Exception as error:
            # One batch too large for the memory must not end the server, nor leave anyone waiting.
            for job in jobs:
                job.error = f"the batch could not be computed: {error}"
        with self._lock:
            self.counts.batches += 1
            self.counts.answers += len(rows)
            self.counts.seconds += perf_counter() - began
        for job in jobs:
            job.done.set()


def reply(service: RewardService, path: str, body: Any) -> dict[str, Any] | None:
    """What a POST to `path` is answered, None where there is no such path. Raises BadRequest."""
    if not isinstance(body, dict):
        raise BadRequest("a JSON object was expected")
    if path == "/v1/chat/completions":
        return _chat(service, body)
    return _rewards(service, body) if path == "/get_reward" else None


def _rewards(service: RewardService, body: Mapping[str, Any]) -> dict[str, Any]:
    """OpenRLHF's form, and conversations in `messages` in place of rendered texts."""
    if "messages" in body:
        given = body["messages"]
        if not isinstance(given, list):
            raise BadRequest("`messages` must be a list of conversations")
        rows = [service.chat_row(_turns(messages)) for messages in given]
    else:
        texts, prompts = body.get("query"), body.get("prompts")
        if not _texts(texts) or not (prompts is None or _texts(prompts)):
            raise BadRequest('{"query": [texts]} was expected, and "prompts" as a list of texts')
        rows = service.text_rows(texts, prompts)  # type: ignore[arg-type]
    found = service.rewards(rows) if rows else []
    rewards = [r.reward for r in found]
    # OpenRLHF reads all three names; `scores` filter prompts, `extra_logs` are plotted.
    names = list(found[0].parts) if found else []
    logs = {name: [r.parts[name] for r in found] for name in names}
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs}


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _turns(value: Any) -> list[Message]:
    fits = isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in value
    )
    if not fits:
        raise BadRequest("`messages` must be a list of turns with role and content as text")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _chat(service: RewardService, body: Mapping[str, Any]) -> dict[str, Any]:
    messages = _turns(body.get("messages"))
    row = service.chat_row(messages)
    (found,) = service.rewards([row])
    content = json.dumps({"reward": found.reward, **found.parts})
    count = len(row[0])
    return {
        "id": "reward-" + content_hash(messages),
        "object": "chat.completion",
        "created": int(time()),
        "model": service.engine.name,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count},
    }


def make_server(service: RewardService, host: str, port: int) -> ThreadingHTTPServer:
    """A server for the service; port 0 takes a free one. Nothing runs until `serve_forever`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/health":
                self._send(200 if service.healthy else 503, {"healthy": service.healthy})
            elif self.path == "/metrics":
                self._write(200, service.counts.text(), "text/plain; version=0.0.4")
            elif self.path == "/v1/models":
                model = {"id": service.engine.name, "object": "model", "owned_by": "rlaif"}
                self._send(200, {"object": "list", "data": [model]})
            else:
                self._send(404, _error(f"no such path: {self.path}"))

        def do_POST(self) -> None:
            service.count(requests=1)
            status, answer = self._answer()
            if status != 200:
                service.count(refused=1)
            self._send(status, answer)

        def _answer(self) -> tuple[int, dict[str, Any]]:
            try:
                length = int(self.headers.get("Content-Length") or 0)
                if not 0 < length <= MOST_BYTES:
                    # What follows on this connection cannot be told from the body.
                    self.close_connection = True
                    return 413, _error(f"a body of 1 to {MOST_BYTES} bytes was expected")
                answer = reply(service, self.path, json.loads(self.rfile.read(length)))
                missing = _error(f"no such path: {self.path}")
                return (404, missing) if answer is None else (200, answer)
            except (BadRequest, ValueError) as error:
                return 400, _error(str(error))
            except RlaifError as error:
                return 500, _error(str(error))

        def _send(self, status: int, answer: Mapping[str, Any]) -> None:
            self._write(status, json.dumps(answer), "application/json")

        def _write(self, status: int, text: str, kind: str) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the metrics count requests."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    return server


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}
