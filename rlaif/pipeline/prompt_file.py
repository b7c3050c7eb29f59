"""A run's files of prompts, which are read when they are asked for."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.core.errors import StoreError
from rlaif.core.ids import from_blob, open_scratch, to_blob
from rlaif.core.records import Prompt, from_json
from rlaif.core.rowfiles import Lines
from rlaif.pipeline.manifest import ADVICE

_LINES: Lines[Prompt] = Lines(Prompt, lambda row: from_json(Prompt, row))
_BATCH = 1024


class PromptFile(Mapping[str, Prompt]):
    """The prompts of some files by id. Ids and places lie in a scratch database; the files are open
    while this lives. Raises StoreError where a line is damaged."""

    def __init__(self, paths: Sequence[Path]):
        self._paths = [path for path in paths if path.exists()]
        self._db = open_scratch(
            self,
            "CREATE TABLE places (number INTEGER PRIMARY KEY, id BLOB UNIQUE, "
            "file INTEGER, start INTEGER, size INTEGER)",
        )
        self._files: list[int] = []
        self._count = 0
        for number, path in enumerate(self._paths):
            self._files.append(os.open(path, os.O_RDONLY))
            weakref.finalize(self, os.close, self._files[-1])
            self._find_places(number, path)
        (self._count,) = self._db.execute("SELECT COUNT(*) FROM places").fetchone()

    def _find_places(self, number: int, path: Path) -> None:
        # A later file's prompt takes the place of an earlier one's.
        insert = (
            "INSERT INTO places (id, file, start, size) VALUES (?, ?, ?, ?) ON CONFLICT (id) "
            "DO UPDATE SET file = excluded.file, start = excluded.start, size = excluded.size"
        )
        start = 0
        rows: list[tuple[bytes, int, int, int]] = []
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    name = to_blob(_parse_prompt(path, line).prompt_id)
                    rows.append((name, number, start, len(line)))
                start += len(line)
                if len(rows) == _BATCH:
                    self._db.executemany(insert, rows)
                    rows = []
        self._db.executemany(insert, rows)

    def __getitem__(self, prompt_id: str) -> Prompt:
        found = self._db.execute(
            "SELECT file, start, size FROM places WHERE id = ?", (to_blob(prompt_id),)
        ).fetchone()
        if found is None:
            raise KeyError(prompt_id)
        number, start, size = found
        return _parse_prompt(self._paths[number], os.pread(self._files[number], size, start))

    def __iter__(self) -> Iterator[str]:
        for (blob,) in self._db.execute("SELECT id FROM places ORDER BY number"):
            yield from_blob(blob)

    def __len__(self) -> int:
        return self._count


def _parse_prompt(path: Path, line: bytes) -> Prompt:
    try:
        return _LINES.one(line)
    except (ValueError, TypeError, RecursionError):
        raise StoreError(f"{path}: damaged. {ADVICE}") from None


def parse_row(path: Path, line: bytes) -> Any:
    """The row of a line. Raises StoreError where it is damaged."""
    try:
        return json.loads(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        raise StoreError(f"{path}: damaged. {ADVICE}") from None


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The prompts of a file, as rows; none where there is no file."""
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    yield parse_row(path, line)
