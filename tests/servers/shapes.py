"""What real servers send besides good answers: whole HTTP answers made from the right reply.

`SHAPES` are of calls that fail, or are answered oddly, in one of the ways that were met.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import cache
from typing import Any

from tests.servers.scripted import ScriptedServer, http, prompt_text

Reply = dict[str, Any]
Shape = Callable[[Reply], bytes]
"""From the right reply to the bytes that are sent in its place."""

ODD = "ZEBRA"
"""A prompt with this word is answered oddly."""


def sent(value: Any, status: int = 200, headers: str = "") -> bytes:
    """A JSON value as an HTTP answer. NaN and infinities are written as Python does."""
    return http(status, json.dumps(value).encode(), headers)


def error(status: int, headers: str = "", **fields: Any) -> Shape:
    """An error with this status and these fields."""
    return lambda reply: sent({"error": fields}, status, headers)


def body(**fields: Any) -> Shape:
    """A body with status 200 that has these fields alone."""
    return lambda reply: sent(fields)


def text(payload: str, kind: str = "text/html") -> Shape:
    """A body with status 200 that is no JSON."""
    return lambda reply: http(200, payload.encode(), kind=kind)


def usage(value: Any) -> Shape:
    """The right reply with another usage."""
    return lambda reply: sent(reply | {"usage": value})


def choice(**fields: Any) -> Shape:
    """The right reply whose choices have these fields; `message` ones are put into the message."""

    def shape(reply: Reply) -> bytes:
        changed = deepcopy(reply)
        for one in changed["choices"]:
            one["message"] = one["message"] | fields.get("message", {})
            one |= {key: value for key, value in fields.items() if key != "message"}
        return sent(changed)

    return shape


def tops(found: Any) -> Shape:
    """The right reply with these `top_logprobs` of the first token."""
    return choice(logprobs={"content": [{"token": "a", "logprob": -0.1, "top_logprobs": found}]})


def deep(reply: Reply) -> bytes:
    """JSON nested a hundred thousand deep."""
    return http(200, b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@cache
def _packed() -> bytes:
    return gzip.compress(b" " * 20_000_000)


def bomb(reply: Reply) -> bytes:
    """Twenty kilobytes that unpack to twenty megabytes."""
    return http(200, _packed(), "content-encoding: gzip\r\n")


def no_http(reply: Reply) -> bytes:
    """A reply of another protocol."""
    return b"220 mail.example.org ESMTP ready\r\n\r\n"


NOT_HERE = {"message": "No endpoints found right now", "code": 404}
FLAGGED = {
    "message": "mm requires moderation. Your input was flagged",
    "code": 403,
    "metadata": {"reasons": ["violence"], "flagged_input": "..."},
}
REPLACING: Mapping[str, Shape] = {
    "429 in a 200": body(choices=None, error={"message": "Too Many Requests", "code": 429}),
    "page": text("<html><title>Sign in</title></html>"),
    "event stream": text('data: {"choices": []}\n\ndata: [DONE]\n', "text/event-stream"),
    "deep": deep,
    "bomb": bomb,
    "no HTTP": no_http,
    "empty": text("", "application/json"),
    "flagged": error(403, **FLAGGED),
    "not here now": error(404, **NOT_HERE),
    "no choices": body(choices=None),
    "unexpected endpoint": body(error="Unexpected endpoint or method. (POST /chat/completions)"),
    "typographic quotes": text("{\u201cchoices\u201d: []}", "application/json"),
    "too long": error(400, message="This model's maximum context length is 8192 tokens."),
}
"""Shapes that come in place of an answer."""
CHANGING: Mapping[str, Shape] = {
    "finish reason error": choice(
        finish_reason="error", error={"code": 502, "message": "Upstream died"}
    ),
    "null content": choice(message={"content": None}, finish_reason="stop", logprobs=None),
    "usage of strings": usage({"prompt_tokens": "7", "completion_tokens": "many"}),
    "usage of lists": usage({"prompt_tokens": [7], "completion_tokens": [8]}),
    "usage of nulls": usage({"prompt_tokens": None, "completion_tokens": None}),
    "negative usage": usage({"prompt_tokens": -7, "completion_tokens": -8}),
    "details a list": usage(
        {"prompt_tokens": 7, "completion_tokens": 8, "prompt_tokens_details": [1]}
    ),
    "no usage": usage(None),
    "usage NaN": usage({"prompt_tokens": float("nan"), "completion_tokens": 3}),
    "usage infinite": usage({"prompt_tokens": float("inf"), "completion_tokens": 3}),
    "usage absurd": usage({"prompt_tokens": 10**30, "completion_tokens": 3}),
    "null log-prob": tops([{"token": "Yes", "logprob": None}]),
    "null top": tops([None]),
    "log-probs a list": choice(logprobs=[]),
    "top without token": tops([{"logprob": -0.1}]),
    "probabilities": tops([{"token": "Yes", "logprob": 0.9}, {"token": "No", "logprob": 0.1}]),
    "thinking first": tops([{"token": "<think>", "logprob": -0.001}]),
    "cut while thinking": choice(
        message={"content": "", "reasoning_content": "First, I compare"},
        finish_reason="length",
        logprobs=None,
    ),
    "token ids": tops([{"token": "token_id:16", "logprob": -0.1}]),
    "withheld": choice(message={"content": ""}, finish_reason="content_filter", logprobs=None),
}
"""Shapes of a right answer with something odd in it."""
SHAPES: Mapping[str, Shape] = {**REPLACING, **CHANGING}
STOPPING: Mapping[str, Shape] = {
    "no key": body(error={"message": "No auth credentials found", "code": 401}),
    "no money": error(429, message="You have no quota left", type="insufficient_quota", code=None),
    "a day": error(429, "retry-after: 86400\r\n", message="Daily limit reached"),
}
"""Shapes that stop a step at any time; what is there is kept."""


class ShapedServer(ScriptedServer):
    """Answers as `shape` says those calls that have ODD in them, or all of them."""

    def __init__(self, **keys: Any):
        super().__init__(lambda b, i: self.text, context=100_000, **keys)
        self.text = "Rating: 4"
        self.set(None)

    def set(
        self,
        shape: Shape | None,
        every: bool = False,
        times: int = 1 << 30,
        when: Callable[[Reply], bool] = lambda asked: True,
    ) -> None:
        """Answer as `shape` says from here on: `every` call or the odd ones, `times` of them at
        most, and where `when` says so of the call's body."""
        self.shape, self.every, self.times, self.when = shape, every, times, when
        self.calls = 0
        self.asked.clear()

    def respond(self, path: str, key: str, body: dict[str, Any]) -> Any:
        status, reply = super().respond(path, key, body)
        meant = self.every or ODD in prompt_text(body)
        if self.shape is None or not meant or self.times <= 0 or not self.when(body):
            return status, reply
        self.times -= 1
        return status, self.shape(reply)
