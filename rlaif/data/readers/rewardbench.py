"""RewardBench v1 (one chosen, one rejected, a subset) and v2 (lists of answers)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Message
from rlaif.data.readers.base import (
    Format,
    attempt_each,
    describe_pairs,
    make_pair,
    name_of,
    refuse_equal,
    text_of,
    try_read,
    user,
)
from rlaif.data.rows import Row
from rlaif.data.turns import brief, whole_text


def read_v2(row: Row, place: str) -> Iterator[LabelledPair | ConfigError]:
    """Every correct answer of a row of v2 against every wrong one; `first` is the correct one."""
    prompt = user(text_of(row, "prompt", place))
    chosen, rejected = _read_list(row, "chosen", place), _read_list(row, "rejected", place)
    for key, expected in (
        ("num_correct", len(chosen)),
        ("total_completions", len(chosen) + len(rejected)),
    ):
        if row.get(key) not in (None, expected):
            raise ConfigError(f"{place}: {key} is {brief(row[key])}, and the row has {expected}")
    subset = name_of(row, "subset", place)
    answers: dict[str, list[str]] = {}
    for key, given in (("chosen", chosen), ("rejected", rejected)):
        answers[key], faults = attempt_each(_read_text, enumerate(given), key, place)
        yield from faults
    for good in answers["chosen"]:
        for bad in answers["rejected"]:
            yield try_read(_make_pair, place, prompt, good, bad, subset)


def _make_pair(
    place: str, prompt: list[Message], good: str, bad: str, subset: str | None
) -> LabelledPair:
    return make_pair(place, prompt, refuse_equal(good, bad, place), 1.0, subset=subset)


def _read_list(row: Row, key: str, place: str) -> list[Any]:
    value = row.get(key)
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{place}: {key} must be a list of texts, not {brief(value)}")
    return value


def _read_text(item: tuple[int, Any], key: str, place: str) -> str:
    number, value = item
    if not isinstance(value, str):
        raise ConfigError(f"{place}: {key}[{number}] is {brief(value)}; a text was expected")
    whole_text([value], place)
    return value


def _lists_texts(row: Row) -> bool:
    chosen = row["chosen"]
    return isinstance(chosen, list) and bool(chosen) and isinstance(chosen[0], str)


FORMAT = describe_pairs(
    "RewardBench v1: prompt, chosen, rejected, subset",
    {
        "id": "id",
        "prompt": "prompt",
        "chosen": "chosen",
        "chosen_model": "first_author",
        "rejected": "rejected",
        "rejected_model": "second_author",
        "subset": "subset",
    },
    known_by=("subset",),
    fits=lambda row: isinstance(row["chosen"], str),
)
FORMAT_V2 = Format(
    about="RewardBench v2: prompt, chosen and rejected lists of texts, subset",
    columns=("prompt", "chosen", "rejected", "subset"),
    optional=("num_correct", "num_rejected", "total_completions"),
    read=read_v2,
    fits=_lists_texts,
    left="which pairs came from one row",
)
