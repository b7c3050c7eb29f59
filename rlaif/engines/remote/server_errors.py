"""The errors of servers, in whatever shape they send them: their words, and the status that they
name. Pure functions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

WORDS_LENGTH = 500


@dataclass(frozen=True, slots=True)
class ServerError:
    """An error in the server's words. `status` is that of HTTP or, in a body that came with 200,
    the one that the body names; None where it names none. `kinds` are the error's type and code in
    lower case; `flagged`: a moderation's metadata came with it."""

    status: int | None
    words: str
    kinds: frozenset[str] = frozenset()
    flagged: bool = False


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
    401: (
        *("invalid api key", "incorrect api key", "no auth credentials", "unauthorized"),
        *("authentication error", "authentication failed", "api key not valid"),
    ),
}
"""The status that words stand for, where a body has no type or code."""
_SAYING = ("message", "detail", "error", "msg", "description", "title", "errors")
_NUMBERED = ("code", "status", "status_code", "http_status", "error_code")
_FLAGGING = (
    *("moderation", "flagged", "content policy", "content_policy", "content management policy"),
    *("content_filter", "safety system"),
)


def decode_error(status: int, text: str) -> ServerError:
    """The error of an answer with another status than 200, whose body is `text`."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = text
    return error_of(body, status)


def clean(text: str) -> str:
    """`text` without half surrogate pairs, which JSON can escape and no file can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def error_in_answer(data: dict[str, Any]) -> ServerError | None:
    """The error in a body that came with status 200."""
    error = data.get("error")
    if error:
        return error_of(error, None, data)
    if data.get("choices"):
        return None
    if any(isinstance(data.get(key), str | dict | list) and data[key] for key in _SAYING):
        return error_of(data, None)
    return None


def error_of(error: Any, status: int | None, around: dict[str, Any] | None = None) -> ServerError:
    """The error in a body, or in the part of it that is one, which came with this status, and where
    that is None with 200. `around` is what it stood in."""
    inner = error.get("error") if isinstance(error, dict) else None
    if isinstance(inner, dict) and inner:
        return error_of(inner, status, error)
    places = [place for place in (error, around) if isinstance(place, dict)]
    named = [place.get(key) for place in places for key in (*_NUMBERED, "type", "reason")]
    kinds = frozenset(name.lower() for name in named if isinstance(name, str))
    words = _summarise_error(error)
    metadata = error.get("metadata") if isinstance(error, dict) else None
    flagged = isinstance(metadata, dict) and any(
        k in metadata for k in ("flagged_input", "reasons")
    )
    said = " ".join([words.lower(), *kinds])
    flagged = flagged or any(word in said for word in _FLAGGING)
    return ServerError(status or _find_status(named, kinds, words), words, kinds, flagged)


def _find_status(named: list[Any], kinds: frozenset[str], words: str) -> int | None:
    numbers = [_read_status(value) for value in named]
    found = next((number for number in numbers if number is not None), None)
    plain = [kind.replace("-", "_").replace(" ", "_") for kind in sorted(kinds)]
    for status, parts in _STATUS_OF.items():
        if found is None and any(part in kind for kind in plain for part in parts):
            found = status
    for status, parts in _STATUS_SAID.items():
        if found is None and any(part in words.lower() for part in parts):
            found = status
    return found


def _read_status(value: Any) -> int | None:
    """A status that a body names, as a number or as its digits."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 3:
        value = int(value)
    known = isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600
    return value if known else None


def _summarise_error(error: Any, depth: int = 0) -> str:
    """What an error says, in one line of bounded length."""
    found = ""
    if isinstance(error, str):
        found = error
    elif isinstance(error, list) and depth < 3:
        found = "; ".join(filter(None, (_summarise_error(part, depth + 1) for part in error[:3])))
    elif isinstance(error, dict) and depth < 3:
        said = (_summarise_error(error.get(key), depth + 1) for key in _SAYING)
        found = next((text for text in said if text), "")
        where = error.get("loc")
        if found and isinstance(where, list):
            # pydantic's, as FastAPI sends them.
            found = f"{'.'.join(str(part) for part in where[1:4] or where)}: {found}"
        metadata = error.get("metadata")
        raw = metadata.get("raw") if isinstance(metadata, dict) else None
        found += f" ({raw})" if isinstance(raw, str) and raw else ""
    if not found and depth == 0:
        found = _dump_error(error)
    return " ".join(clean(found[: 4 * WORDS_LENGTH]).split())[:WORDS_LENGTH]


def _dump_error(error: Any) -> str:
    try:
        return json.dumps(error)
    except (RecursionError, ValueError):
        return "(no words)"
