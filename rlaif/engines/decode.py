"""What a server sent, part by part into types: envelope, choices, log-probs, usage. Pure functions.

Servers differ, and some are wrong. What is absent, or of a kind that says nothing, is absent here
too; what no server can mean is `Malformed`: no answer, and nothing that is kept.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from rlaif.config import Price

MOST_TOKENS = 100_000_000
"""More tokens than any call can read or write."""
LEAST_LOG_PROB = -9999.0
"""Stands for minus infinity, which JSON cannot write."""
WORDS_LENGTH = 500
EXCERPT_LENGTH = 200


class Malformed(Exception):
    """An answer that is no answer: not JSON, cut short, or saying what cannot be."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a server counts and bills. `cached` input tokens are among `input`."""

    input: int
    output: int
    cached: int = 0

    def cost(self, price: Price | None) -> float:
        """Money in the price's currency; 0 without a price."""
        if price is None:
            return 0.0
        cached = price.input if price.cached_input is None else price.cached_input
        whole = (self.input - self.cached) * price.input + self.cached * cached
        return (whole + self.output * price.output) / 1e6


@dataclass(frozen=True, slots=True)
class ServerError:
    """An error in the server's words. `status` is that of HTTP or, in a body that came with 200,
    the one that the body names; None where it names none. `kinds` are the error's type and code in
    lower case; `flagged`: a moderation's metadata came with it."""

    status: int | None
    words: str
    kinds: frozenset[str] = frozenset()
    flagged: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice. `text` is None where there is none, which is not the empty text of a model that
    ends at once.

    `tops` are the likeliest first tokens with their natural log-probs: None where the server gave
    no log-probs, empty where it gave what cannot be read. `error` is why the choice is no answer.
    """

    index: int
    text: str | None
    finish: str | None
    reasoning: str = ""
    refusal: str | None = None
    tops: tuple[tuple[str, float], ...] | None = None
    error: ServerError | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The choices by their index, at least one, and what was counted; None where nobody did."""

    choices: tuple[Choice, ...]
    usage: Usage | None


def decode_answer(text: str) -> Answer | ServerError:
    """What a body that came with status 200 says. Raises Malformed."""
    data = _object(text)
    error = _error_in_answer(data)
    return Answer(_choices(data), _usage(data.get("usage"))) if error is None else error


def decode_stored(data: Any) -> Answer | None:
    """An answer that was kept, as `encode_answer` or an earlier version wrote it; None for what is
    no answer. What was counted impossibly then was not counted."""
    try:
        choices = _choices(data if isinstance(data, dict) else {})
    except Malformed:
        return None
    if any(c.error is not None or is_silent(c) for c in choices):
        return None
    try:
        return Answer(choices, _usage(data.get("usage")))
    except Malformed:
        return Answer(choices, None)


def encode_answer(answer: Answer) -> dict[str, Any]:
    """What is kept of an answer, in the wire's own form."""
    usage = answer.usage
    counted = usage and {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }
    return {"choices": [_encoded(choice) for choice in answer.choices], "usage": counted}


def is_silent(choice: Choice) -> bool:
    """Whether a choice has nothing that was asked for, and nothing that says why."""
    stated = choice.refusal or choice.finish not in (None, "", "stop")
    return choice.text is None and not choice.tops and not stated


def decode_error(status: int, text: str) -> ServerError:
    """The error of an answer with another status than 200, whose body is `text`."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = text
    return _error(body, status)


def excerpt(text: str) -> str:
    """The beginning of a text in one line."""
    return " ".join(clean(text[: 2 * EXCERPT_LENGTH]).split())[:EXCERPT_LENGTH]


def clean(text: str) -> str:
    """`text` without half surrogate pairs, which JSON can escape and no file can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except RecursionError:
        raise Malformed("the answer is nested too deeply") from None
    except ValueError:
        what = "is an event stream and not" if text.lstrip().startswith("data:") else "is not"
        raise Malformed(f"the answer {what} JSON: {excerpt(text) or 'it is empty'}") from None
    if not isinstance(data, dict):
        raise Malformed(f"the answer is no JSON object: {excerpt(text)}")
    return data


def _choices(data: dict[str, Any]) -> tuple[Choice, ...]:
    found = data.get("choices")
    if not isinstance(found, list) or not found:
        raise Malformed(f"the answer has no choices (it has {', '.join(sorted(data)[:8]) or '-'})")
    choices = [_choice(choice, place) for place, choice in enumerate(found)]
    return tuple(sorted(choices, key=lambda choice: choice.index))


def _choice(data: Any, place: int) -> Choice:
    if not isinstance(data, dict):
        raise Malformed("a choice of the answer is no object")
    message = data.get("message")
    if isinstance(message, dict):
        content = message.get("content")
    elif "text" in data and message is None:
        message, content = data, data["text"]
    else:
        raise Malformed("a choice of the answer has no message and no text")
    if content is not None and not isinstance(content, str | list):
        raise Malformed("the content of an answer is neither a text nor parts of one")
    index, finish = data.get("index"), data.get("finish_reason")
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < MOST_TOKENS:
        index = place
    return Choice(
        index,
        _text(content),
        finish if isinstance(finish, str) else None,
        _first_text(message.get("reasoning_content"), message.get("reasoning")),
        _refusal(message, content),
        _tops(data.get("logprobs")),
        _choice_error(data.get("error"), finish),
    )


def _text(content: str | list[Any] | None) -> str | None:
    """A text, the text parts joined where it came in parts."""
    if isinstance(content, list):
        parts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") == "text"]
        texts = [part for part in parts if isinstance(part, str)]
        return clean("".join(texts)) if texts else None
    return None if content is None else clean(content)


def _refusal(message: dict[str, Any], content: Any) -> str | None:
    """What the server set apart as a refusal."""
    parts = content if isinstance(content, list) else []
    apart = [part.get("refusal") for part in parts if isinstance(part, dict)]
    return _first_text(message.get("refusal"), *apart) or None


def _first_text(*values: Any) -> str:
    return clean(next((v for v in values if isinstance(v, str) and v), ""))


def _choice_error(error: Any, finish: Any) -> ServerError | None:
    if error:
        return _error(error, None)
    return ServerError(None, "finish reason error") if finish == "error" else None


def _tops(logprobs: Any) -> tuple[tuple[str, float], ...] | None:
    if logprobs is None:
        return None
    if not isinstance(logprobs, dict):
        return ()
    content, rows = logprobs.get("content"), logprobs.get("top_logprobs")
    if isinstance(content, list) and content:
        found = content[0].get("top_logprobs") if isinstance(content[0], dict) else None
    else:
        found = rows[0] if isinstance(rows, list) and rows else None
    if isinstance(found, dict):
        pairs = list(found.items())
    elif isinstance(found, list):
        pairs = [(e.get("token"), e.get("logprob")) if isinstance(e, dict) else e for e in found]
    else:
        return ()
    # With one that cannot be read the others are no distribution: all are absent.
    read = [_top(pair) for pair in pairs]
    return () if None in read else tuple(top for top in read if top is not None)


def _top(pair: Any) -> tuple[str, float] | None:
    if not isinstance(pair, tuple) or not isinstance(pair[0], str):
        return None
    value = _number(pair[1])
    return None if value is None or math.isnan(value) else (pair[0], max(value, LEAST_LOG_PROB))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _usage(data: Any) -> Usage | None:
    """What was counted, where it was counted as tokens are. Raises Malformed for numbers that are
    none, or more than there can be."""
    if not isinstance(data, dict):
        return None
    read, made = _count(data.get("prompt_tokens")), _count(data.get("completion_tokens"))
    details = data.get("prompt_tokens_details") or {}
    if read is None or made is None or not isinstance(details, dict):
        return None
    cached = _count(details.get("cached_tokens"))
    return Usage(read, made, min(cached or 0, read))


def _count(value: Any) -> int | None:
    number = _number(value)
    if number is None:
        return None
    if not math.isfinite(number) or number > MOST_TOKENS:
        raise Malformed(f"the usage counts {number:g} tokens")
    return int(number) if number >= 0 and number == int(number) else None


def _encoded(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.refusal is not None:
        message["refusal"] = choice.refusal
    found: dict[str, Any] = {"index": choice.index, "message": message}
    found["finish_reason"] = choice.finish
    if choice.tops is not None:
        rows = [{"token": token, "logprob": value} for token, value in choice.tops]
        found["logprobs"] = {"content": [{"top_logprobs": rows}] if rows else []}
    return found


_STATUS_OF = {
    429: (
        "rate_limit",
        "ratelimit",
        "too_many_requests",
        "resource_exhausted",
        "insufficient_quota",
    ),
    503: ("overloaded", "unavailable"),
    500: ("server_error", "internal", "api_error"),
    408: ("timeout", "deadline_exceeded"),
    404: ("not_found", "notfound"),
    401: ("authentication", "invalid_api_key", "unauthenticated", "unauthorized"),
    402: ("payment", "billing"),
    403: ("permission", "forbidden", "moderation"),
    400: ("invalid_request", "badrequest", "bad_request", "invalid_argument", "context_length"),
}
"""The status that a part of an error's type or code stands for, the first that is found."""
_STATUS_SAID = {
    429: ("too many requests", "rate limit"),
    404: ("unexpected endpoint", "unknown endpoint", "no route"),
    401: ("invalid api key", "incorrect api key", "no auth credentials", "unauthorized"),
}
"""The status that words stand for, where a body has no type or code."""
_SAYING = ("message", "detail", "error", "msg", "description", "title", "errors")
_NUMBERED = ("code", "status", "status_code", "http_status", "error_code")
_FLAGGING = (
    *("moderation", "flagged", "content policy", "content_policy", "content management policy"),
    *("content_filter", "safety system"),
)


def _error_in_answer(data: dict[str, Any]) -> ServerError | None:
    """The error in a body that came with status 200."""
    error = data.get("error")
    if error:
        return _error(error, None, data)
    if data.get("choices"):
        return None
    if any(isinstance(data.get(key), str | dict | list) and data[key] for key in _SAYING):
        return _error(data, None)
    return None


def _error(error: Any, status: int | None, around: dict[str, Any] | None = None) -> ServerError:
    inner = error.get("error") if isinstance(error, dict) else None
    if isinstance(inner, dict) and inner:
        return _error(inner, status, error)
    places = [place for place in (error, around) if isinstance(place, dict)]
    named = [place.get(key) for place in places for key in (*_NUMBERED, "type", "reason")]
    kinds = frozenset(name.lower() for name in named if isinstance(name, str))
    words = _words(error)
    metadata = error.get("metadata") if isinstance(error, dict) else None
    flagged = isinstance(metadata, dict) and any(
        k in metadata for k in ("flagged_input", "reasons")
    )
    said = " ".join([words.lower(), *kinds])
    flagged = flagged or any(word in said for word in _FLAGGING)
    return ServerError(status or _status(named, kinds, words), words, kinds, flagged)


def _status(named: list[Any], kinds: frozenset[str], words: str) -> int | None:
    numbers = [_code(value) for value in named]
    found = next((number for number in numbers if number is not None), None)
    plain = [kind.replace("-", "_").replace(" ", "_") for kind in sorted(kinds)]
    for status, parts in _STATUS_OF.items():
        if found is None and any(part in kind for kind in plain for part in parts):
            found = status
    for status, parts in _STATUS_SAID.items():
        if found is None and any(part in words.lower() for part in parts):
            found = status
    return found


def _code(value: Any) -> int | None:
    """A status that a body names, as a number or as its digits."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 3:
        value = int(value)
    known = isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600
    return value if known else None


def _words(error: Any, depth: int = 0) -> str:
    """What an error says, in one line of bounded length."""
    found = ""
    if isinstance(error, str):
        found = error
    elif isinstance(error, list) and depth < 3:
        found = "; ".join(filter(None, (_words(part, depth + 1) for part in error[:3])))
    elif isinstance(error, dict) and depth < 3:
        said = (_words(error.get(key), depth + 1) for key in _SAYING)
        found = next((text for text in said if text), "")
        metadata = error.get("metadata")
        raw = metadata.get("raw") if isinstance(metadata, dict) else None
        found += f" ({raw})" if isinstance(raw, str) and raw else ""
    if not found and depth == 0:
        found = _shown(error)
    return " ".join(clean(found[: 4 * WORDS_LENGTH]).split())[:WORDS_LENGTH]


def _shown(error: Any) -> str:
    try:
        return json.dumps(error)
    except (RecursionError, ValueError):
        return "(no words)"
