"""Where a run stands, from its manifest, the markers of finished steps, and the commit logs of the
others: no record is read, so this is quick for runs of any size, and up to date while one goes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from rlaif.config.arms import MAIN
from rlaif.core import integrity
from rlaif.core.errors import StoreError
from rlaif.core.finished import read_marker
from rlaif.core.records import RoundRecord
from rlaif.core.rowfiles import kind_of
from rlaif.core.store import StepFolder
from rlaif.engines.remote.meter import Meter, meters_of
from rlaif.metrics.intervals import IntervalJson
from rlaif.pipeline.manifest import CONFIG, FILE, MANIFEST, read_rounds
from rlaif.pipeline.rollouts import unfinished_notes
from rlaif.pipeline.runs import Run
from rlaif.report.merged import Page
from rlaif.web.ui.library import Remembered, stamp_of

ROWS = "metrics.jsonl"
"""The figures of a training, one row for every optimiser step, in the step's work folder."""
FRESH = 60.0
"""A run is taken to be going if it wrote something so many seconds ago, or later."""
HEADLINES = 3
"""Figures that stand in the list of runs."""
TAIL = 4 << 20
"""Bytes from the end of a training's figures that are read."""
POINTS = 240
"""Points of a curve of losses."""


@dataclass(frozen=True, slots=True)
class StepState:
    """One step of a run. `state` is done, running, waiting or stopped (its round was not needed);
    `counts` are records so far, by kind."""

    id: str
    kind: str
    seed: int
    round: int
    stage: str
    arms: list[str]
    hash: str
    state: str
    counts: dict[str, int]
    seconds: float | None
    cost: float | None
    estimated: float
    notes: list[str]
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class RunState:
    """Where a run stands. `state` is done, running, stopped early or, where a file cannot be read,
    damaged: then `fault` says which. `age` is the time since something was written, in seconds."""

    name: str
    state: str
    steps: Sequence[StepState] = ()
    done: int = 0
    total: int = 0
    age: float | None = None
    fault: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Records so far, by kind, over all steps."""
        total: Counter[str] = Counter()
        for step in self.steps:
            own = ("completions", "judgements", "preferences")
            total.update({name: step.counts.get(name, 0) for name in own})
        return {name: count for name, count in total.items() if count}

    @property
    def seconds(self) -> float:
        """Seconds that the finished steps took."""
        return sum(step.seconds or 0.0 for step in self.steps)


class _Tallies:
    """Rows in the commit logs of unfinished steps. A log is read on from where it was read to."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[int, int]] = {}
        self._lock = Lock()

    def count(self, path: Path) -> int:
        """The committed rows of a record file."""
        log = integrity.log_of(path)
        size = log.stat().st_size
        with self._lock:
            read, rows = self._known.get(log, (0, 0))
            # It was begun anew.
            read, rows = (0, 0) if size < read * integrity.COMMIT_SIZE else (read, rows)
            commits = integrity.read_log(path, "Wait, and load the page again.", read)
            rows += sum(commit.rows for commit in commits)
            self._known[log] = (read + len(commits), rows)
        return rows


class States:
    """The states of runs. What has not changed on disk is not read again."""

    def __init__(self) -> None:
        self._runs = Remembered(Run)
        self._rounds = Remembered(read_rounds)
        self._pages = Remembered(lambda root: self.run(root).page())
        self._markers: Remembered[dict[str, Any] | None] = Remembered(_read_marker, 65536)
        self._tallies = _Tallies()

    def run(self, root: Path) -> Run:
        """The run in a folder. Raises ConfigError and StoreError."""
        stamp = stamp_of(root / MANIFEST, root / CONFIG)
        run = self._runs.get(root, stamp)
        choices = [
            root / "steps" / s["hash"] for s in run.manifest["steps"] if s["kind"] == "choose"
        ]
        if choices:
            # A run remembers which rounds were not needed.
            run = self._runs.get(root, (*stamp, *stamp_of(*(c / "done.json" for c in choices))))
        return run

    def rounds(self, root: Path) -> list[RoundRecord]:
        """The evaluations of a run."""
        return self._rounds.get(root, stamp_of(root / MANIFEST, root / FILE))

    def page(self, root: Path) -> Page:
        """The figures of a run's rounds."""
        return self._pages.get(root, stamp_of(root / MANIFEST, root / CONFIG, root / FILE))

    def state(self, root: Path) -> RunState:
        """Where a run stands; one that cannot be read is damaged."""
        try:
            run = self.run(root)
            steps = [self._step(run, step) for step in run.manifest["steps"]]
        except (StoreError, OSError, ValueError) as error:
            return RunState(root.name, "damaged", fault=str(error))
        needed = [step for step in steps if step.state != "stopped"]
        done = sum(step.state == "done" for step in needed)
        age = _age_of(root, steps)
        state = "done" if done == len(needed) else "unfinished"
        if state != "done" and age is not None and age < FRESH:
            state = "running"
        return RunState(run.manifest["name"], state, steps, done, len(needed), age)

    def _step(self, run: Run, step: Mapping[str, Any]) -> StepState:
        folder = run.store.step(step["hash"])
        marker = self._markers.get(folder.path, stamp_of(folder.marker))
        counts = marker["counts"] if marker else self._count_rows(folder)
        state = "done" if marker else "running" if counts or _has_work(folder.path) else "waiting"
        if state != "done" and run.is_stopped(step):
            state = "stopped"
        meters = list(meters_of(folder.path, marker).values())
        return StepState(
            *(step["id"], step["kind"], step["seed"], step["round"], step.get("stage", MAIN)),
            *(list(step["arms"]), step["hash"], state, dict(counts)),
            seconds=marker["seconds"] if marker else None,
            cost=sum(meter.cost for meter in meters) if meters else None,
            estimated=sum(meter.estimated for meter in meters),
            notes=marker.get("notes", []) if marker else unfinished_notes(folder.path),
            errors=marker.get("errors", {}) if marker else {},
        )

    def _count_rows(self, folder: StepFolder) -> dict[str, int]:
        found: dict[str, int] = {}
        for log in sorted(folder.path.glob("*" + integrity.COMMITS_SUFFIX)):
            rows = self._tallies.count(log.with_suffix(".jsonl"))
            if rows:
                kind = kind_of(log)
                found[kind] = found.get(kind, 0) + rows
        return found

    def headline(self, root: Path) -> list[tuple[str, str, IntervalJson]]:
        """(arm, metric, figure) of the primary metrics after the last round."""
        page = self.page(root)
        return [
            (row["arm"], name, row["metrics"]["metrics"][name])
            for row in page.latest
            if row["round"] > 0
            for name in page.primary
            if name in row["metrics"]["metrics"]
        ][:HEADLINES]

    def remote(self, run: Run) -> dict[str, dict[str, Any]]:
        """`Meter.summary` of each model on a server, over all steps."""
        total: dict[str, Meter] = {}
        for step in run.manifest["steps"]:
            folder = run.store.step(step["hash"])
            marker = self._markers.get(folder.path, stamp_of(folder.marker))
            for model, meter in meters_of(folder.path, marker).items():
                total.setdefault(model, Meter()).add(meter)
        return {model: meter.summary() for model, meter in sorted(total.items())}


def _read_marker(folder: Path) -> dict[str, Any] | None:
    step = StepFolder(folder)
    return read_marker(step.marker, step.advice)


def _has_work(folder: Path) -> bool:
    return (folder / "work").is_dir()


def _age_of(root: Path, steps: Sequence[StepState]) -> float | None:
    """Seconds since one of the unfinished steps, or the list of rounds, was written to."""
    paths = [root / MANIFEST, root / FILE]
    for step in steps:
        if step.state == "running":
            folder = root / "steps" / step.hash
            paths += [*folder.glob("*.commits"), folder / "work" / ROWS]
    times = [path.stat().st_mtime for path in paths if path.exists()]
    return max(0.0, time.time() - max(times)) if times else None


def read_losses(root: Path, steps: Sequence[StepState]) -> dict[str, list[tuple[int, float]]]:
    """The loss of each training over its optimiser steps, by what the training is called: at most
    `POINTS` of each, the last among them."""
    found = {}
    for step in steps:
        if step.kind not in ("train", "distill"):
            continue
        for path in sorted((root / "steps" / step.hash / "work").glob(f"**/{ROWS}")):
            points = [
                (int(row["step"]), float(row["loss"]))
                for row in _tail_rows(path)
                if isinstance(row.get("loss"), int | float) and isinstance(row.get("step"), int)
            ]
            member = path.parent.name if path.parent.name != "work" else ""
            arms = " ".join(step.arms)
            words = [step.id, member, f"seed {step.seed}", f"round {step.round}", arms]
            if points:
                thin = -(-len(points) // POINTS)
                found[", ".join(filter(None, words))] = points[::-thin][::-1]
    return found


def _tail_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL))
        lines = file.read(TAIL).split(b"\n")
    for line in lines:
        try:
            row = json.loads(line)
        # The first may be cut, and the last one is being written.
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
