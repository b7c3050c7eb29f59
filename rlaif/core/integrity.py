"""Checksums and commit logs: damage is detected and named instead of being read as data.

A small JSON file carries the checksum of its own content (`seal_row`); a folder that is published
whole has one file with the checksums of all the others. The hash is half of SHA-256: it guards
against damage, not forgery.

Beside each record file lies a commit log with one fixed-size row per whole batch: where the batch
ends (bytes from the beginning of the file), how many rows it has, its checksum, and a checksum of
the log's row itself. A row is appended after the batch is on disk, so whatever follows the end that
the last row names was torn by a kill; so was a last row that is incomplete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO

from rlaif.core.errors import StoreError

CHECK = "check"
"""The key of a JSON object's own checksum."""
CHECKSUMS_NAME = "checksums.json"
"""The file in a published folder that has the checksums of the others."""
DIGITS = 32
new_digest = hashlib.sha256
THREADS = 4


def digest(data: bytes) -> str:
    """The checksum of some bytes, in 32 hexadecimal digits."""
    return short(new_digest(data))


def short(hashed: Any) -> str:
    """The checksum of what a `new_digest` was fed, in hexadecimal digits."""
    found: str = hashed.hexdigest()[:DIGITS]
    return found


def file_digest(path: Path) -> str:
    """The checksum of a file's bytes."""
    with path.open("rb") as file:
        return short(hashlib.file_digest(file, new_digest))


class Unordered:
    """The checksum of records, in whatever order they come."""

    def __init__(self) -> None:
        self._sum = 0

    def add(self, *values: str | float | None) -> None:
        """Take in a record, by the values that tell it from others."""
        # A sum and no xor, in which a record that comes twice would cancel itself.
        self._sum += int.from_bytes(new_digest(repr(values).encode()).digest())

    def digest(self) -> str:
        """The checksum of the records so far, in 32 hexadecimal digits."""
        return f"{self._sum % 16**DIGITS:0{DIGITS}x}"


def seal_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its own checksum."""
    return {**row, CHECK: _compute_seal(row)}


def is_whole(row: Any) -> bool:
    """Whether this is an object that `seal_row` made, unchanged."""
    return isinstance(row, dict) and CHECK in row and _compute_seal(row) == row[CHECK]


def unseal_row(row: Any, path: Path | str, advice: str, required: bool = True) -> dict[str, Any]:
    """A sealed object without its checksum. Unless `required`, an object that has none is returned
    as it is, since earlier versions wrote none. Raises StoreError with the `advice` where it is
    damaged."""
    if isinstance(row, dict) and (is_whole(row) or (CHECK not in row and not required)):
        return {key: value for key, value in row.items() if key != CHECK}
    raise StoreError(f"{path}: damaged (it is not what was written). {advice}")


def _compute_seal(row: Mapping[str, Any]) -> str:
    content = {key: value for key, value in row.items() if key != CHECK}
    # As it is read back: keys are texts then, and tuples lists.
    read = json.loads(json.dumps(content))
    return digest(json.dumps(read, sort_keys=True).encode())


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files of a folder into it, and see that everything is on disk."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUMS_NAME)
    # Hashing lets go of the GIL, so threads gain.
    with ThreadPoolExecutor(THREADS) as pool:
        digests = list(pool.map(_synced_digest, files))
    rows = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "digest": found}
        for path, found in zip(files, digests, strict=True)
    }
    path = folder / CHECKSUMS_NAME
    path.write_text(json.dumps(seal_row({"files": rows}), indent=1), encoding="utf-8")
    # The folders too: a file's name is on disk once its folder is.
    for entry in [path, *(p for p in folder.rglob("*") if p.is_dir()), folder]:
        sync_to_disk(entry)


def _synced_digest(path: Path) -> str:
    found = file_digest(path)
    sync_to_disk(path)
    return found


def sync_to_disk(path: Path) -> None:
    """See that a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def add_file(folder: Path, name: str) -> None:
    """Take a file that was written later into the checksums of a published folder."""
    if not (folder / CHECKSUMS_NAME).exists():
        # An earlier version made it.
        return
    rows = read_checksums(folder, f"Delete the folder {folder}.")
    path = folder / name
    rows[name] = {"size": path.stat().st_size, "digest": _synced_digest(path)}
    # Not in place: folders that are one model share their files.
    temporary = folder / (CHECKSUMS_NAME + ".tmp")
    temporary.write_text(json.dumps(seal_row({"files": rows}), indent=1), encoding="utf-8")
    temporary.replace(folder / CHECKSUMS_NAME)


def read_sealed(path: Path, advice: str, required: bool = True) -> dict[str, Any] | None:
    """The sealed object in a file, without its checksum; None where there is no such file. Raises
    StoreError with the `advice` where it is damaged."""
    try:
        row = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        row = None
    return unseal_row(row, path, advice, required)


def write_sealed(path: Path, row: Mapping[str, Any]) -> None:
    """Write an object with its checksum; a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(seal_row(row), indent=1), encoding="utf-8")
    # Before the rename, or the name could stand for an empty file after a power cut.
    sync_to_disk(temporary)
    temporary.replace(path)


def publish_folder(temporary: Path, out: Path) -> None:
    """Make a written folder visible as `out`, with its checksums, complete or not at all; an older
    `out` goes."""
    write_checksums(temporary)
    out.parent.mkdir(parents=True, exist_ok=True)
    # A rename cannot replace a folder that has files. A kill between the two leaves no `out` at
    # all.
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)
    # Until then a power cut can undo the rename.
    sync_to_disk(out.parent)


def verify_folder(
    folder: Path,
    advice: str,
    may_lack: Iterable[str] = (),
    names: Callable[[str], bool] = lambda name: True,
) -> int | None:
    """Compare the files of a published folder with its checksums; how many bytes were compared, or
    None where it has no checksums.

    Files in the subfolders `may_lack` may have been removed; only those are read whose relative
    name passes `names`. Raises StoreError with the `advice` for the first that is damaged.
    """
    path = folder / CHECKSUMS_NAME
    if not path.exists():
        return None
    rows = read_checksums(folder, advice)
    lacking = tuple(f"{name}/" for name in may_lack)
    wanted = []
    for name, row in rows.items():
        file = folder / name
        if not names(name) or (name.startswith(lacking) and not file.exists()):
            continue
        # The size first: it tells most damage without reading.
        if not file.is_file() or file.stat().st_size != row["size"]:
            what = "has another size" if file.is_file() else "is missing"
            raise StoreError(f"{file}: damaged (it {what}). {advice}")
        wanted.append(name)
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: file_digest(folder / name), wanted)
        for name, own in zip(wanted, found, strict=True):
            if own != rows[name]["digest"]:
                raise StoreError(f"{folder / name}: damaged (its checksum differs). {advice}")
    return sum(int(rows[name]["size"]) for name in wanted)


def read_checksums(folder: Path, advice: str) -> dict[str, dict[str, Any]]:
    """Size and digest of every file of a published folder. Raises StoreError where they are
    damaged themselves or not there."""
    row = read_sealed(folder / CHECKSUMS_NAME, advice)
    if row is None:
        raise StoreError(f"{folder / CHECKSUMS_NAME}: missing. {advice}")
    files: dict[str, dict[str, Any]] = row["files"]
    return files


COMMITS_SUFFIX = ".commits"
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
    return path.with_suffix(COMMITS_SUFFIX)


def line_of(commit: Commit) -> bytes:
    """The row of a log."""
    text = f"{commit.end:015d} {commit.rows:010d} {commit.digest} "
    return f"{text}{zlib.crc32(text.encode()):08x}\n".encode()


COMMIT_SIZE = len(line_of(Commit(0, 0, "0" * 32)))


def _parse_commit(line: bytes) -> Commit | None:
    """The commit in a row of a log; None if the row is torn or damaged."""
    try:
        end, rows, digest, _ = line.decode("ascii").split(" ")
        found = Commit(int(end), int(rows), digest)
    except ValueError:
        return None
    # Written again and compared: this covers the checksum, the widths and the digits at once.
    return found if line_of(found) == line else None


def read_committed(path: Path) -> int | None:
    """The bytes of a record file that are whole batches, by the last whole row of its log; None if
    it has no log. Earlier rows are not checked."""
    found = find_last_commit(path)
    return None if found is None else found[1]


def find_last_commit(path: Path) -> tuple[int, int] | None:
    """How many bytes of a record file's log are rows up to the last whole one, and how many bytes
    of the file are whole batches by it; None if the file has no log. Earlier rows are not
    checked."""
    try:
        log = os.open(log_of(path), os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        size = path.stat().st_size if path.exists() else 0
        number = os.fstat(log).st_size // COMMIT_SIZE
        # From the end: rows that are torn, or whose batch a power cut took, are passed over.
        while number > 0:
            number -= 1
            found = _parse_commit(os.pread(log, COMMIT_SIZE, number * COMMIT_SIZE))
            if found is not None and found.end <= size:
                return (number + 1) * COMMIT_SIZE, found.end
        return 0, 0
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
        # Flushing for each batch would take most of the time of small ones.
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
    # The log first: where a kill comes between, the bytes beyond it are cut the next time.
    with log_of(path).open("r+b") as file:
        file.truncate(len(commits) * COMMIT_SIZE)
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


def read_log(path: Path, advice: str, first: int = 0) -> list[Commit]:
    """The commits of a record file from row `first` of its log on, without a last one that is torn.
    Raises StoreError where one before it is damaged, or they are in no order."""
    log = log_of(path)
    with log.open("rb") as file:
        file.seek(first * COMMIT_SIZE)
        data = file.read()
    found = [_parse_commit(data[i : i + COMMIT_SIZE]) for i in range(0, len(data), COMMIT_SIZE)]
    if found and found[-1] is None:
        found.pop()
    commits = [commit for commit in found if commit is not None]
    ends = [0, *(commit.end for commit in commits)]
    # A batch ends behind the one before it: anything else is no log that was written here.
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
