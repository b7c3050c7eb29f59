"""The run folder: content-addressed step outputs that survive being killed at any moment.

`steps/<input-hash>/` holds one append-only JSONL file per record kind and, once the step is
finished, `done.json`. A batch of records is written in one append and closed by a blank line, which
JSONL readers skip; whatever follows the last blank line was torn by a kill and is dropped. So a
batch is either wholly there or not there at all.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from filelock import FileLock, Timeout

from rlaif.errors import StoreError
from rlaif.grouped import RowsByPrompt
from rlaif.records import Record, canonical_json, to_json

FORMAT = 1
BATCH_END = b"\n\n"
CHUNK = 1 << 16
"""Bytes that are read at once when a file's last batch is looked for."""


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a read-only folder into one clear message."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                f"{path}: the disk is full. Free some space and run the same command again: it "
                "goes on after the last whole batch; nothing committed is lost."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise StoreError(
                f"{path}: not writable ({error.strerror}). Choose another folder with --out."
            ) from error
        raise


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never a part."""
    _write_parts(path, [text])


def _write_parts(path: Path, parts: Iterable[str]) -> None:
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with temporary.open("w", encoding="utf-8", errors="surrogatepass") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """The JSON in a file, or None when it is absent. A damaged file is a StoreError."""
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreError(f"{path}: damaged JSON ({error}); delete this file to redo it") from None


class StepFolder:
    """The output of one planned step, found by the hash of its inputs."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def marker(self) -> Path:
        """The file that says the step is finished."""
        return self.path / "done.json"

    def done(self) -> dict[str, Any] | None:
        """The marker's content, or None while the step is unfinished.

        A marker whose files are missing or of another size is not believed.
        """
        marker: dict[str, Any] | None = read_json(self.marker)
        if marker is None:
            return None
        for name, size in marker["files"].items():
            file = self.path / name
            if not file.is_file() or file.stat().st_size != size:
                raise StoreError(
                    f"{file}: changed or removed after the step was finished. Delete the folder "
                    f"{self.path} to compute it again."
                )
        return marker

    def append(self, name: str, records: Sequence[Record | dict[str, Any]]) -> None:
        """Commit one batch of records to `<name>.jsonl`: all of them or, after a kill, none."""
        if not records:
            return
        rows = [canonical_json(r if isinstance(r, dict) else to_json(r)) for r in records]
        data = ("\n".join(rows)).encode("utf-8", "surrogatepass") + BATCH_END
        path = self.path / f"{name}.jsonl"
        with explain_os_errors(path):
            self.path.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

    def repair(self) -> None:
        """Drop what a kill left after the last whole batch. Call before appending."""
        for path in sorted(self.path.glob("*.jsonl")):
            with explain_os_errors(path), path.open("r+b") as file:
                whole = _whole_bytes(file)
                if whole < path.stat().st_size:
                    file.truncate(whole)

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Every committed row of `<name>.jsonl`, in the order of writing, one held at a time."""
        return read_rows(self.path / f"{name}.jsonl")

    def read(self, name: str) -> list[dict[str, Any]]:
        """Every committed row of `<name>.jsonl`, in the order of writing."""
        return list(self.rows(name))

    def index(self, name: str, key: str) -> Index:
        """Where the committed rows of `<name>.jsonl` lie, by what each has under `key`."""
        return RowIndex(self.path / f"{name}.jsonl", key)

    def count(self, name: str) -> int:
        """How many rows of `<name>.jsonl` are committed."""
        return sum(1 for _ in read_rows(self.path / f"{name}.jsonl"))

    def by_prompt(self, name: str) -> Mapping[str, list[dict[str, Any]]]:
        """The rows of `<name>.jsonl` of a finished step by prompt id, read when asked for."""
        return RowsByPrompt(self.path / f"{name}.jsonl")

    def finish(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Write the marker, last of all."""
        self.path.mkdir(parents=True, exist_ok=True)
        files = {p.name: p.stat().st_size for p in sorted(self.path.glob("*.jsonl"))}
        marker = {**summary, "files": files}
        write_atomic(self.marker, json.dumps(marker, indent=1, sort_keys=True, ensure_ascii=False))
        return marker


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of the whole batches in one of the store's files; nothing when it is absent."""
    return (row for _, _, row in _placed_rows(path, 0))


class Index(Protocol):
    """The rows of a file by a text that each of them has."""

    def grow(self) -> list[str]:
        """Take in what was committed since the last time; its keys, one for each row."""
        ...

    def count(self, key: str) -> int:
        """How many rows there are under a key."""
        ...

    def read(self, key: str) -> list[dict[str, Any]]:
        """The rows under a key, in the order of writing; none under one that is not there."""
        ...

    def keys(self) -> Collection[str]:
        """Every key that was taken in."""
        ...


class RowIndex:
    """The rows of one of the store's files by what each has under `key`. Keys and places are held,
    no rows. The file may grow meanwhile. See `Index`."""

    def __init__(self, path: Path, key: str):
        self.path = path
        self.key = key
        self._end = 0
        self._places: dict[str, array[int]] = {}

    def grow(self) -> list[str]:
        """See `Index`."""
        keys = []
        for start, end, row in _placed_rows(self.path, self._end):
            keys.append(row[self.key])
            self._places.setdefault(row[self.key], array("q")).append(start)
            self._end = end
        return keys

    def count(self, key: str) -> int:
        """See `Index`."""
        return len(self._places.get(key, ()))

    def read(self, key: str) -> list[dict[str, Any]]:
        """See `Index`."""
        if key not in self._places:
            return []
        with self.path.open("rb") as file:
            found = []
            for place in self._places[key]:
                file.seek(place)
                found.append(_row(file.readline()))
        return found

    def keys(self) -> Collection[str]:
        """See `Index`."""
        return self._places.keys()


class HeldIndex:
    """Rows that are held anyway, by what each has under `key`; `rows` gives all there are. See
    `Index`."""

    def __init__(self, rows: Callable[[], Sequence[dict[str, Any]]], key: str):
        self._all = rows
        self._key = key
        self._taken = 0
        self._rows: dict[str, list[dict[str, Any]]] = {}

    def grow(self) -> list[str]:
        """See `Index`."""
        new = self._all()[self._taken :]
        self._taken += len(new)
        for row in new:
            self._rows.setdefault(row[self._key], []).append(row)
        return [row[self._key] for row in new]

    def count(self, key: str) -> int:
        """See `Index`."""
        return len(self.read(key))

    def read(self, key: str) -> list[dict[str, Any]]:
        """See `Index`."""
        return self._rows.get(key, [])

    def keys(self) -> Collection[str]:
        """See `Index`."""
        return self._rows.keys()


def _placed_rows(path: Path, start: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """(first byte, byte after the last, row) of each row of the whole batches from `start` on."""
    if not path.exists():
        return
    with path.open("rb") as file:
        whole = _whole_bytes(file)
        file.seek(start)
        while start < whole:
            line = file.readline()
            end = start + len(line)
            if line != b"\n":
                try:
                    row = _row(line)
                except ValueError:
                    number = _line_number(path, start)
                    message = f"{path}:{number}: damaged row; delete the step folder"
                    raise StoreError(message) from None
                yield start, end, row
            start = end


def _row(line: bytes) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(line.decode("utf-8", "surrogatepass"))
    return row


def _line_number(path: Path, place: int) -> int:
    """The number, from 1, of the line that begins at byte `place`."""
    with path.open("rb") as file:
        return 1 + file.read(place).count(b"\n")


def _whole_bytes(file: BinaryIO) -> int:
    """How many bytes of a file are whole batches: those up to the last blank line."""
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


class Store:
    """A run folder."""

    def __init__(self, root: Path):
        self.root = root

    def step(self, input_hash: str) -> StepFolder:
        """The folder of the step with these inputs."""
        return StepFolder(self.root / "steps" / input_hash)

    def model_path(self, train_hash: str) -> Path:
        """Where the model that a train step makes is kept."""
        return self.root / "models" / train_hash

    def prepare(self) -> None:
        """Create the folder, or check that it is a run folder this version can go on with."""
        manifest = read_json(self.root / "manifest.json") if self.root.is_dir() else None
        if manifest is None and self.root.is_dir():
            strange = [p.name for p in self.root.iterdir() if not p.name.startswith(".")]
            if strange and not (self.root / "steps").is_dir():
                raise StoreError(
                    f"{self.root} is not empty and not a run folder (it holds "
                    f"{', '.join(sorted(strange)[:5])}). Choose another folder with --out."
                )
        if manifest is not None and manifest.get("format") != FORMAT:
            raise StoreError(
                f"{self.root} was written in run format {manifest.get('format')}; this version "
                f"reads format {FORMAT}. Choose another folder with --out, or use the version of "
                f"rlaif that wrote it ({manifest.get('versions', {}).get('rlaif', 'unknown')})."
            )
        with explain_os_errors(self.root):
            if self.root.exists() and not self.root.is_dir():
                raise StoreError(f"{self.root} is a file; a folder was expected (--out)")
            (self.root / "steps").mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run folder against a second controller. The kernel frees it on any exit."""
        path = self.root / ".lock"
        with explain_os_errors(path):
            lock = FileLock(path, timeout=0)
            try:
                lock.acquire()
            except Timeout:
                raise StoreError(
                    f"{self.root}: another rlaif is working on this run folder. Wait for it, stop "
                    "it, or choose another folder with --out."
                ) from None
        try:
            yield
        finally:
            lock.release()

    def need_space(self, needed: int) -> None:
        """Raise StoreError when the disk has less than `needed` bytes free."""
        free = shutil.disk_usage(self.root).free
        if free < needed:
            raise StoreError(
                f"{self.root}: this run writes about {needed / 1e9:.1f} GB at its largest and "
                f"{free / 1e9:.1f} GB are free. Free some space, choose another folder with "
                "--out, or keep less with `retention:`."
            )


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """An export: plain JSON lines, replaced atomically; no two rows are held at once."""
    _write_parts(path, (canonical_json(row) + "\n" for row in rows))
