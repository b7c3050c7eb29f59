"""Pairs as TRL and most data sets on the hub have them: `chosen` and `rejected`, each an answer or
a whole conversation, and what was asked in `prompt`, `system` or the conversations' beginnings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair, SingleAnswer
from rlaif.core.records import Message
from rlaif.data.readers.base import (
    Format,
    better_scores,
    chosen_first,
    make_pair,
    name_of,
    number_of,
    one_answer,
    refuse_equal,
    turns,
)
from rlaif.data.readers.singles import read_completion
from rlaif.data.rows import Row
from rlaif.data.turns import brief, opens_conversation, read_asked, with_system

T = TypeVar("T")
SIDES = ("chosen", "rejected")
SCORES = ("score_{}", "{}_score", "{}_rating", "{}-rating", "rating_{}")
"""What files call the scores of the two answers: UltraFeedback's, distilabel's, argilla's."""
MODELS = ("{}_model", "{}-model", "model_{}")
ANNOTATORS = ("annotator", "labelling_model")
"""The columns that say who rated, where a file has one: a plain one, and distilabel's own."""


def shared_turns(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many turns two conversations begin with in common; each keeps at least its last."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return shared


def part_conversations(
    sides: tuple[Sequence[Message], Sequence[Message]], names: tuple[str, str], place: str
) -> tuple[list[Message], tuple[Message, Message]]:
    """(prompt, the two answers) of conversations alike in all but the last turn. Raises
    ConfigError."""
    shared = shared_turns(*sides)
    first, second = (
        one_answer(side[shared:], name, place) for side, name in zip(sides, names, strict=True)
    )
    return list(sides[0][:shared]), (first, second)


def split_conversations(
    chosen: Sequence[Message], rejected: Sequence[Message], place: str
) -> tuple[list[Message], tuple[Message, Message]]:
    """As `part_conversations`, of answers that must not be the same. Raises ConfigError."""
    prompt, answers = part_conversations((chosen, rejected), ("chosen", "rejected"), place)
    return prompt, refuse_equal(*answers, place)


def asked_and_answered(
    prompt: Sequence[Message] | None, sides: tuple[Sequence[Message], Sequence[Message]], place: str
) -> tuple[list[Message], tuple[Message, Message]]:
    """(prompt, the two answers) of a row. Conversations that begin with what was asked hold their
    prompt themselves, and a `prompt` beside them only repeats it. Raises ConfigError."""
    if all(opens_conversation(side) or (len(side) > 1 and not prompt) for side in sides):
        return split_conversations(*sides, place)
    if not prompt:
        raise ConfigError(f"{place}: chosen and rejected are answers, and there is no prompt")
    answers = (one_answer(sides[0], "chosen", place), one_answer(sides[1], "rejected", place))
    return list(prompt), refuse_equal(*answers, place)


def cells_of_sides(
    row: Row, names: Sequence[str], read: Callable[[Row, str, str], T], place: str
) -> tuple[T | None, T | None]:
    """What `read` gives of (chosen, rejected), under the first of several names that the row has
    for both. Raises ConfigError."""
    for name in names:
        if all(name.format(side) in row for side in SIDES):
            chosen, rejected = (read(row, name.format(side), place) for side in SIDES)
            return chosen, rejected
    return None, None


def authors_of(row: Row, place: str) -> tuple[str | None, str | None]:
    """Who wrote (chosen, rejected). Raises ConfigError."""
    return cells_of_sides(row, MODELS, name_of, place)


def annotator_of(row: Row, place: str) -> str | None:
    """Who rated, by the row's own word. Raises ConfigError."""
    return next((name for key in ANNOTATORS if (name := name_of(row, key, place))), None)


def texts_of_row(row: Row, place: str) -> tuple[list[Message], tuple[Message, Message]]:
    """(prompt, the two answers) of a row with `chosen` and `rejected`. Raises ConfigError."""
    for key in SIDES:
        if row.get(key) is None:
            raise ConfigError(f"{place}: {key} is missing; the row has {sorted(map(str, row))}")
    sides = (turns(row, "chosen", "assistant", place), turns(row, "rejected", "assistant", place))
    prompt = read_asked(row["prompt"], "prompt", place) if row.get("prompt") else None
    if prompt is None and any(isinstance(row[key], str) for key in SIDES):
        raise ConfigError(
            f"{place}: prompt is {brief(row.get('prompt'))}, and chosen and rejected are plain "
            "texts: what was asked cannot be told. HH transcripts are format hh."
        )
    before, answers = asked_and_answered(prompt, sides, place)
    return with_system(before, name_of(row, "system", place)), answers


def read_pair(row: Row, place: str) -> Iterator[LabelledPair | SingleAnswer]:
    """The pair in a row, `first` the chosen answer; or the answer that stands alone in it."""
    if row.get("completion") and not row.get("chosen") and not row.get("rejected"):
        yield from read_completion(row, place)
        return
    prompt, answers = texts_of_row(row, place)
    margin = number_of(row, "margin", place)
    yield make_pair(
        place,
        prompt,
        answers,
        1.0,
        authors=authors_of(row, place),
        annotator=annotator_of(row, place),
        scores=cells_of_sides(row, SCORES, number_of, place),
        margin=margin,
        source=name_of(row, "source", place) or "file",
    )


def write_pair(pair: LabelledPair) -> Row:
    """Explicit prompt, all three as lists of turns; scores and margin where they are known."""
    chosen, rejected = chosen_first(pair)
    scores = better_scores(pair)
    known = {} if scores is None else {"score_chosen": scores[0], "score_rejected": scores[1]}
    if pair.margin is not None:
        known["margin"] = pair.margin
    return {
        "prompt": [dict(turn) for turn in pair.prompt.messages],
        "chosen": [dict(turn) for turn in chosen.messages],
        "rejected": [dict(turn) for turn in rejected.messages],
        **known,
    }


FORMAT = Format(
    about="TRL and the hub: chosen, rejected as answers or whole conversations; prompt, system",
    columns=SIDES,
    optional=(
        "prompt",
        "system",
        "margin",
        "source",
        *ANNOTATORS,
        *(form.format(side) for form in (*SCORES, *MODELS) for side in SIDES),
    ),
    read=read_pair,
    write=write_pair,
)
KTO = Format(
    about="KTO: prompt, completion, label (true or false)",
    columns=("prompt", "completion", "label"),
    optional=("system", "source"),
    read=read_pair,
)
SFT = Format(
    about="Demonstrations: prompt, completion",
    columns=("prompt", "completion"),
    optional=("system", "source", "label"),
    read=read_pair,
)
