"""The form in which a judge's verdict is asked for, and which of its matches is the verdict.

A template asks for a form such as "Score: VALUE". A match of it outside quotations is a candidate,
unless it recites the scale ("Score: 5 is for perfect answers"). Where all candidates say the same,
that is the verdict. Where they differ the last one is, if nothing but punctuation follows it ("On
reflection, Score: 4"); otherwise there is none. A candidate within a sentence about something else
("it cannot be Score: 5") makes no verdict by itself, and none stands that is taken back behind the
last one ("Wait, that is a 2").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

from rlaif.judges.quotes import Quoted, quoted, unwrapped

V = TypeVar("V")

MARKUP = r"[\s*_`\"'(\[<{]*+"
"""What may stand between a form and the verdict in it."""
CLOSING = r"[*_`\"'\])}>]*+"
"""What may stand right behind a verdict."""
VALUE = "VALUE"
"""Stands for the verdict where a template declares its form."""

_LEAD = re.compile(
    r"(?:[\W_]|\b(?:\d{1,2}[.)]|so|thus|therefore|hence|then|and|but|finally|again|overall|"
    r"in\s+(?:sum|summary|total|short|conclusion|all)|on\s+reflection|my|our|the|this|its|"
    r"final|total|numeric|answer|response|verdict|"
    r"(?:i|we)\s+(?:say|give|choose|pick|assign|award)(?:\s+(?:it|this|a|the))*)(?!\w))*",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[.!?;:,)\u2013\u2014](?:[*_`\"')\]]*\s+)|\s+-\s+")
_SENTENCE = re.compile(r"[.!?](?:[*_`\"')\]]*\s+)")
_HEDGED = re.compile(
    r"\b(?:not|cannot|never|neither|nor|if|unless|would|could|should|might|may|than|reach|earn|"
    r"says|said|claims?|claimed|writes?|wrote|written|reads|asks?|asked|states?|contains?|"
    r"(?:scores?|rates?|grades?|praises?)\s+(?:it|him|her|them)sel(?:f|ves)|"
    r"ends?\s+with|such\s+as|like|example|instance|format|form|template|line\s+of)\b|n['\u2019]t\b",
    re.IGNORECASE,
)
_QUOTES_NEXT = re.compile(
    r"\b(?:says?|said|claims?|writes?|wrote|reads|states?|contains?|quote[sd]?|includes?|tells?|"
    r"demands?|asks?|insists?|(?:ends?|begins?|starts?)\s+with)\b[^\n]*"
    r"(?::|\b(?:lines?|words?|text|sentence|phrase|note))\W*\Z",
    re.IGNORECASE,
)
_RECITES = re.compile(
    r"\s*(?:[:=](?!\s*\Z)|(?:is|are|was)\s+(?:for|reserved|given|only|used|meant)\b|means?\b|stands?\s+for\b)",
    re.IGNORECASE,
)
_DOUBTED = re.compile(
    r"\W*?\?|[^\w\n,;.:!(]*(?:would|could|should|might|may|can|cannot|for|when|where|if|needs?|"
    r"requires?|goes|belongs?|or|and|minus|plus|times|unless|before|at\s+first|seem(?:s|ed)|"
    r"loses?|lost|fails?|failed|points?\s+(?:for|from|off|to)|of\s+the|(?:isn|wasn)['\u2019]t|"
    r"(?:is|was)\s+(?:not|too|un\w+|im\w+|no|never|only|what|where|how|my|worse|wrong|weaker|"
    r"poorer|inferior|beaten|less|the\s+(?:first|initial|highest|lowest|top|usual)))\b"
    r"|[^\w\n.:!(]*(?:(?:no|wait)\s*[,;:.!\u2013\u2014-]|no\s+wait\b|"
    r"(?:said|says|claimed)\s+(?:the|its|an?)\b|"
    r"(?:lowered|raised|reduced|increased|decreased|changed|corrected|revised|dropped)"
    r"(?:\s+\w+){0,2}\s+to\b)",
    re.IGNORECASE,
)
_PAUSE = r"\s*[,.!:\u2026\u2013\u2014-]"
_WITHDRAWN = re.compile(
    r"(?:^|[.!?\u2026\u2013\u2014]|\s-\s)[ \t*_`\"'(]{0,20}"
    rf"(?:(?:(?:no|oh),?\s+)?wait{_PAUSE}|hold\s+on{_PAUSE}|correction\s*:|scratch\s+that\b|"
    r"actually,?\s+(?:no|make\s+(?:it|that)|it\s+(?:is|should)|(?:the|my)\s+(?:score|verdict))\b|"
    r"on\s+(?:second\s+thoughts?|reflection)\b|oops\b|(?:just|only)\s+kidding\b|my\s+mistake\b|"
    r"let\s+me\s+(?:reconsider|revise|correct)\b|"
    r"I\s+(?:take\s+(?:it|that)\s+back|change\s+my\s+mind|misread|was\s+wrong)\b)",
    re.IGNORECASE | re.MULTILINE,
)
_ABOUT = re.compile(
    r"\(([^)\d\n]+)\)|\b(?:for|of|given|awarded)\s+([^\n:=]+?)\s*[:=]", re.IGNORECASE
)
MOST_WORDS = 3
"""More words behind a form than these are a sentence, and no verdict."""
MOST_BEFORE = 400
"""Characters before a form that are looked at."""
_PLACEHOLDER = re.compile(
    r"(?:N|X|Y|VALUE|WORD|NUMBER|\.\.+|\u2026|_+|<[^>\n]*>|\[[^\]\n]*\])(?!\w)"
)
_CONTRAST = re.compile(
    r"\b(?:but|although|though|however|while|whereas|yet|except|only|at\s+first)\b", re.IGNORECASE
)
_ENDS = re.compile(r"[\W_]*\Z")


@dataclass(frozen=True, slots=True)
class Form:
    """What stands before a verdict, one of several where more than one is usual, and after it."""

    heads: tuple[str, ...]
    tail: str = ""


@dataclass(frozen=True, slots=True)
class Read(Generic[V]):
    """What stands where a verdict should: its value, None where it cannot be one ("Score: 12"), and
    the place behind it."""

    value: V | None
    end: int


@dataclass(frozen=True, slots=True)
class Candidate(Generic[V]):
    """A match of a form. `firm`: it says the verdict, and does not only mention one. `about`: the
    respect that its head names ("Score for clarity:"), where it names one."""

    value: V | None
    start: int
    end: int
    firm: bool
    about: str = ""


Grammar = Callable[[str, int], Read[V] | None]
"""From a text and a place behind a form's head to what stands there; None where it is no verdict
of any kind, such as the scale ("1-5")."""


def declared(text: str) -> Form:
    """The form of a declaration such as "Score: VALUE". Raises ValueError where `VALUE` does not
    stand in it once, or nothing stands before it."""
    line = text.strip()
    head, found, tail = line.partition(VALUE)
    if not found or VALUE in tail or not head.strip() or "\n" in line:
        raise ValueError(
            f"write one line with {VALUE} in the verdict's place, such as Score: {VALUE}"
        )
    return Form((head.strip(),), tail.strip())


def candidates(
    text: str, form: Form, grammar: Grammar[V], known: Quoted | None = None, cut: bool = False
) -> list[Candidate[V]]:
    """The matches of a form, in order. `cut`: the text ends where a limit cut it, so that a value
    at its end may be a part of one."""
    known = quoted(text) if known is None else known
    heads = (m for m in _compile_heads(form.heads).finditer(text) if m.start() not in known)
    found = (_read_candidate(text, head, form, grammar, cut) for head in heads)
    return [candidate for candidate in found if candidate is not None]


def settled(found: Sequence[Candidate[V]], text: str, last: bool = True) -> V | None:
    """The verdict that candidates give; None where they give none. Where they differ the last one
    may settle it, with `last`."""
    if not found or withdrawn(text, found[-1].end):
        return None
    if len({c.value for c in found}) == 1 and any(c.firm for c in found):
        return found[-1].value
    final = found[-1]
    # Of scores in several respects the last one is no verdict on all.
    whole = not final.about or len({c.about for c in found}) == 1
    if last and len(found) > 1 and whole and final.firm and _ENDS.match(text, final.end):
        return final.value
    return None


@dataclass(frozen=True, slots=True)
class Reading(Generic[V]):
    """How verdicts of one kind are read: what a text `alone` says, what stands behind a form's head
    (`grammar`), the `usual` form where a template declares none, and what sentences say (`prose`).
    """

    usual: Form
    grammar: Grammar[V]
    alone: Callable[[str], Read[V] | None]
    prose: Callable[[str, Quoted], V | None]

    def read(self, text: str, form: Form | None = None, cut: bool = False) -> V | None:
        """The verdict in a text, or None.

        A text that is a verdict alone is that one. Otherwise the form that was asked for decides;
        where none stands anywhere, another usual form, and then what sentences say. With `cut` the
        text ends at a limit.
        """
        text = unwrapped(text)
        alone = None if cut else self.alone(text)
        if alone is not None:
            return alone.value
        known = quoted(text)
        asked = candidates(text, form or self.usual, self.grammar, known, cut)
        if asked or cut:
            return settled(asked, text)
        usual = candidates(text, self.usual, self.grammar, known)
        return settled(usual, text, last=False) if usual else self.prose(text, known)


@lru_cache(maxsize=64)
def _compile_heads(heads: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(_head_pattern, heads)), re.IGNORECASE)


def _head_pattern(head: str) -> str:
    """A head as a pattern: in any case, with markup, and with what people put before a colon."""
    name = head.rstrip(":").rstrip()
    words = r"\s+".join(map(re.escape, name.split()))
    edge = r"(?<!\w)" if name[:1].isalnum() else ""
    if not head.endswith(":"):
        whole = r"(?!\w)" if name[-1:].isalnum() else ""
        return rf"{edge}{words}{whole}(?:{CLOSING}\s*[:=])?"
    aside = r"(?:\s*\([^)\n]{0,40}\))?(?:\s+(?:for|of|given|awarded)\b[^\n\d:=.]{0,60}?)?"
    return rf"{edge}{words}{CLOSING}{aside}(?:\s+is)?\s*{CLOSING}[:=]"


_OPENED, _CLOSED = re.compile(MARKUP), re.compile(CLOSING)


def _read_candidate(
    text: str, head: re.Match[str], form: Form, grammar: Grammar[V], cut: bool
) -> Candidate[V] | None:
    start, place = head.start(), _skip_pattern(text, head.end())
    # A form with marks of its own ("[RESULT]", "<score>") may stand anywhere in a sentence.
    marked = bool(form.tail) or not head.group()[0].isalnum()
    firm = unhedged(text, start) if marked else _begins_statement(text, start)
    read = grammar(text, place)
    if read is None:
        return _withdraw_form(text, start, head.end(), firm)
    end = _skip_pattern(text, read.end, _CLOSED)
    if form.tail:
        if not text[read.end :].lstrip().startswith(form.tail):
            return Candidate(None, start, end, firm)
        end = text.index(form.tail, read.end) + len(form.tail)
    rest = text[end:].partition("\n")[0]
    # "Score:" over a list that begins with "1." is no 1.
    apart = "\n" in text[head.end() : place]
    if _RECITES.match(rest) or (apart and re.search(r"\w", rest)):
        return None
    # "< 3" is less than 3, while "<3>" is a placeholder filled in.
    less = "<" in text[head.end() : place] and ">" not in text[read.end : end]
    # "4." may be the beginning of 4.5.
    ends = cut and not text[end:].strip(".,")
    value = None if less or ends else read.value
    about = " ".join(filter(None, (m for found in _ABOUT.findall(head.group()) for m in found)))
    return Candidate(value, start, end, firm and not _DOUBTED.match(rest), about.casefold())


def _skip_pattern(text: str, place: int, pattern: re.Pattern[str] = _OPENED) -> int:
    found = pattern.match(text, place)
    return found.end() if found is not None else place


def _withdraw_form(text: str, start: int, end: int, firm: bool) -> Candidate[V] | None:
    """A form without a verdict in it: it withdraws others where it is a statement of its own
    ("Score: none"), and is nothing where it is a part of a sentence or stands for the form."""
    rest = text[end:].partition("\n")[0].strip("*_` \t")
    if not rest and text[end:].strip():
        rest = text[end:].strip().partition("\n")[0]
    if not rest:
        return Candidate(None, start, end, firm)
    if not firm or _PLACEHOLDER.match(rest) or re.match(r"\d", rest):
        return None
    if len(rest.split()) > MOST_WORDS:
        return None
    return Candidate(None, start, end, firm)


def _begins_statement(text: str, start: int) -> bool:
    """Whether a form begins a statement: a line or a clause, in a sentence that does not doubt it
    or quote it."""
    above, _, line = text[max(0, start - MOST_BEFORE) : start].rpartition("\n")
    sentence = _SENTENCE.split(line)[-1]
    clause = _CLAUSE.split(line)[-1]
    if _LEAD.fullmatch(clause) is None or _HEDGED.search(sentence):
        return False
    before = above.rstrip().rpartition("\n")[2]
    return bool(clause.strip() and clause != line) or not _QUOTES_NEXT.search(before)


def unhedged(text: str, start: int) -> bool:
    """Whether the sentence up to `start` neither doubts nor quotes what follows."""
    line = text[max(0, start - MOST_BEFORE) : start].rpartition("\n")[2]
    return not _HEDGED.search(_SENTENCE.split(line)[-1])


def withdrawn(text: str, end: int) -> bool:
    """Whether what stands behind `end` takes back what was said ("Wait, that is a 2")."""
    return _WITHDRAWN.search(text, end) is not None


def taken_back(text: str, end: int) -> bool:
    """Whether the sentence goes on behind `end` with a contrast ("4, but ...")."""
    rest = _SENTENCE.split(text[end : end + MOST_BEFORE].partition("\n")[0])[0]
    return _CONTRAST.search(rest) is not None
