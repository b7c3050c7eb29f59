"""Votes as lines of text: as they are stored, in JSONL and CSV, and as judgements."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from rlaif.core.errors import ConfigError
from rlaif.core.records import to_json
from rlaif.core.store import write_atomic, write_jsonl
from rlaif.data.votes import Vote, read_items, read_settings, read_votes
from rlaif.preferences.votes import votes_to_judgements

Records = Literal["votes", "judgements"]
JUDGE = "people"
"""What people are called together as a judge."""

FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_votes(db: Path, path: Path, records: Records = "votes") -> int:
    """Write the votes that count to a .jsonl or .csv file, or as judgements to a .jsonl file; how
    many there are. The file appears when all is written. Raises ConfigError for another ending,
    StoreError."""
    endings = {"votes": (".jsonl", ".csv"), "judgements": (".jsonl",)}[records]
    if path.suffix not in endings:
        raise ConfigError(f"a file of {records} must end in {' or '.join(endings)}", path)
    count = len(read_votes(db))
    if records == "judgements":
        write_jsonl(path, judgement_rows(db))
    else:
        lines = {".jsonl": jsonl_lines, ".csv": csv_lines}[path.suffix]
        write_atomic(path, "".join(lines(db)))
    return count


def judgement_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The votes in a database that count as judgements by the judge `people`. Raises StoreError."""
    items = {item.item_id: item for item in read_items(path)}
    judged = votes_to_judgements(read_votes(path), items, JUDGE, read_settings(path).scale)
    return map(to_json, judged)


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


def _csv_line(cells: Iterable[object]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue()
