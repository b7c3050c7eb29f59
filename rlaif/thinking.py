"""A reasoning model's thinking, told apart from its answer."""

from __future__ import annotations

import re
from typing import NamedTuple

MARKERS = {"<think>": "</think>", "<thinking>": "</thinking>", "[THINK]": "[/THINK]"}
"""What opens and closes a block of thinking."""
_OPENED = re.compile(f"({'|'.join(map(re.escape, MARKERS))})(\\s*)$")
_CHANNELS = re.compile(
    r"(?:<\|channel\|>analysis<\|message\|>(?P<thinking>.*?)<\|end\|>(?:<\|start\|>assistant)?)?"
    r"<\|channel\|>final<\|message\|>(?P<answer>.*)",
    re.DOTALL,
)


class Opened(NamedTuple):
    """The block of thinking that a prompt leaves open: its marker and the blanks after it."""

    marker: str
    blanks: str

    @property
    def text(self) -> str:
        """The prompt's end."""
        return self.marker + self.blanks


THINK = Opened("<think>", "")
"""A block of thinking whose opening marker stands nowhere in the text: a prompt had it."""


def opened_by(prompt: str) -> Opened | None:
    """The block of thinking that a rendered prompt ends with; None where it opens none."""
    found = _OPENED.search(prompt)
    return None if found is None else Opened(found[1], found[2])


def split_thinking(text: str, opened: Opened | None = None) -> tuple[str, str]:
    """Thinking and answer, both without the blanks around them where there is any thinking.

    Thinking begins at the very start, with a marker or, where the prompt has `opened` one, without,
    and ends at the first closing marker. Without a closing marker all after an opening one is
    thinking; what follows a prompt that opened one is then an answer, since nothing shows that it
    thinks.
    """
    channels = _CHANNELS.fullmatch(text.strip())
    if channels is not None:
        return (channels["thinking"] or "").strip(), channels["answer"]
    start = text.lstrip()
    for marker, close in MARKERS.items():
        if start.startswith(marker):
            thinking, _, answer = start[len(marker) :].partition(close)
            return thinking.strip(), answer.strip()
    if opened is not None:
        thinking, close, answer = text.partition(MARKERS[opened.marker])
        if close:
            return thinking.strip(), answer.strip()
    return "", text


def written(thinking: str, opened: Opened | None) -> str:
    """A block of thinking, and the blanks after it, as a model writes it after a prompt that has
    `opened` one or not. Without any thinking the block is empty, as Qwen3's template writes it."""
    marker = "<think>" if opened is None else opened.marker
    before = f"{marker}\n{thinking}\n" if thinking else f"{marker}\n\n"
    already = "" if opened is None else opened.text
    # What the prompt ends with is not written again; more blanks than usual do no harm.
    rest = before[len(already) :] if before.startswith(already) else f"{thinking}\n".lstrip("\n")
    return f"{rest}{MARKERS[marker]}\n\n"
