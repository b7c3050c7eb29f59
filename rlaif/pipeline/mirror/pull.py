"""From the mirror into a run folder: everything is fetched and verified first, then put in place.

What the folder has already is not fetched, nor is what an interrupted pull has fetched. Files here
that the mirror has never had are moved aside and not deleted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import msgspec

from rlaif.core.errors import StoreError
from rlaif.core.integrity import CHUNK, digest
from rlaif.core.records import content_hash
from rlaif.core.store import explain_os_errors
from rlaif.pipeline.mirror.remote import Remote
from rlaif.pipeline.mirror.snapshot import (
    MARKER,
    OWN,
    Entry,
    Part,
    Piece,
    Tree,
    decode_tree,
    list_files,
    read_piece,
)

OBJECTS = "objects"
FETCHED, ASIDE = "fetched", "aside"
Transfer = Callable[[Iterable[Callable[[], None]]], None]
"""Does some jobs at the same time, each of which moves one part."""


@dataclass(frozen=True)
class Pulled:
    """How many bytes came from the mirror, and the files that were moved aside."""

    bytes: int
    aside: list[str]


def name_object(key: str) -> str:
    """Where the bytes with this digest are in the store."""
    return f"{OBJECTS}/{key}"


def read_tree(remote: Remote, key: str) -> Tree:
    """A tree by its digest. Raises StoreError where it is damaged, FileNotFoundError where it is
    not there (any more)."""
    data = remote.read(name_object(key))
    if digest(data) != key:
        raise StoreError(_explain_damage(remote, key))
    try:
        tree = decode_tree(data)
    except msgspec.MsgspecError as error:
        raise StoreError(f"{remote.url}: of another version of rlaif ({error})") from None
    for name in tree.files:
        path = PurePosixPath(name)
        if path.is_absolute() or {"..", OWN} & set(path.parts):
            # Whoever can write to the store must not write elsewhere on this machine.
            raise StoreError(f"{remote.url}: names a file outside the run folder: {name}")
    return tree


def pull_tree(
    remote: Remote,
    tree: Tree,
    root: Path,
    last: Tree,
    transfer: Transfer,
    tick: Callable[[], None],
) -> Pulled:
    """Make a run folder what the tree says. `last` is the tree that the folder was in step with;
    `tick` is called after each file that was compared.

    Raises StoreError; FileNotFoundError where the mirror has gone on to another tree.
    """
    with explain_os_errors(root):
        here = list_files(root)
        wanted = {}
        for name, entry in tree.files.items():
            path = root / name
            if name not in here or not (_has_time(path, entry) or _has_content(path, entry)):
                wanted[name] = entry
            tick()
        fetched = _fetch_files(remote, wanted, root, transfer)
        known = {n for n, e in last.files.items() if n in here and _has_time(root / n, e)}
        gone = [name for name in here if name not in tree.files]
        # What was never mirrored, and is not the beginning of what is.
        own = [n for n in [*gone, *wanted] if n in here and n not in known]
        aside = [n for n in own if n in gone or not _begins(_locate_fetched(root, n), root / n)]
        _clear_place(root, [*gone, *(name for name in wanted if name in here)], set(aside))
        for name in sorted(wanted, key=_rank):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(_locate_fetched(root, name), path)
        # A file that was here may have another time than the marker of its step says.
        for name, entry in tree.files.items():
            os.utime(root / name, ns=(entry.mtime_ns, entry.mtime_ns))
        shutil.rmtree(root / OWN / FETCHED, ignore_errors=True)
    return Pulled(fetched, sorted(aside))


def _rank(name: str) -> int:
    """What vouches for other files is put in place after them, and removed before them."""
    if "/" not in name:
        return 2
    return 1 if name.endswith(f"/{MARKER}") else 0


def _has_time(path: Path, entry: Entry) -> bool:
    stat = path.stat()
    return (stat.st_size, stat.st_mtime_ns) == (entry.size, entry.mtime_ns)


def _has_content(path: Path, entry: Entry) -> bool:
    size = path.stat().st_size
    return size == entry.size and _count_begun(path, entry) == size


def _begins(longer: Path, path: Path) -> bool:
    """Whether a file begins with what another one has, as with the record file of an older run."""
    with longer.open("rb") as whole, path.open("rb") as file:
        while data := file.read(CHUNK):
            if whole.read(len(data)) != data:
                return False
    return True


def _count_begun(path: Path, entry: Entry) -> int:
    """How many bytes of parts the file begins with."""
    offset = 0
    for part in entry.parts:
        if read_piece(Piece(path, offset, part)) is None:
            break
        offset += part.size
    return offset


def _locate_fetched(root: Path, name: str) -> Path:
    return root / OWN / FETCHED / content_hash(name)


def _fetch_files(remote: Remote, wanted: dict[str, Entry], root: Path, transfer: Transfer) -> int:
    """Write the wanted files beside the folder's own; how many bytes came from the mirror."""
    (root / OWN / FETCHED).mkdir(parents=True, exist_ok=True)
    sizes: list[int] = []

    def fetch(target: Path, local: Path, offset: int, part: Part) -> None:
        if read_piece(Piece(target, offset, part)) is not None:
            return
        data = read_piece(Piece(local, offset, part))
        if data is None:
            data = remote.read(name_object(part.digest))
            if digest(data) != part.digest:
                raise StoreError(_explain_damage(remote, part.digest))
            sizes.append(part.size)
        with target.open("r+b") as file:
            file.seek(offset)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def list_jobs() -> Iterable[Callable[[], None]]:
        for name, entry in wanted.items():
            target, offset = _locate_fetched(root, name), 0
            with target.open("ab"):
                os.truncate(target, entry.size)
            for part in entry.parts:
                yield partial(fetch, target, root / name, offset, part)
                offset += part.size

    transfer(list_jobs())
    return sum(sizes)


def _clear_place(root: Path, names: list[str], aside: set[str]) -> None:
    """Remove files, or move them aside; folders that become empty go."""
    for name in sorted(names, key=_rank, reverse=True):
        path = root / name
        if name in aside:
            place = root / OWN / ASIDE / name
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
        else:
            path.unlink()
        for folder in path.parents:
            if folder == root or any(folder.iterdir()):
                break
            folder.rmdir()


def _explain_damage(remote: Remote, key: str) -> str:
    return (
        f"{remote.url}/{name_object(key)}: damaged (it is not what was written). Delete this "
        "object and run once more where the run folder is whole, which uploads it again."
    )
