"""The rows of record files by key: where they lie is looked up on disk, and they are read when they
are asked for."""

from __future__ import annotations

import os
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from rlaif.core.ids import from_blob, open_scratch, to_blob
from rlaif.core.records import R, from_json
from rlaif.core.rowfiles import (
    RECORDS,
    ROWS,
    Lines,
    Row,
    T,
    decode_block,
    line_ends,
    list_shards,
    read_blocks,
)

_KEY = attrgetter("key")


class Index(Protocol):
    """The rows of a file by the value that each has under one key."""

    def grow(self) -> Iterator[str]:
        """Index the rows that were committed since the last call. The keys of these, with repeats,
        are read as they are asked for."""
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

    def keys(self) -> Iterator[str]:
        """Every key that was taken in, once, in the order of the keys."""
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


class _Opened(NamedTuple):
    """Open files of one kind of records: by file the first of its bytes among those of all, its
    descriptor; and where the last one ended when it was looked at."""

    begins: tuple[int, ...]
    files: tuple[int, ...]
    end: int


class FilePart:
    """See `Part`. The files are open from the first reading on while this lives."""

    def __init__(self, path: Path, runs: Mapping[str, Sequence[_Run]]):
        self.path = path
        self.runs = runs
        self._opened = _Opened((), (), 0)

    def records(self, key: str, kind: type[R]) -> list[R]:
        """See `Part`. Raises StoreError where a row is damaged."""
        return self.values(self.runs.get(key, ()), RECORDS[kind])

    def values(self, runs: Iterable[_Run], lines: Lines[T]) -> list[T]:
        """What the lines of some runs say. Raises StoreError where a row is damaged."""
        found: list[T] = []
        for start, size, count in runs:
            if start >= self._opened.end:
                self._opened = self._open_more()
            place = bisect_right(self._opened.begins, start) - 1
            offset = start - self._opened.begins[place]
            # `pread` has no position, so several threads may read by one descriptor.
            block = os.pread(self._opened.files[place], size, offset)
            found += decode_block(self.path, start, block, lines, count)
        return found

    def _open_more(self) -> _Opened:
        """The files that there are now, of which the first ones are open."""
        begins, files, end = list(self._opened.begins), list(self._opened.files), 0
        for shard in list_shards(self.path)[len(files) :]:
            # A file is as long as it will be once another goes on from it.
            begins.append(begins[-1] + os.fstat(files[-1]).st_size if files else 0)
            files.append(os.open(shard, os.O_RDONLY))
            weakref.finalize(self, os.close, files[-1])
        if files:
            end = begins[-1] + os.fstat(files[-1]).st_size
        return _Opened(tuple(begins), tuple(files), end)

    def __reduce__(self) -> tuple[Any, ...]:
        # A descriptor means nothing to another process, which opens the files itself.
        return FilePart, (self.path, self.runs)


class HeldPart:
    """See `Part`."""

    def __init__(self, rows: Mapping[str, Sequence[Row]]):
        self._rows = rows

    def records(self, key: str, kind: type[R]) -> list[R]:
        """See `Part`."""
        return [from_json(kind, row) for row in self._rows.get(key, ())]


class RowIndex:
    """The rows of a step's records of one kind by what each has under `key`. See `Index`.

    Keys and places lie in a scratch database, one row for each run of records with one key in a
    block. The files may grow meanwhile; they are open from the first reading on while this lives.
    """

    def __init__(self, path: Path, key: str):
        self.path = path
        keyed = msgspec.defstruct("Keyed", [("key", str)], rename={"key": key})
        self._keyed: Lines[Any] = Lines(keyed, lambda row: msgspec.convert(row, keyed))
        self._end = self._count = 0
        self._db = open_scratch(
            self, "CREATE TABLE runs (key BLOB, start INTEGER, size INTEGER, count INTEGER)"
        )
        self._sorted = False
        self._whole = FilePart(path, {})

    def grow(self) -> Iterator[str]:
        """See `Index`. Raises StoreError where a row is damaged."""
        before = self._count
        for start, block in read_blocks(self.path, self._end):
            runs = self._find_runs(start, block)
            self._db.executemany("INSERT INTO runs VALUES (?, ?, ?, ?)", runs)
            self._count += len(runs)
            self._end = start + len(block)
        return self._read_keys("WHERE rowid > ? AND rowid <= ?", before, self._count)

    def _find_runs(self, start: int, block: bytes) -> list[tuple[bytes, int, int, int]]:
        """Key, first byte, size in bytes and number of rows of each run of rows with one key."""
        ends = line_ends(block)
        rows = decode_block(self.path, start, block, self._keyed, len(ends))
        found, taken, begin = [], 0, start
        # Rows of one key mostly follow each other, so a run and not each row has a place.
        for key, run in groupby(map(_KEY, rows)):
            count = len(list(run))
            taken += count
            end = start + ends[taken - 1]
            found.append((to_blob(key), begin, end - begin, count))
            begin = end
        return found

    def _read_keys(self, which: str, *values: int, distinct: str = "") -> Iterator[str]:
        for (key,) in self._db.execute(f"SELECT {distinct} key FROM runs {which}", values):
            yield from_blob(key)

    def count(self, key: str) -> int:
        """See `Index`."""
        return sum(count for _, _, count in self._list_runs(key))

    def rows(self, key: str) -> list[Row]:
        """See `Index`. Raises StoreError where a row is damaged."""
        return self._whole.values(self._list_runs(key), ROWS)

    def records(self, key: str, kind: type[R]) -> list[R]:
        """See `Index`. Raises StoreError where a row is damaged."""
        return self._whole.values(self._list_runs(key), RECORDS[kind])

    def keys(self) -> Iterator[str]:
        """See `Index`."""
        self._sort_keys()
        return self._read_keys("ORDER BY key", distinct="DISTINCT")

    def part(self, keys: Iterable[str]) -> FilePart:
        """See `Index`."""
        return FilePart(self.path, {key: self._list_runs(key) for key in keys})

    def _list_runs(self, key: str) -> list[_Run]:
        """A key's runs in the order of writing."""
        self._sort_keys()
        return self._db.execute(
            "SELECT start, size, count FROM runs WHERE key = ? ORDER BY rowid", (to_blob(key),)
        ).fetchall()

    def _sort_keys(self) -> None:
        # Not before all rows are in that are there at first: to sort them at once is quicker.
        if not self._sorted:
            self._db.execute("CREATE INDEX by_key ON runs (key)")
            self._sorted = True


class HeldIndex:
    """An index of rows that are in memory anyway; `rows` returns all of them. See `Index`."""

    def __init__(self, rows: Callable[[], Sequence[Row]], key: str):
        self._all = rows
        self._key = key
        self._taken = 0
        self._rows: dict[str, list[Row]] = {}

    def grow(self) -> Iterator[str]:
        """See `Index`."""
        new = self._all()[self._taken :]
        self._taken += len(new)
        for row in new:
            self._rows.setdefault(row[self._key], []).append(row)
        return iter([row[self._key] for row in new])

    def count(self, key: str) -> int:
        """See `Index`."""
        return len(self.rows(key))

    def rows(self, key: str) -> list[Row]:
        """See `Index`."""
        return self._rows.get(key, [])

    def records(self, key: str, kind: type[R]) -> list[R]:
        """See `Index`."""
        return [from_json(kind, row) for row in self.rows(key)]

    def keys(self) -> Iterator[str]:
        """See `Index`."""
        return iter(sorted(self._rows))

    def part(self, keys: Iterable[str]) -> HeldPart:
        """See `Index`."""
        return HeldPart({key: self.rows(key) for key in keys})
