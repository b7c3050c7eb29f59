"""What one device holds in each planned step, at most, before anything runs.

Of a training: weights, masters, gradients and moments by what `rlaif.train.model.prepare` makes,
and what a backward pass keeps of the tokens computed at once. Of sampling and judging: weights,
keys and values. Left out are a framework's own memory (about 0.5 GiB on a GPU), logits of sampled
tokens and what allocators lose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from rlaif.config.distill import FitStep
from rlaif.config.models import REMOTE, ModelSpec
from rlaif.config.on_policy import RolloutTrain
from rlaif.config.training import TextStep, TrainStep
from rlaif.engines.base import Model
from rlaif.engines.model_size import ModelSize, Widths, measure_model
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.steps import step_module

GIB = 2**30
FP32, BF16 = 4, 2
MOMENTS = {"adamw": 8.0, "adamw_8bit": 2.0 + 2 * 4 / 256}
"""AdamW's two moments by parameter: in fp32, or in 8 bits with an fp32 scale for 256 of them."""
MOST_CACHED = {"cpu": 16384, "cuda": 1 << 18}
"""Tokens of the largest batch that `batch_tokens: auto` makes; see `rlaif.engines.local.encoding`,
as for what part of a GPU's memory they may take."""
CACHE_SHARE = {"cpu": 1 / 8, "cuda": 1 / 2}
AT_ONCE = {("cpu", FP32): 768, ("cpu", BF16): 1024, ("cuda", FP32): 16384, ("cuda", BF16): 16384}
"""Tokens of `micro_batch_tokens: auto`; see `rlaif.train.model.TrainModel.token_budget`."""
ANSWERED = frozenset({"completions", "judgements", "log-probs"})
"""What steps make that load engines; others have models only as names."""
POOL = 2
"""Engines in this process's memory that stay loaded; see `rlaif.engines.build.EnginePool`."""


@dataclass(frozen=True)
class Device:
    """What steps are planned for. `memory` is in bytes and `flops` is what one device computes in a
    second, as far as they are stated; `kind` is cpu or cuda, and `bf16` whether `auto` means it."""

    kind: str
    bf16: bool
    memory: float | None = None
    flops: float | None = None

    def width(self, spec: ModelSpec, wanted: str) -> int:
        """Bytes of a weight in the dtype or precision `wanted`."""
        if wanted in ("float32", "fp32"):
            return FP32
        if wanted == "bfloat16":
            return BF16
        here = self.on(spec)
        return BF16 if here.bf16 else FP32

    def on(self, spec: ModelSpec) -> Device:
        """The device that a model names."""
        named = spec.device.partition(":")[0]
        if named in ("auto", self.kind):
            return self
        return replace(self, kind="cuda", bf16=True) if named == "cuda" else _this_cpu()

    def describe(self) -> str:
        """What is assumed, in words."""
        dtype = "bf16" if self.bf16 else "fp32"
        return f"dtype and precision auto: {dtype} on {'a GPU' if self.kind == 'cuda' else 'a CPU'}"


def planned_device(memory_gib: float | None = None, flops: float | None = None) -> Device:
    """The device of this machine, or a GPU where one's memory or speed is stated."""
    memory = None if memory_gib is None else memory_gib * GIB
    if memory is not None or flops is not None or Path("/dev/nvidiactl").exists():
        return Device("cuda", True, memory, flops)
    return _this_cpu()


def _this_cpu() -> Device:
    """Whether it has bf16 products is read without torch, where the system says it."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        flags = ""
    return Device("cpu", "avx512_bf16" in flags or "amx_tile" in flags)


@dataclass(frozen=True)
class Part:
    """What one device holds of one model, in bytes: `state` for as long as the model is there, and
    `work` while it computes (None: not known). `words` say what they are made of."""

    model: str
    role: str
    parameters: int
    state: int
    work: int | None
    words: str


@dataclass(frozen=True)
class StepMemory:
    """The most that one device holds in a planned step. `unknown` are models of unknown size, which
    are not counted."""

    step: str
    kind: str
    hash: str
    parts: tuple[Part, ...]
    unknown: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes of all weights, gradients and moments, and of what one model at a time computes
        with them."""
        return _total(self.parts)


def _total(parts: Sequence[Part]) -> int:
    return sum(part.state for part in parts) + max((part.work or 0 for part in parts), default=0)


def estimate_memory(plan: Sequence[Planned], to_do: set[str], device: Device) -> list[StepMemory]:
    """Each step that runs and holds a model in this machine's memory, in the order of the plan."""
    sizes = Sizes()
    loaded: dict[str, Part] = {}
    found = []
    for planned in plan:
        if planned.hash not in to_do:
            continue
        if planned.kind in ("choose", "average"):
            # Every engine is closed; tensors are read one by one, in main memory.
            loaded.clear()
            continue
        if isinstance(planned.step, TextStep):
            # Every engine is closed before a training.
            loaded.clear()
            parts, unknown = training_parts(planned, planned.step, sizes, device)
        elif step_module(planned.kind).MAKES in ANSWERED and held_models(planned):
            unknown = _load_engines(planned, sizes, device, loaded)
            parts = tuple(loaded.values())
        else:
            continue
        if parts or unknown:
            unknown = list(dict.fromkeys(unknown))
            found.append(
                StepMemory(planned.id, planned.kind, planned.hash, tuple(parts), tuple(unknown))
            )
    return found


class Sizes:
    """Sizes of models; each folder is read once."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, int | None], ModelSize | None] = {}

    def of(self, model: Model) -> ModelSize | None:
        """A model that training makes is as large as what it starts from."""
        key = (model.spec.path, model.spec.parameters)
        if key not in self.known:
            self.known[key] = measure_model(model.spec)
        return self.known[key]


def held_models(planned: Planned) -> dict[str, Model]:
    """The models that a step asks in this machine's memory, by role."""
    return {
        role: model
        for role, model in planned.models.items()
        if role != "made" and model.spec.engine not in REMOTE and model.spec.engine != "fake"
    }


def _load_engines(
    planned: Planned, sizes: Sizes, device: Device, loaded: dict[str, Part]
) -> list[str]:
    """Take the step's models into `loaded` as the pool of engines does; the names of those of
    unknown size."""
    unknown = []
    for role, model in held_models(planned).items():
        size = sizes.of(model)
        if size is None:
            unknown.append(name_model(model))
            continue
        # The same weights are one copy, also with other settings.
        key = repr([model.key, model.spec.engine, model.spec.device, model.spec.dtype])
        loaded.pop(key, None)
        while len(loaded) >= POOL:
            loaded.pop(next(iter(loaded)))
        loaded[key] = engine_part(model, role, size, device)
    return unknown


def name_model(model: Model) -> str:
    """A model as tables name it."""
    return f"{model.label} ({model.spec.path})"


def engine_part(model: Model, role: str, size: ModelSize, device: Device) -> Part:
    """A model that answers: its weights, and the keys and values of its largest batch."""
    spec = model.spec
    width = device.width(spec, spec.dtype)
    shared = 1 if spec.engine == "hf" else spec.processes
    state = size.parameters * width // shared
    words = f"{_dtype(width)} weights"
    if spec.engine != "hf":
        words += f" on each of {shared} devices" * (shared > 1)
        words += "; vLLM takes `gpu_memory_utilization` of a device for them and its cache"
        return Part(name_model(model), role, size.parameters, state, None, words)
    if size.widths is None:
        return Part(name_model(model), role, size.parameters, state, None, words)
    tokens = _batch_tokens(spec, device.on(spec), state, size.widths.cached * width)
    words += f", keys and values of {tokens} tokens"
    work = tokens * size.widths.cached * width
    return Part(name_model(model), role, size.parameters, state, work, words)


def _batch_tokens(spec: ModelSpec, device: Device, weights: int, token_bytes: int) -> int:
    if spec.batch_tokens != "auto":
        return spec.batch_tokens
    most = MOST_CACHED[device.kind]
    if device.memory is None:
        return most
    fitting = int(CACHE_SHARE[device.kind] * (device.memory - weights) / token_bytes)
    return min(most, max(1024, 1 << max(0, fitting.bit_length() - 1)))


def _dtype(width: int) -> str:
    return "bf16" if width == BF16 else "fp32"


def training_parts(
    planned: Planned, step: TextStep, sizes: Sizes, device: Device
) -> tuple[Sequence[Part], list[str]]:
    """The models of a training in the phase that takes most, and the names of those of unknown
    size. Phases: loading in fp32, a reference before the training, and the training."""
    start = planned.models["start"]
    size = sizes.of(start)
    others = {r: m for r, m in held_models(planned).items() if r not in ("start", "last")}
    unknown = [name_model(m) for m in others.values() if sizes.of(m) is None]
    if size is None:
        return (), [name_model(start), *unknown]
    spec, name = start.spec, name_model(start)
    width = device.width(spec, step.precision)
    shared = shards(step)
    in_fp32 = f"{_dtype(FP32)} weights while the model is loaded"
    loading = Part(name, "start", size.parameters, size.parameters * FP32, 0, in_fp32)
    if isinstance(step, FitStep):
        return [loading], unknown
    assert isinstance(step, TrainStep)
    plays = bool(planned.options.get("plays"))
    trained = trained_part(name, step, size, width, device.on(spec).kind, plays)
    phases = [[trained]] if shared > 1 else [[loading], [trained]]
    # A teacher is held like a reference.
    role = "teacher" if "teacher" in planned.models else "reference"
    reference = planned.models.get(role)
    frozen = None if reference is None or not step.compares else sizes.of(reference)
    if frozen is not None and reference is not None:
        held = _frozen_part(name_model(reference), role, frozen, width, shared)
        if not isinstance(step, RolloutTrain):
            if reference.key != start.key:
                phases.append([replace(held, state=frozen.parameters * FP32, words=in_fp32)])
        elif reference.key != start.key or step.lora is None:
            # It is loaded in fp32 beside a policy that has no moments yet.
            fresh = replace(trained, state=trained.state - _moments(step, size), work=0)
            early = replace(held, state=frozen.parameters * FP32, words=in_fp32)
            # What is to be split is loaded in main memory.
            before = [[loading], [fresh, early]] if shared == 1 else []
            phases = [*before, [trained, held]]
    if isinstance(step, RolloutTrain):
        if shared > 1 and spec.engine == "hf":
            phases[-1].append(_copy_part(start, step, size, width, device))
        phases[-1] += _rollout_parts(step, trained, others, sizes, device)
        if spec.engine == "vllm" and spec.gpus is None:
            # Its rollouts come from an engine of their own, on the same devices.
            phases[-1].append(engine_part(start, "sampler", size, device))
    return max(phases, key=_total), unknown


def shards(step: TextStep) -> int:
    """Over how many devices weights, gradients and moments are divided."""
    if not isinstance(step, TrainStep) or step.sharding == "none" or step.processes == "auto":
        return 1
    return step.processes


def trained_part(
    name: str, step: TrainStep, size: ModelSize, width: int, kind: str, plays: bool = False
) -> Part:
    """A model in training: what stays between its steps, and what a backward pass needs. `plays`:
    its answers may be episodes."""
    shared, each = shards(step), 0.0
    trained = _trainable(step, size)
    # In fp32 the parameters are their own masters; of sharded ones the copy is gathered anew.
    copy = BF16 if width == BF16 and shared == 1 else 0
    each = copy + FP32 + FP32 + MOMENTS[step.optimizer]
    frozen = size.parameters if step.lora is not None else 0
    state = round((trained * each + frozen * width) / shared)
    kinds = {"adamw": "AdamW's moments", "adamw_8bit": "AdamW's moments in 8 bits"}
    held = f"{'bf16 weights, ' * bool(copy)}fp32 masters, gradients, {kinds[step.optimizer]}: "
    words = f"{held}{each:.4g} bytes a parameter"
    if step.lora is not None:
        words = f"{_dtype(width)} weights; adapters of {trained:,} parameters: {words}"
    if shared > 1:
        words += f", divided over {shared} devices, and layers as they are gathered"
        words += " (not counted: their sizes are not known)" * (size.largest_layer is None)
        outside, layer = size.outside or 0, size.largest_layer or 0
        # A copy of what lies outside the layers and of two of these, and one's whole gradient.
        state += width * (outside + 2 * layer) + (width + FP32) * max(outside, layer)
    elif step.sharding == "full":
        words += " (`processes: auto`: not divided here, since the number of devices is not known)"
    work = None
    if size.widths is not None:
        tokens = tokens_at_once(step, width, kind, plays)
        work = tokens * token_memory(size.widths, width, step.gradient_checkpointing)
        again = " (recomputed)" * step.gradient_checkpointing
        words += f"; activations{again} of {tokens} tokens"
    return Part(name, "start", size.parameters, state, work, words)


def _trainable(step: TrainStep, size: ModelSize) -> int:
    if step.lora is None:
        return size.parameters
    # Of an unknown model about one in a hundred, which is that of r 16 on linear layers.
    known = size.adapters(step.lora)
    return size.parameters // 100 if known is None else known


def _moments(step: TrainStep, size: ModelSize) -> int:
    return round(_trainable(step, size) * MOMENTS[step.optimizer])


def tokens_at_once(step: TextStep, width: int, kind: str, plays: bool = False) -> int:
    """The budget, or the longest example where that is more: none is divided."""
    budget = step.micro_batch_tokens
    at_once = AT_ONCE[kind, width] if budget == "auto" else budget
    if isinstance(step, RolloutTrain):
        # The answers to a prompt stay together, the prompt once. An episode's turns may be many.
        longest = step.max_length + (step.n - 1) * (
            step.max_length if plays else step.max_new_tokens
        )
    else:
        longest = step.max_length * (2 if step.LEARNS_FROM == "pairs" else 1)
    return max(at_once, longest)


def token_memory(widths: Widths, width: int, recomputed: bool) -> int:
    """Bytes that a backward pass keeps of one token: by layer its inputs, normed inputs, queries,
    keys, values and what the MLP multiplies, as counted on Llamas (`benchmarks/memory.py`). Where
    layers are recomputed, the inputs of all and the rest of one."""
    layer = 4 * widths.hidden + 2 * widths.queries + 2 * widths.keys + 3 * widths.inner
    outside = 4 * widths.hidden
    kept = widths.layers * widths.hidden + layer if recomputed else widths.layers * layer
    return width * (kept + outside)


def _frozen_part(name: str, role: str, size: ModelSize, width: int, shared: int) -> Part:
    words = f"{_dtype(width)} weights that are not trained"
    return Part(name, role, size.parameters, size.parameters * width // shared, 0, words)


def _copy_part(
    start: Model, step: RolloutTrain, size: ModelSize, width: int, device: Device
) -> Part:
    """The whole policy on each device, which samples while the trained one is divided; see
    `rlaif.train.run.load_copy`."""
    spec = start.spec.model_copy(update={"dtype": "bfloat16" if width == BF16 else "float32"})
    part = engine_part(replace(start, spec=spec), "sampler", size, device)
    adapters = 0 if step.lora is None else _trainable(step, size) * width
    return replace(part, state=part.state + adapters, words=f"the whole policy: {part.words}")


def _rollout_parts(
    step: RolloutTrain,
    trained: Part,
    others: Mapping[str, Model],
    sizes: Sizes,
    device: Device,
) -> Iterator[Part]:
    """What is in memory beside an on-policy training: the critic, and the rewards' models that the
    pool keeps."""
    if step.critic_kind == "separate":
        yield replace(trained, role="critic")
    judges = []
    for role, model in others.items():
        known = sizes.of(model)
        if role.startswith("judge/") and known is not None:
            judges.append(engine_part(model, role, known, device))
    by_model = {part.model: part for part in judges}
    yield from sorted(by_model.values(), key=lambda part: -part.state)[:POOL]


Change = tuple[str, dict[str, Any]]
CHANGES: tuple[Change, ...] = (
    ("`gradient_checkpointing: true`", {"gradient_checkpointing": True}),
    ("`micro_batch_tokens: 1024`", {"micro_batch_tokens": 1024}),
    ("`optimizer: adamw_8bit`", {"optimizer": "adamw_8bit"}),
    ("`lora: {}`", {"lora": {}}),
    *(
        (f"`sharding: full` with `processes: {n}`", {"sharding": "full", "processes": n})
        for n in (2, 4, 8, 16, 32, 64)
    ),
)
"""What a training that is too large may set."""


def advise(planned: Planned, device: Device) -> list[str]:
    """The settings that would make a step fit a device whose memory is stated, in words: of a
    training the smallest sets of them that do. Empty where none does."""
    if device.memory is None:
        return []
    sizes = Sizes()
    if not isinstance(planned.step, TextStep):
        return _advise_engines(planned, device.memory, sizes, device)
    if not isinstance(planned.step, TrainStep):
        return []
    for count in (1, 2, 3):
        found: list[tuple[str, dict[str, Any]]] = []
        for chosen in combinations(CHANGES, count):
            keys = {key: value for _, own in chosen for key, value in own.items()}
            if _fits(planned, keys, sizes, device) and not _is_wider(keys, [k for _, k in found]):
                found.append((" and ".join(name for name, _ in chosen), keys))
        if found:
            return [name for name, _ in found]
    return []


def _advise_engines(planned: Planned, memory: float, sizes: Sizes, device: Device) -> list[str]:
    """Keys of the models that a step asks: each by itself would make room for the largest."""
    models = [(model, sizes.of(model)) for model in held_models(planned).values()]
    known = [(model, size) for model, size in models if size is not None]
    if not known:
        return []
    model, size = max(known, key=lambda one: one[1].parameters)
    width = device.width(model.spec, model.spec.dtype)
    found = []
    if width == FP32 and size.parameters * BF16 <= memory:
        found.append("`dtype: bfloat16`")
    if model.spec.engine == "hf" and size.parameters * width <= memory:
        found.append("fewer `batch_tokens`, or one model at a time")
    # Some of each device is left for keys and values.
    shares = (n for n in (2, 4, 8, 16) if size.parameters * BF16 / n <= 0.8 * memory)
    split = next(shares, None)
    if split is not None:
        found.append(f"`engine: vllm` with `engine_args: {{tensor_parallel_size: {split}}}`")
    return found


def _is_wider(keys: dict[str, Any], found: Sequence[dict[str, Any]]) -> bool:
    """Whether the same was found with fewer processes."""
    return any(keys | {"processes": own.get("processes")} == own for own in found)


def _fits(planned: Planned, keys: dict[str, Any], sizes: Sizes, device: Device) -> bool:
    """Whether the step may have these keys as well, and would then be small enough."""
    said = planned.step.model_dump(by_alias=True, exclude_unset=True)
    try:
        step = type(planned.step).model_validate(said | keys)
    except ValueError:
        return False
    parts, unknown = training_parts(planned, step, sizes, device)
    return not unknown and _total(parts) <= (device.memory or 0)
