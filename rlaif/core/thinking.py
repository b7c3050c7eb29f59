"""What a reasoning model thinks, apart from what it answers: the one place that tells them apart,
for what engines make and for texts that are trained, scored or judged.

A server with a reasoning parser gives them apart. Any other, every engine in this process, and many
a data set have one text: the thinking between two markers, then the answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

Markers = Sequence[tuple[str, str]]
"""Pairs of texts that open and close thinking."""

MARKERS: Markers = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
)
"""Those of a model that says nothing of its thinking."""

WAS_CUT = "cut while thinking"
CUT = f"{WAS_CUT}: thinking used up the tokens, raise `max_new_tokens`"
"""Why there is no answer where the thinking had no end."""

MOST_MARKER = 200
"""No marker has more characters."""

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


class Declared(Protocol):
    """What is declared of a model's thinking, in its spec or its chat's settings."""

    @property
    def markers(self) -> Markers:
        """What opens and closes it, besides the channels of gpt-oss."""

    @property
    def opened(self) -> bool:
        """Whether the opening marker stands in the prompt, so that a text has the closing one
        alone."""


@dataclass(frozen=True, slots=True)
class Said:
    """A text in two parts. `cut`: its thinking has no end, so that there is no answer."""

    reasoning: str
    answer: str
    cut: bool = False


class Opened(NamedTuple):
    """The block of thinking that a prompt leaves open: its markers and the blanks after the first
    one."""

    marker: str
    closing: str
    blanks: str

    @property
    def text(self) -> str:
        """The prompt's end."""
        return self.marker + self.blanks


def split(
    text: str,
    spec: Declared,
    before: str = "",
    unclosed: Literal["thinking", "answer"] = "thinking",
) -> Said:
    """The thinking in `text` and the answer after it. `before` is what the model went on from, as
    far as it is known: the rendered prompt or the prefill.

    Thinking begins with a marker at the very start, or before the text (`before` ends with one, or
    is not known and the model is declared so); it ends at the first marker that closes it. Markers
    elsewhere are part of the answer. `unclosed` says what a text is whose thinking began before it
    and has no end: what a model has just written was cut, while an answer out of a file may have
    been written without thinking.
    """
    pairs = _pairs(spec.markers)
    start = text.lstrip()
    for opening, closing in pairs:
        found = opening.match(start)
        if found is not None:
            return _parted(start[found.end() :], [closing])
    closings = [closing for opening, closing in pairs if _ends_with(before, opening)]
    if spec.opened and not before.strip():
        closings = [closing for _, closing in pairs]
    if closings:
        said = _parted(text, closings)
        return Said("", text) if said.cut and unclosed == "answer" else said
    # Nothing was thought: what is left of an empty thinking that the template began.
    empty = next((m for _, closing in pairs if (m := closing.match(start))), None)
    return Said("", text) if empty is None else Said("", _answer(start[empty.end() :]))


def opens(text: str, spec: Declared) -> bool:
    """Whether `text`, the start of an answer or one of its first tokens, begins to think."""
    start = text.strip()
    if not start:
        return False
    known = [opening for opening, _ in _stripped(spec.markers)] + ["<|channel|>"]
    # A marker may be several tokens, of which the first is a part: "<th".
    return any(start.startswith(m) or (len(start) > 1 and m.startswith(start)) for m in known)


def thinks_from(before: str, spec: Declared) -> bool:
    """Whether what the model goes on from ends with a marker that opens thinking."""
    return any(_ends_with(before, opening) for opening, _ in _pairs(spec.markers))


def opened_by(prompt: str, markers: Markers = MARKERS) -> Opened | None:
    """The block of thinking between markers that a rendered prompt ends with; None where it opens
    none."""
    kept = prompt.rstrip()
    for marker, closing in _stripped(markers):
        if kept.endswith(marker):
            return Opened(marker, closing, prompt[len(kept) :])
    return None


def written(thinking: str, opened: Opened | None, markers: Markers = MARKERS) -> str:
    """A block of thinking, and the blanks after it, as a model writes it after a prompt that has
    `opened` one or not: then with the first of its `markers`. Without any thinking the block is
    empty, as Qwen3's template writes it."""
    marker, closing = _stripped([*markers, *MARKERS])[0] if opened is None else opened[:2]
    before = f"{marker}\n{thinking}\n" if thinking else f"{marker}\n\n"
    already = "" if opened is None else opened.text
    # What the prompt ends with is not written again; more blanks than usual do no harm.
    rest = before[len(already) :] if before.startswith(already) else f"{thinking}\n".lstrip("\n")
    return f"{rest}{closing}\n\n"


def marker_texts(spec: Declared) -> frozenset[str]:
    """What tells thinking from answer, where each is one token."""
    return frozenset(marker for pair in _stripped(spec.markers) for marker in pair) | CHANNEL_TOKENS


def _stripped(markers: Markers) -> list[tuple[str, str]]:
    """The markers without the blanks around them, of which models write more or fewer."""
    return [(opening.strip(), closing.strip()) for opening, closing in markers]


def _pairs(markers: Markers) -> list[tuple[re.Pattern[str], re.Pattern[str]]]:
    known = _stripped(markers)
    return [*((re.compile(re.escape(a)), re.compile(re.escape(b))) for a, b in known), _CHANNEL]


def _parted(text: str, closings: Sequence[re.Pattern[str]]) -> Said:
    """What stands before and after the first marker that closes."""
    found = (match for closing in closings if (match := closing.search(text)))
    end = min(found, key=lambda match: match.start(), default=None)
    if end is None:
        return Said(_answer(text), "", True)
    return Said(_answer(text[: end.start()]), _answer(text[end.end() :]))


def _answer(text: str) -> str:
    return _CHANNEL_ENDS.sub("", text).strip()


def _ends_with(before: str, opening: re.Pattern[str]) -> bool:
    tail = before.rstrip()[-MOST_MARKER:]
    return any(found.end() == len(tail) for found in opening.finditer(tail))
