"""Rows of answers that were shown to people, and what these did with each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Prompt
from rlaif.data.readers.base import asked_prompt, made_answer, name_of, number_of
from rlaif.data.readers.singles import ANSWERS, read_turn_alone
from rlaif.data.rows import Row, Source, raise_fault, source_rows
from rlaif.data.turns import brief, read_asked, with_system

THUMBS: Mapping[object, bool | None] = {"up": True, "down": False, 1: True, -1: False, 0: None}
FLAGS: Mapping[object, bool] = {1: True, 0: False, "true": True, "false": False}
"""How files write yes and no beside true and false, which are 1 and 0: CSV has words."""


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """One answer at one place of one impression: what one person was shown together, once.

    `position` counts from 1. `propensity` is the logged probability, on (0, 1], that the answer was
    shown there and looked at. `random` says that the position was drawn by lot, and `examined` that
    the answer was surely looked at. None stands for what nobody recorded; `thumbs` is True for up,
    and `dwell` is in seconds.
    """

    impression: str
    prompt: Prompt
    answer: Completion
    position: int
    propensity: float | None
    random: bool
    examined: bool
    clicked: bool | None
    liked: bool | None
    shared: bool | None
    thumbs: bool | None
    dwell: float | None
    place: str


@dataclass(frozen=True)
class Events:
    """The shown answers of a file by impression, and a message for each row that was skipped."""

    impressions: dict[str, list[ShownAnswer]]
    skipped: list[str]


def read_events(source: Source, skip: bool) -> Events:
    """Every shown answer of a file, by impression in order of position; rows with `shown: false`
    are left out.

    Raises ConfigError, which names row and column, where a row cannot be read (`skip`: it is left
    out and reported), where an impression has two prompts, or two answers at one position, and
    where no row is left.
    """
    skipped: list[str] = []

    def skip_row(fault: ConfigError) -> None:
        skipped.append(str(fault))

    on_fault = skip_row if skip else raise_fault
    found: dict[str, list[ShownAnswer]] = defaultdict(list)
    for place, row in source_rows(source, on_fault):
        try:
            shown = _read_row(row, place)
        except ConfigError as fault:
            on_fault(fault)
            continue
        if shown is not None:
            found[shown.impression].append(shown)
    if not found:
        why = f"; the first fault: {skipped[0]}" if skipped else ""
        raise ConfigError(f"no row of an answer that was shown{why}", str(source))
    ordered = {name: sorted(found[name], key=lambda one: one.position) for name in sorted(found)}
    for impression in ordered.values():
        _check_impression(impression)
    return Events(ordered, skipped)


def _read_row(row: Row, place: str) -> ShownAnswer | None:
    if _flag(row, "shown", place) is False:
        return None
    lacking = [key for key in ("impression", "prompt", "position") if row.get(key) is None]
    column = next((key for key in ANSWERS if row.get(key)), None)
    if lacking or column is None:
        what = " and ".join([*lacking, *(["response"] if column is None else [])])
        raise ConfigError(
            f"{place}: {what} is missing. A row of events has impression, prompt, response and "
            f"position, and what was done with the answer; this one has: "
            f"{', '.join(sorted(map(str, row)))}"
        )
    asked = read_asked(row["prompt"], "prompt", place)
    prompt = asked_prompt(with_system(asked, name_of(row, "system", place)), place)
    return ShownAnswer(
        impression=str(row["impression"]),
        prompt=prompt,
        answer=made_answer(prompt, read_turn_alone(row, column, place), 0, "", place),
        position=_position(row, place),
        propensity=_propensity(row, place),
        random=bool(_flag(row, "random", place)),
        examined=bool(_flag(row, "examined", place)),
        clicked=_flag(row, "clicked", place),
        liked=_flag(row, "liked", place),
        shared=_flag(row, "shared", place),
        thumbs=_thumbs(row, place),
        dwell=_seconds(row, place),
        place=place,
    )


def _flag(row: Row, key: str, place: str) -> bool | None:
    value = row.get(key)
    if value is None or value == "":
        return None
    told = value.lower() if isinstance(value, str) else value
    if not isinstance(told, str | int | float) or told not in FLAGS:
        raise ConfigError(f"{place}: {key} is {brief(value)}; true or false was expected")
    return FLAGS[told]


def _thumbs(row: Row, place: str) -> bool | None:
    value = row.get("thumbs")
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value not in THUMBS:
        raise ConfigError(f"{place}: thumbs is {brief(value)}; up or down was expected")
    return THUMBS[value]


def _position(row: Row, place: str) -> int:
    value = number_of(row, "position", place)
    if value is None or value < 1 or value != int(value):
        raise ConfigError(
            f"{place}: position is {brief(row['position'])}; a whole number from 1 was expected"
        )
    return int(value)


def _propensity(row: Row, place: str) -> float | None:
    value = number_of(row, "propensity", place)
    if value is not None and not 0.0 < value <= 1.0:
        raise ConfigError(f"{place}: propensity is {value:g}; more than 0 and up to 1 was expected")
    return value


def _seconds(row: Row, place: str) -> float | None:
    value = number_of(row, "dwell", place)
    if value is not None and value < 0.0:
        raise ConfigError(f"{place}: dwell is {value:g}; seconds from 0 were expected")
    return value


def _check_impression(shown: Sequence[ShownAnswer]) -> None:
    first = shown[0]
    for before, one in pairwise(shown):
        if one.prompt.prompt_id != first.prompt.prompt_id:
            raise ConfigError(
                f"{one.place}: impression {one.impression!r} has another prompt at {first.place}; "
                "the answers of an impression are to one prompt"
            )
        if one.position == before.position:
            raise ConfigError(
                f"{one.place}: impression {one.impression!r} has another answer at position "
                f"{one.position} already, at {before.place}"
            )
