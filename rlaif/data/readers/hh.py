"""HH-RLHF transcripts: two texts of `\\n\\nHuman: ` and `\\n\\nAssistant: ` turns."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Message
from rlaif.data.readers.base import Format, make_pair, text_of, whole_conversations
from rlaif.data.readers.trl import split_conversations
from rlaif.data.rows import Row
from rlaif.data.turns import MARK, TRANSCRIBED, read_transcript

MARKS = {role: mark for mark, role in TRANSCRIBED.items()}


def write_transcript(messages: Sequence[Message]) -> str:
    """Turns as a transcript. Raises ValueError where a turn cannot stand in one."""
    parts = []
    for turn in messages:
        if turn["role"] not in MARKS or "tool_calls" in turn:
            what = "tool's" if "tool_calls" in turn else turn["role"]
            raise ValueError(f"a {what} turn, and transcripts have none")
        if MARK.search("\n\n" + turn["content"]):
            raise ValueError("the text of a turn looks like the mark of another turn")
        parts.append(f"\n\n{MARKS[turn['role']]}: {turn['content']}")
    return "".join(parts)


def read_pair(row: Row, place: str) -> list[LabelledPair]:
    """The pair in a row; `first` is the chosen answer."""
    chosen = read_transcript(text_of(row, "chosen", place), "chosen", place)
    rejected = read_transcript(text_of(row, "rejected", place), "rejected", place)
    prompt, answers = split_conversations(chosen, rejected, place)
    return [make_pair(place, prompt, answers, 1.0)]


def write_pair(pair: LabelledPair) -> Row:
    """Two transcripts."""
    chosen, rejected = whole_conversations(pair)
    return {"chosen": write_transcript(chosen), "rejected": write_transcript(rejected)}


def _fits_row(row: Row) -> bool:
    return isinstance(row["chosen"], str) and bool(MARK.match(row["chosen"]))


FORMAT = Format(
    about="HH-RLHF: chosen and rejected transcripts of Human: and Assistant: turns",
    columns=("chosen", "rejected"),
    read=read_pair,
    fits=_fits_row,
    write=write_pair,
)
