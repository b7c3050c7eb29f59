"""Many ids without a Python string for each: packed in order, or as a set on disk.

What is looked up lies in a scratch database, which SQLite holds in its cache while it is small and
spills into a temporary file (in SQLITE_TMPDIR or TMPDIR) when it is not. That file has no name and
is gone with the process. Ids are stored whole, so that no two can be taken for one another.
"""

from __future__ import annotations

import re
import sqlite3
import weakref
from bisect import bisect_left
from collections.abc import Iterable, Iterator, MutableSet, Sequence
from functools import cached_property
from typing import overload

CACHE = 512
"""Kibibytes of a scratch database that are held in memory."""
_MADE = re.compile(r"[a-z]_[0-9a-f]{24}")
"""The ids that `content_hash` makes, of which 12 bytes tell one from another."""
SIZE = 12
_PAGE = 1024
"""Ids that are unpacked at once."""


def open_scratch(owner: object, *statements: str) -> sqlite3.Connection:
    """A database that nobody else sees, made by some statements; it is closed when `owner` goes, so
    that whoever reads from it must hold the owner. Threads may share it."""
    db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    weakref.finalize(owner, db.close)
    for statement in (
        "PRAGMA journal_mode = OFF",
        "PRAGMA synchronous = OFF",
        f"PRAGMA cache_size = -{CACHE}",
        *statements,
        # Never ended: one transaction for each change would take most of the time.
        "BEGIN",
    ):
        db.execute(statement)
    return db


def to_blob(name: str) -> bytes:
    """An id as a scratch database holds it. Bytes are in the order of the texts, and lone
    surrogates, which a user's id may have, are kept."""
    return name.encode("utf-8", "surrogatepass")


def from_blob(blob: bytes) -> str:
    """The id of which `to_blob` made this."""
    return blob.decode("utf-8", "surrogatepass")


class IdSet(MutableSet[str]):
    """A set of ids on disk. Iterating goes in the order of the ids."""

    def __init__(self, names: Iterable[str] = ()):
        self._db = open_scratch(self, "CREATE TABLE ids (id BLOB PRIMARY KEY) WITHOUT ROWID")
        self._count = 0
        self.update(names)

    def add(self, value: str) -> None:
        """One more id."""
        self.is_new(value)

    def is_new(self, name: str) -> bool:
        """Add an id, and whether it was not there."""
        done = self._db.execute("INSERT OR IGNORE INTO ids VALUES (?)", (to_blob(name),))
        self._count += done.rowcount
        return done.rowcount > 0

    def update(self, names: Iterable[str]) -> None:
        """Several more ids."""
        rows = ((to_blob(name),) for name in names)
        self._count += self._db.executemany("INSERT OR IGNORE INTO ids VALUES (?)", rows).rowcount

    def discard(self, value: str) -> None:
        """Take an id out, where it is there."""
        done = self._db.execute("DELETE FROM ids WHERE id = ?", (to_blob(value),))
        self._count -= done.rowcount

    def __contains__(self, value: object) -> bool:
        if not self._count or not isinstance(value, str):
            return False
        found = self._db.execute("SELECT 1 FROM ids WHERE id = ?", (to_blob(value),))
        return found.fetchone() is not None

    def __iter__(self) -> Iterator[str]:
        for (blob,) in self._db.execute("SELECT id FROM ids ORDER BY id"):
            yield from_blob(blob)

    def __len__(self) -> int:
        return self._count


class Ids(Sequence[str]):
    """Ids in an order, in 12 bytes each where all of them are hashes of content with one letter
    before, as prompts' ids are; others are held as they are. Equal to a list or a tuple of the same
    ids."""

    def __init__(self, names: Iterable[str]):
        self._letter = ""
        self._packed = bytearray()
        self._plain: list[str] | None = None
        self._in_order = True
        last = ""
        for name in names:
            self._in_order = self._in_order and last < name
            last = name
            self._append(name)

    def _append(self, name: str) -> None:
        if self._plain is None:
            self._letter = self._letter or name[:1]
            if name[:1] == self._letter and _MADE.fullmatch(name):
                self._packed += bytes.fromhex(name[2:])
                return
            self._plain, self._packed = list(self), bytearray()
        self._plain.append(name)

    def _unpack(self, start: int, stop: int) -> list[str]:
        digits = self._packed[start * SIZE : stop * SIZE].hex()
        before, width = f"{self._letter}_", 2 * SIZE
        return [before + digits[i : i + width] for i in range(0, len(digits), width)]

    def __len__(self) -> int:
        return len(self._packed) // SIZE if self._plain is None else len(self._plain)

    def __iter__(self) -> Iterator[str]:
        if self._plain is not None:
            yield from self._plain
            return
        for start in range(0, len(self), _PAGE):
            yield from self._unpack(start, start + _PAGE)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> Ids: ...

    def __getitem__(self, place: int | slice) -> str | Ids:
        if isinstance(place, slice):
            return Ids(self[i] for i in range(*place.indices(len(self))))
        if self._plain is not None:
            return self._plain[place]
        number = range(len(self))[place]
        return self._unpack(number, number + 1)[0]

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        if not self._in_order:
            return name in self._every
        if self._plain is not None or not _MADE.fullmatch(name):
            place = bisect_left(self, name)
            return place < len(self) and self[place] == name
        own, key = self._packed, bytearray.fromhex(name[2:])
        places = range(0, len(own), SIZE)
        place = bisect_left(places, key, key=lambda start: own[start : start + SIZE]) * SIZE
        return name[0] == self._letter and own[place : place + SIZE] == key

    @cached_property
    def _every(self) -> IdSet:
        return IdSet(self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Ids):
            mine, theirs = (x._plain or (x._letter, x._packed) for x in (self, other))
            return len(self) == len(other) and (not self or mine == theirs)
        return list(self) == list(other) if isinstance(other, (list, tuple)) else NotImplemented

    def __repr__(self) -> str:
        return f"Ids({list(self)!r})"


def as_ids(names: Iterable[str]) -> Ids:
    """The ids in their order, packed."""
    return names if isinstance(names, Ids) else Ids(names)


def unite_ids(parts: Iterable[Sequence[str]]) -> Sequence[str]:
    """The ids of some sequences, each once, in the order in which they come first."""
    different: list[Sequence[str]] = []
    for part in parts:
        if not any(part is other or part == other for other in different):
            different.append(part)
    if len(different) == 1:
        return different[0]
    seen = IdSet()
    return Ids(name for part in different for name in part if seen.is_new(name))


def sort_ids(names: Iterable[str]) -> Ids:
    """The ids in their order, each once."""
    return Ids(IdSet(names))
