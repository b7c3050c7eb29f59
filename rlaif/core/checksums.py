"""Checksums of what is stored, so that damage is found and named instead of read as data.

A small JSON file carries the checksum of its own content (`seal_row`); a folder that is published
whole has one file with the checksums of all the others. The hash is half of SHA-256: it guards
against damage, not forgery.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rlaif.core.errors import StoreError

CHECK = "check"
"""The key of a JSON object's own checksum."""
NAME = "checksums.json"
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
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != NAME)
    with ThreadPoolExecutor(THREADS) as pool:
        digests = list(pool.map(_synced_digest, files))
    rows = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "digest": found}
        for path, found in zip(files, digests, strict=True)
    }
    path = folder / NAME
    path.write_text(json.dumps(seal_row({"files": rows}), indent=1), encoding="utf-8")
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
    if not (folder / NAME).exists():
        # An earlier version made it.
        return
    rows = read_checksums(folder, f"Delete the folder {folder}.")
    path = folder / name
    rows[name] = {"size": path.stat().st_size, "digest": _synced_digest(path)}
    # Not in place: folders that are one model share their files.
    temporary = folder / (NAME + ".tmp")
    temporary.write_text(json.dumps(seal_row({"files": rows}), indent=1), encoding="utf-8")
    temporary.replace(folder / NAME)


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
    sync_to_disk(temporary)
    temporary.replace(path)


def publish_folder(temporary: Path, out: Path) -> None:
    """Make a written folder visible as `out`, with its checksums, complete or not at all; an older
    `out` goes."""
    write_checksums(temporary)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)
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
    path = folder / NAME
    if not path.exists():
        return None
    rows = read_checksums(folder, advice)
    lacking = tuple(f"{name}/" for name in may_lack)
    wanted = []
    for name, row in rows.items():
        file = folder / name
        if not names(name) or (name.startswith(lacking) and not file.exists()):
            continue
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
    row = read_sealed(folder / NAME, advice)
    if row is None:
        raise StoreError(f"{folder / NAME}: missing. {advice}")
    files: dict[str, dict[str, Any]] = row["files"]
    return files
