"""Progress on stderr: bars with time left and tokens per second, or plain lines off a terminal."""

from __future__ import annotations

import sys
import threading
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

LINE_EVERY = 10.0


class QuietProgress:
    """Says nothing."""

    def begin_step(self, title: str) -> None:
        """A step begins."""

    def beside(self) -> QuietProgress:
        """Progress of a step that runs at the same time."""
        return QuietProgress()

    def start(self, name: str, total: int, already: int = 0, unit: str = "") -> None:
        """See `steps.context.Progress`."""

    def extend(self, count: int) -> None:
        """See `steps.context.Progress`."""

    def advance(self, count: int, tokens: int = 0, note: str = "") -> None:
        """See `steps.context.Progress`."""

    def finish(self) -> None:
        """See `steps.context.Progress`."""


class _Bars:
    """The bars on a terminal, one for each step that runs; shared by their threads."""

    def __init__(self, console: Console):
        self._shown = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            console=console,
            transient=True,
        )
        self._lock = threading.Lock()

    def add(self, name: str, total: int, completed: int) -> TaskID:
        """Add a bar."""
        with self._lock:
            self._shown.start()
            return self._shown.add_task(name, total=total, completed=completed, rate="")

    def update(self, bar: TaskID, total: int, completed: int, rate: str) -> None:
        """Redraw a bar with its progress."""
        self._shown.update(bar, total=total, completed=completed, rate=rate)

    def remove(self, bar: TaskID) -> None:
        """Remove a bar; nothing is drawn after the last one."""
        with self._lock:
            self._shown.remove_task(bar)
            if not self._shown.task_ids:
                self._shown.stop()


class TerminalProgress:
    """A bar on a terminal; elsewhere a line at the beginning, now and then, and at the end."""

    def __init__(self, bars: _Bars | None = None) -> None:
        self.console = Console(stderr=True, soft_wrap=True, highlight=False)
        self.live = sys.stderr.isatty()
        self._bars = bars or _Bars(self.console)
        self._bar: TaskID | None = None
        self._title = ""

    def begin_step(self, title: str) -> None:
        """A step begins."""
        self._title = title

    def beside(self) -> TerminalProgress:
        """Progress of a step that runs at the same time."""
        return TerminalProgress(self._bars)

    def start(self, name: str, total: int, already: int = 0, unit: str = "") -> None:
        """See `steps.context.Progress`."""
        self._name, self._total, self._count = name, total, already
        self._first = already
        self._tokens = 0
        self._began = self._said = time.monotonic()
        if not self.live:
            resumed = f" ({already} from an earlier run)" if already else ""
            self.console.print(f"{self._title}: {total} {name}{resumed}", markup=False)
            return
        self.finish()
        self._bar = self._bars.add(f"{self._title}: {name}", total, already)

    def extend(self, count: int) -> None:
        """See `steps.context.Progress`."""
        self._total += count

    def advance(self, count: int, tokens: int = 0, note: str = "") -> None:
        """See `steps.context.Progress`."""
        self._count += count
        self._tokens += tokens
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = f"{self._tokens / seconds:.0f} tok/s" if self._tokens else ""
        shown = " ".join(part for part in (rate, note) if part)
        if self._bar is not None:
            self._bars.update(self._bar, self._total, self._count, shown)
        elif time.monotonic() - self._said > LINE_EVERY and self._count < self._total:
            self._said = time.monotonic()
            left = seconds * (self._total - self._count) / max(self._count - self._first, 1)
            self.console.print(
                f"  {self._count}/{self._total} {self._name}, {left:.0f} s left {shown}",
                markup=False,
            )

    def finish(self) -> None:
        """See `steps.context.Progress`."""
        if self._bar is not None:
            self._bars.remove(self._bar)
            self._bar = None
