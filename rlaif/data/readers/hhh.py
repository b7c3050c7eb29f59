"""HHH comparisons with a human-decided better answer, as multiple choice and as transcripts."""

from __future__ import annotations

from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.data.readers.base import Format, make_pair, text_of
from rlaif.data.readers.trl import split_conversations
from rlaif.data.rows import Row
from rlaif.data.turns import read_transcript


def read_pair(row: Row, place: str) -> list[LabelledPair]:
    """The pair in a row; `first` is option (A) of the multiple choice."""
    good = read_transcript(text_of(row, "text_correct", place), "text_correct", place)
    bad = read_transcript(text_of(row, "text_incorrect", place), "text_incorrect", place)
    prompt, (better, worse) = split_conversations(good, bad, place)
    if _read_option(row, "corrects", place) < _read_option(row, "incorrects", place):
        return [make_pair(place, prompt, (better, worse), 1.0)]
    return [make_pair(place, prompt, (worse, better), 0.0)]


def _read_option(row: Row, key: str, place: str) -> str:
    value = row.get(key)
    if not isinstance(value, list) or len(value) != 1 or value[0] not in (" (A)", " (B)"):
        raise ConfigError(f"{place}: {key} must be [' (A)'] or [' (B)'], not {value!r:.60}")
    return str(value[0])


FORMAT = Format(
    about="HHH comparisons: text_correct, text_incorrect transcripts; corrects, incorrects options",
    columns=("corrects", "incorrects", "text_correct", "text_incorrect"),
    optional=("prompt",),
    read=read_pair,
)
