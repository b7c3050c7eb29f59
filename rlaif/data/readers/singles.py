"""Answers that stand alone: KTO's rows with a label, and demonstrations."""

from __future__ import annotations

from collections.abc import Iterator

from rlaif.core.errors import ConfigError
from rlaif.core.labelled import SingleAnswer
from rlaif.core.records import Message
from rlaif.data.readers.base import (
    Format,
    asked_prompt,
    made_answer,
    name_of,
    refuse_missing,
    turns,
)
from rlaif.data.rows import Row
from rlaif.data.turns import brief, opens_conversation, read_asked, with_system

CONVERSATIONS = ("messages", "conversations", "conversation")


def read_completion(row: Row, place: str) -> Iterator[SingleAnswer]:
    """The answer in a row of `prompt` and `completion`; without a label it is a good one."""
    label = row.get("label", True)
    if not isinstance(label, bool):
        raise ConfigError(f"{place}: label is {label!r}; true or false was expected")
    refuse_missing([key for key in ("prompt", "completion") if not row.get(key)], row, place)
    prompt = read_asked(row["prompt"], "prompt", place)
    answer = turns(row, "completion", "assistant", place)
    if len(answer) != 1 or answer[0]["role"] != "assistant":
        raise ConfigError(
            f"{place}: completion has {len(answer)} turns; text or one assistant turn was "
            "expected. Earlier turns belong into prompt."
        )
    yield _make_single(
        row, with_system(prompt, name_of(row, "system", place)), answer[0], label, place
    )


def read_conversation(row: Row, place: str) -> list[SingleAnswer]:
    """A demonstration: the last turn of a conversation, which must be an assistant's."""
    key = next(name for name in CONVERSATIONS if name in row)
    found = turns(row, key, "user", place)
    if not opens_conversation(found) or found[-1]["role"] != "assistant":
        raise ConfigError(
            f"{place}: {key} begins with {brief(found[0]['role'])} and ends with "
            f"{brief(found[-1]['role'])}; a conversation that ends with an assistant turn, the "
            "answer, was expected"
        )
    prompt = with_system(found[:-1], name_of(row, "system", place))
    return [_make_single(row, prompt, found[-1], True, place)]


def _make_single(
    row: Row, prompt: list[Message], answer: Message, good: bool, place: str
) -> SingleAnswer:
    made = asked_prompt(prompt, place)
    completion = made_answer(made, answer, 0, "", place)
    return SingleAnswer(made, completion, good, place, name_of(row, "source", place) or "file")


MESSAGES = Format(
    about="Demonstrations: messages (or conversations), a list of turns",
    columns=(),
    optional=(*CONVERSATIONS, "system", "source"),
    read=read_conversation,
    fits=lambda row: any(isinstance(row.get(name), list) for name in CONVERSATIONS),
)
