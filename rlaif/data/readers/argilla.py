"""Argilla's flat export: answers as fields, a question's responses, their users and states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.data.readers.base import (
    Format,
    is_missing,
    label_of,
    list_of,
    make_pair,
    name_of,
    single_turn,
    text_of,
    try_read,
    user,
)
from rlaif.data.rows import Row

PROMPTS = ("prompt", "instruction", "question")
ANSWERS = (
    ("response1", "response2"),
    ("response_1", "response_2"),
    ("response-1", "response-2"),
    ("response_a", "response_b"),
)
QUESTION = "preference"


def read_pair(row: Row, place: str) -> Iterator[LabelledPair | ConfigError]:
    """One pair for every submitted response; where there is none, one for the suggestion, which is
    a model's; otherwise one without a label."""
    question = _find_question(row, place)
    fields = _find_answers(row, place)
    prompt = user(text_of(row, next((k for k in PROMPTS if k in row), PROMPTS[0]), place))
    meaning = _label_meaning(fields)
    found: list[tuple[float | ConfigError | None, str | None, Any]] = [
        (try_read(label_of, {question: value}, question, meaning, place), who, "human")
        for value, who in _read_submitted(row, question, place)
    ]
    suggested = row.get(f"{question}.suggestion")
    if not found and not is_missing(suggested):
        meant = label_of({question: suggested}, question, meaning, place)
        found = [(meant, name_of(row, f"{question}.suggestion.agent", place), "ai")]
    answers = (text_of(row, fields[0], place), text_of(row, fields[1], place))
    for label, who, kind in found or [(None, None, "human")]:
        if isinstance(label, ConfigError):
            yield label
        else:
            yield make_pair(place, prompt, answers, label, annotator=who, annotator_kind=kind)


def _find_question(row: Row, place: str) -> str:
    found = [key.removesuffix(".responses") for key in row if key.endswith(".responses")]
    if len(found) == 1 or QUESTION in found:
        return QUESTION if QUESTION in found else found[0]
    raise ConfigError(
        f"{place}: the row has the questions {found}; one of them must be named {QUESTION!r}"
    )


def _find_answers(row: Row, place: str) -> tuple[str, str]:
    for first, second in ANSWERS:
        if first in row and second in row:
            return first, second
    raise ConfigError(f"{place}: no response1 and response2 among {sorted(map(str, row))}")


def _label_meaning(fields: tuple[str, str]) -> dict[str, float | None]:
    first, second = fields
    return {first: 1.0, second: 0.0, "1": 1.0, "2": 0.0, "tie": 0.5}


def _read_submitted(row: Row, question: str, place: str) -> list[tuple[Any, str | None]]:
    columns = [f"{question}.responses{part}" for part in ("", ".users", ".status")]
    values, users, states = (
        [] if is_missing(row.get(column)) else list_of(row[column], column, place)
        for column in columns
    )
    users = users or [None] * len(values)
    states = states or ["submitted"] * len(values)
    if not len(values) == len(users) == len(states):
        raise ConfigError(
            f"{place}: {question} has {len(values)} responses, {len(users)} users and "
            f"{len(states)} states; as many of each were expected"
        )
    return [
        (value, name_of({"user": who}, "user", place))
        for value, who, state in zip(values, users, states, strict=True)
        if state == "submitted"
    ]


def write_pair(pair: LabelledPair) -> Row:
    """A row whose label is a person's response, or a model's suggestion."""
    first, second = ANSWERS[0]
    row: Row = {"prompt": single_turn(pair), first: pair.first.text, second: pair.second.text}
    value = None
    if pair.label is not None:
        value = "tie" if pair.label == 0.5 else first if pair.label > 0.5 else second
    by_person = value is not None and pair.annotator_kind == "human"
    by_model = value is not None and not by_person
    return row | {
        f"{QUESTION}.responses": [value] if by_person else [],
        f"{QUESTION}.responses.users": [pair.annotator] if by_person else [],
        f"{QUESTION}.responses.status": ["submitted"] if by_person else [],
        f"{QUESTION}.suggestion": value if by_model else None,
        f"{QUESTION}.suggestion.agent": pair.annotator if by_model else None,
    }


FORMAT = Format(
    about="Argilla: prompt, response1, response2, and a question's .responses, .users, .status",
    columns=("*.responses",),
    optional=("*.responses.*", "*.suggestion", "*.suggestion.agent", *PROMPTS, "response*"),
    read=read_pair,
    fits=lambda row: any(first in row and second in row for first, second in ANSWERS),
    write=write_pair,
)
