"""Auto-J's pairwise test set: human labels over scenarios."""

from __future__ import annotations

from rlaif.core.labelled import LabelledPair
from rlaif.data.readers.base import Format, label_of, make_pair, name_of, single_turn, text_of, user
from rlaif.data.rows import Row

MEANING = {"0": 1.0, "1": 0.0, "2": 0.5}
NUMBERS = {meaning: int(number) for number, meaning in MEANING.items()}


def read(row: Row, place: str) -> list[LabelledPair]:
    """The pair in a row, in its order; the scenario is the subset."""
    answers = (text_of(row, "response 1", place), text_of(row, "response 2", place))
    label = label_of(row, "label", MEANING, place)
    prompt = user(text_of(row, "prompt", place))
    return [make_pair(place, prompt, answers, label, subset=name_of(row, "scenario", place))]


def write(pair: LabelledPair) -> Row:
    """A row; a share of votes becomes its majority."""
    label = pair.label
    return {
        "scenario": pair.subset,
        "label": None if label is None else NUMBERS[float(label > 0.5) if label != 0.5 else 0.5],
        "prompt": single_turn(pair),
        "response 1": pair.first.text,
        "response 2": pair.second.text,
    }


FORMAT = Format(
    about="Auto-J: prompt, `response 1`, `response 2`, label (0 first, 1 second, 2 tie), scenario",
    columns=("prompt", "response 1", "response 2", "label"),
    optional=("scenario",),
    read=read,
    write=write,
)
