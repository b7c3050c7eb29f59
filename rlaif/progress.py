"""Progress on stderr: bars with time left and tokens per second, or plain lines off a terminal."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
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

    def start(self, name: str, total: int, already: int = 0, unit: str = "") -> None:
        """See `steps.context.Progress`."""

    def advance(self, count: int, tokens: int = 0, note: str = "") -> None:
        """See `steps.context.Progress`."""

    def finish(self) -> None:
        """See `steps.context.Progress`."""


class TerminalProgress:
    """A bar on a terminal; elsewhere a line at the beginning, now and then, and at the end."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, soft_wrap=True, highlight=False)
        self.live = sys.stderr.isatty()
        self._bar: RichProgress | None = None
        self._title = ""

    def begin_step(self, title: str) -> None:
        """A step begins."""
        self._title = title

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
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            console=self.console,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            f"{self._title}: {name}", total=total, completed=already, rate=""
        )

    def advance(self, count: int, tokens: int = 0, note: str = "") -> None:
        """See `steps.context.Progress`."""
        self._count += count
        self._tokens += tokens
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = f"{self._tokens / seconds:.0f} tok/s" if self._tokens else ""
        shown = " ".join(part for part in (rate, note) if part)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._count, rate=shown)
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
            self._bar.stop()
            self._bar = None
