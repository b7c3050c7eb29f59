"""The store's record files: lines of JSON in whole batches, read in order or by key.

A file's commit log (`commits`) says which bytes are whole batches; in folders of earlier versions,
which have none, a blank line closes a batch. Whatever follows was torn by a kill and is not there.
Lines are decoded straight into records, which is several times as fast as going through
a dict and a constructor.
"""

from __future__ import annotations

import functools
import json
import os
import weakref
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import msgspec
import numpy as np

from rlaif.core import integrity
from rlaif.core.errors import StoreError
from rlaif.core.records import (
    Completion,
    Judgement,
    Preference,
    R,
    Record,
    canonical_json,
    from_json,
    to_json,
)

BLOCK = 1 << 18
"""Bytes of lines that are decoded at once."""

Row = dict[str, Any]
_REFUSED = (msgspec.MsgspecError, UnicodeDecodeError)
_UNREADABLE = (msgspec.MsgspecError, TypeError, ValueError)
_KEY = attrgetter("key")
T = TypeVar("T")
B = TypeVar("B", bound=msgspec.Struct)


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


_ENCODER = msgspec.json.Encoder()


def line_of(record: Record | Row) -> bytes:
    """A record or row as one line of JSON, without its newline. Raises ValueError on NaN."""
    lines = _RECORDS.get(type(record))
    if lines is not None:
        with suppress(*_UNREADABLE):
            # msgspec writes NaN as null, so a line counts only if it reads back as the same record.
            line = _ENCODER.encode(record)
            if lines.one(line) == record:
                return line
    # What the quick encoder refuses or would change: lone surrogates are written, NaN is refused.
    row = record if isinstance(record, dict) else to_json(record)
    return canonical_json(row).encode("utf-8", "surrogatepass")


def record_of(kind: type[R], line: bytes) -> R:
    """The record in a line that `line_of` made."""
    lines: _Lines[R] = _RECORDS[kind]
    return lines.one(line)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of the whole batches in one of the store's files; nothing when it is absent. Raises
    StoreError where one is damaged."""
    return _read_rows(path, _ROWS)


def read_records(path: Path, kind: type[R]) -> Iterator[R]:
    """`read_rows` as records."""
    return _read_rows(path, _RECORDS[kind])


def read_where(path: Path, kind: type[B], keep: Callable[[B], bool]) -> Iterator[Row]:
    """The rows of which `keep` holds, by the few fields that `kind` (a msgspec Struct) has of them:
    of the others no more is decoded. Raises StoreError where one is damaged."""
    brief: _Lines[B] = _Lines(kind, lambda row: msgspec.convert(row, kind))
    for start, block in _read_blocks(path, 0):
        ends = _line_ends(block)
        begin = 0
        for row, end in zip(_decode_block(path, start, block, brief, len(ends)), ends, strict=True):
            if keep(row):
                # A blank line before it is part of the slice.
                yield _ROWS.one(block[begin:end].strip())
            begin = end


def count_rows(path: Path) -> int:
    """How many rows the whole batches have."""
    return sum(_row_count(block) for _, block in _read_blocks(path, 0))


def _row_count(block: bytes) -> int:
    """The number of lines that are not blank. No two blank lines follow one another."""
    return block.count(b"\n") - block.count(b"\n\n") - block.startswith(b"\n")


def _line_ends(block: bytes) -> list[int]:
    """Where each line that is not blank ends, its newline included, in bytes of the block."""
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
    # A blank line ends one byte behind the line before it.
    found: list[int] = ends[np.diff(ends, prepend=0) > 1].tolist()
    return found


def _read_rows(path: Path, lines: _Lines[T]) -> Iterator[T]:
    for start, block in _read_blocks(path, 0):
        yield from _decode_block(path, start, block, lines, _row_count(block))


def _read_blocks(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    """(first byte, lines) of the whole batches from byte `start` on: about `BLOCK` bytes of whole
    lines at once."""
    if not path.exists():
        return
    whole = whole_bytes(path)
    with path.open("rb") as file:
        file.seek(start)
        while start < whole:
            block = file.read(min(BLOCK, whole - start))
            if not block.endswith(b"\n"):
                block += file.readline()
            yield start, block
            start += len(block)


def _decode_block(path: Path, start: int, block: bytes, lines: _Lines[T], rows: int) -> list[T]:
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
        # Counted only now: a whole file has no use for line numbers.
        number = 1 + file.read(start).count(b"\n") + _whole_lines(block, lines)
    raise StoreError(f"{path}:{number}: damaged row. Delete the folder {path.parent}")


def _whole_lines(block: bytes, lines: _Lines[Any]) -> int:
    """How many lines there are before the first that is damaged."""
    for number, line in enumerate(block.split(b"\n")):
        try:
            if line:
                lines.one(line)
        except _UNREADABLE:
            return number
    raise AssertionError("these lines were found to be damaged")


def whole_bytes(path: Path) -> int:
    """How many bytes of a file are whole batches."""
    found = integrity.read_committed(path)
    return integrity.to_last_blank(path) if found is None else found


class Index(Protocol):
    """The rows of a file by the value that each has under one key."""

    def grow(self) -> list[str]:
        """Index the rows that were committed since the last call. Returns their keys, with
        repeats."""
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

    def part(self, keys: Iterable[str]) -> Part:
        """The rows under some keys, as an object that can be sent to another process."""
        ...


class Part(Protocol):
    """The rows of a file under some of its keys, as they were when the part was made."""

    def records(self, key: str, kind: type[R]) -> list[R]:
        """The rows under a key as records, in the order of writing; none under another key."""
        ...


_Run = tuple[int, int, int]
"""Where rows of one key that follow each other are: the first byte, the size in bytes, the rows."""


class FilePart:
    """See `Part`. The file is open from the first reading on while this lives."""

    def __init__(self, path: Path, runs: Mapping[str, Sequence[_Run]]):
        self.path = path
        self.runs = runs

    def records(self, key: str, kind: type[R]) -> list[R]:
        """See `Part`. Raises StoreError where a row is damaged."""
        return self.values(self.runs.get(key, ()), _RECORDS[kind])

    def values(self, runs: Iterable[_Run], lines: _Lines[T]) -> list[T]:
        """What the lines of some runs say. Raises StoreError where a row is damaged."""
        found: list[T] = []
        for start, size, count in runs:
            # `pread` has no position, so several threads may read by one descriptor.
            block = os.pread(self._file, size, start)
            found += _decode_block(self.path, start, block, lines, count)
        return found

    @functools.cached_property
    def _file(self) -> int:
        descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        # A descriptor means nothing to another process, which opens the file itself.
        return FilePart, (self.path, self.runs)


class HeldPart:
    """See `Part`."""

    def __init__(self, rows: Mapping[str, Sequence[Row]]):
        self._rows = rows

    def records(self, key: str, kind: type[R]) -> list[R]:
        """See `Part`."""
        return [from_json(kind, row) for row in self._rows.get(key, ())]


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
        self._whole = FilePart(path, {})

    def grow(self) -> list[str]:
        """See `Index`. Raises StoreError where a row is damaged."""
        keys: list[str] = []
        for start, block in _read_blocks(self.path, self._end):
            ends = _line_ends(block)
            rows = _decode_block(self.path, start, block, self._keyed, len(ends))
            taken, begin = 0, start
            # Rows of one key mostly follow each other, so a run and not each row has a place.
            for key, run in groupby(map(_KEY, rows)):
                count = len(list(run))
                taken += count
                end = start + ends[taken - 1]
                self._add_run(key, begin, end - begin, count)
                keys.append(key)
                begin = end
            self._end = start + len(block)
        return keys

    def _add_run(self, key: str, start: int, size: int, count: int) -> None:
        """A new run: `count` rows in `size` bytes from byte `start` on."""
        self._before.append(self._last.get(key, -1))
        self._last[key] = len(self._starts)
        self._starts.append(start)
        self._sizes.append(size)
        self._counts.append(count)

    def count(self, key: str) -> int:
        """See `Index`."""
        return sum(count for _, _, count in self._list_runs(key))

    def rows(self, key: str) -> list[Row]:
        """See `Index`. Raises StoreError where a row is damaged."""
        return self._whole.values(self._list_runs(key), _ROWS)

    def records(self, key: str, kind: type[R]) -> list[R]:
        """See `Index`. Raises StoreError where a row is damaged."""
        return self._whole.values(self._list_runs(key), _RECORDS[kind])

    def keys(self) -> Collection[str]:
        """See `Index`."""
        return self._last.keys()

    def part(self, keys: Iterable[str]) -> FilePart:
        """See `Index`."""
        return FilePart(self.path, {key: self._list_runs(key) for key in keys})

    def _list_runs(self, key: str) -> list[_Run]:
        """A key's runs in the order of writing."""
        found = []
        run = self._last.get(key, -1)
        while run >= 0:
            found.append((self._starts[run], self._sizes[run], self._counts[run]))
            run = self._before[run]
        # Followed from the last run back to the first.
        return found[::-1]


class HeldIndex:
    """An index of rows that are in memory anyway; `rows` returns all of them. See `Index`."""

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

    def part(self, keys: Iterable[str]) -> HeldPart:
        """See `Index`."""
        return HeldPart({key: self.rows(key) for key in keys})
