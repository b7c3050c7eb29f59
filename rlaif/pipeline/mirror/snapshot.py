"""The files of a run folder at one moment, and the parts that they are cut into.

A run goes on writing while it is mirrored. Its folder is therefore listed twice: where both lists
agree, all that they name was there at the moment between them. Of record files only whole batches
count, and these may grow. What has changed is held by hard links, so that a checkpoint that the run
replaces meanwhile is still uploaded.
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

PART = 32 << 20
"""Bytes of a part at most."""
OWN = ".mirror"
"""The folder in a run folder that is about the mirror, and is not mirrored."""
PINS = "pins"
LEFT_OUT = (".*", "*.tmp", "*.partial", "partial-*")
"""Names of what is being written."""
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
    """What a listing says of a file. `grows`: its first `size` bytes never change, and others may
    follow."""

    size: int
    mtime_ns: int
    inode: int
    grows: bool = False


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
    if folder == Path() and name == COPIES:
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
            found[name] = Seen(stat.st_size, stat.st_mtime_ns, stat.st_ino)
            return
        # Both by the same row, since the run may append a batch between the two names.
        log_name = log.relative_to(root).as_posix()
        sizes = {log_name: committed[0], Path(name).with_suffix(".jsonl").as_posix(): committed[1]}
        for each, size in sizes.items():
            if each not in found:
                stat = (root / each).stat()
                found[each] = Seen(size, stat.st_mtime_ns, stat.st_ino, grows=True)
    except FileNotFoundError:
        # Removed meanwhile; the second listing tells.
        return


def agree(first: Mapping[str, Seen], second: Mapping[str, Seen]) -> bool:
    """Whether what the first listing says of every file held until the second one."""
    return first.keys() == second.keys() and all(
        seen == second[name]
        or (
            seen.grows
            and second[name].grows
            and seen.inode == second[name].inode
            and seen.size <= second[name].size
        )
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
    pins = root / OWN / PINS
    kept = {
        name: entry
        for name, entry in known.files.items()
        if name in first and _is_same(first[name], entry, seen_before.get(name))
    }
    changed = {name: seen for name, seen in first.items() if name not in kept}
    try:
        held = {name: _pin(root / name, pins / str(n)) for n, name in enumerate(sorted(changed))}
        if not agree(first, list_files(root)):
            return None
        files, new = dict(kept), dict[Part, Piece]()
        for name, seen in changed.items():
            before = known.files.get(name)
            earlier = seen_before.get(name)
            grown = seen.grows and earlier is not None and earlier.inode == seen.inode
            parts = []
            for piece in cut_file(held[name], seen.size, before.parts if before else (), grown):
                parts.append(piece)
                tick()
            if not _is_unchanged(held[name], seen):
                return None
            new |= {piece.part: piece for piece in parts}
            files[name] = Entry(seen.size, seen.mtime_ns, tuple(piece.part for piece in parts))
    except FileNotFoundError:
        return None
    return Snapshot(Tree(files), first, tuple(new.values()))


def drop_pins(root: Path) -> None:
    """Let go of the files of an earlier snapshot."""
    shutil.rmtree(root / OWN / PINS, ignore_errors=True)


def _is_same(seen: Seen, entry: Entry, before: Seen | None) -> bool:
    """Whether a file is what the tree has. What grows is told by its size alone, if this process
    has watched it; anything else as the markers of finished steps do, by size and time."""
    if seen.grows and before is not None and before.inode == seen.inode:
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
