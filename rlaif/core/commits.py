"""The commit log beside a record file: which of its bytes are whole batches, and their checksums.

Each row is of one size: where a batch ends (bytes from the file's beginning), how many rows it has,
its checksum, and a checksum of the log's row itself. A row is appended after the batch is on disk.
What follows the last row's end was torn by a kill; so was a last row that is not whole.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import BinaryIO

from rlaif.core.checksums import new_digest, short
from rlaif.core.errors import StoreError

SUFFIX = ".commits"
CHUNK = 1 << 20
"""Bytes that are hashed or looked through at once."""
BATCH_END = b"\n\n"
"""What closes a batch in a file without a log, as earlier versions wrote it."""
SYNC_SECONDS = 1.0
_synced: dict[Path, float] = {}
"""When each log was last flushed to disk."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A batch: where it ends, how many rows it has, the checksum of its bytes."""

    end: int
    rows: int
    digest: str


def log_of(path: Path) -> Path:
    """The log of a record file."""
    return path.with_suffix(SUFFIX)


def line_of(commit: Commit) -> bytes:
    """The row of a log."""
    text = f"{commit.end:015d} {commit.rows:010d} {commit.digest} "
    return f"{text}{zlib.crc32(text.encode()):08x}\n".encode()


SIZE = len(line_of(Commit(0, 0, "0" * 32)))


def _parse_commit(line: bytes) -> Commit | None:
    """The commit in a row of a log; None if the row is torn or damaged."""
    try:
        end, rows, digest, _ = line.decode("ascii").split(" ")
        found = Commit(int(end), int(rows), digest)
    except ValueError:
        return None
    return found if line_of(found) == line else None


def read_committed(path: Path) -> int | None:
    """The bytes of a record file that are whole batches, by the last whole row of its log; None if
    it has no log. Earlier rows are not checked."""
    try:
        log = os.open(log_of(path), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        size = path.stat().st_size if path.exists() else 0
        number = os.fstat(log).st_size // SIZE
        while number > 0:
            number -= 1
            found = _parse_commit(os.pread(log, SIZE, number * SIZE))
            if found is not None and found.end <= size:
                return found.end
        return 0
    finally:
        os.close(log)


def append_commit(path: Path, commit: Commit) -> None:
    """Add a row to a record file's log. It survives a kill at once, and a power cut after at most
    `SYNC_SECONDS` of writing: batches whose rows are lost then are made again."""
    log = log_of(path)
    with log.open("ab") as file:
        file.write(line_of(commit))
        file.flush()
        now = monotonic()
        if now - _synced.get(log, -SYNC_SECONDS) >= SYNC_SECONDS:
            os.fsync(file.fileno())
            _synced[log] = now


def settle_file(path: Path, advice: str) -> int:
    """Make a record file end with its last whole batch, and its log with that batch's row; how many
    bytes are left. A file without a log gets one. Raises StoreError where a batch is damaged."""
    if not log_of(path).exists():
        return _begin_log(path)
    size = path.stat().st_size if path.exists() else 0
    commits = [commit for commit in read_log(path, advice) if commit.end <= size]
    with log_of(path).open("r+b") as file:
        file.truncate(len(commits) * SIZE)
    if size:
        refuse_damaged(path, commits, advice)
    end = commits[-1].end if commits else 0
    if end < size:
        os.truncate(path, end)
    return end


def _begin_log(path: Path) -> int:
    """Write the log of a file that has none: what an earlier version committed becomes one batch,
    whose size in bytes is returned. The log appears as a whole, since without its row that batch
    would count as torn."""
    end = to_last_blank(path) if path.exists() else 0
    if path.exists():
        os.truncate(path, end)
    log = log_of(path)
    temporary = log.with_name(log.name + ".tmp")
    with temporary.open("wb") as file:
        if end:
            with path.open("rb") as data:
                rows = sum(line != b"\n" for line in data)
                data.seek(0)
                file.write(line_of(Commit(end, rows, checksum(data, end))))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(log)
    return end


def to_last_blank(path: Path) -> int:
    """How many bytes of a file without a log are whole batches: those up to the last blank line."""
    with path.open("rb") as file:
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


def read_log(path: Path, advice: str) -> list[Commit]:
    """The commits of a record file, without a last one that is torn. Raises StoreError where one
    before it is damaged, or they are in no order."""
    log = log_of(path)
    data = log.read_bytes()
    found = [_parse_commit(data[i : i + SIZE]) for i in range(0, len(data), SIZE)]
    if found and found[-1] is None:
        found.pop()
    commits = [commit for commit in found if commit is not None]
    ends = [0, *(commit.end for commit in commits)]
    ordered = all(first < second for first, second in pairwise(ends))
    if len(commits) < len(found) or not ordered:
        raise StoreError(f"{log}: damaged. {advice}")
    return commits


def refuse_damaged(path: Path, commits: Iterable[Commit], advice: str) -> None:
    """Raises StoreError for the first batch of a record file that is not what was written."""
    row, start = 1, 0
    with path.open("rb") as file:
        for commit in commits:
            if checksum(file, commit.end - start) != commit.digest:
                raise StoreError(
                    f"{path}: damaged: its rows {row} to {row + commit.rows - 1} are not what was "
                    f"written. {advice}"
                )
            start, row = commit.end, row + commit.rows


def checksum(file: BinaryIO, size: int) -> str:
    """The checksum of the next `size` bytes of a file, or of as many as it has."""
    hashed = new_digest()
    while size > 0 and (chunk := file.read(min(CHUNK, size))):
        hashed.update(chunk)
        size -= len(chunk)
    return short(hashed)
