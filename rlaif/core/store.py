"""The run folder: content-addressed step outputs that survive being killed at any moment.

`steps/<input-hash>/` holds one append-only JSONL file per record kind with its commit log beside it
and, once the step is finished, `done.json`. A batch of records is written in one append, and is
there once the log says so; whatever follows was torn by a kill and is dropped. So a batch is either
wholly there or not there at all, and its checksum tells when it was changed.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rlaif.core import finished, integrity, rowfiles
from rlaif.core.errors import StoreError
from rlaif.core.integrity import CHECK, digest, is_whole, seal_row
from rlaif.core.records import Completion, Judgement, Preference, R, Record, canonical_json
from rlaif.core.rowfiles import (
    B,
    Row,
    count_rows,
    line_of,
    list_shards,
    read_records,
    read_rows,
    read_where,
    shard_path,
)
from rlaif.core.rowindex import Index, RowIndex

FORMAT = 1
FILES: Mapping[type, str] = {
    Completion: "completions",
    Judgement: "judgements",
    Preference: "preferences",
}
"""What the file of each kind of record in a step's folder is called."""


class DiskFull(StoreError):
    """There is no space left."""


FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your share of the disk is used up",
    errno.EFBIG: "the file is larger than this system allows",
}
GO_ON = (
    "Free some space and run the same command again: it goes on after the last whole batch; "
    "nothing committed is lost."
)


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a read-only folder into one clear message."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFull(f"{error.filename or path}: {FULL[error.errno]}. {GO_ON}") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise StoreError(
                f"{path}: not writable ({error.strerror}). Choose another folder with --out."
            ) from error
        raise


@contextmanager
def name_step(title: str, path: Path) -> Iterator[None]:
    """Name the step in which the disk became full. Native libraries raise errors of their own for
    that, which are recognised by their messages."""
    try:
        yield
    except Exception as error:
        said = str(error).lower()
        if isinstance(error, DiskFull) or (isinstance(error, StoreError) and "is full" in said):
            raise DiskFull(f"{title}: {error}") from error
        if isinstance(error, StoreError) or os.strerror(errno.ENOSPC).lower() not in said:
            raise
        full = FULL[errno.ENOSPC]
        raise DiskFull(f"{title}: {path}: {full}. {GO_ON}") from error


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never a part."""
    _write_parts(path, [text])


def _write_parts(path: Path, parts: Iterable[str]) -> None:
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = partial_of(path)
        try:
            # Scraped texts can hold lone surrogates, which strict UTF-8 refuses.
            with temporary.open("w", encoding="utf-8", errors="surrogatepass") as file:
                file.writelines(parts)
                file.flush()
                # Before the rename: after a power cut the name could otherwise stand for an empty
                # file.
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            # Ctrl-C leaves nothing behind either.
            temporary.unlink(missing_ok=True)
            raise


def partial_of(path: Path) -> Path:
    """The name of a file or folder while this process writes it."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


_PARTIAL = re.compile(r"^\.(?:.+\.(\d+)\.tmp|(\d+)\..+)$")
"""What `partial_of` gives, and what datasets of earlier versions were called while written."""


def remove_partials(folder: Path) -> None:
    """Remove what processes that have ended left half written in a folder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        found = _PARTIAL.match(path.name)
        if found is None or _is_alive(int(found[1] or found[2])):
            continue
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_alive(process: int) -> bool:
    """Whether another process with this id runs. What bears our own id was left by an earlier
    process that had it, as in a container."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        # It runs and belongs to somebody else (EPERM).
        return True
    return True


def read_json(path: Path, advice: str = "Delete this file to redo it.") -> dict[str, Any] | None:
    """The JSON object in a file, or None when it is absent. A damaged file is a StoreError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: damaged JSON ({error}). {advice}") from None
    if not isinstance(found, dict):
        raise StoreError(f"{path}: damaged JSON (no object). {advice}")
    return found


class StepFolder:
    """The output of one planned step, found by the hash of its inputs."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def marker(self) -> Path:
        """The file that says the step is finished."""
        return self.path / "done.json"

    @property
    def advice(self) -> str:
        """What to do about damage in this folder."""
        return f"Delete the folder {self.path} to compute it again."

    def done(self) -> dict[str, Any] | None:
        """The marker's content, or None while the step is unfinished.

        A marker whose files are missing or of another size is not believed. Files whose time is
        another one are compared with their checksums. Raises StoreError.
        """
        marker = finished.read_marker(self.marker, self.advice)
        if marker is not None:
            finished.check_files(self.path, marker, self.advice)
        return marker

    def check(self) -> None:
        """Raises StoreError where records are damaged, be the step finished or not."""
        if self.done() is None:
            finished.compare_begun(self.path, self.advice)

    def verify(self) -> finished.Verified:
        """Compare all that is stored with its checksums. Raises StoreError for what is damaged."""
        return finished.verify_step(self.path, self.done(), self.advice)

    def append(self, name: str, records: Sequence[Record | dict[str, Any]]) -> None:
        """Commit one batch of records to `<name>.jsonl`, or to the file that goes on from it:
        all of them or, after a kill, none."""
        self.append_lines(name, [line_of(record) for record in records])

    def append_lines(self, name: str, lines: Sequence[bytes]) -> None:
        """`append` of records as `rowfiles.line_of` makes them."""
        if not lines:
            return
        data = b"\n".join(lines) + b"\n"
        path = self._open_shard(name)
        with explain_os_errors(path):
            self.path.mkdir(parents=True, exist_ok=True)
            size = path.stat().st_size if path.exists() else 0
            if size != integrity.read_committed(path):
                # What lies beyond was torn, by a kill or a full disk; or an earlier version kept no
                # log.
                size = integrity.settle_file(path, self.advice)
            with path.open("ab") as file:
                file.write(data)
                file.flush()
                # On disk before the log says so: a commit never vouches for bytes that are not
                # there.
                os.fsync(file.fileno())
            integrity.append_commit(
                path, integrity.Commit(size + len(data), len(lines), digest(data))
            )

    def _open_shard(self, name: str) -> Path:
        """The file that takes the next batch of a kind of records."""
        first = self._locate_file(name)
        shards = list_shards(first)
        if shards and (integrity.read_committed(shards[-1]) or 0) >= rowfiles.SHARD_BYTES:
            # A power cut must not take rows of its log any more: their batches would be made again
            # behind later ones.
            integrity.sync_to_disk(integrity.log_of(shards[-1]))
            return shard_path(first, len(shards))
        return shards[-1] if shards else first

    def repair(self) -> None:
        """Drop what a kill left after the last whole batch. Call before appending. Raises
        StoreError where a whole batch is not what was written."""
        remove_partials(self.path)
        for log in self.path.glob("*" + integrity.COMMITS_SUFFIX):
            # A kill came between the making of the log and its first batch.
            if not log.with_suffix(".jsonl").exists():
                log.unlink()
        for path in sorted(self.path.glob("*.jsonl")):
            with explain_os_errors(path):
                integrity.settle_file(path, self.advice)

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Every committed row of `<name>.jsonl`, in the order of writing, one held at a time.
        Reading raises StoreError where a finished step's files are damaged, here as below."""
        # At the call and not at the first row, as a generator would.
        self.done()
        return read_rows(self._locate_file(name))

    def read(self, name: str) -> list[dict[str, Any]]:
        """Every committed row of `<name>.jsonl`, in the order of writing."""
        return list(self.rows(name))

    def rows_where(self, name: str, kind: type[B], keep: Callable[[B], bool]) -> Iterator[Row]:
        """The rows of `<name>.jsonl` of which `keep` holds, by the few fields that `kind` has."""
        self.done()
        return read_where(self._locate_file(name), kind, keep)

    def records(self, kind: type[R]) -> Iterator[R]:
        """Every committed record of a kind, in the order of writing, one held at a time."""
        self.done()
        return read_records(self._locate_file(FILES[kind]), kind)

    def index(self, name: str, key: str) -> Index:
        """Where the committed rows of `<name>.jsonl` lie, by what each has under `key`."""
        self.done()
        return RowIndex(self._locate_file(name), key)

    def count(self, name: str) -> int:
        """How many rows of `<name>.jsonl` are committed."""
        return count_rows(self._locate_file(name))

    def _locate_file(self, name: str) -> Path:
        return self.path / f"{name}.jsonl"

    def finish(self, summary: dict[str, Any], model: Path | None = None) -> dict[str, Any]:
        """Write the marker, last of all. `model` is the folder of a model that the step made."""
        self.path.mkdir(parents=True, exist_ok=True)
        marker = summary | finished.describe_files(self.path, model)
        text = json.dumps(seal_row(marker), indent=1, sort_keys=True, ensure_ascii=False)
        # Last of all, and at once: whoever sees the marker sees a step that is complete.
        write_atomic(self.marker, text)
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
        with explain_os_errors(self.root):
            manifest = self._read_manifest() if self.root.is_dir() else None
        if manifest is None and self.root.is_dir():
            strange = [p.name for p in self.root.iterdir() if not p.name.startswith(".")]
            # A folder of steps is a run's, whatever became of its manifest.
            if strange and not (self.root / "steps").is_dir():
                raise StoreError(
                    f"{self.root} is not empty and not a run folder (it holds "
                    f"{', '.join(sorted(strange)[:5])}). Choose another folder with --out."
                )
        if manifest is not None and manifest["format"] != FORMAT:
            versions = manifest.get("versions")
            wrote = versions.get("rlaif") if isinstance(versions, dict) else None
            raise StoreError(
                f"{self.root} was written in run format {manifest['format']}; this version "
                f"reads format {FORMAT}. Choose another folder with --out, or use the version of "
                f"rlaif that wrote it ({wrote or 'unknown'})."
            )
        make_folder(self.root)
        make_folder(self.root / "steps")

    def _read_manifest(self) -> dict[str, Any] | None:
        """The manifest; a damaged one counts as absent, since every run writes it anew."""
        try:
            row = read_json(self.root / "manifest.json") or {}
        except StoreError:
            return None
        whole = CHECK not in row or is_whole(row)
        return row if whole and isinstance(row.get("format"), int) else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run folder against a second controller. The kernel frees it on any exit."""
        path = self.root / ".lock"
        with explain_os_errors(path):
            # Not waited for: the other run may take days.
            lock = FileLock(path, timeout=0)
            try:
                lock.acquire()
            except Timeout:
                raise StoreError(
                    f"{self.root}: another rlaif is working on this run folder. Wait for it, stop "
                    "it, or choose another folder with --out."
                ) from None
        try:
            self._remove_partials()
            yield
        finally:
            lock.release()

    def _remove_partials(self) -> None:
        """Remove what killed processes left half written. Only who holds the lock trains."""
        for folder in (self.root, self.root / "models"):
            remove_partials(folder)
        # Half-trained models have no process in their names: only the lock says that nobody writes
        # them.
        for kind in ("models", "merged"):
            for partial in (self.root / kind).glob("*.partial"):
                shutil.rmtree(partial, ignore_errors=True)

    def need_space(self, needed: int) -> None:
        """Raise StoreError when the disk has less than `needed` bytes free."""
        free = shutil.disk_usage(self.root).free
        if free < needed:
            raise StoreError(
                f"{self.root}: this run writes about {needed / 1e9:.1f} GB at its largest and "
                f"{free / 1e9:.1f} GB are free. Free some space, choose another folder with "
                "--out, or keep less with `retention:`."
            )


def make_folder(path: Path) -> None:
    """Make a folder and those above it. Raises StoreError where there can be none."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise StoreError(f"{path} is a file; a folder was expected (--out)") from None
    except OSError as error:
        if error.errno in FULL:
            with explain_os_errors(path):
                raise
        raise StoreError(
            f"{path}: this folder cannot be made ({error.strerror}). Choose another one with --out."
        ) from None


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """An export: plain JSON lines, replaced atomically; no two rows are held at once."""
    _write_parts(path, (canonical_json(row) + "\n" for row in rows))
