"""The store's record files: lines of JSON in whole batches, read in order.

The records of one kind in a step's folder are a file, `judgements.jsonl`, which ends with the batch
that makes it `SHARD_BYTES` long; the next batch begins `judgements.0001.jsonl`, and so on. Readers
are given the first file and go on to the others; a place is a byte of all of them, one after the
other. A file's commit log (`commits`) says which bytes are whole batches; in folders of earlier
versions, which have none, a blank line closes a batch. Whatever follows was torn by a kill and is
not there. Lines are decoded straight into records, which is several times as fast as going through
a dict and a constructor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import msgspec
import numpy as np

from rlaif.core import integrity
from rlaif.core.errors import StoreError
from rlaif.core.records import (
    Completion,
    Judgement,
    Preference,
    Prompt,
    R,
    Record,
    canonical_json,
    from_json,
    to_json,
)

SHARD_BYTES = 1 << 30
"""The size from which on a record file takes no further batch."""
BLOCK = 1 << 18
"""Bytes of lines that are decoded at once."""

Row = dict[str, Any]
_REFUSED = (msgspec.MsgspecError, UnicodeDecodeError)
_UNREADABLE = (msgspec.MsgspecError, TypeError, ValueError)
T = TypeVar("T")
B = TypeVar("B", bound=msgspec.Struct)


_NUMBERED = re.compile(r"(.+)\.\d{4,}")


def shard_path(path: Path, number: int) -> Path:
    """The file that follows `number` others of the records of one kind, of which `path` is the
    first."""
    return path if number == 0 else path.with_name(f"{path.stem}.{number:04d}{path.suffix}")


def list_shards(path: Path) -> list[Path]:
    """The files of the records of one kind in their order; none where there are no records."""
    found: list[Path] = []
    # The first may be any file; one that goes on from it is ours, and so has a log.
    while (shard := shard_path(path, len(found))).exists() and (
        not found or integrity.log_of(shard).exists()
    ):
        found.append(shard)
    return found


def kind_of(path: Path) -> str:
    """The name of the records in a record file, which is the first or one that follows it."""
    numbered = _NUMBERED.fullmatch(path.stem)
    return path.stem if numbered is None else numbered[1]


def locate_byte(path: Path, place: int) -> tuple[Path, int]:
    """The file that has a byte of the records of one kind, and which of its bytes it is."""
    shards = list_shards(path)
    for shard in shards[:-1]:
        size = shard.stat().st_size
        if place < size:
            return shard, place
        place -= size
    return (shards[-1] if shards else path), place


class Lines(Generic[T]):
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


ROWS: Lines[Row] = Lines(Row, lambda row: row)


def _lines_of(kind: type[R]) -> Lines[R]:
    return Lines(kind, lambda row: from_json(kind, row))


RECORDS: Mapping[type, Lines[Any]] = {
    Completion: _lines_of(Completion),
    Judgement: _lines_of(Judgement),
    Preference: _lines_of(Preference),
    Prompt: _lines_of(Prompt),
}


_ENCODER = msgspec.json.Encoder()


def line_of(record: Record | Row) -> bytes:
    """A record or row as one line of JSON, without its newline. Raises ValueError on NaN."""
    lines = RECORDS.get(type(record))
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
    lines: Lines[R] = RECORDS[kind]
    return lines.one(line)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of the whole batches in the store's files; nothing where there are none. Raises
    StoreError where one is damaged."""
    return _read_rows(path, ROWS)


def read_records(path: Path, kind: type[R]) -> Iterator[R]:
    """`read_rows` as records."""
    return _read_rows(path, RECORDS[kind])


def read_where(path: Path, kind: type[B], keep: Callable[[B], bool]) -> Iterator[Row]:
    """The rows of which `keep` holds, by the few fields that `kind` (a msgspec Struct) has of them:
    of the others no more is decoded. Raises StoreError where one is damaged."""
    brief: Lines[B] = Lines(kind, lambda row: msgspec.convert(row, kind))
    for start, block in read_blocks(path, 0):
        ends = line_ends(block)
        begin = 0
        for row, end in zip(decode_block(path, start, block, brief, len(ends)), ends, strict=True):
            if keep(row):
                # A blank line before it is part of the slice.
                yield ROWS.one(block[begin:end].strip())
            begin = end


def count_rows(path: Path) -> int:
    """How many rows the whole batches have."""
    return sum(_row_count(block) for _, block in read_blocks(path, 0))


def _row_count(block: bytes) -> int:
    """The number of lines that are not blank. No two blank lines follow one another."""
    return block.count(b"\n") - block.count(b"\n\n") - block.startswith(b"\n")


def line_ends(block: bytes) -> list[int]:
    """Where each line that is not blank ends, its newline included, in bytes of the block."""
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
    # A blank line ends one byte behind the line before it.
    found: list[int] = ends[np.diff(ends, prepend=0) > 1].tolist()
    return found


def _read_rows(path: Path, lines: Lines[T]) -> Iterator[T]:
    for start, block in read_blocks(path, 0):
        yield from decode_block(path, start, block, lines, _row_count(block))


def read_blocks(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    """(first byte, lines) of the whole batches from byte `start` on: about `BLOCK` bytes of whole
    lines at once."""
    begin = 0
    for shard in list_shards(path):
        whole = whole_bytes(shard)
        yield from _read_shard(shard, begin, max(start - begin, 0), whole)
        begin += whole


def _read_shard(shard: Path, begin: int, start: int, whole: int) -> Iterator[tuple[int, bytes]]:
    """`read_blocks` of one file, whose first byte is byte `begin` of them all."""
    if start >= whole:
        return
    with shard.open("rb") as file:
        file.seek(start)
        while start < whole:
            block = file.read(min(BLOCK, whole - start))
            if not block.endswith(b"\n"):
                block += file.readline()
            yield begin + start, block
            start += len(block)


def decode_block(path: Path, start: int, block: bytes, lines: Lines[T], rows: int) -> list[T]:
    """The values of the lines that begin at byte `start`, of which `rows` are not blank. Raises
    StoreError, which says which line of the file, from 1, is damaged."""
    try:
        found = lines.many(block)
    except _UNREADABLE:
        found = []
    # A value that goes on in the next line, or that does not end its line, is damage too.
    if len(found) == rows:
        return found
    shard, start = locate_byte(path, start)
    with shard.open("rb") as file:
        # Counted only now: a whole file has no use for line numbers.
        number = 1 + file.read(start).count(b"\n") + _whole_lines(block, lines)
    raise StoreError(f"{shard}:{number}: damaged row. Delete the folder {shard.parent}")


def _whole_lines(block: bytes, lines: Lines[Any]) -> int:
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
