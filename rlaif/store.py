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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rlaif.errors import StoreError
from rlaif.records import (
    Completion,
    Judgement,
    Preference,
    R,
    Record,
    canonical_json,
)
from rlaif.rowfiles import (
    BATCH_END,
    B,
    Index,
    Row,
    RowIndex,
    count_rows,
    line_of,
    read_records,
    read_rows,
    read_where,
    whole_bytes,
)

FORMAT = 1
FILES: Mapping[type, str] = {
    Completion: "completions",
    Judgement: "judgements",
    Preference: "preferences",
}
"""What the file of each kind of record in a step's folder is called."""


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
        self.append_lines(name, [line_of(record) for record in records])

    def append_lines(self, name: str, lines: Sequence[bytes]) -> None:
        """`append` of records as `rowfiles.line_of` makes them."""
        if not lines:
            return
        data = b"\n".join(lines) + BATCH_END
        path = self._file(name)
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
                whole = whole_bytes(file)
                if whole < path.stat().st_size:
                    file.truncate(whole)

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Every committed row of `<name>.jsonl`, in the order of writing, one held at a time."""
        return read_rows(self._file(name))

    def read(self, name: str) -> list[dict[str, Any]]:
        """Every committed row of `<name>.jsonl`, in the order of writing."""
        return list(self.rows(name))

    def rows_where(self, name: str, kind: type[B], keep: Callable[[B], bool]) -> Iterator[Row]:
        """The rows of `<name>.jsonl` of which `keep` holds, by the few fields that `kind` has."""
        return read_where(self._file(name), kind, keep)

    def records(self, kind: type[R]) -> Iterator[R]:
        """Every committed record of a kind, in the order of writing, one held at a time."""
        return read_records(self._file(FILES[kind]), kind)

    def index(self, name: str, key: str) -> Index:
        """Where the committed rows of `<name>.jsonl` lie, by what each has under `key`."""
        return RowIndex(self._file(name), key)

    def count(self, name: str) -> int:
        """How many rows of `<name>.jsonl` are committed."""
        return count_rows(self._file(name))

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.jsonl"

    def finish(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Write the marker, last of all."""
        self.path.mkdir(parents=True, exist_ok=True)
        files = {p.name: p.stat().st_size for p in sorted(self.path.glob("*.jsonl"))}
        marker = {**summary, "files": files}
        write_atomic(self.marker, json.dumps(marker, indent=1, sort_keys=True, ensure_ascii=False))
        return marker


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
