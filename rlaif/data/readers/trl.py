"""TRL preferences: `prompt`, `chosen`, `rejected` as texts or turns; or an implicit prompt."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.data.labelled import LabelledPair
from rlaif.data.readers.base import (
    Format,
    better,
    brief,
    differing,
    make_pair,
    one_answer,
    turns,
)
from rlaif.data.rows import Row
from rlaif.errors import ConfigError
from rlaif.records import Message


def shared_turns(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many turns two conversations begin with in common; each keeps at least its last."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return shared


def split_conversations(
    chosen: list[Message], rejected: list[Message], place: str
) -> tuple[list[Message], tuple[str, str]]:
    """(prompt, the two answers) of conversations alike in all but the last turn. Raises
    ConfigError."""
    shared = shared_turns(chosen, rejected)
    answers = (
        one_answer(chosen[shared:], "chosen", place),
        one_answer(rejected[shared:], "rejected", place),
    )
    return chosen[:shared], differing(*answers, place)


def read(row: Row, place: str) -> list[LabelledPair]:
    """The pair in a row; `first` is the chosen answer."""
    for key in ("chosen", "rejected"):
        if row.get(key) is None:
            raise ConfigError(f"{place}: {key} is missing; the row has {sorted(map(str, row))}")
    chosen = turns(row, "chosen", "assistant", place)
    rejected = turns(row, "rejected", "assistant", place)
    if row.get("prompt"):
        prompt = turns(row, "prompt", "user", place)
        answers = differing(
            one_answer(chosen, "chosen", place), one_answer(rejected, "rejected", place), place
        )
    elif isinstance(row["chosen"], str) or isinstance(row["rejected"], str):
        raise ConfigError(
            f"{place}: prompt is {brief(row.get('prompt'))}, and chosen and rejected are plain "
            "texts: what was asked cannot be told. HH transcripts are format hh."
        )
    else:
        prompt, answers = split_conversations(chosen, rejected, place)
    return [make_pair(place, prompt, answers, 1.0)]


def write(pair: LabelledPair) -> Row:
    """Explicit prompt, all three as lists of turns."""
    chosen, rejected = better(pair)
    return {
        "prompt": [dict(turn) for turn in pair.prompt.messages],
        "chosen": [dict(turn) for turn in chosen.messages],
        "rejected": [dict(turn) for turn in rejected.messages],
    }


FORMAT = Format(
    about="TRL preferences: prompt, chosen, rejected as texts or turns; the prompt may be implicit",
    columns=("chosen", "rejected"),
    optional=("prompt",),
    read=read,
    write=write,
)
