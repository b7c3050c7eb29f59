"""Some of the rounds of an experiment, as `when` names them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveInt

from rlaif.config.base import Strict

_RANGE = re.compile(r"(\d+)(-(\d*))?")


class Every(Strict):
    """Rounds K, 2K, 3K, ..."""

    every: PositiveInt


def _check_rounds(value: int | str | Every) -> int | str | Every:
    for first, last in _ranges(value) if isinstance(value, str) else ():
        if first < 1 or (last is not None and last < first):
            raise ValueError(f"{value!r}: rounds count from 1, and a range does not go back")
    return value


RoundsText = Annotated[
    str, Field(pattern=r"^\d+(-\d*)?(,\d+(-\d*)?)*$"), AfterValidator(_check_rounds)
]

Rounds = Annotated[
    PositiveInt | Annotated[str, Field(pattern=r"^\d+(-\d*)?(,\d+(-\d*)?)*$")] | Every,
    AfterValidator(_check_rounds),
    Field(description='Rounds: `2`, `"2-"` (from 2 on), `"1,3-4"`, or `{every: 3}`.'),
]


def in_rounds(rounds: int | str | Every | None, number: int) -> bool:
    """Whether round `number`, from 1 on, is one of `rounds`; all are where it is None."""
    if rounds is None:
        return True
    if isinstance(rounds, Every):
        return number % rounds.every == 0
    if isinstance(rounds, int):
        return number == rounds
    return any(
        first <= number and (last is None or number <= last) for first, last in _ranges(rounds)
    )


def _ranges(text: str) -> list[tuple[int, int | None]]:
    """First and last round of each range; the last is None where the range is open."""
    found: list[tuple[int, int | None]] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        assert match is not None, "the pattern of the key lets nothing else through"
        first, rest, last = int(match[1]), match[2], match[3]
        found.append((first, first if rest is None else int(last) if last else None))
    return found
