"""Votes as lines of text, as they are stored: JSONL and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import msgspec

from rlaif.core.errors import ConfigError
from rlaif.core.store import write_atomic
from rlaif.data.votes import Vote, read_votes

FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_votes(db: Path, path: Path) -> int:
    """Write the votes that count to a .jsonl or .csv file; how many there are. The file appears
    when all is written. Raises ConfigError for another ending, StoreError."""
    writers = {".jsonl": jsonl_lines, ".csv": csv_lines}
    if path.suffix not in writers:
        raise ConfigError("the file must end in .jsonl or .csv", path)
    count = len(read_votes(db))
    write_atomic(path, "".join(writers[path.suffix](db)))
    return count


def jsonl_lines(path: Path) -> Iterator[str]:
    """The votes in a database that count, a line of JSON each. Raises StoreError."""
    for vote in read_votes(path):
        yield msgspec.json.encode(vote).decode() + "\n"


def csv_lines(path: Path) -> Iterator[str]:
    """The votes in a database that count under a line of names; what people say of the principles
    is JSON. A text that a spreadsheet would compute is given a leading quote. Raises StoreError."""
    fields = Vote.__struct_fields__
    yield _csv_line(fields)
    for vote in read_votes(path):
        yield _csv_line([_cell(getattr(vote, name)) for name in fields])


def _cell(value: object) -> object:
    if isinstance(value, dict):
        return msgspec.json.encode(value).decode()
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _csv_line(cells: object) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)  # type: ignore[call-overload]
    return line.getvalue()
