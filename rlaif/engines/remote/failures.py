"""What an error of a server means for the call and for all others. Pure functions.

A fault that may pass is asked again; a record that the server refuses fails alone; what no other
call would fare better with stops the step, with the server's words and what mends it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError
from rlaif.engines.remote.decode import Usage
from rlaif.engines.remote.server_errors import ServerError

KEPT = "What was answered is kept."
STOPPING = frozenset({401, 402})
"""Statuses after which no other call would fare better."""
ABSENT = frozenset({403, 404})
"""Statuses that stop before any answer has come, and are a record's own later on."""
AGAIN = frozenset({408, 409, 425, 429})
FLAGGED = frozenset({400, 403, 422, 451})
"""Statuses under which a moderation refuses a text."""
SCHEMA_STATUSES = frozenset({400, 404, 415, 422, 500, 501})
_SCHEMA = re.compile(
    r"response[_ ]?format|json[_ -]?(schema|mode|object|output)|schema|structured[_ ]?output"
    r"|grammar|guided|guidance|constrained|outlines",
    re.IGNORECASE,
)
_SYSTEM = re.compile(
    r"system (role|message|prompt|instruction)s?\b.*(not|n't|unsupported)"
    r"|(not|n't|unsupported|invalid|unknown).*\bsystem['\"`]? (role|message|prompt|instruction)"
    r"|roles? must alternate|alternate user|alternating|developer instruction is not enabled"
    r"|only ['\"`]?user['\"`]?,? (and |or )?['\"`]?(assistant|model)",
    re.IGNORECASE | re.DOTALL,
)
_REFUSING = re.compile(
    r"unsupported|not support|n't support|unrecognized|unknown|unexpected|not permitted|not allowed"
    r"|extra (inputs|fields|field)|only the default|deprecated|invalid|no such",
    re.IGNORECASE,
)
_MONEY = ("insufficient_quota", "billing_not_active", "billing_hard_limit_reached")


class Again(Exception):
    """An attempt that may fare better later. `billed`: the server may have done the work; `usage`
    is then what it counted. `status` is the permanent one that it ends with where it never does."""

    def __init__(
        self,
        cause: str,
        message: str,
        billed: bool = False,
        usage: Usage | None = None,
        status: int | None = None,
    ):
        super().__init__(message)
        self.cause = cause
        self.billed = billed
        self.usage = usage
        self.status = status


class Refused(Exception):
    """The server does not take this call, now or later. `status` is None where the refusal is of
    the call's own texts, and says nothing of other calls."""

    def __init__(self, message: str, status: int | None):
        super().__init__(message)
        self.status = status


class SchemaRefused(Exception):
    """The server does not take this call's JSON schema."""


def failure_of(
    error: ServerError, spec: ModelSpec, name: str, body: dict[str, Any], answered: bool
) -> Exception:
    """What an error means: Again, Refused, SchemaRefused, or EngineError where no other call would
    fare better. `body` is what was sent; `answered`: the server has answered calls before."""
    status = error.status
    said = f"status {status}: {error.words}" if status else f"the server says: {error.words}"
    if refuses_schema(error, body):
        return SchemaRefused(said)
    message = f"{said}{remedy(error, spec, body)}"
    flagged = status in FLAGGED and error.flagged
    if status in STOPPING or is_out_of_money(error):
        return _make_stop(spec, name, message)
    if status in ABSENT and not answered and not flagged:
        return _make_stop(spec, name, message)
    if status == 404:
        return Again("404", message, status=404)
    if status in (400, 422, 500) and _SYSTEM.search(error.words):
        # Some servers say with a 500 that the chat template raised.
        return Refused(message, status)
    if status is None or status in AGAIN or status >= 500:
        return Again(str(status or "error"), message)
    if "logprobs" in body and "logprob" in error.words:
        return EngineError(
            f"model {name}: {spec.base_url} gives no log-probs ({message}). Use a judge that "
            f"writes its verdict, or a smaller `top_logprobs`. {KEPT}"
        )
    return Refused(message, None if flagged else status)


def _make_stop(spec: ModelSpec, name: str, message: str) -> EngineError:
    key = f" Its key is taken from ${spec.key_env}." if spec.key_env else ""
    end = "" if message.endswith((".", "!", "?")) else "."
    return EngineError(f"model {name}: {spec.base_url} answers with {message}{end}{key} {KEPT}")


def refuses_schema(error: ServerError, body: dict[str, Any]) -> bool:
    """Whether a server that was sent a JSON schema does not take it."""
    known = error.status is None or error.status in SCHEMA_STATUSES
    return "response_format" in body and known and bool(_SCHEMA.search(error.words))


def is_out_of_money(error: ServerError) -> bool:
    """Whether the account has nothing left, which some servers say with a 429."""
    return any(kind in _MONEY for kind in error.kinds)


def remedy(error: ServerError, spec: ModelSpec, body: dict[str, Any]) -> str:
    """What mends a refusal, as the rest of the sentence; empty where it is not known."""
    advice = next(_list_advice(error, spec, body), None)
    return f" ({advice})" if advice else ""


def _list_advice(error: ServerError, spec: ModelSpec, body: dict[str, Any]) -> Iterator[str]:
    words = error.words
    if error.status in (404, 405) or "endpoint" in words.lower():
        path = urlsplit(spec.base_url or "").path.rstrip("/")
        if not re.search(r"/v\d", path):
            yield f"does `base_url` lack /v1 at its end? Try {(spec.base_url or '').rstrip('/')}/v1"
    if error.status is None or error.status >= 500 or error.status in (400, 422):
        if _SYSTEM.search(words):
            yield "set `system_role: merge` for this model, or `drop`"
        for key in ("max_completion_tokens", "max_tokens"):
            if key in words and key not in body and key != spec.max_tokens_key:
                yield f"set `max_tokens_key: {key}` for this model"
        if _REFUSING.search(words):
            yield from (_advise_without(key, spec) for key in body if _names_key(words, key))


def _advise_without(key: str, spec: ModelSpec) -> str:
    if key in ("continue_final_message", "add_generation_prompt"):
        return "set `prefill: false` for this model"
    if key in spec.extra_body:
        return f"take `{key}` out of `extra_body`"
    return f"set `extra_body: {{{key}: null}}` for this model"


def _names_key(words: str, key: str) -> bool:
    """Whether an error names a key of the body. A short or common word must stand in quotes."""
    if key in ("model", "messages", "prompt"):
        return False
    plain = len(key) > 4 or key == "seed"
    return bool(re.search(rf"\b{key}\b" if plain else rf"['\"`]{key}['\"`]", words))
