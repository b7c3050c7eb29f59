"""Labelled pairs from files: one module per format, found by name or from a row's columns."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from rlaif.config.columns import LabelColumns
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair, SingleAnswer
from rlaif.core.yamlio import load_yaml, suggest, validate
from rlaif.data.readers import (
    alpaca_eval,
    arena,
    argilla,
    autoj,
    hh,
    hhh,
    icai,
    llama_factory,
    oasst,
    openrlhf,
    pku,
    ppe,
    presets,
    rewardbench,
    singles,
    trl,
    ultrafeedback,
    verl,
    votes,
)
from rlaif.data.readers.base import Format, Found, ReadRow, try_read, value_at
from rlaif.data.readers.columns import format_of_map
from rlaif.data.rows import Placed, Row, Source, raise_fault, source_rows

FORMATS: dict[str, Format] = {
    "votes": votes.FORMAT,
    "hhh": hhh.FORMAT,
    "mt_bench": arena.MT_BENCH,
    "arena": arena.FORMAT,
    "arena_55k": arena.KAGGLE,
    "oasst": oasst.MESSAGES,
    "oasst_trees": oasst.TREES,
    "ppe_correctness": ppe.FORMAT,
    **presets.load_presets(),
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
    "kto": trl.KTO,
    "sft": trl.SFT,
    "responses": singles.RESPONSES,
    "messages": singles.MESSAGES,
}
"""By name. The first that fits a file's first row reads it, so the narrower ones come first."""

OnError = Literal["fail", "skip"]
TOOLS = ("tools", "functions")
"""Columns that say which tools a model may call. They are no turns, and are counted as lost."""


@dataclass
class Reading:
    """What the rows of one file hold, read while it is iterated over (once).

    `skipped` holds a message that begins with file and row for every row, or part of one, that
    could not be read; like `rows`, `columns` (every column name seen) and `lost` (what rows hold
    and no record does, counted) it is complete when the iteration is.
    """

    name: str
    format: Format
    found: Iterator[Found]
    skipped: list[str] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)
    lost: Counter[str] = field(default_factory=Counter)
    rows: int = 0

    def __iter__(self) -> Iterator[Found]:
        return self.found


@dataclass
class LabelledReading(Reading):
    """A reading of pairs alone."""

    def __iter__(self) -> Iterator[LabelledPair]:
        return cast(Iterator[LabelledPair], self.found)


def read_labelled(
    source: Source,
    from_: str | None = None,
    columns: LabelColumns | None = None,
    on_error: OnError = "fail",
) -> LabelledReading:
    """The labelled pairs of a file, a `datasets` folder or a dataset on the hub.

    The format is the one named by `from_`, or the column map's, or is found from the first row. A
    row that cannot be read, or holds an answer that stands alone, raises ConfigError with file and
    row, or is skipped and reported. Raises ConfigError where the file cannot be read, its format
    cannot be told, or, at the end, no row of it gave a pair.
    """
    reading = LabelledReading("", FORMATS["trl"], iter(()))
    return _start_reading(reading, source, from_, columns, on_error, _pair_alone)


def read_answers(
    source: Source,
    from_: str | None = None,
    columns: LabelColumns | None = None,
    on_error: OnError = "fail",
) -> Reading:
    """As `read_labelled`, with the answers that stand alone: all that a model is trained on."""
    reading = Reading("", FORMATS["trl"], iter(()))
    return _start_reading(reading, source, from_, columns, on_error, lambda found: found)


def read_demonstrations(
    source: Source,
    from_: str | None = None,
    columns: LabelColumns | None = None,
    on_error: OnError = "fail",
) -> Reading:
    """As `read_answers`, of good answers that stand alone. A pair, or an answer that is labelled
    bad, raises ConfigError with file and row, or is skipped and reported."""
    reading = Reading("", FORMATS["messages"], iter(()))
    return _start_reading(reading, source, from_, columns, on_error, _good_alone)


R = TypeVar("R", bound=Reading)


def _start_reading(
    reading: R,
    source: Source,
    from_: str | None,
    columns: LabelColumns | None,
    on_error: OnError,
    wanted: Callable[[Found | ConfigError], Found | ConfigError],
) -> R:
    if from_ is not None and columns is not None:
        raise ConfigError(f"format {from_!r} and a column map: give one of them")
    given = format_of_map(columns) if columns else None
    if from_ is not None:
        given = format_named(from_)

    def skip(fault: ConfigError) -> None:
        reading.skipped.append(str(fault))

    on_fault = raise_fault if on_error == "fail" else skip
    rows = source_rows(source, on_fault)
    head = next(rows, None)
    if head is None:
        raise ConfigError(nothing_read(0, reading.skipped), str(source))
    reading.name = "columns" if columns else from_ or detect_format(head[1], source)
    reading.format = given or FORMATS[reading.name]
    read = _open_reader(reading.format, source)

    def found() -> Iterator[Found]:
        some = False
        counted = _count_rows(chain([head], rows), reading)
        for place, row in _group_rows(counted, reading.format.group):
            for one in map(wanted, _found_and_faults(read, row, place, reading.name)):
                if isinstance(one, ConfigError):
                    on_fault(one)
                else:
                    some = True
                    yield one
        if not some:
            raise ConfigError(nothing_read(reading.rows, reading.skipped), str(source))

    reading.found = found()
    return reading


def _open_reader(format_: Format, source: Source) -> ReadRow:
    if format_.open is None:
        return format_.read
    if not isinstance(source, Path):
        raise ConfigError("this format needs a second file beside its own: get both", str(source))
    return format_.open(source)


def _count_rows(rows: Placed, reading: Reading) -> Placed:
    for place, row in rows:
        reading.rows += 1
        reading.columns |= row.keys()
        reading.lost.update(key for key in TOOLS if row.get(key))
        yield place, row


def _group_rows(rows: Placed, key: str | None) -> Placed:
    """The rows, or those with the same value under `key` that follow one another as one."""
    if key is None:
        yield from rows
        return
    for _, group in groupby(rows, lambda placed: canonical_text(value_at(placed[1], key))):
        given = list(group)
        yield given[0][0], {"rows": [row for _, row in given]}


def canonical_text(value: Any) -> str:
    """A text that equal values share."""
    return json.dumps(value, sort_keys=True, default=str)


def _pair_alone(found: Found | ConfigError) -> Found | ConfigError:
    if not isinstance(found, SingleAnswer):
        return found
    method = "sft" if found.good else "kto"
    return ConfigError(
        f"{found.place}: an answer that stands alone, and two to one prompt were expected. "
        f"`rlaif train {method} FILE` reads such rows."
    )


def _good_alone(found: Found | ConfigError) -> Found | ConfigError:
    if isinstance(found, ConfigError) or (isinstance(found, SingleAnswer) and found.good):
        return found
    if isinstance(found, SingleAnswer):
        what = "an answer that is labelled bad"
        advice = "leaves such rows out, and `type: preferences` reads them for kto"
    else:
        what = "two answers to one prompt"
        advice = (
            "leaves such rows out, and `type: preferences` reads pairs, whose chosen answers sft "
            "learns from"
        )
    return ConfigError(
        f"{found.place}: {what}, and a demonstration, one good answer, was expected. `on_error: "
        f"skip` {advice}."
    )


def nothing_read(rows: int, skipped: Sequence[str]) -> str:
    """That none of a file's rows could be used, and why."""
    if not rows and not skipped:
        return "there are no rows in this file"
    reasons = "".join(f"\n  {message}" for message in skipped[:5])
    return f"no row that could be used (of {max(rows, len(skipped))}){reasons}"


def _found_and_faults(
    read: ReadRow, row: Row, place: str, name: str
) -> Iterator[Found | ConfigError]:
    """What a row holds. The fault of a row that another format reads says which one."""
    try:
        yield from read(row, place)
    except ConfigError as fault:
        other = _other_format(row, place, name)
        advice = f". This row is read with `--from {other}`." if other is not None else ""
        yield ConfigError(f"{fault}{advice}")


def _other_format(row: Row, place: str, name: str) -> str | None:
    """The format that a row is found to be, where it is another one that reads it."""
    known = _detect_name(row)
    if known is None or known == name or FORMATS[known].open or FORMATS[known].group:
        return None
    found = try_read(lambda: list(FORMATS[known].read(row, place)))
    if isinstance(found, ConfigError) or not found:
        return None
    return None if any(isinstance(one, ConfigError) for one in found) else known


def format_named(name: str) -> Format:
    """A format by its name. Raises ConfigError."""
    if name not in FORMATS:
        raise ConfigError(f"no format is called {name!r}{suggest(name, list(FORMATS))}")
    return FORMATS[name]


def detect_format(row: Row, source: Source | str = "") -> str:
    """The name of the format that fits a row. Raises ConfigError with what was seen and how to map
    it."""
    found = _detect_name(row)
    if found is not None:
        return found
    listed = "\n".join(f"  {name}: {known.about}" for name, known in FORMATS.items())
    prompts = PROMPTS_ALONE if {"prompt", "instruction"} & row.keys() else ""
    raise ConfigError(
        f"no known format has the columns {sorted(map(str, row))}.{prompts} Known formats:\n"
        f"{listed}\n"
        "Or say which column is what with a column map (--columns MAP.yaml):\n"
        "  prompt: COLUMN\n  first: COLUMN\n  second: COLUMN\n  label: COLUMN\n"
        "  labels: {first: VALUE, second: VALUE, tie: VALUE}\n"
        "(or prompt, chosen and rejected)",
        str(source) or None,
    )


PROMPTS_ALONE = (
    " Prompts without answers are read by `rlaif sample`, or as `prompts` of an experiment."
)


def _detect_name(row: Row) -> str | None:
    for name, known in FORMATS.items():
        present = (any(fnmatchcase(str(key), pattern) for key in row) for pattern in known.columns)
        if all(present) and known.fits(row):
            return name
    return None


def load_columns(path: Path) -> LabelColumns:
    """A column map from a YAML file. Raises ConfigError."""
    data, lines = load_yaml(path)
    return validate(LabelColumns, data, lines, path)
