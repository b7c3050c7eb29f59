"""A record of a row in a user's file, with the type and range of every field checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

import msgspec

from rlaif.core.errors import ConfigError
from rlaif.core.records import R, canonical_json
from rlaif.core.yamlio import suggest
from rlaif.data.rows import Row
from rlaif.data.turns import ROLES, brief, whole_text

RANGES: Mapping[str, tuple[float, float]] = {
    "score": (0.0, 1.0),
    "prob_first": (0.0, 1.0),
    "prob": (0.0, 1.0),
    "weight": (0.0, math.inf),
}
"""The least and the largest number of a field, both allowed."""
TEXTS = ("messages", "prompt", "chosen", "rejected")
"""The fields that are conversations."""
WORDS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "array": "a list",
    "object": "a mapping",
}
"""What msgspec calls a type, and what a user does."""


def record_of(kind: type[R], row: Row, place: str) -> R:
    """A row as a Completion, Judgement or Preference. Raises ConfigError, which names the row, the
    field and what was expected, for one that is missing, unknown or of another type or range."""
    known = list(kind.__struct_fields__)
    strange = next((key for key in row if key not in known), None)
    if strange is not None:
        raise _make_fault(kind, place, f"unknown field {strange!r}{suggest(strange, known)}")
    try:
        made = msgspec.convert(row, kind)
    except msgspec.ValidationError as error:
        raise _make_fault(kind, place, _explain_fault(kind, row, str(error))) from None
    for name, (low, high) in RANGES.items():
        value = getattr(made, name, None)
        if value is not None and not low <= value <= high:
            wanted = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
            raise _make_fault(kind, place, f"{name} is {value}; {wanted} was expected")
    try:
        canonical_json(row)
    except (TypeError, ValueError):
        fault = "a value that JSON does not have, such as NaN; null says that there is none"
        raise _make_fault(kind, place, fault) from None
    for name in TEXTS:
        turns = getattr(made, name, [])
        role = next((turn["role"] for turn in turns if turn["role"] not in ROLES), None)
        if role is not None:
            wanted = "system, user or assistant was expected"
            raise _make_fault(kind, place, f"{name} has a turn of role {brief(role)}; {wanted}")
        whole_text([turn["content"] for turn in turns], place)
    return made


def _make_fault(kind: type, place: str, fault: str) -> ConfigError:
    return ConfigError(f"{place}: not a row of {kind.__name__.lower()}s: {fault}")


def _explain_fault(kind: type, row: Row, message: str) -> str:
    """msgspec's message with the field first, and what a choice is between."""
    what, _, where = message.partition(" - at `$.")
    field = where.removesuffix("`")
    lacking = re.fullmatch(r"Object missing required field `(\w+)`", what)
    if lacking:
        return f"{'.'.join(filter(None, (field, lacking[1])))} is missing; it must be given"
    if not field:
        return f"{what}; a number stands with status ok or tie, and with no other"
    expected = re.fullmatch(r"Expected `(.+)`, got `.+`", what)
    name = re.split(r"[.\[]", field)[0]
    if expected:
        options = [WORDS.get(option, option) for option in expected[1].split(" | ")]
    else:
        options = list(map(str, get_args(get_type_hints(kind)[name])))
    return f"{field} is {brief(_value_at(row, field))}; expected {' or '.join(options)}"


def _value_at(row: Row, field: str) -> Any:
    """What stands in a row at a place such as messages[0].content."""
    value: Any = row
    for key, index in re.findall(r"(\w+)|\[(\d+|\.\.\.)\]", field):
        if index == "...":
            # msgspec does not say which value of a mapping it was.
            return value
        value = value[key] if key else value[int(index)]
    return value
