"""HH-RLHF transcripts: two texts of `\\n\\nHuman: ` and `\\n\\nAssistant: ` turns."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlaif.data.labelled import LabelledPair
from rlaif.data.readers.base import Format, better, make_pair, text_of
from rlaif.data.readers.trl import split_conversations
from rlaif.data.rows import Row
from rlaif.errors import ConfigError
from rlaif.records import Message

_MARK = re.compile(r"\n\n(Human|Assistant):")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
MARKS = {role: mark for mark, role in SPEAKERS.items()}


def transcript(text: str, key: str, place: str) -> list[Message]:
    """The turns of a transcript, without the blanks around each. Raises ConfigError."""
    before, *parts = _MARK.split(text)
    if before.strip() or not parts:
        raise ConfigError(f"{place}: {key} does not begin with a `\\n\\nHuman:` turn")
    return [
        {"role": SPEAKERS[mark], "content": content.strip()}
        for mark, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def written(messages: Sequence[Message]) -> str:
    """Turns as a transcript. Raises ValueError where a turn cannot stand in one."""
    parts = []
    for turn in messages:
        if turn["role"] not in MARKS:
            raise ValueError(f"a {turn['role']} turn, and transcripts have none")
        if _MARK.search("\n\n" + turn["content"]):
            raise ValueError("the text of a turn looks like the mark of another turn")
        parts.append(f"\n\n{MARKS[turn['role']]}: {turn['content']}")
    return "".join(parts)


def read(row: Row, place: str) -> list[LabelledPair]:
    """The pair in a row; `first` is the chosen answer."""
    chosen = transcript(text_of(row, "chosen", place), "chosen", place)
    rejected = transcript(text_of(row, "rejected", place), "rejected", place)
    prompt, answers = split_conversations(chosen, rejected, place)
    return [make_pair(place, prompt, answers, 1.0)]


def write(pair: LabelledPair) -> Row:
    """Two transcripts."""
    chosen, rejected = better(pair)
    prompt = pair.prompt.messages
    return {
        "chosen": written([*prompt, *chosen.messages]),
        "rejected": written([*prompt, *rejected.messages]),
    }


def _fits(row: Row) -> bool:
    return isinstance(row["chosen"], str) and bool(_MARK.match(row["chosen"]))


FORMAT = Format(
    about="HH-RLHF: chosen and rejected transcripts of Human: and Assistant: turns",
    columns=("chosen", "rejected"),
    read=read,
    fits=_fits,
    write=write,
)
