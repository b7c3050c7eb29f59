"""A small OpenAI-compatible server on a real socket, which answers as told and counts its calls.

    python tests/servers/scripted.py [--latency SECONDS] [--context TOKENS]

It prints its base URL and runs on.

Chat and plain completions, `n`, seeds, stop strings, token limits, log-probs, JSON schema, a
context limit, and keys. A token is a word with the space before it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

WORDS = ["red", "né", "blue", "日本", "green", "🙂", "stone", "river", "seven", "lamp"]
CONTEXT = 200
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Busy"}

Answer = Callable[[dict[str, Any], int], str]
"""From the request's body and the number of the choice to the text, before limits."""


def seeded_words(body: dict[str, Any], choice: int) -> str:
    """Forty words that the prompt and the seed decide; the prompt alone when greedy."""
    greedy = body.get("temperature") == 0
    # A server that is given no seed draws one.
    seed = body.get("seed", random.random())
    key = [prompt_text(body), None if greedy else [seed, choice]]
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return " ".join(WORDS[digest[i % 32] % len(WORDS)] for i in range(40))


def prompt_text(body: dict[str, Any]) -> str:
    """The prompt of either kind of request."""
    if "prompt" in body:
        return str(body["prompt"])
    return "\n".join(m["content"] or "" for m in body["messages"])


def tokens_of(text: str) -> list[str]:
    """Words, each with the space before it."""
    return [word if i == 0 else f" {word}" for i, word in enumerate(text.split(" "))]


class ScriptedServer:
    """The server in a thread of its own, from `with` to the end of it.

    `asked` are the bodies in the order of arrival, `answered` how often each was answered.
    """

    def __init__(
        self,
        answer: Answer = seeded_words,
        latency: float = 0.0,
        key: str | None = None,
        tops: dict[str, float] | None = None,
        changes: dict[str, Any] | None = None,
        keep: bool = True,
        context: int = CONTEXT,
        headers: str = "",
    ):
        self.answer = answer
        self.latency = latency
        self.key = key
        self.tops = tops
        self.changes = changes or {}
        self.keep = keep
        self.context = context
        self.headers = headers
        self.asked: list[dict[str, Any]] = []
        self.answered: Counter[str] = Counter()
        self.open = self.most_open = self.calls = 0
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.start(), self._loop).result()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def start(self) -> None:
        """Listen on a free loopback port; sets `url`."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"

    def respond(self, path: str, key: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON of one request; bytes are sent as they are, head and all."""
        if self.key is not None and key != f"Bearer {self.key}":
            # Real servers put part of the key into this message, careless ones all of it.
            return 401, _error(f"Incorrect API key provided: {key}")
        if body.get("model") == "absent":
            return 404, _error("The model `absent` does not exist")
        text = prompt_text(body)
        if len(text.split()) + body.get("max_tokens", 0) > self.context:
            return 400, _error(f"This model's maximum context length is {self.context} tokens.")
        choices = [self._choice(path, body, i) for i in range(body.get("n", 1))]
        made = sum(len(tokens_of(c["_text"])) for c in choices)
        for choice in choices:
            del choice["_text"]
        prompt = len(text.split())
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
        }
        return 200, {
            "id": f"answer-{self.calls}",
            "object": "answer",
            "choices": choices,
            "usage": usage,
        } | (self.changes)

    def _choice(self, path: str, body: dict[str, Any], number: int) -> dict[str, Any]:
        text, reason = self.answer(body, number), "stop"
        for stop in body.get("stop") or []:
            text = text.split(stop)[0]
        tokens = tokens_of(text)
        if len(tokens) > body["max_tokens"]:
            text, reason = "".join(tokens[: body["max_tokens"]]), "length"
        chat = path.endswith("/chat/completions")
        content: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        )
        return content | {
            "index": number,
            "finish_reason": reason,
            "logprobs": self._logprobs(body, chat),
            "_text": text,
        }

    def _logprobs(self, body: dict[str, Any], chat: bool) -> dict[str, Any] | None:
        if self.tops is None or not body.get("logprobs"):
            return None
        limit = body["top_logprobs"] if chat else body["logprobs"]
        tops = dict(sorted(self.tops.items(), key=lambda item: -item[1])[:limit])
        if chat:
            rows = [{"token": t, "logprob": p} for t, p in tops.items()]
            return {"content": [rows[0] | {"top_logprobs": rows}]}
        return {"tokens": [next(iter(tops))], "top_logprobs": [tops]}


class _Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, one request after the other."""

    def __init__(self, server: ScriptedServer):
        self.server = server
        self.data = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.server.open += 1
        self.server.most_open = max(self.server.most_open, self.server.open)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.open -= 1

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, mark, rest = self.data.partition(b"\r\n\r\n")
        if not mark:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self.data = rest[length:]
        body = json.loads(rest[:length] or b"{}")
        self.server.calls += 1
        if self.server.keep:
            self.server.asked.append(body)
        status, reply = self.server.respond(
            first.split(" ")[1], headers.get("authorization", ""), body
        )
        sent = reply
        if not isinstance(reply, bytes):
            sent = http(status, json.dumps(reply).encode(), self.server.headers)
        name = json.dumps(body, sort_keys=True)
        asyncio.get_running_loop().call_later(self.server.latency, self._send, sent, name)

    def _send(self, payload: bytes, name: str) -> None:
        if not self.transport.is_closing():
            self.transport.write(payload)
            if self.server.keep:
                self.server.answered[name] += 1


def http(status: int, payload: bytes, headers: str = "", kind: str = "application/json") -> bytes:
    """A whole HTTP answer."""
    head = f"HTTP/1.1 {status} {REASONS.get(status, 'Odd')}\r\ncontent-type: {kind}\r\n"
    return f"{head}{headers}content-length: {len(payload)}\r\n\r\n".encode() + payload


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}


async def _serve(latency: float, context: int) -> None:
    tops = {"Yes": -0.3, "No": -1.5}
    server = ScriptedServer(latency=latency, tops=tops, keep=False, context=context)
    await server.start()
    print(server.url, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--context", type=int, default=CONTEXT)
    options = parser.parse_args()
    asyncio.run(_serve(options.latency, options.context))
