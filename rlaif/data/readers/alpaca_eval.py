"""AlpacaEval annotations: one generator's output against the baseline's, with a preference."""

from __future__ import annotations

from pathlib import Path

from rlaif.core.errors import ConfigError
from rlaif.data.readers.base import Format, ReadRow, describe_pairs, number_of, text_of
from rlaif.data.rows import Row, file_rows


def preference_of(row: Row, place: str) -> float | None:
    """The probability that the second output is better, from a preference of 1 to 2.

    0 is how older files write a tie; null is no verdict. Raises ConfigError.
    """
    preference = number_of(row, "preference", place)
    if preference is None:
        return None
    if preference != 0 and not 1 <= preference <= 2:
        raise ConfigError(
            f"{place}: preference is {preference:g}; from 1 (output_1) to 2 (output_2) was expected"
        )
    return 0.5 if preference == 0 else preference - 1


def _read_label(row: Row, _column: str, place: str) -> float | None:
    second = preference_of(row, place)
    return None if second is None else 1 - second


FORMAT = describe_pairs(
    "AlpacaEval annotations: instruction, output_1, output_2, preference (1 to 2)",
    {
        "instruction": "prompt",
        "dataset": "subset",
        "output_1": "first",
        "generator_1": "first_author",
        "output_2": "second",
        "generator_2": "second_author",
        "annotator": "annotator",
        "preference": "label",
    },
    (_read_label, lambda pair: None if pair.label is None else 2 - pair.label),
    annotator_kind="ai",
)
"""`first` is output_1, most often the baseline's."""


def read_baselines(path: Path) -> dict[str, Row]:
    """The rows of a file of outputs by instruction. Raises ConfigError."""
    found: dict[str, Row] = {}
    for place, row in file_rows(path):
        text_of(row, "output", place)
        found[text_of(row, "instruction", place)] = row
    return found


def baseline_beside(path: Path) -> Path | None:
    """The one file with `baseline` in its name in the folder of `path`, if there is one."""
    found = [p for p in path.parent.glob("*baseline*.json*") if p.is_file() and p != path]
    return found[0] if len(found) == 1 else None


def with_baseline(row: Row, place: str, outputs: dict[str, Row]) -> Row:
    """A row of one generator's output with the baseline's as output_1. Raises ConfigError."""
    base = outputs.get(text_of(row, "instruction", place))
    if base is None:
        raise ConfigError(f"{place}: the baseline has no output for this instruction")
    return row | {
        "output_1": base["output"],
        "generator_1": base.get("generator"),
        "output_2": row.get("output"),
        "generator_2": row.get("generator"),
    }


def _open_outputs(path: Path) -> ReadRow:
    beside = baseline_beside(path)
    if beside is None:
        raise ConfigError(
            "the rows have one generator's output and a preference; put the baseline's outputs "
            "(instruction, output, generator) beside this file, with `baseline` in the file's name",
            path,
        )
    outputs = read_baselines(beside)
    return lambda row, place: FORMAT.read(with_baseline(row, place, outputs), place)


OUTPUTS = Format(
    about="AlpacaEval preferences: instruction, output, generator, preference (1 to 2); the "
    "baseline's outputs in a file beside",
    columns=("instruction", "output", "generator", "preference"),
    optional=("dataset", "annotator"),
    read=FORMAT.read,
    open=_open_outputs,
)
