"""What a reasoning model thinks, apart from what it answers: the one place that tells them apart.

A server with a reasoning parser gives them apart. Any other, and every engine in this process,
gives one text: the thinking between two markers, then the answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlaif.config import ThinkingSpec

WAS_CUT = "cut while thinking"
CUT = f"{WAS_CUT}: thinking used up the tokens, raise `max_new_tokens`"
"""Why there is no answer where the thinking had no end."""

ADVICE = (
    "turn its thinking off (by the chat template's own switch, such as `chat_template_kwargs: "
    "{enable_thinking: false}`, which a server takes in `extra_body`), or let it think and write "
    "its verdict (`verdict: written`, or `expected: false`)"
)
"""What helps where label probabilities are read and the model thinks first."""

THINKS = f"the chat template opens the model's thinking, where no label stands: {ADVICE}"

MOST_MARKER = 200
"""No marker has more characters."""

MOST_OPENING = 0.5
"""More probability than this on a marker that opens thinking is no answer with a label."""

# gpt-oss writes channels: analysis and commentary are thinking, final is the answer.
_CHANNEL = (
    re.compile(r"(?:<\|start\|>assistant)?<\|channel\|>\s*(?:analysis|commentary)[^<]*"
               r"(?:<\|constrain\|>[^<]*)?<\|message\|>"),
    re.compile(r"(?:<\|end\|>\s*)?(?:<\|start\|>assistant)?<\|channel\|>\s*final[^<]*"
               r"(?:<\|constrain\|>[^<]*)?<\|message\|>"),
)  # fmt: skip
CHANNEL_TOKENS = frozenset({"<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"})
"""Control tokens that a text must keep for its channels to be told apart."""
_CHANNEL_ENDS = re.compile(r"\s*(?:<\|(?:end|return|call)\|>\s*)+\Z")


@dataclass(frozen=True, slots=True)
class Said:
    """A text in two parts. `cut`: its thinking has no end, so that there is no answer."""

    reasoning: str
    answer: str
    cut: bool = False


def split(text: str, spec: ThinkingSpec, before: str = "") -> Said:
    """The thinking in `text` and the answer after it. `before` is what the model went on from, as
    far as it is known: the rendered prompt or the prefill.

    Thinking begins with a marker at the very start, or before the text (`before` ends with one, or
    the model is declared so); it ends at the first marker that closes it. Markers elsewhere are
    part of the answer.
    """
    start = text.lstrip()
    opened = spec.opened and not before.strip()
    for opening, closing in _pairs(spec):
        found = opening.match(start)
        if found is not None:
            return _parted(start[found.end() :], closing)
        if _ends_with(before, opening):
            return _parted(text, closing)
        # Nothing was thought: what is left of an empty thinking that the template began.
        empty = closing.match(start)
        if empty is not None:
            return Said("", _answer(start[empty.end() :]))
    if opened:
        closings = [closing for _, closing in _pairs(spec)]
        first = min((m for c in closings if (m := c.search(text))), key=_place, default=None)
        return Said(text.strip(), "", True) if first is None else _at(text, first)
    return Said("", text)


def opens(text: str, spec: ThinkingSpec) -> bool:
    """Whether `text`, the start of an answer or one of its first tokens, begins to think."""
    start = text.strip()
    if not start:
        return False
    known = [opening for opening, _ in spec.markers] + ["<|channel|>"]
    # A marker may be several tokens, of which the first is a part: "<th".
    return any(start.startswith(m) or (len(start) > 1 and m.startswith(start)) for m in known)


def thinks_from(before: str, spec: ThinkingSpec) -> bool:
    """Whether what the model goes on from ends with a marker that opens thinking."""
    return any(_ends_with(before, opening) for opening, _ in _pairs(spec))


def thinks_first(found: float, labels: float) -> str | None:
    """Why label probabilities are no verdict where `found` is the probability of beginning to think
    and `labels` that of all labels; None where they are one."""
    if found < MOST_OPENING or labels > found:
        return None
    return (
        f"the model thinks before it answers (a marker that opens thinking has probability "
        f"{found:.3g}, all labels together {labels:.2g}): {ADVICE}"
    )


def marker_texts(spec: ThinkingSpec) -> frozenset[str]:
    """What tells thinking from answer, where each is one token."""
    return frozenset(marker for pair in spec.markers for marker in pair) | CHANNEL_TOKENS


def _pairs(spec: ThinkingSpec) -> list[tuple[re.Pattern[str], re.Pattern[str]]]:
    plain = [(re.compile(re.escape(a)), re.compile(re.escape(b))) for a, b in spec.markers]
    return [*plain, _CHANNEL]


def _parted(text: str, closing: re.Pattern[str]) -> Said:
    end = closing.search(text)
    return Said(_answer(text), "", True) if end is None else _at(text, end)


def _at(text: str, end: re.Match[str]) -> Said:
    return Said(_answer(text[: end.start()]), _answer(text[end.end() :]))


def _place(match: re.Match[str]) -> int:
    return match.start()


def _answer(text: str) -> str:
    return _CHANNEL_ENDS.sub("", text).strip()


def _ends_with(before: str, opening: re.Pattern[str]) -> bool:
    tail = before.rstrip()[-MOST_MARKER:]
    return any(found.end() == len(tail) for found in opening.finditer(tail))
