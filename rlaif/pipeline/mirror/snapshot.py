"""The files of a run folder at one moment, and the parts that they are cut into.

A run goes on writing while it is mirrored. Its folder is therefore listed twice, and in between the
files that grow are looked at twice: where both listings agree, and both looks, all that they say
held at the moment between the looks. Of record files only whole batches count. What has changed is
held by hard links, so that a checkpoint that the run replaces meanwhile is still uploaded.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import msgspec

from rlaif.core.integrity import COMMITS_SUFFIX, digest, find_last_commit
from rlaif.engines.model_folders import COPIES
from rlaif.engines.remote.meter import FILE

PART = 32 << 20
"""Bytes of a part at most."""
OWN = ".mirror"
"""The folder in a run folder that is about the mirror, and is not mirrored."""
PINS = "pins"
MARKER = "done.json"
LOOKS = 20
LEFT_OUT = (".*", "*.tmp", "*.partial", "partial-*")
"""Names of what is being written."""
LOCAL_FOLDERS = (COPIES, "servers")
"""Folders of a run folder that are made again where they are needed: merged adapters, and the logs
of servers."""
METERS = FILE
"""What a step's servers were asked so far: replaced so often that any version of it counts."""
OF_PROCESSES = ("launch.json", "launched.json", "workers.log", "meeting*", "rollout")
"""Names in a `work` folder that only the processes of one machine share."""


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive bytes of a file."""

    digest: str
    size: int


class Entry(msgspec.Struct, frozen=True):
    """A file: its parts in order, and when it was last written (nanoseconds)."""

    size: int
    mtime_ns: int
    parts: tuple[Part, ...]


class Tree(msgspec.Struct, frozen=True):
    """The files of a run folder by their paths in it, with `/` between folders."""

    files: dict[str, Entry]

    def parts(self) -> set[Part]:
        """All parts of all files."""
        return {part for entry in self.files.values() for part in entry.parts}


@dataclass(frozen=True)
class Seen:
    """What a listing says of a file. `grows`: rows are appended to it; it is replaced where rows
    are dropped. `logged`: it has a log of its batches, and `size` is what the log vouches for."""

    size: int
    mtime_ns: int
    inode: int
    grows: bool = False
    logged: bool = False


@dataclass(frozen=True)
class Piece:
    """Where the bytes of a part are."""

    path: Path
    offset: int
    part: Part


@dataclass(frozen=True)
class Snapshot:
    """A run folder at one moment; `new` are the parts of what has changed, each once."""

    tree: Tree
    seen: Mapping[str, Seen]
    new: Sequence[Piece] = field(default=())


def list_files(root: Path) -> dict[str, Seen]:
    """The files of a run folder that are mirrored, by their paths in it."""
    found: dict[str, Seen] = {}
    for folder, folders, names in os.walk(root):
        place = Path(folder).relative_to(root)
        folders[:] = sorted(name for name in folders if not _is_left_out(place, name))
        for name in sorted(names):
            if not _is_left_out(place, name):
                _list_file(root, (place / name).as_posix(), found)
    return found


def _is_left_out(folder: Path, name: str) -> bool:
    if folder == Path() and name in LOCAL_FOLDERS:
        return True
    patterns = LEFT_OUT + (OF_PROCESSES if "work" in folder.parts else ())
    return any(fnmatch(name, pattern) for pattern in patterns)


def _list_file(root: Path, name: str, found: dict[str, Seen]) -> None:
    if name in found:
        return
    path = root / name
    log = path if path.suffix == COMMITS_SUFFIX else path.with_suffix(COMMITS_SUFFIX)
    records = path.suffix in (".jsonl", COMMITS_SUFFIX)
    try:
        committed = find_last_commit(path.with_suffix(".jsonl")) if records else None
        stat = path.stat()
        if committed is None:
            found[name] = Seen(stat.st_size, stat.st_mtime_ns, stat.st_ino, path.suffix == ".jsonl")
            return
        # Both by the same row, since the run may append a batch between the two names.
        log_name = log.relative_to(root).as_posix()
        sizes = {log_name: committed[0], Path(name).with_suffix(".jsonl").as_posix(): committed[1]}
        for each, size in sizes.items():
            if each not in found:
                stat = (root / each).stat()
                found[each] = Seen(size, stat.st_mtime_ns, stat.st_ino, grows=True, logged=True)
    except FileNotFoundError:
        # Removed meanwhile; the second listing tells.
        return


def settle_growing(root: Path, listed: Mapping[str, Seen]) -> dict[str, Seen] | None:
    """What held of all files that may grow at one moment, or None where they never stood still.
    Those of finished steps do not grow any more."""
    growing = [
        name
        for name, seen in listed.items()
        if seen.grows and f"{name.rpartition('/')[0]}/{MARKER}" not in listed
    ]

    def look() -> dict[str, Seen]:
        found: dict[str, Seen] = {}
        for name in growing:
            _list_file(root, name, found)
        return found

    before = look()
    for _ in range(LOOKS):
        now = look()
        if now == before:
            return now
        before = now
    return None


def agree(first: Mapping[str, Seen], second: Mapping[str, Seen]) -> bool:
    """Whether what the first listing says of every file held until the second one, but for rows
    that were appended."""
    return first.keys() == second.keys() and all(
        seen == second[name]
        or name.endswith(f"/{METERS}")
        or (seen.grows and seen.inode == second[name].inode and seen.size <= second[name].size)
        for name, seen in first.items()
    )


def take_snapshot(
    root: Path, known: Tree, seen_before: Mapping[str, Seen], tick: Callable[[], None]
) -> Snapshot | None:
    """The run folder at one moment, or None where it changed meanwhile: then it is worth another
    try. `known` is what is in the mirror, and `seen_before` what this process listed for it; `tick`
    is called after each part that was read.

    The pieces' files are links in the folder's own `.mirror`; see `drop_pins`.
    """
    drop_pins(root)
    first = list_files(root)
    settled = settle_growing(root, first)
    if settled is None:
        return None
    listed = first | settled
    changed = {
        name
        for name, seen in listed.items()
        if name not in known.files or not _is_same(seen, known.files[name], seen_before.get(name))
    }
    pins = root / OWN / PINS
    files = {name: entry for name, entry in known.files.items() if name in listed}
    new: dict[Part, Piece] = {}
    try:
        held = {name: _pin(root / name, pins / str(n)) for n, name in enumerate(sorted(changed))}
        for name in changed:
            if name.endswith(f"/{METERS}"):
                stat = held[name].stat()
                listed[name] = Seen(stat.st_size, stat.st_mtime_ns, stat.st_ino)
        if not agree(listed, list_files(root)):
            return None
        for name in sorted(changed):
            seen, before = listed[name], seen_before.get(name)
            grown = seen.logged and before is not None and before.inode == seen.inode
            parts = known.files[name].parts if name in known.files else ()
            pieces = []
            for piece in cut_file(held[name], seen.size, parts, grown):
                pieces.append(piece)
                tick()
            if not _is_unchanged(held[name], seen):
                return None
            new |= {piece.part: piece for piece in pieces}
            files[name] = Entry(seen.size, seen.mtime_ns, tuple(piece.part for piece in pieces))
    except FileNotFoundError:
        return None
    return Snapshot(Tree(files), listed, tuple(new.values()))


def drop_pins(root: Path) -> None:
    """Let go of the files of an earlier snapshot."""
    shutil.rmtree(root / OWN / PINS, ignore_errors=True)


def _is_same(seen: Seen, entry: Entry, before: Seen | None) -> bool:
    """Whether a file is what the tree has. What has a log is told by its size alone, if this
    process has watched it; anything else as the markers of finished steps do, by size and time."""
    if seen.logged and before is not None and before.inode == seen.inode:
        return seen.size == entry.size
    unmoved = before is None or before.inode == seen.inode
    return unmoved and (seen.size, seen.mtime_ns) == (entry.size, entry.mtime_ns)


def _pin(path: Path, link: Path) -> Path:
    """Hold a file by a hard link; the file itself where there are none."""
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, link)
    except FileNotFoundError:
        raise
    except OSError:
        return path
    return link


def _is_unchanged(path: Path, seen: Seen) -> bool:
    """Whether the file at `path` still is what was listed."""
    stat = path.stat()
    same = (stat.st_size, stat.st_mtime_ns) == (seen.size, seen.mtime_ns)
    return stat.st_ino == seen.inode and (same or (seen.grows and stat.st_size >= seen.size))


def cut_file(path: Path, size: int, before: Sequence[Part], grown: bool) -> Iterator[Piece]:
    """The parts of a file's first `size` bytes. Those of `before` that it still begins with stay as
    they are; they are not read again if it is `grown`, that is, known to have only grown."""
    offset = 0
    with path.open("rb") as file:
        for part in before:
            if offset + part.size > size:
                break
            file.seek(offset)
            if not grown and digest(file.read(part.size)) != part.digest:
                break
            yield Piece(path, offset, part)
            offset += part.size
        while offset < size:
            file.seek(offset)
            data = file.read(min(PART, size - offset))
            if not data:
                raise FileNotFoundError(f"{path}: shorter than it was")
            yield Piece(path, offset, Part(digest(data), len(data)))
            offset += len(data)


def read_piece(piece: Piece) -> bytes | None:
    """The bytes of a part, or None where the file has others by now."""
    try:
        with piece.path.open("rb") as file:
            file.seek(piece.offset)
            data = file.read(piece.part.size)
    except FileNotFoundError:
        return None
    return data if digest(data) == piece.part.digest else None


def encode_tree(tree: Tree) -> bytes:
    """A tree as JSON; equal trees give equal bytes."""
    return msgspec.json.encode(tree, order="deterministic")


def decode_tree(data: bytes) -> Tree:
    """The inverse of `encode_tree`. Raises msgspec.MsgspecError."""
    return msgspec.json.decode(data, type=Tree)
