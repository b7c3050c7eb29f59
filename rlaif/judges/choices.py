"""Reading a written choice: a label in the form that was asked for, or words that say one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from rlaif.judges.forms import Form, Read, Reading, taken_back, unhedged
from rlaif.judges.quotes import Quoted

Labels = Mapping[str, tuple[str, ...]]
"""A label to the forms in which it is written."""

USUAL = Form(("Verdict:", "Choice:", "Winner:", "Preference:", "[RESULT]"))
"""How choices are asked for, where a template declares no form."""

_BEFORE, _AFTERWARDS = r"[\s*_`\"'(\[<]*", r"[\s*_`\"')\]>.]*"
_LEAD = (
    r"(?:[\s*_`\"'(\[<:=\u2013\u2014-]"
    r"|(?:is|the|answer|response|assistant|option|better|number)\b)*"
)
# A letter is an answer in upper case, or where a bracket, quote or star closes it; "a" and "A tie"
# are articles otherwise. What stands after an answer, unlike after an article:
_AFTER = (
    "is|was|has|wins|over|because|since|as|for|due|by|with|and|or|vs|given|which|that|while|but|on"
    "|would|could|should|might|may"
)
_LETTER = rf"(?-i:{{upper}}(?!\w|\s+(?!(?:{_AFTER})\b)[a-z])|{{lower}}(?=[)\]}}}}>*_`\"'](?!\w)))"
# What stands between two labels of which neither is the verdict: a word, or signs alone.
_BOTH = (
    r"(?:[^\w\n]*\b(?:or|and|nor|then|to|vs|versus|equals|(?:ties|tied)\s+with)\b[^\w\n]*"
    r"|[^\w\n.!?()]+)"
)
_LONGER = re.compile(r"-\w")
# "Answer 1 is better", but not "better in style": that is one respect of several.
_WHOLE = (
    r"(?=[\s*_)]*(?:$|[.,;:!\n]"
    r"|(?:because|since|as|than|overall|here|so|over|instead|rather|to)\b))"
)
_PROSE = (
    r"(?<!\w)(?:(?:better|best|preferred)\s+(?:answer|response|one|option)\s+is"
    r"|(?:choose|prefer|pick)){lead}({form})(?!\w){whole}"
    r"|(?<!\w)(?:answer|response|option)[\s*(]*({form})[\s*)]*\s+is\s+(?:the\s+)?"
    r"(?:clearly\s+|much\s+)?(?:better|best|preferred)"
    r"(?:\s+(?:answer|response|one|option))?{whole}"
)


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The labels' forms as patterns: `form` within a sentence, `alone` as a whole answer."""

    words: Mapping[str, str]
    form: str
    alone: re.Pattern[str]
    value: re.Pattern[str]
    also: re.Pattern[str]
    prose: re.Pattern[str]

    def label(self, said: str) -> str:
        """The label of a form. "a tie" is looked up without its article."""
        found = said.casefold()
        return self.words[found] if found in self.words else self.words[found.split(maxsplit=1)[1]]


def choice_reading(labels: Labels) -> Reading[str]:
    """How the choice of a label is read: in any of its forms, or in words that say a choice
    ("answer 1 is better"), where all of them agree. Labels are matched whole and in either case,
    but an article is no letter: "a tie" and "A tie" are a tie."""
    spoken = _compile_vocabulary(tuple(labels.items()))

    def read_alone(text: str) -> Read[str] | None:
        found = spoken.alone.fullmatch(text)
        return None if found is None else Read(spoken.label(found.group(1)), len(text))

    def read_label(text: str, place: int) -> Read[str] | None:
        found = spoken.value.match(text, place)
        if found is None:
            return None
        if spoken.also.match(text, found.end()) or _LONGER.match(text, found.end()):
            return Read(None, found.end())
        return Read(spoken.label(found.group(1)), found.end())

    def read_prose(text: str, known: Quoted) -> str | None:
        said = set(_in_prose(text, spoken, known))
        return said.pop() if len(said) == 1 else None

    return Reading(USUAL, read_label, read_alone, read_prose)


def _in_prose(text: str, spoken: _Vocabulary, known: Quoted) -> Iterator[str | None]:
    """What each sentence that says a choice says; None where it takes it back or names two."""
    for found in spoken.prose.finditer(text):
        if found.start() in known:
            continue
        doubted = taken_back(text, found.end()) or not unhedged(text, found.start())
        if doubted or spoken.also.match(text, found.end()):
            yield None
        else:
            yield spoken.label(next(group for group in found.groups() if group))


@lru_cache(maxsize=32)
def _compile_vocabulary(labels: tuple[tuple[str, tuple[str, ...]], ...]) -> _Vocabulary:
    words = {form.strip().casefold(): label for label, forms in labels for form in forms}
    ranked = sorted(words, key=len, reverse=True)
    every, form = "|".join(map(re.escape, ranked)), "|".join(map(_form_pattern, ranked))
    flags = re.IGNORECASE | re.MULTILINE
    prose = _PROSE.format(lead=_LEAD, form=form, whole=_WHOLE)
    named = r"(?:(?:the|an?)\s+)?(?:answer|response|assistant|option|number)?[\s(]*"
    return _Vocabulary(
        words,
        form,
        re.compile(rf"{_BEFORE}{named}({every}){_AFTERWARDS}", flags),
        re.compile(rf"{_LEAD}({form})(?!\w|[.,]\d)", flags),
        re.compile(rf"{_BOTH}(?:{form})(?!\w)", flags),
        re.compile(prose, flags),
    )


def _form_pattern(word: str) -> str:
    """The pattern of one form of a label, within one that ignores case."""
    if len(word) == 1 and word.isalpha():
        return _LETTER.format(upper=re.escape(word.upper()), lower=re.escape(word))
    return rf"(?:an?\s+)?{re.escape(word)}" if word.isalpha() else re.escape(word)
