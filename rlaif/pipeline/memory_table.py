"""The memory of planned steps in a dry run: a table, JSON, and what to set where a device has too
little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlaif.pipeline.memory import GIB, Device, StepMemory, advise
from rlaif.pipeline.plan.base import Planned


@dataclass(frozen=True)
class LargestMemory:
    """What a step of the file takes at most, over its rounds, seeds and arms."""

    step: str
    most: StepMemory

    def to_json(self) -> dict[str, Any]:
        """Bytes by model; null where they are not known."""
        return {
            "step": self.step,
            "kind": self.most.kind,
            "hash": self.most.hash,
            "bytes": self.most.total if self.most.parts else None,
            "models": [asdict(part) for part in self.most.parts],
            "unknown": list(self.most.unknown),
        }


def list_memory(found: Sequence[StepMemory]) -> list[LargestMemory]:
    """The largest of each step of the file, in their order; steps that an evaluation plans for
    itself are its own."""
    largest: dict[str, StepMemory] = {}
    for one in found:
        name = one.step.partition(".")[0]
        before = largest.get(name)
        if before is None or (one.total, len(one.unknown)) > (before.total, len(before.unknown)):
            largest[name] = one
    return [LargestMemory(name, most) for name, most in largest.items()]


def make_memory_table(memory: Sequence[LargestMemory], device: Device) -> list[str]:
    """Lines: of each step what one device holds at most, and a line for each of its models."""
    rows: list[tuple[str, str, str, str, int | None, int | None, str]] = []
    for row in memory:
        total = f"{row.most.total / GIB:.2f}" if row.most.parts else "unknown"
        parts: list[tuple[str, str, int | None, int | None, str]] = [
            (part.model, _in_short(part.parameters), part.state, part.work, part.words)
            for part in row.most.parts
        ]
        missing = "unknown: say how many `parameters` the model has"
        parts += [(model, "?", None, None, missing) for model in row.most.unknown]
        names = [(row.step, total), *[("", "")] * (len(parts) - 1)]
        rows += [(*name, *part) for name, part in zip(names, parts, strict=True)]
    if not rows:
        return []
    wide = max(len("step"), *(len(row[0]) for row in rows))
    broad = max(len("model"), *(len(row[2]) for row in rows))
    head = f"{'step':{wide}} {'GiB':>8}  {'model':{broad}} {'params':>7} {'state':>8} {'work':>7}"
    return [
        f"memory of one device at most (GiB of 2**30 bytes; {device.describe()}; without the "
        "framework's own):",
        f"  {head}  made of",
        *(
            f"  {step:{wide}} {total:>8}  {model:{broad}} {count:>7} {_in_gib(state):>8} "
            f"{_in_gib(work):>7}  {words}"
            for step, total, model, count, state, work, words in rows
        ),
    ]


def _in_gib(count: int | None) -> str:
    return "-" if count is None else f"{count / GIB:.2f}"


def _in_short(count: int) -> str:
    """A number of parameters as people write it."""
    scale, letter = next((s, x) for s, x in _SCALES if count >= s or not x)
    return f"{count / scale:.3g}{letter}"


_SCALES = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"), (1, ""))


def advise_memory(
    memory: Sequence[LargestMemory], plan: Sequence[Planned], device: Device
) -> list[str]:
    """A sentence for each step that takes more than a stated device has, with what would do."""
    if device.memory is None:
        return []
    by_hash = {planned.hash: planned for planned in plan}
    said = []
    for row in memory:
        if row.most.total <= device.memory:
            continue
        ways = advise(by_hash[row.most.hash], device)
        found = f"It would fit with {'; or '.join(ways)}"
        one = found if ways else "No one of its settings would do"
        said.append(
            f"step {row.step} takes about {row.most.total / GIB:.1f} GiB of a device that has "
            f"{device.memory / GIB:g}. {one}"
        )
    return said
