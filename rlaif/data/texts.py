"""Raw texts, to which no chat template is applied: rows with a column of text, or a plain file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from rlaif.core.errors import ConfigError
from rlaif.data.readers.base import value_at
from rlaif.data.rows import OnFault, Row, Source, open_bytes, raise_fault, source_rows
from rlaif.data.turns import brief, whole_text

COLUMN = "text"
"""The column of the texts, unless another is named."""
PLAIN = (".txt", ".txt.gz")


@dataclass
class Texts:
    """The texts of a file in its order. `skipped` holds a message for every row that could not be
    read."""

    texts: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def read_texts(source: Source, column: str | None = None, skip: bool = False) -> Texts:
    """Every text of a file or dataset: a row's column, or of a file that ends in .txt each block of
    lines between blank ones.

    A row that cannot be read raises ConfigError with its place or, with `skip`, is left out. Raises
    ConfigError where none is left, or for a column of a plain file.
    """
    found = Texts()

    def leave_out(fault: ConfigError) -> None:
        found.skipped.append(str(fault))

    on_fault = leave_out if skip else raise_fault
    if isinstance(source, Path) and source.name.endswith(PLAIN):
        if column is not None:
            raise ConfigError("a plain text has no columns: leave `columns` out", source)
        found.texts = list(_read_blocks(source, on_fault))
    else:
        for place, row in source_rows(source, on_fault):
            try:
                found.texts.append(_read_row(row, column or COLUMN, place))
            except ConfigError as fault:
                on_fault(fault)
    if not found.texts:
        why = "".join(f"\n  {message}" for message in found.skipped[:5])
        raise ConfigError(f"no text in it that could be used{why}", str(source))
    return found


def _read_row(row: Row, column: str, place: str) -> str:
    text = value_at(row, column)
    if text is None and column not in row:
        raise ConfigError(
            f"{place}: no column {column!r}; the row has {sorted(map(str, row))}. `columns: "
            "{text: COLUMN}` names another one, and conversations are `type: demonstrations`."
        )
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{place}: {column} is {brief(text)}; a text was expected")
    whole_text([text], place)
    return text


def _read_blocks(path: Path, on_fault: OnFault) -> Iterator[str]:
    """The blocks of lines between blank lines, without the end of the last line."""
    block: list[str] = []
    with open_bytes(path) as lines:
        for number, line in enumerate(chain(lines, [b""]), 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                on_fault(ConfigError(f"not UTF-8 text: {error}", path, number))
                continue
            if text.strip():
                block.append(text.rstrip("\r\n"))
            elif block:
                yield "\n".join(block)
                block = []
