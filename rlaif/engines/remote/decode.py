"""What a server sent, part by part into types: envelope, choices, log-probs, usage. Pure functions.

Servers differ, and some are wrong. What is absent, or of a kind that says nothing, is absent here
too; what no server can mean is `Malformed`: no answer, and nothing that is kept.

Label probabilities are read from the likeliest first tokens that a server names, or there is a
reason why none are read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlaif.config.models import Price
from rlaif.core.chat import Declared, opens_thinking
from rlaif.engines.base import thinks_first
from rlaif.engines.remote.server_errors import ServerError, clean, error_in_answer, error_of

MOST_TOKENS = 100_000_000
"""More tokens than any call can read or write."""
LEAST_LOG_PROB = -9999.0
"""Stands for minus infinity, which JSON cannot write."""
EXCERPT_LENGTH = 200
_STREAM = ("data:", "event:", ":")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Where servers give the thinking apart."""
_ENDINGS = {
    "length": ("length", "max_tokens", "max_length", "model_length", "max_output_tokens"),
    "content_filter": (
        *("content_filter", "content_filtered", "safety", "recitation", "prohibited_content"),
        *("blocklist", "spii", "sensitive"),
    ),
    "error": (
        *("error", "abort", "aborted", "cancelled", "canceled", "timeout", "malformed_response"),
        *("insufficient_system_resource", "internal_error", "server_error"),
    ),
}
"""Finish reasons that say that an answer is none, or not all of one, by the word for them."""


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
    # A byte order mark, which JSON does not allow and some servers send.
    data = _parse_object(text.removeprefix("\ufeff"))
    error = error_in_answer(data)
    return Answer(_read_choices(data), _read_usage(data.get("usage"))) if error is None else error


def decode_stored(data: Any) -> Answer | None:
    """An answer that was kept, as `encode_answer` or an earlier version wrote it; None for what is
    no answer. What was counted impossibly then was not counted."""
    try:
        choices = _read_choices(data if isinstance(data, dict) else {})
    except Malformed:
        return None
    if any(c.error is not None or is_silent(c) for c in choices):
        return None
    try:
        return Answer(choices, _read_usage(data.get("usage")))
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
    return {"choices": [_encode_choice(choice) for choice in answer.choices], "usage": counted}


def is_silent(choice: Choice) -> bool:
    """Whether a choice has nothing that was asked for, and nothing that says why."""
    stated = choice.refusal or choice.finish not in (None, "", "stop")
    return choice.text is None and not choice.tops and not stated


def excerpt(text: str) -> str:
    """The beginning of a text in one line."""
    return " ".join(clean(text[: 2 * EXCERPT_LENGTH]).split())[:EXCERPT_LENGTH]


def _parse_object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except RecursionError:
        raise Malformed("the answer is nested too deeply") from None
    except ValueError:
        what = "is an event stream and not" if text.lstrip().startswith(_STREAM) else "is not"
        raise Malformed(f"the answer {what} JSON: {excerpt(text) or 'it is empty'}") from None
    if isinstance(data, list) and len(data) == 1 and isinstance(data[0], dict):
        # Some servers send an error, and no answer, in a list.
        data = {"error": data[0].get("error")}
    if not isinstance(data, dict) or data == {"error": None}:
        raise Malformed(f"the answer is no JSON object: {excerpt(text)}")
    return data


def _read_choices(data: dict[str, Any]) -> tuple[Choice, ...]:
    found = data.get("choices")
    if not isinstance(found, list) or not found:
        raise Malformed(f"the answer has no choices (it has {', '.join(sorted(data)[:8]) or '-'})")
    choices = [_read_choice(choice, place) for place, choice in enumerate(found)]
    return tuple(sorted(choices, key=lambda choice: choice.index))


def _read_choice(data: Any, place: int) -> Choice:
    if not isinstance(data, dict):
        raise Malformed("a choice of the answer is no object")
    message = data.get("message")
    if isinstance(message, dict):
        content = message.get("content")
    elif "text" in data and message is None:
        # The completions API has its text in the choice itself.
        message, content = data, data["text"]
    else:
        raise Malformed("a choice of the answer has no message and no text")
    if content is not None and not _is_content(content):
        raise Malformed("the content of an answer is neither a text nor parts of one")
    index, finish = data.get("index"), _read_finish(data.get("finish_reason"))
    # A bool is an int too.
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < MOST_TOKENS:
        index = place
    return Choice(
        index,
        _join_text(content),
        finish,
        _first_text(*(message.get(key) for key in _THOUGHTS), _join_thinking(content)),
        _read_refusal(message, content),
        _read_top_logprobs(data.get("logprobs")),
        _choice_error(data.get("error"), data.get("finish_reason")),
    )


def _join_text(content: str | list[Any] | None) -> str | None:
    """A text, the text parts joined where it came in parts."""
    if isinstance(content, list):
        # Parts of other types, such as thinking, are no text of the answer.
        parts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") == "text"]
        texts = [part for part in parts if isinstance(part, str)]
        return clean("".join(texts)) if texts else None
    return None if content is None else clean(content)


def _join_thinking(content: Any) -> str:
    """The thinking among the parts of a content."""
    found = content if isinstance(content, list) else []
    parts = (p for p in found if isinstance(p, dict) and p.get("type") == "thinking")
    texts = (part.get("thinking") for part in parts)
    return "".join(_join_text(text) or "" for text in texts if _is_content(text))


def _is_content(value: Any) -> bool:
    return isinstance(value, str | list)


def _read_finish(value: Any) -> str | None:
    """Why an answer ended, in the word that most servers use for it."""
    if not isinstance(value, str):
        return None
    word = value.lower()
    return next((said for said, words in _ENDINGS.items() if word in words), value)


def _read_refusal(message: dict[str, Any], content: Any) -> str | None:
    """What the server set apart as a refusal."""
    parts = content if isinstance(content, list) else []
    apart = [part.get("refusal") for part in parts if isinstance(part, dict)]
    return _first_text(message.get("refusal"), *apart) or None


def _first_text(*values: Any) -> str:
    return clean(next((v for v in values if isinstance(v, str) and v), ""))


def _choice_error(error: Any, finish: Any) -> ServerError | None:
    if error:
        return error_of(error, None)
    broke = _read_finish(finish) == "error"
    return ServerError(None, f"finish reason {finish}") if broke else None


def _read_top_logprobs(logprobs: Any) -> tuple[tuple[str, float], ...] | None:
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
    read = [_read_top_logprob(pair) for pair in pairs]
    return () if None in read else tuple(top for top in read if top is not None)


def _read_top_logprob(pair: Any) -> tuple[str, float] | None:
    if not isinstance(pair, tuple) or not isinstance(pair[0], str):
        return None
    value = _read_number(pair[1])
    return None if value is None or math.isnan(value) else (pair[0], max(value, LEAST_LOG_PROB))


def _read_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    # JSON's integers have no bound, and floats have one.
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _read_usage(data: Any) -> Usage | None:
    """What was counted, where it was counted as tokens are. Raises Malformed for numbers that are
    none, or more than there can be."""
    if not isinstance(data, dict):
        return None
    read, made = _read_count(data.get("prompt_tokens")), _read_count(data.get("completion_tokens"))
    details = data.get("prompt_tokens_details") or {}
    if read is None or made is None or not isinstance(details, dict):
        return None
    cached = _read_count(details.get("cached_tokens"))
    # More cached tokens than input would make the cost negative.
    return Usage(read, made, min(cached or 0, read))


def _read_count(value: Any) -> int | None:
    number = _read_number(value)
    if number is None:
        return None
    if not math.isfinite(number) or number > MOST_TOKENS:
        raise Malformed(f"the usage counts {number:g} tokens")
    return int(number) if number >= 0 and number == int(number) else None


def _encode_choice(choice: Choice) -> dict[str, Any]:
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


ROUNDING = 1e-3
"""A log-prob may be this far above 0: servers round."""
MOST_MASS = 1.05
"""More probability than this on all labels together is more than rounding."""
_SPACES = str.maketrans({"\u0120": " ", "\u2581": " ", "\u010a": "\n"})
"""How tokenizers' vocabularies write a space (byte-level BPE, SentencePiece) and a line break."""
_NUMBERED = re.compile(r"token_id:\d+\Z")


def label_probabilities(
    tops: Sequence[tuple[str, float]],
    labels: Mapping[str, Sequence[str]],
    thinking: Declared,
) -> dict[str, float] | str:
    """The probability of each label, summed over its surface forms, from the tokens with their
    natural log-probs; or why they are no verdict."""
    wrong = next((p for _, p in tops if not p <= ROUNDING), None)
    if wrong is not None:
        return (
            f"the server gives {wrong:.6g} as a log-prob, which is at most 0: these are no "
            "log-probs (probabilities under that name?), so no label can be read"
        )
    known = {form for forms in labels.values() for form in forms}
    read = [(_decode_token(token, known), math.exp(min(0.0, p))) for token, p in tops]
    probs = {
        label: math.fsum(p for token, p in read if token in forms)
        for label, forms in labels.items()
    }
    mass = math.fsum(probs.values())
    if mass > MOST_MASS:
        return (
            f"the labels' log-probs add up to a probability of {mass:.3g}: these are no log-probs, "
            "so no label can be read"
        )
    why = thinks_first(math.fsum(p for token, p in read if opens_thinking(token, thinking)), mass)
    if why is not None:
        return why
    numbered = next((token for token, _ in read if _NUMBERED.match(token)), None)
    if numbered is not None and not mass:
        return (
            f"the server names tokens by their ids ({numbered}), among which no label can be "
            "found: start it without --return-tokens-as-token-ids"
        )
    return probs


def _decode_token(token: str, known: set[str]) -> str:
    """A token as text, where a server gives it as its vocabulary writes it."""
    return token if token in known else token.translate(_SPACES)
