"""Reading a written score: a number in the form that was asked for, or words that say one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal

from rlaif.judges.forms import (
    CLOSING,
    MARKUP,
    Form,
    Grammar,
    Read,
    Reading,
    taken_back,
    unhedged,
    withdrawn,
)
from rlaif.judges.quotes import Quoted

Score = float | Literal["abstain"]

NUMBER = r"[-+\u2212]?\d++(?:[.,]\d++)?+"
USUAL = Form(("Score:", "Rating:", "Grade:", "[RESULT]"))
"""How scores are asked for, where a template declares no form."""

_VALUE = re.compile(rf"(?P<value>{NUMBER})(?P<word>[^\W_]|[.,]\d)?")
_B = r"[^\S\n]*"
# What makes of a number behind a form another thing than a score: a percentage, a fraction, a range
# ("1-5", "1 (low) to 5"), a choice or change ("4 or 5", "4 -> 2"), a list that ends with the line.
_AFTER = re.compile(
    rf"{CLOSING}(?:(?P<percent>{_B}%)"
    rf"|{_B}(?:/|(?:out\s+)?of\b){_B}[*_`]*(?P<of>{NUMBER})(?![\w/])"
    rf"|(?P<range>{_B}(?:(?:-|\u2013|\bto\b)|\([^)\n]{{0,30}}\){_B}(?:-|\u2013|to\b)){_B}\d)"
    rf"|(?P<other>{_B}(?:\b(?:or|and|then|x)\b|[-=]>|[\u2192\u21d2*\u00d7~|]){_B}[*_`]*\d"
    rf"|{_B}[,;]{_B}[*_`]*\d+[*_`]*(?=[.,;!]?{_B}$)))",
    re.IGNORECASE | re.MULTILINE,
)
_SUM = re.compile(rf"{CLOSING}[^\S\n]*(?:\([^)\n]*\)[^\S\n]*)?\+[^\S\n]*[*_`]*\d[^\n]*")
_TOTAL = re.compile(rf"=[^\S\n]*[*_`]*(?P<value>{NUMBER})(?!\w)(?P<rest>[^=\n]*)\Z")
# What may stand around an answer that is a verdict alone.
BEFORE, AFTERWARDS = r"[\s*_`\"'(\[<]*", r"[\s*_`\"')\]>.]*"
_ALONE = re.compile(
    rf"{BEFORE}(?P<value>{NUMBER})(?:{CLOSING}\s*(?:/|(?:out\s+)?of\b)\s*[*_`]*(?P<of>{NUMBER}))?"
    rf"{AFTERWARDS}",
    re.IGNORECASE,
)

_NAMED = r"(?<!\w)(?:score|rating|grade)(?!\w)"
# What stands behind a score that a sentence says, unlike behind a number in it.
_ENDS = r"(?!\w)(?=[\s*_`\"')]*(?:\Z|[.,;!\n]|points?\b|because\b|since\b|overall\b))"
_OF = rf"(?:{CLOSING}\s*(?:/|(?:out\s+)?of\b)\s*[*_`]*(?P<{{name}}>{NUMBER}))?"
_SAYS = re.compile(
    rf"{_NAMED}(?:\s+(?:for|of|given|assigned|to)\b[^\n\d:=.]{{0,60}}?)?\s+(?:is\b|[-\u2013](?=\s)){MARKUP}"
    rf"(?P<value>{NUMBER}){_OF.replace('{name}', 'of')}{_ENDS}"
    rf"|(?<!\w)(?:I|we)(?:['\u2019]d|['\u2019]ll|\s+would|\s+will)?\s+"
    rf"(?:give|rate|grade|score|assign|award)(?!\w)[^\n\d:.]{{0,60}}?(?<=[\s*_`(])"
    rf"(?P<given>{NUMBER}){_OF.replace('{name}', 'given_of')}{_ENDS}",
    re.IGNORECASE,
)
# Every number that a text gives as a score, said or only mentioned.
_MENTIONED = re.compile(
    rf"{_NAMED}(?:\s|[*_`\"'\[(<{{:=\u2013\u2014]|-(?!\d)|\bis\b|\bof\b|\bwould\b|\bbe\b)*+"
    rf"(?P<value>{NUMBER})(?!\w)"
    rf"|(?<![\w.,/])(?P<part>{NUMBER}){CLOSING}\s*(?:/|out\s+of)\s*[*_`]*(?P<of>{NUMBER})(?![\w/])",
    re.IGNORECASE,
)
_OPENS = re.compile(rf"\W*(?P<value>{NUMBER}){CLOSING}\s*(?:/|out\s+of)\s*(?P<of>{NUMBER}){_ENDS}")


def number(text: str) -> float | None:
    """A plain or decimal-comma number; None for digit groups such as 1,000."""
    whole, comma, decimals = text.replace("\u2212", "-").partition(",")
    if comma and len(decimals) > 2:
        return None
    value = float(f"{whole}.{decimals}" if comma else whole)
    return value if math.isfinite(value) else None


def in_range(value: float | None, low: float, high: float) -> float | None:
    """`value` where low <= value <= high, otherwise None."""
    return value if value is not None and low <= value <= high else None


def score_reading(low: float, high: float, words: Sequence[str] = ()) -> Reading[Score]:
    """How a score on [low, high] is read, "abstain" where one of `words` stands in its place. Of a
    sum its total counts ("1 + 1 = 2"), and of words that say a score ("I give it 4 out of 5") those
    on which all that is said of scores agrees."""

    def read_prose(text: str, known: Quoted) -> Score | None:
        """The score that sentences say, where no form stands anywhere and all agree."""
        said = set(_find_said_scores(text, high, known))
        every = said | set(_find_mentioned_scores(text, high, known))
        if len(said) != 1 or len(every) != 1:
            return None
        return in_range(said.pop(), low, high)

    return Reading(
        USUAL,
        score_grammar(low, high, words),
        lambda text: score_alone(text, low, high, words),
        read_prose,
    )


def score_alone(text: str, low: float, high: float, words: Sequence[str]) -> Read[Score] | None:
    """The score that a text is, and nothing else; its value is None where it is off the scale. None
    where the text is something else."""
    found = _ALONE.fullmatch(text)
    if found is not None:
        value = (
            None if _of_another(found["of"], high) else in_range(number(found["value"]), low, high)
        )
        return Read(value, len(text))
    said = _words_pattern(tuple(words))
    if said is not None and re.fullmatch(rf"{BEFORE}(?:{said.pattern}){AFTERWARDS}", text, re.I):
        return Read("abstain", len(text))
    return None


def _of_another(of: str | None, high: float) -> bool:
    return of is not None and number(of) != high


@lru_cache(maxsize=64)
def _words_pattern(words: tuple[str, ...]) -> re.Pattern[str] | None:
    every = "|".join(re.escape(word.strip()) for word in words)
    return re.compile(rf"(?:{every})(?!\w)", re.IGNORECASE) if every else None


def score_grammar(low: float, high: float, words: Sequence[str]) -> Grammar[Score]:
    """What stands where a score should: see `score_reading`."""
    said = _words_pattern(tuple(words))

    def read_score(text: str, place: int) -> Read[Score] | None:
        if said is not None and (word := said.match(text, place)) is not None:
            return Read("abstain", word.end())
        found = _VALUE.match(text, place)
        if found is None:
            return None
        if found["word"]:
            return Read(None, found.end())
        return _read_number(text, found, low, high)

    return read_score


def _read_number(text: str, found: re.Match[str], low: float, high: float) -> Read[Score] | None:
    added = _SUM.match(text, found.end())
    if added is not None:
        total = _TOTAL.search(added.group())
        value = in_range(number(total["value"]), low, high) if total is not None else None
        other = total is not None and _AFTER.match(total["rest"])
        if other and (other["percent"] or _of_another(other["of"], high)):
            value = None
        return Read(value, added.end())
    after = _AFTER.match(text, found.end())
    value = in_range(number(found["value"]), low, high)
    if after is None:
        return Read(value, found.end())
    if after["range"]:
        return None
    if after["percent"] or after["other"] or _of_another(after["of"], high):
        value = None
    return Read(value, after.end())


def _find_said_scores(text: str, high: float, known: Quoted) -> Iterator[float | None]:
    opening = _OPENS.match(text)
    if opening is not None and number(opening["of"]) == high:
        yield number(opening["value"])
    for found in _SAYS.finditer(text):
        place = found.start()
        if place in known or not unhedged(text, place):
            continue
        doubted = taken_back(text, found.end()) or withdrawn(text, found.end())
        if doubted or _of_another(found["of"] or found["given_of"], high):
            yield None
        else:
            yield number(found["value"] or found["given"])


def _find_mentioned_scores(text: str, high: float, known: Quoted) -> Iterator[float | None]:
    for found in _MENTIONED.finditer(text):
        if found.start() in known:
            continue
        if found["value"]:
            yield number(found["value"])
        elif number(found["of"]) == high:
            # Other fractions are about other things ("3/4 cup").
            yield number(found["part"])
