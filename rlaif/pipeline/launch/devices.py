"""How many GPUs the steps of a plan use, and which types of GPU hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlaif.config.models import REMOTE, ModelSpec
from rlaif.config.on_policy import RolloutTrain
from rlaif.config.training import TextStep, TrainStep
from rlaif.core.errors import ConfigError
from rlaif.pipeline.memory import ANSWERED, FP32, GIB, Sizes, estimate_memory, planned_device
from rlaif.pipeline.memory_table import LargestMemory, advise_memory, list_memory
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.steps import step_module

GPUS = {
    "T4": 14,
    "L4": 22,
    "A10G": 22,
    "A100": 39,
    "L40S": 44,
    "A100-80GB": 79,
    "H100": 79,
    "H200": 139,
    "B200": 178,
}
"""Whole GiB of a device that a program can use, below what the data sheets say, by the names that
SkyPilot has for them, from small to large."""
MACHINE = 16
"""GiB of main memory beside the weights: the interpreter, the libraries, records."""


@dataclass(frozen=True)
class Use:
    """GPUs that a step uses, and the words that name the step and the key that decides it."""

    count: int
    words: str


def count_gpus(plan: Sequence[Planned]) -> Use:
    """The most GPUs that one step of the plan uses; 0 where none computes with a model on one."""
    most = Use(0, "no step has a model on a GPU")
    for use in _list_uses(plan):
        if use.count > most.count:
            most = use
    return most


def _list_uses(plan: Sequence[Planned]) -> Iterator[Use]:
    for planned in plan:
        step = planned.step
        if isinstance(step, TrainStep):
            start = planned.models["start"].spec
            processes = 1 if step.processes == "auto" else step.processes
            on_cpu = start.device.partition(":")[0] == "cpu"
            yield Use(0 if on_cpu else processes, f"step {planned.id}: `processes: {processes}`")
            if not isinstance(step, RolloutTrain):
                # Its reference is in the processes of the training, divided as these are.
                continue
        for spec in computing_models(planned):
            yield Use(_model_gpus(spec), f"step {planned.id}: model {spec.path}")


def computing_models(planned: Planned) -> list[ModelSpec]:
    """The models that a step computes with on this machine; other steps have them as names only."""
    if not isinstance(planned.step, TextStep) and step_module(planned.kind).MAKES not in ANSWERED:
        return []
    specs = [model.spec for role, model in planned.models.items() if role != "made"]
    return [spec for spec in specs if spec.engine not in REMOTE and spec.engine != "fake"]


def _model_gpus(spec: ModelSpec) -> int:
    if spec.gpus is not None:
        return max(spec.gpus) + 1
    kind, _, number = spec.device.partition(":")
    if kind == "cpu":
        return 0
    return max(spec.processes if spec.engine.startswith("vllm") else 1, int(number or 0) + 1)


@dataclass(frozen=True)
class Memory:
    """What one device must hold: `most` in GiB over all steps, by the largest of the types that
    hold it, and `unknown` models whose size nobody stated. `types` are those of GPUS that do.
    `checked` is false where a type was named whose memory is not known."""

    most: float
    types: tuple[str, ...]
    unknown: tuple[str, ...]
    checked: bool


def find_types(
    plan: Sequence[Planned], to_do: set[str], gpu: str | None, stated: float | None
) -> Memory:
    """Which types of GPU hold every step. With a type or GiB stated, these must. Raises ConfigError
    where none does, with the settings that would make room."""
    memory = stated or _known_memory(gpu)
    if memory is not None:
        rows = _measure(plan, to_do, memory, named=gpu)
        enough = tuple(name for name, gib in GPUS.items() if _most(rows) <= gib)
        return Memory(_most(rows), enough if gpu is None else (gpu,), _unknown(rows), True)
    rows, fitting = [], []
    largest = max(GPUS.values())
    for name, gib in GPUS.items():
        rows = _measure(plan, to_do, gib, refuse=gib == largest)
        if _most(rows) <= gib:
            fitting.append(name)
    types = tuple(fitting) if gpu is None else (gpu,)
    return Memory(_most(rows), types, _unknown(rows), gpu is None)


def _known_memory(gpu: str | None) -> int | None:
    known = {name.lower(): gib for name, gib in GPUS.items()}
    return None if gpu is None else known.get(gpu.lower())


def _measure(
    plan: Sequence[Planned],
    to_do: set[str],
    gib: float,
    refuse: bool = True,
    named: str | None = None,
) -> list[LargestMemory]:
    device = planned_device(gib)
    rows = list_memory(estimate_memory(plan, to_do, device))
    said = advise_memory(rows, plan, device) if refuse else []
    if said:
        which = "this device" if named is None else named
        raise ConfigError("\n".join([f"the plan does not fit {which}:", *said]))
    return rows


def _most(rows: Sequence[LargestMemory]) -> float:
    return max((row.most.total for row in rows), default=0) / GIB


def _unknown(rows: Sequence[LargestMemory]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for row in rows for name in row.most.unknown))


def main_memory(plan: Sequence[Planned]) -> int:
    """GiB of main memory that the largest step takes: every process of a training loads the whole
    model in fp32, and a sharded one is gathered once more for its export. Models of unknown size
    are not counted."""
    sizes = Sizes()
    most = 0
    for planned in plan:
        copies = 1
        if isinstance(planned.step, TrainStep):
            processes = planned.step.processes
            copies = 1 if processes == "auto" else processes
            copies += planned.step.sharding == "full"
            models = [planned.models["start"]]
        else:
            asked = computing_models(planned)
            models = [model for model in planned.models.values() if model.spec in asked]
        known = [size.parameters for size in map(sizes.of, models) if size is not None]
        most = max(most, sum(known) * copies * FP32)
    return -8 * (-(MACHINE + -(-most // GIB)) // 8)
