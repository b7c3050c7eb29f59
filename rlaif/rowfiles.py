"""The store's record files: lines of JSON in whole batches, read in order or by key.

A batch is closed by a blank line; whatever follows the last blank line was torn by a kill and is
not there. Lines are decoded straight into records, which is several times as fast as going through
a dict and a constructor.
"""

from __future__ import annotations

import functools
import json
import os
import weakref
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar, cast

import msgspec

from rlaif.errors import StoreError
from rlaif.records import Completion, Judgement, Preference, R, from_json

BATCH_END = b"\n\n"
CHUNK = 1 << 16
"""Bytes that are read at once when a file's last batch is looked for."""
BLOCK = 1 << 18
"""Bytes of lines that are decoded at once."""

Row = dict[str, Any]
_REFUSED = (msgspec.MsgspecError, UnicodeDecodeError)
_UNREADABLE = (msgspec.MsgspecError, TypeError, ValueError)
_KEY = attrgetter("key")
T = TypeVar("T")


class _Lines(Generic[T]):
    """Decodes lines of JSON, quickly where they allow it. `slow` reads those that the quick decoder
    refuses: lone surrogates, which scraped text can hold, are no strict UTF-8."""

    def __init__(self, kind: Any, slow: Callable[[Row], T]):
        self._quick = msgspec.json.Decoder(kind)
        self._slow = slow

    def one(self, line: bytes) -> T:
        """A line's value. Raises one of `_UNREADABLE` where it has none."""
        try:
            return cast(T, self._quick.decode(line))
        except _REFUSED:
            return self._slow(json.loads(line.decode("utf-8", "surrogatepass")))

    def many(self, lines: bytes) -> list[T]:
        """The values of all lines that are not blank. Raises as `one` does."""
        try:
            return cast(list[T], self._quick.decode_lines(lines))
        except _REFUSED:
            return [self.one(line) for line in lines.split(b"\n") if line]


_ROWS: _Lines[Row] = _Lines(Row, lambda row: row)


def _lines_of(kind: type[R]) -> _Lines[R]:
    return _Lines(kind, lambda row: from_json(kind, row))


_RECORDS: Mapping[type, _Lines[Any]] = {
    Completion: _lines_of(Completion),
    Judgement: _lines_of(Judgement),
    Preference: _lines_of(Preference),
}


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of the whole batches in one of the store's files; nothing when it is absent. Raises
    StoreError where one is damaged."""
    return _read(path, _ROWS)


def read_records(path: Path, kind: type[R]) -> Iterator[R]:
    """`read_rows` as records."""
    return _read(path, _RECORDS[kind])


def count_rows(path: Path) -> int:
    """How many rows the whole batches have."""
    return sum(_row_count(block) for _, block in _blocks(path, 0))


def _row_count(block: bytes) -> int:
    """How many lines are not blank. Between two blank ones there are others."""
    return block.count(b"\n") - block.count(b"\n\n") - block.startswith(b"\n")


def _line_ends(block: bytes) -> list[int]:
    """How far each line that is not blank reaches, its newline included, in bytes of the block."""
    sizes = [len(line) + 1 for line in block.split(b"\n")]
    return [end for end, size in zip(accumulate(sizes), sizes, strict=True) if size > 1]


def _read(path: Path, lines: _Lines[T]) -> Iterator[T]:
    for start, block in _blocks(path, 0):
        yield from _decoded(path, start, block, lines, _row_count(block))


def _blocks(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    """(first byte, lines) of the whole batches from byte `start` on: about `BLOCK` bytes of whole
    lines at once."""
    if not path.exists():
        return
    with path.open("rb") as file:
        whole = whole_bytes(file)
        file.seek(start)
        while start < whole:
            block = file.read(min(BLOCK, whole - start))
            if not block.endswith(b"\n"):
                block += file.readline()
            yield start, block
            start += len(block)


def _decoded(path: Path, start: int, block: bytes, lines: _Lines[T], rows: int) -> list[T]:
    """The values of the lines that begin at byte `start`, of which `rows` are not blank. Raises
    StoreError, which says which line of the file, from 1, is damaged."""
    try:
        found = lines.many(block)
    except _UNREADABLE:
        found = []
    # A value that goes on in the next line, or that does not end its line, is damage too.
    if len(found) == rows:
        return found
    with path.open("rb") as file:
        number = 1 + file.read(start).count(b"\n") + _whole_lines(block, lines)
    raise StoreError(f"{path}:{number}: damaged row; delete the step folder")


def _whole_lines(block: bytes, lines: _Lines[Any]) -> int:
    """How many lines there are before the first that is damaged."""
    for number, line in enumerate(block.split(b"\n")):
        try:
            if line:
                lines.one(line)
        except _UNREADABLE:
            return number
    raise AssertionError("these lines were found to be damaged")


def whole_bytes(file: BinaryIO) -> int:
    """How many bytes of a file are whole batches: those up to the last blank line."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - CHUNK)
        file.seek(start)
        found = file.read(end - start).rfind(BATCH_END)
        if found >= 0:
            return start + found + len(BATCH_END)
        # The two bytes of a batch's end may lie on both sides of the cut.
        end = start + 1 if start else 0
    return 0


class Index(Protocol):
    """The rows of a file by a text that each of them has."""

    def grow(self) -> list[str]:
        """Take in what was committed since the last time; the keys of the new rows, each once or
        more."""
        ...

    def count(self, key: str) -> int:
        """How many rows there are under a key."""
        ...

    def rows(self, key: str) -> list[Row]:
        """The rows under a key, in the order of writing; none under one that is not there."""
        ...

    def records(self, key: str, kind: type[R]) -> list[R]:
        """`rows` as records."""
        ...

    def keys(self) -> Collection[str]:
        """Every key that was taken in."""
        ...


class RowIndex:
    """The rows of one of the store's files by what each has under `key`. See `Index`.

    Keys and places are held, no rows: 20 bytes for each run of rows with one key in a block. The
    file may grow meanwhile; it is open from the first reading on while this lives.
    """

    def __init__(self, path: Path, key: str):
        self.path = path
        keyed = msgspec.defstruct("Keyed", [("key", str)], rename={"key": key})
        self._keyed: _Lines[Any] = _Lines(keyed, lambda row: msgspec.convert(row, keyed))
        self._end = 0
        # By key the number of its last run; by run its place, its size in bytes, its rows, and the
        # number of the run before it of the same key, or -1.
        self._last: dict[str, int] = {}
        self._starts, self._sizes = array("q"), array("I")
        self._counts, self._before = array("I"), array("i")

    def grow(self) -> list[str]:
        """See `Index`. Raises StoreError where a row is damaged."""
        keys: list[str] = []
        for start, block in _blocks(self.path, self._end):
            ends = _line_ends(block)
            rows = _decoded(self.path, start, block, self._keyed, len(ends))
            taken, begin = 0, start
            for key, run in groupby(map(_KEY, rows)):
                count = len(list(run))
                taken += count
                end = start + ends[taken - 1]
                self._add(key, begin, end - begin, count)
                keys.append(key)
                begin = end
            self._end = start + len(block)
        return keys

    def _add(self, key: str, start: int, size: int, count: int) -> None:
        """A new run: `count` rows in `size` bytes from byte `start` on."""
        self._before.append(self._last.get(key, -1))
        self._last[key] = len(self._starts)
        self._starts.append(start)
        self._sizes.append(size)
        self._counts.append(count)

    def count(self, key: str) -> int:
        """See `Index`."""
        return sum(self._counts[run] for run in self._runs(key))

    def rows(self, key: str) -> list[Row]:
        """See `Index`. Raises StoreError where a row is damaged."""
        return self._values(key, _ROWS)

    def records(self, key: str, kind: type[R]) -> list[R]:
        """See `Index`. Raises StoreError where a row is damaged."""
        return self._values(key, _RECORDS[kind])

    def keys(self) -> Collection[str]:
        """See `Index`."""
        return self._last.keys()

    def _runs(self, key: str) -> list[int]:
        """The numbers of a key's runs, in the order of writing."""
        found = []
        run = self._last.get(key, -1)
        while run >= 0:
            found.append(run)
            run = self._before[run]
        return found[::-1]

    def _values(self, key: str, lines: _Lines[T]) -> list[T]:
        found: list[T] = []
        for run in self._runs(key):
            start = self._starts[run]
            block = os.pread(self._file, self._sizes[run], start)
            found += _decoded(self.path, start, block, lines, self._counts[run])
        return found

    @functools.cached_property
    def _file(self) -> int:
        descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        return descriptor


class HeldIndex:
    """Rows that are held anyway, by what each has under `key`; `rows` gives all there are. See
    `Index`."""

    def __init__(self, rows: Callable[[], Sequence[Row]], key: str):
        self._all = rows
        self._key = key
        self._taken = 0
        self._rows: dict[str, list[Row]] = {}

    def grow(self) -> list[str]:
        """See `Index`."""
        new = self._all()[self._taken :]
        self._taken += len(new)
        for row in new:
            self._rows.setdefault(row[self._key], []).append(row)
        return [row[self._key] for row in new]

    def count(self, key: str) -> int:
        """See `Index`."""
        return len(self.rows(key))

    def rows(self, key: str) -> list[Row]:
        """See `Index`."""
        return self._rows.get(key, [])

    def records(self, key: str, kind: type[R]) -> list[R]:
        """See `Index`."""
        return [from_json(kind, row) for row in self.rows(key)]

    def keys(self) -> Collection[str]:
        """See `Index`."""
        return self._rows.keys()
