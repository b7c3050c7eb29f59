"""PKU-SafeRLHF: two responses with one label for helpfulness and one for safety."""

from __future__ import annotations

from functools import partial

from rlaif.core.labelled import LabelledPair
from rlaif.data.readers.base import (
    Format,
    better,
    label_of,
    make_pair,
    name_of,
    single_turn,
    text_of,
    user,
)
from rlaif.data.rows import Row

MEANING = {"0": 1.0, "1": 0.0}


def _read(row: Row, place: str, column: str) -> list[LabelledPair]:
    return [
        make_pair(
            place,
            user(text_of(row, "prompt", place)),
            (text_of(row, "response_0", place), text_of(row, "response_1", place)),
            label_of(row, column, MEANING, place),
            subset=name_of(row, "prompt_source", place),
            authors=(
                name_of(row, "response_0_source", place),
                name_of(row, "response_1_source", place),
            ),
        )
    ]


def _write(pair: LabelledPair, column: str) -> Row:
    chosen, _ = better(pair)
    first, second = pair.authors or (None, None)
    return {
        "prompt": single_turn(pair),
        "response_0": pair.first.text,
        "response_1": pair.second.text,
        "prompt_source": pair.subset,
        "response_0_source": first,
        "response_1_source": second,
        column: int(chosen is pair.second),
    }


def _format(column: str, meaning: str) -> Format:
    return Format(
        about=f"PKU-SafeRLHF, labels of {meaning}: prompt, response_0, response_1, {column}",
        columns=("prompt", "response_0", "response_1", column),
        optional=("prompt_source", "response_0_source", "response_1_source"),
        read=partial(_read, column=column),
        write=partial(_write, column=column),
    )


FORMAT = _format("better_response_id", "helpfulness")
FORMAT_SAFER = _format("safer_response_id", "safety")
