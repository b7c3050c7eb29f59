"""Votes of the arenas: LMSYS and LMArena conversations, the 55k of Kaggle with its three winner
columns, and MT-bench's human judgements."""

from __future__ import annotations

from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import AnnotatorKind, Message
from rlaif.data.readers.base import Format, label_of, make_pair, name_of, number_of, value_at
from rlaif.data.readers.trl import part_conversations
from rlaif.data.rows import Row
from rlaif.data.turns import brief, conversation, parse_json

WINNER: dict[str, float | None] = {
    "model_a": 1.0,
    "model_b": 0.0,
    **dict.fromkeys(("tie", "tie (bothbad)", "both_bad", "bothbad"), 0.5),
}
"""What the arenas call who won: an answer that is as bad as the other is a tie."""
WINNERS = {"winner_model_a": 1.0, "winner_model_b": 0.0, "winner_tie": 0.5}
SIDES = ("conversation_a", "conversation_b")
AUTHORS = ("model_a", "model_b")


def read_pair(row: Row, place: str) -> list[LabelledPair]:
    """The pair in a row, model_a's answer first. `turn` says which turn was judged."""
    turn = number_of(row, "turn", place)
    first, second = (
        conversation(parse_json(row.get(side), (list,)), "assistant", side, place)[
            : None if turn is None else 2 * int(turn)
        ]
        for side in SIDES
    )
    judge = name_of(row, "judge", place)
    kind: AnnotatorKind = "ai" if judge is not None and judge.startswith("gpt") else "human"
    label = label_of(row, "winner", WINNER, place)
    return [_make_vote(row, place, (first, second), label, judge, kind)]


def read_kaggle(row: Row, place: str) -> list[LabelledPair]:
    """The pair in a row whose prompts and responses are lists of turns, written as JSON."""
    asked = _read_texts(row, "prompt", place)
    sides: list[list[Message]] = []
    for key in ("response_a", "response_b"):
        said = _read_texts(row, key, place)
        if len(said) != len(asked):
            raise ConfigError(f"{place}: {key} has {len(said)} turns, and prompt {len(asked)}")
        turns: list[Message] = []
        for question, answer in zip(asked, said, strict=True):
            turns.append({"role": "user", "content": question})
            turns.append({"role": "assistant", "content": answer})
        sides.append(turns)
    won = [label for key, label in WINNERS.items() if number_of(row, key, place) == 1]
    if len(won) > 1:
        raise ConfigError(f"{place}: more than one of {', '.join(WINNERS)} is 1")
    return [_make_vote(row, place, (sides[0], sides[1]), won[0] if won else None)]


def _make_vote(
    row: Row,
    place: str,
    sides: tuple[list[Message], list[Message]],
    label: float | None,
    annotator: str | None = None,
    kind: AnnotatorKind = "human",
) -> LabelledPair:
    prompt, answers = part_conversations(sides, SIDES, place)
    authors = (name_of(row, "model_a", place), name_of(row, "model_b", place))
    return make_pair(
        place,
        prompt,
        answers,
        label,
        subset=name_of(row, "language", place),
        authors=authors,
        annotator=annotator,
        annotator_kind=kind,
    )


def _read_texts(row: Row, key: str, place: str) -> list[str]:
    value = parse_json(row.get(key), (list,))
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ConfigError(f"{place}: {key} is {brief(value)}; a list of texts was expected")
    return found


def _numbers_questions(row: Row) -> bool:
    """MT-bench numbers its questions; the arenas name theirs by a hash."""
    return isinstance(value_at(row, "question_id"), int)


MT_BENCH = Format(
    about="MT-bench human judgements: conversation_a, conversation_b, winner, judge, turn",
    columns=(*SIDES, "winner", "judge", "turn"),
    optional=("question_id", *AUTHORS),
    read=read_pair,
    fits=_numbers_questions,
    left="the second turns, whose conversations part before the last answer",
)
FORMAT = Format(
    about="LMSYS and LMArena votes: conversation_a, conversation_b, winner, model_a, model_b",
    columns=(*SIDES, "winner"),
    optional=(*AUTHORS, "judge", "turn", "language"),
    read=read_pair,
)
KAGGLE = Format(
    about="LMSYS arena 55k: prompt, response_a, response_b, winner_model_a, _model_b, _tie",
    columns=("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b"),
    optional=("winner_tie", *AUTHORS),
    read=read_kaggle,
)
