"""The rows of a record file by prompt, read from the file when they are asked for."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rlaif.errors import StoreError

# A quote within a text is escaped, so only a key of the row itself looks like this.
_KEY = re.compile(rb'"prompt_id":"((?:[^"\\]|\\.)*)"')


class RowsByPrompt(Mapping[str, "list[dict[str, Any]]"]):
    """The rows of one of the store's finished files, by prompt id, in the order of the file.

    It holds the places of the rows, 8 bytes each, and no row; the file is open while this lives.
    Raises StoreError where a row is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: BinaryIO | None = path.open("rb") if path.exists() else None
        self._places: dict[str, array[int]] = {}
        place = 0
        for line in self._file or ():
            if line != b"\n":
                found = _KEY.search(line)
                if found is None:
                    raise self._damaged()
                self._places.setdefault(_text(found[1]), array("q")).append(place)
            place += len(line)

    def __getitem__(self, prompt_id: str) -> list[dict[str, Any]]:
        assert self._file is not None
        lines = []
        for place in self._places[prompt_id]:
            if place != self._file.tell():
                self._file.seek(place)
            lines.append(self._file.readline())
        try:
            # One list and not row by row, which takes twice as long.
            text = (b"[" + b",".join(lines) + b"]").decode("utf-8", "surrogatepass")
            return list(json.loads(text))
        except ValueError:
            raise self._damaged() from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _damaged(self) -> StoreError:
        return StoreError(f"{self.path}: damaged row; delete the step folder")


def _text(escaped: bytes) -> str:
    return str(json.loads(b'"%b"' % escaped)) if b"\\" in escaped else escaped.decode()


class Together(Mapping[str, "list[dict[str, Any]]"]):
    """Several such mappings as one: the rows of a prompt, first those of the first."""

    def __init__(self, parts: Sequence[Mapping[str, list[dict[str, Any]]]]):
        self._parts = parts
        self._names = dict.fromkeys(name for part in parts for name in part)

    def __getitem__(self, prompt_id: str) -> list[dict[str, Any]]:
        return [row for part in self._parts for row in part.get(prompt_id, ())]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
