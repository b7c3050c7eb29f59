"""The compile cache as an archive that fits through the door: in at the start, out at the end."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

NAME = "compile-cache.tar.gz"
LIMIT = 15_500_000
"""Bytes: a file of 16 MB does not come back from the machine."""


def unpack(archive: Path, folder: Path) -> int:
    """Put the archive's files into `folder`; returns how many. A torn archive gives what it has."""
    count = 0
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive) as source:
            for member in source:
                source.extract(member, folder, filter="data")
                count += 1
    except (tarfile.TarError, EOFError, OSError) as error:
        print(f"{archive}: {error}; {count} files were taken from it", flush=True)
    return count


def pack(folder: Path, archive: Path, limit: int = LIMIT) -> tuple[int, int]:
    """Write `folder` to `archive`, at most `limit` bytes: the kernels that were used last first.
    Returns how many files are in it and how many are left out."""
    units = sorted(_units(folder), key=lambda unit: (-_newest(unit), unit[0]))
    kept, left = 0, 0
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as target:
        for unit in units:
            # Compressed they are at most as large as they are; the compressor still holds a rest.
            size = sum(path.stat().st_size + 1024 for path in unit)
            if buffer.tell() + size + 600_000 > limit:
                left += len(unit)
                continue
            for path in unit:
                target.add(path, arcname=str(path.relative_to(folder)), recursive=False)
            kept += len(unit)
    temporary = archive.with_suffix(".partial")
    temporary.write_bytes(buffer.getvalue())
    temporary.rename(archive)
    return kept, left


def _units(folder: Path) -> list[list[Path]]:
    """Files that are of use together only: all of one folder."""
    found: dict[Path, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.suffix != ".lock":
            found.setdefault(path.parent, []).append(path)
    return list(found.values())


def _newest(unit: list[Path]) -> float:
    return max(path.stat().st_mtime for path in unit)
