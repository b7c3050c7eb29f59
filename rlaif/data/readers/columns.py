"""Any table by a map of its columns."""

from __future__ import annotations

from rlaif.config import LabelColumns
from rlaif.data.labelled import LabelledPair
from rlaif.data.readers.base import (
    Format,
    brief,
    differing,
    label_of,
    make_pair,
    missing,
    name_of,
    number_of,
    one_answer,
    turns,
)
from rlaif.data.rows import Row
from rlaif.errors import ConfigError


def mapped(columns: LabelColumns) -> Format:
    """The format that a column map describes."""
    first, second = columns.answers
    needed = [columns.prompt, first, second]

    def read(row: Row, place: str) -> list[LabelledPair]:
        lacking = [name for name in needed if missing(row.get(name))]
        if lacking:
            raise ConfigError(
                f"{place}: {', '.join(lacking)} missing or empty; the row has "
                f"{sorted(map(str, row))}"
            )
        answers = (_answer(row, first, place), _answer(row, second, place))
        return [
            make_pair(
                place,
                turns(row, columns.prompt, "user", place),
                answers if columns.label else differing(*answers, place),
                _label(row, columns, place),
                subset=_name(row, columns.subset, place),
                authors=(
                    _name(row, columns.first_author, place),
                    _name(row, columns.second_author, place),
                ),
                annotator=_name(row, columns.annotator, place),
                annotator_kind=columns.annotator_kind,
            )
        ]

    used = [columns.label, columns.subset, columns.annotator]
    used += [columns.first_author, columns.second_author]
    optional = tuple(name for name in used if name is not None)
    return Format("a column map", tuple(needed), read, optional)


def _answer(row: Row, key: str, place: str) -> str:
    return one_answer(turns(row, key, "assistant", place), key, place)


def _name(row: Row, key: str | None, place: str) -> str | None:
    return None if key is None else name_of(row, key, place)


def _label(row: Row, columns: LabelColumns, place: str) -> float | None:
    key = columns.label
    if key is None:
        return 1.0
    if key not in row:
        raise ConfigError(f"{place}: {key} missing; the row has {sorted(map(str, row))}")
    if columns.labels is not None:
        return label_of(row, key, columns.labels.meaning(), place)
    share = number_of(row, key, place)
    if share is not None and not 0 <= share <= 1:
        raise ConfigError(
            f"{place}: {key} is {brief(row[key])}; without `labels` it must be the probability "
            "that the first answer is better, from 0 to 1"
        )
    return share
