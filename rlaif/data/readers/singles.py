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
ANSWERS = ("completion", "response")
"""What files call the answer beside a `prompt`: TRL's name, and that of many data sets."""


def read_completion(row: Row, place: str) -> Iterator[SingleAnswer]:
    """The answer in a row of `prompt` and `completion` (or `response`); without a label it is a
    good one."""
    label = row.get("label", True)
    if not isinstance(label, bool):
        raise ConfigError(f"{place}: label is {label!r}; true or false was expected")
    name = next((key for key in ANSWERS if row.get(key)), ANSWERS[0])
    refuse_missing([key for key in ("prompt", name) if not row.get(key)], row, place)
    prompt = read_asked(row["prompt"], "prompt", place)
    answer = read_turn_alone(row, name, place)
    yield make_single(row, with_system(prompt, name_of(row, "system", place)), answer, label, place)


def read_turn_alone(row: Row, name: str, place: str) -> Message:
    """The answer in a column: text, or one assistant turn. Raises ConfigError."""
    answer = turns(row, name, "assistant", place)
    if len(answer) != 1 or answer[0]["role"] != "assistant":
        raise ConfigError(
            f"{place}: {name} has {len(answer)} turns; text or one assistant turn was "
            "expected. Earlier turns belong into prompt."
        )
    return answer[0]


def read_conversation(row: Row, place: str) -> list[SingleAnswer]:
    """A demonstration: the last turn of a conversation, which must be an assistant's."""
    key = next(name for name in CONVERSATIONS if name in row)
    prompt, answer = split_last_turn(turns(row, key, "user", place), key, place)
    prompt = with_system(prompt, name_of(row, "system", place))
    return [make_single(row, prompt, answer, True, place)]


def split_last_turn(found: list[Message], key: str, place: str) -> tuple[list[Message], Message]:
    """(prompt, answer) of a conversation. Raises ConfigError where no answer ends it."""
    if not opens_conversation(found) or found[-1]["role"] != "assistant":
        raise ConfigError(
            f"{place}: {key} begins with {brief(found[0]['role'])} and ends with "
            f"{brief(found[-1]['role'])}; a conversation that ends with an assistant turn, the "
            "answer, was expected"
        )
    return found[:-1], found[-1]


def make_single(
    row: Row, prompt: list[Message], answer: Message, good: bool, place: str
) -> SingleAnswer:
    """The answer to a prompt, of the row's own `source`. Raises ConfigError."""
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
RESPONSES = Format(
    about="Demonstrations: prompt, response",
    columns=("prompt", "response"),
    optional=("system", "source"),
    read=read_completion,
    # Rated, labelled or merely shown answers are not all good ones.
    fits=lambda row: (
        not row.keys() & {"chosen", "rejected", "label", "score", "rating", "impression"}
    ),
)
