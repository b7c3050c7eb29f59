"""LLaMA-Factory preferences: the `sharegpt` form with `ranking: true` in its dataset_info.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Message
from rlaif.data.readers.base import Format, chosen_first, list_of, make_pair, refuse_equal, text_of
from rlaif.data.rows import Row
from rlaif.data.turns import brief

SPEAKERS = {"human": "user", "gpt": "assistant"}
ROLES = {role: name for name, role in SPEAKERS.items()}

COLUMNS = {
    "messages": "conversations",
    "chosen": "chosen",
    "rejected": "rejected",
    "system": "system",
}
"""The columns' part of the file's entry in dataset_info.json."""


def read_pair(row: Row, place: str) -> Iterator[LabelledPair]:
    """The pair in a row; `first` is the chosen answer."""
    conversation = list_of(row.get("conversations"), "conversations", place)
    system = text_of(row, "system", place) if row.get("system") is not None else ""
    before: list[Message] = [{"role": "system", "content": system}] if system else []
    answers = [_read_turn(row.get(key), place) for key in ("chosen", "rejected")]
    if any(turn["role"] != "assistant" for turn in answers):
        raise ConfigError(f"{place}: chosen and rejected must be from gpt")
    yield make_pair(
        place,
        [*before, *(_read_turn(turn, place) for turn in conversation)],
        refuse_equal(answers[0]["content"], answers[1]["content"], place),
        1.0,
    )


def _read_turn(value: Any, place: str) -> Message:
    known = isinstance(value, dict) and value.get("from") in SPEAKERS
    if not known or not isinstance(value["value"], str):
        raise ConfigError(f"{place}: {brief(value)}; a turn {{from: human or gpt, value}} expected")
    return {"role": SPEAKERS[value["from"]], "content": value["value"]}


def write_pair(pair: LabelledPair) -> Row:
    """A system turn, which must come first, has a column of its own."""
    chosen, rejected = chosen_first(pair)
    prompt = pair.prompt.messages
    system, rest = ("", prompt)
    if prompt[0]["role"] == "system":
        system, rest = prompt[0]["content"], prompt[1:]
        if not system:
            raise ValueError("an empty system turn, which this format takes for none")
    if any(turn["role"] == "system" for turn in rest):
        raise ValueError("a system turn that is not the first, and this format has none there")
    return {
        "conversations": [_write_turn(turn) for turn in rest],
        "chosen": _write_turn({"role": "assistant", "content": chosen.text}),
        "rejected": _write_turn({"role": "assistant", "content": rejected.text}),
        "system": system,
    }


def _write_turn(turn: Message) -> dict[str, str]:
    if turn["role"] not in ROLES or "tool_calls" in turn:
        raise ValueError("a turn of a tool, and this format has none here")
    return {"from": ROLES[turn["role"]], "value": turn["content"]}


FORMAT = Format(
    about="LLaMA-Factory: conversations, chosen and rejected as {from, value}, system",
    columns=("conversations", "chosen", "rejected"),
    optional=("system",),
    read=read_pair,
    write=write_pair,
)
