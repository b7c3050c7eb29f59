"""What a finished step left: its marker, the files that the marker vouches for, and their checks.

The marker has of every file its size and when it was last written. Where both are as they were, a
file is taken to be what was written; else it is compared with its checksums before it is used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlaif.core import integrity
from rlaif.core.errors import StoreError

MASTERS = "masters"
"""The subfolder of a model that may be dropped when no later training starts from it."""

BESIDE = "prompts.json"
"""What a step command leaves beside its records: the prompts that it asked."""

Stat = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Verified:
    """How much was compared with checksums, in files and bytes; `unchecked` are files that an
    earlier version wrote without any."""

    files: int = 0
    bytes: int = 0
    unchecked: int = 0

    def __add__(self, other: Verified) -> Verified:
        return Verified(
            self.files + other.files,
            self.bytes + other.bytes,
            self.unchecked + other.unchecked,
        )


def describe_files(folder: Path, model: Path | None) -> dict[str, Any]:
    """The marker's entries for a step's files and its model's, as they are now."""
    names = sorted(
        p for kind in ("*.jsonl", "*" + integrity.COMMITS_SUFFIX) for p in folder.glob(kind)
    )
    # The marker vouches for them, so they must be on disk before it.
    for path in names:
        integrity.sync_to_disk(path)
    found: dict[str, Any] = {"files": {p.name: _stat_file(p) for p in names}}
    beside = folder / BESIDE
    if beside.exists():
        found["files"][BESIDE] = _stat_file(beside) | {"digest": integrity.file_digest(beside)}
    if model is not None:
        inside = sorted(p for p in model.rglob("*") if p.is_file())
        found["model"] = {
            "folder": os.path.relpath(model, folder),
            "files": {str(p.relative_to(model)): _stat_file(p) for p in inside},
        }
    return found


def _stat_file(path: Path) -> Stat:
    found = path.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}


def read_marker(path: Path, advice: str) -> dict[str, Any] | None:
    """A step's marker, or None where there is none. Raises StoreError where it is damaged."""
    try:
        row = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: damaged JSON ({error}). {advice}") from None
    marker = integrity.unseal_row(row, path, advice, required=False)
    plain = integrity.CHECK not in row
    if plain and not _is_plain(marker):
        raise StoreError(f"{path}: damaged (it is not what was written). {advice}")
    return marker


def _is_plain(marker: Mapping[str, Any]) -> bool:
    """Whether this is a marker of an earlier version, which had sizes alone and no checksum."""
    files = marker.get("files")
    return (
        isinstance(files, dict)
        and all(type(size) is int for size in files.values())
        and isinstance(marker.get("counts", {}), dict)
        and isinstance(marker.get("seconds", 0.0), (int, float))
    )


def check_files(folder: Path, marker: Mapping[str, Any], advice: str) -> None:
    """Raises StoreError where a file of a finished step is not what it was. A model that was
    removed as a whole is not missed here."""
    changed = _find_changed(folder, marker["files"], advice)
    if changed:
        _verify_records(folder, tuple(sorted(changed.items())), advice)
    made = marker.get("model")
    if made is not None:
        model = folder / made["folder"]
        if model.is_dir():
            changed = _find_changed(model, made["files"], advice)
            if changed:
                _verify_model(model, tuple(sorted(changed.items())), advice)


def _find_changed(
    folder: Path, files: Mapping[str, Stat | int], advice: str
) -> dict[str, tuple[int, int]]:
    """The files that were written since, with their size and time. Raises StoreError for one that
    has another size or is missing."""
    changed = {}
    for name, known in files.items():
        path = folder / name
        # Masters may be dropped by `retention`.
        if name.startswith(MASTERS + "/") and not path.exists():
            continue
        # Earlier versions kept the size alone.
        size = known if isinstance(known, int) else known["size"]
        if not path.is_file() or path.stat().st_size != size:
            shown = os.path.normpath(path)
            raise StoreError(f"{shown}: changed or removed after the step was finished. {advice}")
        own = path.stat().st_mtime_ns
        if isinstance(known, int) or own == known["mtime_ns"]:
            continue
        # Records and models have checksums of their own, which the caller compares.
        if "digest" not in known:
            changed[name] = (size, own)
        elif integrity.file_digest(path) != known["digest"]:
            raise StoreError(f"{path}: damaged (its checksum differs). {advice}")
    return changed


@lru_cache(maxsize=4096)
def _verify_records(folder: Path, changed: tuple[Any, ...], advice: str) -> None:
    """Compare record files with their logs where either is among `changed`. A comparison is not
    repeated while both stay as they are."""
    for stem in sorted({Path(name).stem for name, _ in changed}):
        _compare_with_log(folder / f"{stem}.jsonl", advice)


@lru_cache(maxsize=4096)
def _verify_model(folder: Path, changed: tuple[Any, ...], advice: str) -> None:
    names = {name for name, _ in changed}
    # A checksums file that has changed vouches for every file anew.
    every = integrity.CHECKSUMS_NAME in names
    integrity.verify_folder(folder, advice, (MASTERS,), lambda name: every or name in names)


def _compare_with_log(path: Path, advice: str) -> int:
    """Compare a record file with its log, which must end where the file does. Returns the file's
    size in bytes."""
    found = integrity.read_log(path, advice)
    size = path.stat().st_size
    # A finished file is committed to its end: what its log does not cover is damage.
    if (found[-1].end if found else 0) != size:
        raise StoreError(f"{integrity.log_of(path)}: damaged. {advice}")
    integrity.refuse_damaged(path, found, advice)
    return size


def verify_step(folder: Path, marker: Mapping[str, Any] | None, advice: str) -> Verified:
    """Compare all records of a step, its model and its checkpoints with their checksums. `marker`
    is None while the step is unfinished. Raises StoreError for the first that is damaged."""
    total = Verified()
    if marker is None:
        total += compare_begun(folder, advice)
    for path in sorted(folder.glob("*.jsonl")) if marker is not None else ():
        if not integrity.log_of(path).exists():
            total += Verified(unchecked=1)
        else:
            total += Verified(1, _compare_with_log(path, advice))
    known = (marker or {}).get("files", {}).get(BESIDE)
    if known is not None:
        if integrity.file_digest(folder / BESIDE) != known["digest"]:
            raise StoreError(f"{folder / BESIDE}: damaged (its checksum differs). {advice}")
        total += Verified(1, known["size"])
    made = (marker or {}).get("model")
    models = [(folder / made["folder"], advice)] if made is not None else []
    for model, what in [*models, *_list_checkpoints(folder)]:
        if model.is_dir():
            compared = integrity.verify_folder(model, what, (MASTERS,))
            files = sum(p.is_file() for p in model.rglob("*"))
            total += Verified(unchecked=files) if compared is None else Verified(files, compared)
    return total


def find_stale(markers: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Hashes of the finished steps whose inputs have changed since: a step that they read, directly
    or through other steps, was removed and made again with other records.

    `markers` are those of finished steps by hash. Earlier versions' do not say what was read.
    """
    read = {name: set(marker.get("read", {}).items()) for name, marker in markers.items()}
    now = {(name, marker.get("digest")) for name, marker in markers.items()}
    there = {name for name, digest in now if digest is not None}
    # A step that is gone proves nothing; one that is there with other records does.
    new = {n for n, was in read.items() if any(s in there for s, _ in was - now)}
    found: set[str] = set()
    # And what read these, step by step.
    while new:
        found |= new
        new = {n for n, was in read.items() if n not in found and new & dict(was).keys()}
    return found


def stale_in_words(folders: Iterable[Path]) -> str:
    """What to do about stale steps (`find_stale`)."""
    return (
        "these finished steps were made from other records than the steps that they read have now, "
        "which were removed and made again. Delete these folders to compute them again:\n"
        + "\n".join(f"  {folder}" for folder in folders)
    )


def compare_begun(folder: Path, advice: str) -> Verified:
    """Compare the whole batches of an unfinished step with their logs. Raises StoreError."""
    total = Verified()
    for path in sorted(folder.glob("*.jsonl")):
        size = integrity.read_committed(path)
        if size is None:
            total += Verified(unchecked=1)
            continue
        # After a power cut the log may be ahead of the file: what it lacks is made again.
        found = [commit for commit in integrity.read_log(path, advice) if commit.end <= size]
        integrity.refuse_damaged(path, found, advice)
        total += Verified(1, size)
    return total


def _list_checkpoints(folder: Path) -> Iterator[tuple[Path, str]]:
    """The checkpoints of a training under way, and what to do about damage in each."""
    for path in sorted(folder.glob("work/**/checkpoint-*")):
        yield path, f"Delete the folder {path} to train again from the start."
