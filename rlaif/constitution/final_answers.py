"""Where an answer says what its result is: in a box, after a marker, on its last line.

The time of each function is linear in the length of the text.
"""

from __future__ import annotations

import json
from collections import deque
from decimal import Decimal
from typing import Any

import regex

_BOX = regex.compile(r"\\f?boxed\s?\{")
_MARKER = regex.compile(
    r"####|\b(?:answer|choice|option|result)\b(?:[ \t](?:to|of|for)\b[^.:=\n]{0,80}?)?"
    r"[*_]{0,3}\s?(?:is\b|:|=)[*_]{0,3}\s?:?[*_]{0,3}",
    regex.IGNORECASE,
)
_FENCE = regex.compile(r"^[ \t]{0,3}(```+|~~~+)[ \t]*([^\s`]*)[^\n`]*$", regex.MULTILINE)


def _last_match(pattern: regex.Pattern[str], text: str) -> regex.Match[str] | None:
    last = deque(pattern.finditer(text), maxlen=1)
    return last.pop() if last else None


def boxed(text: str) -> str | None:
    r"""What the last \boxed{...} of `text` holds; None without one that is closed."""
    found = _last_match(_BOX, text)
    if found is None:
        return None
    depth = 1
    for place in range(found.end(), len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[found.end() : place].strip()
    return None


def marked(text: str) -> str | None:
    """The rest of the line after the last marker: "####", "answer is", "Answer:", "option is"."""
    found = _last_match(_MARKER, text)
    if found is None:
        return None
    rest = text[found.end() :].lstrip(" \t\n")
    return rest.partition("\n")[0].strip()


def last_line(text: str) -> str:
    """The last line of `text` that is not empty."""
    return text.rstrip().rpartition("\n")[2].strip()


def code_blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of `text` in order: the language, in lower case, and what is inside.

    A fence is closed by one of at least its own length, of its own sign; an open one runs to the
    end.
    """
    found: list[tuple[str, str]] = []
    opened: regex.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif fence[1].startswith(opened[1]) and not fence[2]:
            found.append((opened[2].lower(), text[opened.end() + 1 : fence.start()]))
            opened = None
    if opened is not None:
        found.append((opened[2].lower(), text[opened.end() + 1 :]))
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key is given twice")
    return made


def read_json(text: str) -> Any:
    """The JSON value of `text`, alone or in its last code fence, with exact numbers.

    Raises ValueError for what is none, NaN and keys given twice included.
    """
    blocks = code_blocks(text)
    try:
        return json.loads(
            blocks[-1][1] if blocks else text,
            parse_constant=_refuse_constant,
            parse_float=Decimal,
            parse_int=Decimal,
            object_pairs_hook=_refuse_repeated,
        )
    except (ArithmeticError, RecursionError) as error:
        raise ValueError(str(error)) from None


def same_json(a: Any, b: Any) -> bool:
    """Whether two values of `read_json` are equal; true is not 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_json(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_json, a, b))
    return type(a) is type(b) and bool(a == b)
