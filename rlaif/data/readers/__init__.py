"""Labelled pairs from files: one module per format, found by name or from a row's columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Literal

from rlaif.config import LabelColumns
from rlaif.data.labelled import LabelledPair
from rlaif.data.readers import (
    alpaca_eval,
    argilla,
    autoj,
    hh,
    hhh,
    icai,
    llama_factory,
    openrlhf,
    pku,
    rewardbench,
    trl,
    ultrafeedback,
    verl,
)
from rlaif.data.readers.base import Format, ReadRow
from rlaif.data.readers.columns import mapped
from rlaif.data.rows import Row, file_rows, stop
from rlaif.errors import ConfigError
from rlaif.yamlio import load_yaml, suggest, validate

FORMATS: dict[str, Format] = {
    "hhh": hhh.FORMAT,
    "autoj": autoj.FORMAT,
    "alpaca_eval": alpaca_eval.FORMAT,
    "alpaca_eval_outputs": alpaca_eval.OUTPUTS,
    "pku": pku.FORMAT,
    "pku_safer": pku.FORMAT_SAFER,
    "icai": icai.FORMAT,
    "argilla": argilla.FORMAT,
    "ultrafeedback": ultrafeedback.RAW,
    "ultrafeedback_binarized": ultrafeedback.BINARISED,
    "distilabel": ultrafeedback.DISTILABEL,
    "verl": verl.FORMAT,
    "llama_factory": llama_factory.FORMAT,
    "openrlhf": openrlhf.FORMAT,
    "rewardbench_v2": rewardbench.FORMAT_V2,
    "rewardbench": rewardbench.FORMAT,
    "hh": hh.FORMAT,
    "trl": trl.FORMAT,
}
"""By name. The first that fits a file's first row reads it, so the narrower ones come first."""

OnError = Literal["fail", "skip"]


@dataclass
class Reading:
    """The pairs of one file, read while they are iterated over (once).

    `skipped` holds a message that begins with file and row for every row that could not be read;
    like `rows` and `columns` (every column name seen) it is complete when the pairs are.
    """

    name: str
    format: Format
    pairs: Iterator[LabelledPair]
    skipped: list[str] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)
    rows: int = 0

    def __iter__(self) -> Iterator[LabelledPair]:
        return self.pairs


def read_labelled(
    path: Path,
    from_: str | None = None,
    columns: LabelColumns | None = None,
    on_error: OnError = "fail",
) -> Reading:
    """The labelled pairs of a file or `datasets` folder.

    The format is the one named by `from_`, or the column map's, or is found from the first row. A
    row that cannot be read raises ConfigError with file and row, or is skipped and reported. Raises
    ConfigError where the file cannot be read, its format cannot be told, or, at the end, no row of
    it gave a pair.
    """
    if from_ is not None and columns is not None:
        raise ConfigError(f"format {from_!r} and a column map: give one of them")
    given = format_named(from_) if from_ is not None else mapped(columns) if columns else None
    skipped: list[str] = []

    def skip(fault: ConfigError) -> None:
        skipped.append(str(fault))

    on_fault = stop if on_error == "fail" else skip
    rows = file_rows(path, on_fault)
    head = next(rows, None)
    if head is None:
        raise ConfigError(nothing_read(0, skipped), path)
    name = "columns" if columns else from_ or detect(head[1], path)
    used = given or FORMATS[name]
    read = used.open(path) if used.open is not None else used.read
    reading = Reading(name, used, iter(()), skipped)

    def pairs() -> Iterator[LabelledPair]:
        some = False
        for place, row in chain([head], rows):
            reading.rows += 1
            reading.columns |= row.keys()
            for found in _pairs_and_faults(read, row, place):
                if isinstance(found, ConfigError):
                    on_fault(found)
                else:
                    some = True
                    yield found
        if not some:
            raise ConfigError(nothing_read(reading.rows, skipped), path)

    reading.pairs = pairs()
    return reading


def nothing_read(rows: int, skipped: Sequence[str]) -> str:
    """That none of a file's rows could be used, and why."""
    reasons = "".join(f"\n  {message}" for message in skipped[:5])
    return f"no row that could be used (of {max(rows, len(skipped))}){reasons}"


def _pairs_and_faults(read: ReadRow, row: Row, place: str) -> Iterator[LabelledPair | ConfigError]:
    try:
        yield from read(row, place)
    except ConfigError as fault:
        yield fault


def format_named(name: str) -> Format:
    """A format by its name. Raises ConfigError."""
    if name not in FORMATS:
        raise ConfigError(f"no format is called {name!r}{suggest(name, list(FORMATS))}")
    return FORMATS[name]


def detect(row: Row, path: Path | str = "") -> str:
    """The name of the format that fits a row. Raises ConfigError with what was seen and how to map
    it."""
    for name, known in FORMATS.items():
        if all(_has(row, pattern) for pattern in known.columns) and known.fits(row):
            return name
    listed = "\n".join(f"  {name}: {known.about}" for name, known in FORMATS.items())
    raise ConfigError(
        f"no known format has the columns {sorted(map(str, row))}. Known formats:\n{listed}\n"
        "Or say which column is what with a column map:\n"
        "  prompt: COLUMN\n  first: COLUMN\n  second: COLUMN\n  label: COLUMN\n"
        "  labels: {first: VALUE, second: VALUE, tie: VALUE}\n"
        "(or prompt, chosen and rejected)",
        path or None,
    )


def _has(row: Mapping[str, object], pattern: str) -> bool:
    return any(fnmatchcase(str(key), pattern) for key in row)


def load_columns(path: Path) -> LabelColumns:
    """A column map from a YAML file. Raises ConfigError."""
    data, lines = load_yaml(path)
    return validate(LabelColumns, data, lines, path)
