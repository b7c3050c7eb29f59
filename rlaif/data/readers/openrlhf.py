"""OpenRLHF preferences: whole conversations `chosen` and `rejected` with a `margin`, as its reward
model and DPO trainers read them with `--apply_chat_template` and their default column names."""

from __future__ import annotations

from rlaif.data.labelled import LabelledPair
from rlaif.data.readers.base import Format, better, make_pair, scores_or_votes, turns
from rlaif.data.readers.trl import split_conversations
from rlaif.data.rows import Row


def read(row: Row, place: str) -> list[LabelledPair]:
    """The pair in a row; `first` is the chosen answer."""
    chosen, rejected = (turns(row, k, "assistant", place) for k in ("chosen", "rejected"))
    return [make_pair(place, *split_conversations(chosen, rejected, place), 1.0)]


def write(pair: LabelledPair) -> Row:
    """The margin is the gap of the scores; without scores, of the probabilities."""
    chosen, rejected = better(pair)
    above, below = scores_or_votes(pair)
    prompt = [dict(turn) for turn in pair.prompt.messages]
    return {
        "chosen": [*prompt, *(dict(turn) for turn in chosen.messages)],
        "rejected": [*prompt, *(dict(turn) for turn in rejected.messages)],
        "margin": above - below,
    }


FORMAT = Format(
    about="OpenRLHF: whole conversations chosen and rejected, margin",
    columns=("chosen", "rejected", "margin"),
    read=read,
    fits=lambda row: "prompt" not in row and isinstance(row["chosen"], list),
    write=write,
    left="how wide the margin is",
)
