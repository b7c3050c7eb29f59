"""Which parts of a model's answer are its own words, and which it quotes."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Span = tuple[int, int]

_FENCE = re.compile(r"^[ \t]*(```+|~~~+)[^\n]*$", re.MULTILINE)
_QUOTED_LINE = re.compile(r"^[ \t]*>[^\n]*$", re.MULTILINE)
_CODE = re.compile(r"(`+)(?!`)[^\n]+?(?<!`)\1(?!`)")
_PAIRS = {"\u201c": "\u201d", "\u00ab": "\u00bb", "\u201e": "\u201c\u201d", '"': '"'}
"""Marks that open a quotation, which may run over lines, to those that close it."""
_MARKS = re.compile('["\u201c\u201d\u00ab\u00bb\u201e]')
# Single marks are apostrophes too, so that these quotations stay within a line.
_SINGLE = re.compile(
    r"(?<!\w)'(?=\S)(?:[^'\n]|(?<=\w)'(?=\w))+(?<=\S)'(?!\w)"
    "|\u2018(?:[^\u2018\u2019\n]|(?<=\\w)\u2019(?=\\w))+\u2019"
)
_BESIDE = frozenset(" \t\n([{<*_:=-\u2013\u2014/,;>")
"""What stands before a straight mark that opens a quotation; after it stands no space."""
# A tag of a thinking model, where it begins or ends a line: one within a line is only mentioned.
_TAG = r"(?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad)>"
_THOUGHT = re.compile(
    rf"^[ \t]*(?P<open><{_TAG}|\[THINK\])|(?P<close></{_TAG}|\[/THINK\])",
    re.MULTILINE | re.IGNORECASE,
)
# A turn of a conversation that the model makes up behind its own words.
_TURN = re.compile(r"(?<=\n)[*_]*(?:user|human|assistant|system)[*_]*:[^\n]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Quoted:
    """Parts of a text, in order and without overlap. A place is in one where it is behind the mark
    that begins it: what begins with that mark itself is not."""

    spans: tuple[Span, ...]

    def __contains__(self, place: int) -> bool:
        index = bisect_right(self.spans, (place, -2)) - 1
        return index >= 0 and place < self.spans[index][1]


def quoted(text: str) -> Quoted:
    """What is quoted in `text`: code fences, lines behind ">", turns of a conversation, code,
    quotation marks, and what stands between markers of thinking in the midst of an answer.

    A quotation whose end is missing runs to the end of its line, a fence to the end of the text.
    """
    lines = (m.span() for kind in (_QUOTED_LINE, _TURN) for m in kind.finditer(text))
    blocks = merged([*_find_fences(text), *lines])
    code = [m.span() for m in _CODE.finditer(text) if m.start() not in blocks]
    single = [m.span() for m in _SINGLE.finditer(text) if m.start() not in blocks]
    known = merged([*blocks.spans, *code])
    known = merged([*known.spans, *_find_quotations(text, known), *single])
    return merged([*known.spans, *_find_thoughts(text, known)])


_WRAPPED = (
    re.compile(r"\s*```\w*\n((?:(?!```).)*)```\s*", re.DOTALL),
    re.compile(r"\s*`([^`\n]+)`\s*"),
    re.compile(r"\s*[\"\u201c]([^\"\u201c\u201d\n]+)[\"\u201d]\s*"),
)


def unwrapped(text: str) -> str:
    """A text without the code fence or the quotation marks around all of it: a judge may quote the
    form that it was asked for as it uses it."""
    found = next(filter(None, (pattern.fullmatch(text) for pattern in _WRAPPED)), None)
    return text if found is None else found[1]


def merged(spans: Sequence[Span]) -> Quoted:
    """Spans in order, those that overlap as one."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start < found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return Quoted(tuple(found))


def _find_fences(text: str) -> Iterator[Span]:
    opened: re.Match[str] | None = None
    for mark in _FENCE.finditer(text):
        if opened is None:
            opened = mark
        elif mark[1].startswith(opened[1]):
            yield opened.start(), mark.end()
            opened = None
    if opened is not None:
        yield opened.start(), len(text)


def _find_quotations(text: str, known: Quoted) -> Iterator[Span]:
    """What stands in quotation marks. One that opens where it could close shows that the first has
    no end."""
    opened: tuple[int, str] | None = None
    for mark in _MARKS.finditer(text):
        place, sign = mark.start(), mark.group()
        if place in known:
            continue
        opens = sign in _PAIRS and (sign != '"' or _opens_quotation(text, place))
        if opened is not None and sign in opened[1] and not (opens and sign == '"'):
            yield opened[0], place + 1
            opened = None
        elif opens and (opened is None or sign in opened[1]):
            if opened is not None:
                yield opened[0], _line_end(text, opened[0])
            opened = (place, _PAIRS[sign])
    if opened is not None:
        yield opened[0], _line_end(text, opened[0])


def _opens_quotation(text: str, place: int) -> bool:
    """Whether a straight mark opens a quotation."""
    after = text[place + 1 : place + 2]
    return (place == 0 or text[place - 1] in _BESIDE) and bool(after) and not after.isspace()


def _line_end(text: str, place: int) -> int:
    end = text.find("\n", place)
    return len(text) if end < 0 else end


def _find_thoughts(text: str, known: Quoted) -> Iterator[Span]:
    """Thinking that the engine could not tell from the answer: up to a marker that closes what
    nothing opened, between two markers, and after one that nothing closes."""
    opened: int | None = None
    for mark in _THOUGHT.finditer(text):
        if mark.start() in known:
            continue
        if mark["open"]:
            opened = mark.start() if opened is None else opened
        elif opened is not None:
            yield opened, mark.end()
            opened = None
        elif not _is_mentioned(text, *mark.span()):
            yield -1, mark.end()
    if opened is not None:
        yield opened, len(text)


def _is_mentioned(text: str, start: int, end: int) -> bool:
    """Whether a marker is a word of a sentence: white space before it, and more of the line on both
    sides."""
    before, after = text[:start].rpartition("\n")[2], text[end:].partition("\n")[0]
    return bool(before.strip() and after.strip()) and before[-1].isspace()
