"""OpenRLHF preferences: whole conversations `chosen` and `rejected` with a `margin`, as its reward
model and DPO trainers read them with `--apply_chat_template` and their default column names."""

from __future__ import annotations

from rlaif.core.labelled import LabelledPair
from rlaif.data.readers.base import Format, better_margin, make_pair, number_of, whole_conversations
from rlaif.data.readers.trl import texts_of_row
from rlaif.data.rows import Row


def read_pair(row: Row, place: str) -> list[LabelledPair]:
    """The pair in a row; `first` is the chosen answer."""
    margin = number_of(row, "margin", place)
    return [make_pair(place, *texts_of_row(row, place), 1.0, margin=margin)]


def write_pair(pair: LabelledPair) -> Row:
    """The margin is the file's, or the gap of the scores; without scores, of the probabilities."""
    chosen, rejected = whole_conversations(pair)
    return {"chosen": chosen, "rejected": rejected, "margin": better_margin(pair)}


FORMAT = Format(
    about="OpenRLHF: whole conversations chosen and rejected, margin",
    columns=("chosen", "rejected", "margin"),
    read=read_pair,
    fits=lambda row: "prompt" not in row and isinstance(row["chosen"], list),
    write=write_pair,
)
