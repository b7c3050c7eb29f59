"""JSON objects in a model's answer, which may be more, or less, than one object.

An answer is parsed strictly first. Otherwise each object is found wherever it stands, by reading
keys and values as JSON has them, but for three slips: line breaks within strings, a comma too many,
and an end that is missing. A value is taken as it stands there, and never mended: text within other
values is no part of the object.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

_FENCED = re.compile(r"\A\s*```(?:json)?\s*(\{.*\})\s*```\s*\Z", re.DOTALL | re.IGNORECASE)
_START = re.compile(r'\{\s*["}]')
_SPACE = re.compile(r"\s*")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SCALAR = re.compile(r"(?:-?\d[\d.eE+-]*|true|false|null)(?=\s*[,}\]])")
_QUOTES = frozenset("\"'`\u201c\u201e\u00ab\u2018")
_DEEPEST = 20


@dataclass(slots=True)
class Found:
    """An object in a text, from `start` to `end`. `twice` are the keys that it has more than once,
    which have no value here or within; `whole`: it is closed, and all in it could be read."""

    start: int
    end: int
    members: dict[str, Any] = field(default_factory=dict)
    twice: set[str] = field(default_factory=set)
    whole: bool = False

    def add(self, key: str, value: Any) -> None:
        """One more member."""
        if key in self.members:
            self.twice.add(key)
            value = None
        self.members[key] = value


def json_objects(text: str) -> list[Found]:
    """The outermost objects in `text`, in order. One right behind a quotation mark is quoted, and
    left out, as is what a string holds."""
    one = _parse_strictly(text)
    return [one] if one is not None else list(_find_objects(text))


def the_object(objects: Iterable[Found], key: str, asked: bool = True) -> Found | None:
    """The object that has `key`; None where none has it. Where several have it and say different
    things, nothing can be read in what this gives. Where an object was `asked` for, a broken one
    counts as one that has it."""
    having = [o for o in objects if key in o.members or (asked and not o.whole)]
    if not having:
        return None
    said = {json.dumps(found.members.get(key), sort_keys=True) for found in having}
    if len(having) > 1 and not (len(said) == 1 and all(found.whole for found in having)):
        return Found(having[0].start, having[-1].end)
    return having[0]


def member(found: Found, key: str) -> Any:
    """What an object has under `key`, where it has it once and complete; else None.

    Of an object that is broken or cut, only its first member counts: what stands behind a string
    may be a part of that string, if a quotation mark in it was not escaped.
    """
    if key not in found.members or (not found.whole and next(iter(found.members)) != key):
        return None
    return found.members[key]


def outside(text: str, objects: Iterable[Found]) -> str:
    """A text without the objects in it."""
    kept, place = [], 0
    for found in objects:
        kept.append(text[place : found.start])
        place = found.end
    return "\n".join([*kept, text[place:]])


def names_member(text: str, key: str) -> bool:
    """Whether a text has what looks like a member of an object: a key and a colon."""
    return re.search(rf'"{re.escape(key)}"\s*:', text) is not None


def _parse_strictly(text: str) -> Found | None:
    """An answer that is one object and no more, in a code fence or not."""
    inside = _FENCED.sub(r"\1", text).strip()
    found = Found(0, len(text), whole=True)

    def keep_unique(read: list[tuple[str, Any]]) -> dict[str, Any]:
        names = Counter(key for key, _ in read)
        # The outermost object is read last, and leaves its own.
        found.twice = {key for key, count in names.items() if count > 1}
        return {key: None if key in found.twice else value for key, value in read}

    if not inside.startswith("{"):
        return None
    try:
        value = json.loads(inside, parse_constant=_refuse_constant, object_pairs_hook=keep_unique)
    except (ValueError, RecursionError):
        return None
    found.members = value
    return found


def _refuse_constant(constant: str) -> Any:
    raise ValueError(constant)


def _find_objects(text: str) -> Iterator[Found]:
    start = _START.search(text)
    while start is not None:
        found = _parse_object(text, start.start(), 0)
        quoted = start.start() > 0 and text[start.start() - 1] in _QUOTES
        if not quoted and (found.members or not found.whole):
            yield found
        start = _START.search(text, max(found.end, start.start() + 1))


def _parse_object(text: str, start: int, depth: int) -> Found:
    """The object that begins at `start`, as far as it can be read."""
    found = Found(start, start + 1)
    place = _skip_space(text, start + 1)
    while text[place : place + 1] != "}":
        key = _STRING.match(text, place)
        colon = _skip_space(text, key.end()) if key is not None else place
        if key is None or text[colon : colon + 1] != ":":
            found.end = _find_next_start(text, place)
            return found
        value = _parse_value(text, _skip_space(text, colon + 1), depth)
        name = _load_json(key.group())
        if value is None or not isinstance(name, str):
            found.end = _find_next_start(text, place)
            return found
        read, place = value
        found.add(name, read)
        place = _skip_space(text, place)
        if text[place : place + 1] == ",":
            place = _skip_space(text, place + 1)
        elif text[place : place + 1] != "}":
            found.end = _find_next_start(text, place)
            return found
    found.end, found.whole = place + 1, True
    return found


def _parse_value(text: str, place: int, depth: int) -> tuple[Any, int] | None:
    """A value and the place behind it; None where there is none that is complete."""
    sign = text[place : place + 1]
    if sign == "{" and depth < _DEEPEST:
        found = _parse_object(text, place, depth + 1)
        return (found.members, found.end) if found.whole else None
    if sign == "[":
        return _parse_list(text, place, depth)
    match = _STRING.match(text, place) or _SCALAR.match(text, place)
    if match is None:
        return None
    value = _load_json(match.group())
    return None if value is _BAD else (value, match.end())


def _parse_list(text: str, place: int, depth: int) -> tuple[list[Any], int] | None:
    read: list[Any] = []
    place = _skip_space(text, place + 1)
    while text[place : place + 1] != "]":
        value = _parse_value(text, place, depth + 1) if depth < _DEEPEST else None
        if value is None:
            return None
        read.append(value[0])
        place = _skip_space(text, value[1])
        if text[place : place + 1] == ",":
            place = _skip_space(text, place + 1)
        elif text[place : place + 1] != "]":
            return None
    return read, place + 1


_BAD = object()


def _load_json(raw: str) -> Any:
    try:
        return json.loads(raw, strict=False, parse_constant=_refuse_constant)
    except ValueError:
        return _BAD


def _skip_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found is not None else place


def _find_next_start(text: str, place: int) -> int:
    """Where the search goes on behind an object that breaks off: behind the next brace that closes,
    since what stands before it may be the object's own text."""
    end = text.find("}", place)
    return len(text) if end < 0 else end + 1
