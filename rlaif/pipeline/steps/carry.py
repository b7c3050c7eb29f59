"""Answers that an earlier wording of a judge has got already, taken over into a judge step.

A call's id covers all of the judge that can change its answer. So when one principle of several is
reworded, the calls about the others have the ids that they had, and the folder of the earlier step
is still in the run folder: what it holds is copied, and only the rest is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from itertools import islice
from typing import Any, Protocol

from rlaif.core.errors import StoreError
from rlaif.core.rowfiles import Index
from rlaif.core.store import StepFolder
from rlaif.judges.base import Call
from rlaif.pipeline.steps.context import StepContext

BATCH = 256
MARKS = "carried"


class Source(Protocol):
    """Where answers were kept."""

    def index(self, name: str, key: str) -> Index:
        """The committed rows of one record kind by what each has under `key`."""
        ...


def earlier_steps(context: StepContext) -> list[StepFolder]:
    """The finished steps in which the same models were asked by a judge of this id about the same
    answers. None for a step that began without: what is asked in one batch is known when it begins.
    """
    folder = context.folder
    names = ("judgements", "answers", "reasons")
    began = any(folder.path.joinpath(f"{name}.jsonl").exists() for name in names)
    kin = context.planned.options.get("kin")
    if kin is None or (began and not folder.count(MARKS)):
        return []
    found = []
    for path in sorted(folder.path.parent.glob("*/done.json")):
        other = StepFolder(path.parent)
        try:
            marker = other.done()
        except StoreError:
            # A damaged step that is not part of this plan is no reason to stop.
            continue
        if marker is not None and marker.get("kin") == kin:
            found.append(other)
    return found


class Carried:
    """The calls of a step whose rows were copied: `calls` are their ids.

    They are marked before the rows are there, so that after a kill the rest is asked in the same
    batches. `append` keeps rows, `kept` knows the calls that have some, and `name` is their file.
    """

    def __init__(
        self,
        folder: StepFolder,
        name: str,
        earlier: Sequence[Source],
        judge_hash: str,
        append: Callable[[list[dict[str, Any]]], None],
        kept: Container[str],
    ):
        self._folder = folder
        self._append = append
        self._kept = kept
        self._changed = {"judge_hash": judge_hash} if name == "judgements" else {}
        self._indexes = [step.index(name, "call_id") for step in earlier]
        for index in self._indexes:
            index.grow()
        self._marked = {row["call_id"] for row in folder.rows(MARKS)}
        self.calls = {call for call in self._marked if call in kept}

    def take(self, calls: Iterable[Call]) -> None:
        """Copy what is there of calls that have no rows yet."""
        if not self._indexes:
            return
        asked = dict.fromkeys(c.call_id for c in calls if c.request is not None)
        new = iter([name for name in asked if name not in self._kept and self._source(name)])
        while batch := list(islice(new, BATCH)):
            marks = [{"call_id": name} for name in batch if name not in self._marked]
            self._folder.append(MARKS, marks)
            self._append([row | self._changed for name in batch for row in self._rows(name)])
            self.calls |= set(batch)

    def _source(self, call: str) -> Index | None:
        return next((index for index in self._indexes if index.count(call)), None)

    def _rows(self, call: str) -> list[dict[str, Any]]:
        source = self._source(call)
        return source.rows(call) if source is not None else []

    def left(self, calls: Iterable[Call]) -> Iterable[Call]:
        """The calls that were not copied."""
        return (call for call in calls if call.call_id not in self.calls)
