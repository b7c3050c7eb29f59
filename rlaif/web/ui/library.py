"""The runs that the pages show: their folders, found below those that were named."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

from rlaif.core.errors import ConfigError
from rlaif.core.records import content_hash
from rlaif.pipeline.manifest import MANIFEST

DEPTH = 4
"""How many folders below a named one runs are looked for."""
SKIPPED = {"steps", "models", "merged", "node_modules", "__pycache__", "site-packages"}
T = TypeVar("T")


@lru_cache(maxsize=65536)
def run_id(root: Path) -> str:
    """The name of a run in addresses: no path, so that none can be asked for."""
    return content_hash(str(root), length=10)


class Library:
    """The runs below some folders, by id. They are looked for anew at every call of `runs`."""

    def __init__(self, folders: Sequence[Path]):
        self.folders = [folder.resolve() for folder in folders]

    def runs(self) -> dict[str, Path]:
        """The folders of the runs by id, in order of their paths."""
        found = {path for folder in self.folders for path in find_runs(folder)}
        return {run_id(path): path for path in sorted(found)}


def name_runs(roots: Collection[Path]) -> dict[Path, str]:
    """What the folders of runs are called: their paths below the folder that holds them all."""
    if not roots:
        return {}
    common = os.path.commonpath([root.parent for root in roots])
    return {root: root.relative_to(common).as_posix() for root in roots}


def open_library(folders: Sequence[Path]) -> Library:
    """The runs in the folders that were named, or below them; of the working folder where none was.
    Raises ConfigError for one that is no run and has none below it."""
    for folder in folders:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise ConfigError(f"{folder} {what}; the folder of a run was expected")
        if not any(find_runs(folder)):
            raise ConfigError(
                f"{folder} is not a run folder (no {MANIFEST} in it), and there is none below it. "
                "Name the folder that `rlaif run` wrote, or one that holds such folders."
            )
    return Library(folders or [Path.cwd()])


def find_runs(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The run folders at or below a folder; none below a run, nor in hidden folders."""
    if (folder / MANIFEST).is_file():
        yield folder.resolve()
        return
    if depth == 0:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        hidden = entry.name.startswith(".") or entry.name in SKIPPED
        if not hidden and entry.is_dir(follow_symlinks=False):
            yield from find_runs(Path(entry.path), depth - 1)


Stamp = tuple[Any, ...]


def stamp_of(*paths: Path) -> Stamp:
    """What tells whether files have changed: their sizes and times; None of one that is absent."""
    found: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError:
            found.append(None)
    return tuple(found)


class Remembered(Generic[T]):
    """Values that are made from files, made again when these change. The last `limit` are held."""

    def __init__(self, make: Callable[[Path], T], limit: int = 256):
        self._make = make
        self._limit = limit
        self._held: dict[Path, tuple[Stamp, T]] = {}
        self._lock = Lock()

    def get(self, path: Path, stamp: Stamp) -> T:
        """The value of `path` for a stamp. What `make` raises goes through."""
        with self._lock:
            held = self._held.get(path)
        if held is not None and held[0] == stamp:
            return held[1]
        value = self._make(path)
        with self._lock:
            self._held.pop(path, None)
            self._held[path] = (stamp, value)
            while len(self._held) > self._limit:
                self._held.pop(next(iter(self._held)))
        return value
