"""The thread that keeps indexes up to date for the pages that are looked at."""

from __future__ import annotations

import os
import queue
import sqlite3
import tempfile
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from rlaif.core.errors import RlaifError
from rlaif.web.ui.index import Source, committed_bytes, grow_index, locate_index

PAUSE = 1.0
"""Seconds for which an index that is up to date is not looked at again."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the index of a run was when a page began: its file, whether it was complete, the
    share of the bytes of whole batches that it had, and what hindered it."""

    path: Path
    complete: bool
    share: float
    fault: str


@dataclass
class _Job:
    """The index of a run. It was complete when it was looked at last (`checked`), or not."""

    path: Path
    total: int = 0
    complete: bool = False
    fault: str = ""
    checked: float = float("-inf")
    waiting: bool = False
    ready: threading.Event = field(default_factory=threading.Event)

    def progress(self) -> Progress:
        """How far it is."""
        complete = self.complete
        return Progress(self.path, complete, 1.0 if complete else self._share(), self.fault)

    def _share(self) -> float:
        try:
            with closing(sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True)) as db:
                (done,) = db.execute("SELECT SUM(end) FROM files").fetchone()
        except sqlite3.Error:
            return 0.0
        return min(0.99, (done or 0) / max(self.total, 1))


class Indexer:
    """Builds indexes one after the other, in a thread of its own."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Source | None] = queue.SimpleQueue()
        self._known: dict[Path, _Job] = {}
        self._lock = threading.Lock()
        self._closing = False
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._thread = threading.Thread(target=self._work, name="index", daemon=True)
        self._thread.start()

    def refresh(self, source: Source, patience: float) -> Progress:
        """See that what was committed since is indexed. Where the index is not complete yet, wait
        for it for up to `patience` seconds; it goes on all the same."""
        with self._lock:
            job = self._known.get(source.root)
            if job is None:
                job = self._known[source.root] = _Job(self._locate(source))
            if time.monotonic() - job.checked > PAUSE and not job.waiting:
                job.waiting = True
                job.ready.clear()
                self._jobs.put(source)
        if not job.complete:
            job.ready.wait(patience)
        return job.progress()

    def close(self) -> None:
        """Stop after the transaction under way."""
        self._closing = True
        self._jobs.put(None)
        self._thread.join()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _locate(self, source: Source) -> Path:
        """The index's file: in the cache or, where nothing can be written there, in a folder that
        goes with this process."""
        path = locate_index(source.root)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if os.access(path.parent, os.W_OK):
                return path
        except OSError:
            pass
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="rlaif-ui-")
        return Path(self._temporary.name) / path.name

    def _work(self) -> None:
        while (source := self._jobs.get()) is not None and not self._closing:
            job = self._known[source.root]
            try:
                job.total = committed_bytes(source)
                done, total = grow_index(job.path, source, lambda: not self._closing)
                job.complete, job.fault = done >= total, ""
            except (RlaifError, OSError, sqlite3.Error) as error:
                job.complete, job.fault = False, str(error)
            job.checked = time.monotonic()
            job.waiting = False
            job.ready.set()
