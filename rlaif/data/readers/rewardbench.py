"""RewardBench v1 (one chosen, one rejected, a subset) and v2 (lists of answers)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Message
from rlaif.data.readers.base import (
    Format,
    attempt,
    better,
    better_authors,
    differing,
    make_pair,
    name_of,
    single_turn,
    text_of,
    user,
)
from rlaif.data.rows import Row
from rlaif.data.turns import brief, whole_text


def read(row: Row, place: str) -> list[LabelledPair]:
    """The pair in a row of v1; `first` is the chosen answer."""
    chosen = text_of(row, "chosen", place)
    rejected = text_of(row, "rejected", place)
    return [
        make_pair(
            place,
            user(text_of(row, "prompt", place)),
            differing(chosen, rejected, place),
            1.0,
            subset=name_of(row, "subset", place),
            authors=(name_of(row, "chosen_model", place), name_of(row, "rejected_model", place)),
        )
    ]


def read_v2(row: Row, place: str) -> Iterator[LabelledPair | ConfigError]:
    """Every correct answer of a row of v2 against every wrong one; `first` is the correct one."""
    prompt = user(text_of(row, "prompt", place))
    chosen, rejected = _list(row, "chosen", place), _list(row, "rejected", place)
    for key, expected in (
        ("num_correct", len(chosen)),
        ("total_completions", len(chosen) + len(rejected)),
    ):
        if row.get(key) not in (None, expected):
            raise ConfigError(f"{place}: {key} is {brief(row[key])}, and the row has {expected}")
    subset = name_of(row, "subset", place)
    answers: dict[str, list[str]] = {}
    for key, given in (("chosen", chosen), ("rejected", rejected)):
        texts = [attempt(_text, text, f"{key}[{i}]", place) for i, text in enumerate(given)]
        yield from (fault for fault in texts if isinstance(fault, ConfigError))
        answers[key] = [text for text in texts if isinstance(text, str)]
    for good in answers["chosen"]:
        for bad in answers["rejected"]:
            yield attempt(_pair, place, prompt, good, bad, subset)


def _pair(
    place: str, prompt: list[Message], good: str, bad: str, subset: str | None
) -> LabelledPair:
    return make_pair(place, prompt, differing(good, bad, place), 1.0, subset=subset)


def _list(row: Row, key: str, place: str) -> list[Any]:
    value = row.get(key)
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{place}: {key} must be a list of texts, not {brief(value)}")
    return value


def _text(value: Any, name: str, place: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{place}: {name} is {brief(value)}; a text was expected")
    whole_text([value], place)
    return value


def write(pair: LabelledPair) -> Row:
    """A row of v1."""
    chosen, rejected = better(pair)
    names = better_authors(pair)
    return {
        "id": pair.pair_id,
        "prompt": single_turn(pair),
        "chosen": chosen.text,
        "chosen_model": names[0],
        "rejected": rejected.text,
        "rejected_model": names[1],
        "subset": pair.subset,
    }


def _lists_texts(row: Row) -> bool:
    chosen = row["chosen"]
    return isinstance(chosen, list) and bool(chosen) and isinstance(chosen[0], str)


FORMAT = Format(
    about="RewardBench v1: prompt, chosen, rejected, subset",
    columns=("prompt", "chosen", "rejected", "subset"),
    optional=("chosen_model", "rejected_model"),
    read=read,
    fits=lambda row: isinstance(row["chosen"], str),
    write=write,
)
FORMAT_V2 = Format(
    about="RewardBench v2: prompt, chosen and rejected lists of texts, subset",
    columns=("prompt", "chosen", "rejected", "subset"),
    optional=("num_correct", "num_rejected", "total_completions"),
    read=read_v2,
    fits=_lists_texts,
    left="which pairs came from one row",
)
