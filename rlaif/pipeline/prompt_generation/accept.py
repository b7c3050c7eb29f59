"""Which written prompts are taken: the filters of Self-Instruct (2212.10560, section 2.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rapidfuzz.distance import LCSseq

from rlaif.config.prompts import WrittenSource
from rlaif.constitution import textstats as ts

# What an assistant without eyes, files or a network cannot do.
_UNSUITED = re.compile(
    r"\b(?:images?|pictures?|photos?|graphs?|charts?|diagrams?|videos?|audio|files?|attach(?:ed|ment)"
    r"|websites?|urls?|links?)\b",
    re.IGNORECASE,
)
_ITEM = re.compile(r"^\s*(?:\(?\d{1,3}[.):]|[-*\u2022])\s+")


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """ROUGE-L F1 of two texts as words: 2 LCS / (n + m) (Lin, 2004), in [0, 1]."""
    if not first or not second:
        return 0.0
    return 2 * LCSseq.similarity(first, second) / (len(first) + len(second))


class Accepted:
    """The prompts taken so far, and those that were there before."""

    def __init__(self, known: Sequence[str], limits: WrittenSource):
        self.limits = limits
        self._words = [_fold_words(text) for text in known]

    def why_not(self, text: str) -> str | None:
        """Why a prompt is not taken, or None: then it is."""
        why = unfit(text, self.limits.min_words, self.limits.max_words)
        if why is not None:
            return why
        words = _fold_words(text)
        if any(rouge_l(words, other) > self.limits.most_alike for other in self._words):
            return "too much like another"
        self._words.append(words)
        return None


def unfit(text: str, least: int, most: int) -> str | None:
    """Why a text is no prompt by itself, or None."""
    count = len(ts.words(text))
    if not least <= count <= most:
        return "too short" if count < least else "too long"
    if text.endswith(":"):
        return "ends in a colon"
    if not text[0].isalnum() and text[0] not in "\"'“¿¡":
        return "begins with a mark"
    if _UNSUITED.search(text):
        return "needs what a text cannot hold"
    return None


def _fold_words(text: str) -> list[str]:
    return [word.casefold() for word in ts.words(text)]


def listed(text: str) -> list[str]:
    """The items of a list, each on its line or lines; nothing where there is no list."""
    found: list[str] = []
    for line in text.splitlines():
        if _ITEM.match(line):
            found.append(_ITEM.sub("", line).strip())
        elif found and line.strip():
            found[-1] += " " + line.strip()
    return [tidy(item) for item in found if item]


def tidy(text: str) -> str:
    """A written prompt without the quotes or the heading that models put around it."""
    text = re.sub(
        r"^(?:\**(?:new )?(?:request|message|prompt)\**\s*:\s*)", "", text.strip(), flags=re.I
    )
    if len(text) > 1 and text[0] + text[-1] in ('""', "''", "“”", "**"):
        text = text[1:-1]
    return text.strip()
