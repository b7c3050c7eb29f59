"""A training job and the one optimisation loop: accumulation, clipping, schedule, metrics, resume.

`TrainJob` says what is asked, `TrainProgress` how far it is, `TrainOutcome` what it did. A method
is a `Task`: its examples, its loss. All sums are normalised over the global batch, so the result
does not depend on the micro-batch size.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from rlaif.config.base import hashed_keys
from rlaif.config.models import ModelSpec
from rlaif.config.training import TextStep, TrainStep
from rlaif.core.chat import KEEP, ChatSettings
from rlaif.core.errors import EngineError, RlaifError, StoreError
from rlaif.core.finished import MASTERS
from rlaif.core.integrity import read_sealed, verify_folder, write_sealed
from rlaif.core.records import Judgement, Preference, content_hash
from rlaif.kernels.batching import plan_epoch
from rlaif.kernels.device import peak_flops, peak_memory
from rlaif.train import checkpoint, parallel
from rlaif.train.loading import trainable_code
from rlaif.train.model import TrainModel, compute_dtype, kernels_in_use
from rlaif.train.redraws import Redraw
from rlaif.train.rollout import Group
from rlaif.train.tokenise import Example

Sums = dict[str, tuple[float, float]]
"""A metric's weighted sum and its weight: means over any cut of the batch add up. Of a name that
ends in _min or _max it is the extreme itself, with weight 1."""
CHECKPOINT_SECONDS = 300.0
"""After this much training since the last checkpoint there is another, whatever the steps."""
IGNORED_OPTIONS = {"id", "uses", "checkpoint_every", "from_", "reference", "trackers"}


class Task(Protocol):
    """What one method adds to the loop. Indices refer to `examples`."""

    examples: Sequence[Example]

    def total(self, batch: Sequence[int]) -> Any:
        """The normaliser of a whole global batch, which `loss` is given back."""

    def loss(
        self, model: TrainModel, micro: Sequence[int], total: Any, step: int
    ) -> tuple[Tensor, Sums, int]:
        """A micro-batch's share of the global batch's loss (scalar), metrics, real tokens."""


def learning_rate(step: int, total: int, options: TrainStep) -> float:
    """The rate of optimiser step `step` (from 0) of `total`: linear warm-up, then the schedule.

    The first step already moves; the floor is `min_lr_ratio` times the peak.
    """
    peak, floor = options.learning_rate, options.min_lr_ratio
    # Rounded up, so that any ratio above 0 warms up for a step at least.
    warmup = math.ceil(options.warmup_ratio * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if options.schedule == "cosine":
        return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))
    if options.schedule == "linear":
        return peak * (floor + (1 - floor) * (1 - done))
    return peak


def training_fingerprint(examples: Iterable[Example], options: TrainStep, seed: int) -> str:
    """A hash of all that decides the result besides the starting weights."""
    chosen = hashed_keys(options, exclude=IGNORED_OPTIONS)
    # Texts are not covered: what is trained on are these ids.
    data = [
        [e.example_id, e.prompt_ids, list(e.completions), list(e.pairs), list(e.scores)]
        for e in examples
    ]
    return content_hash(chosen, seed, data)


def run_training(
    task: Task,
    model: TrainModel,
    options: TrainStep,
    work: Path,
    seed: int,
    progress: Callable[[TrainProgress], None] | None = None,
) -> TrainOutcome:
    """Train `model` in place on `task`, continuing from the latest checkpoint in `work`.

    On one CPU and one library version, an interrupted and resumed training ends in the same bits as
    an uninterrupted one. Raises RlaifError on a non-finite loss, EngineError when memory runs out.
    """
    work.mkdir(parents=True, exist_ok=True)
    plan = _plan_batches(task, model, options, seed)
    optimizer = make_optimizer(model, options)
    fingerprint = training_fingerprint(task.examples, options, seed)
    # Restoring a checkpoint puts its random states in the place of this seed.
    torch.manual_seed(seed)
    state = checkpoint.restore(work, model.masters, optimizer, fingerprint, model.sharded)
    first = 0
    if state is not None:
        first = state["step"]
        # The bf16 copy still has the start's weights.
        model.sync()
    rows = checkpoint.keep_rows(work, first, state)
    tokens = sum(row["tokens"] for row in rows)
    unsaved = 0.0
    for step in range(first, len(plan)):
        row = optimiser_step(task, model, optimizer, plan[step], options, step, len(plan), work)
        rows.append(row)
        tokens += row["tokens"]
        checkpoint.write_row(work, row)
        # All ranks save or none, so the first one's clock counts.
        unsaved += parallel.gather(row["timing"]["seconds"])[0]
        # No checkpoint of the last step by count: the export follows.
        reached = (step + 1) % options.checkpoint_every == 0 and step + 1 < len(plan)
        if reached or unsaved >= CHECKPOINT_SECONDS:
            unsaved = 0.0
            kept = {"fingerprint": fingerprint}
            checkpoint.save(work, step + 1, model.masters, optimizer, kept, model.sharded)
        if progress is not None:
            progress(progress_of(row, len(plan)))
    seconds = sum(row["timing"]["seconds"] for row in rows)
    dtype = str(model.dtype).removeprefix("torch.")
    kernels = kernels_in_use(model)
    return TrainOutcome(len(plan), tokens, summary_of(rows), {}, seconds, dtype, kernels)


def _plan_batches(
    task: Task, model: TrainModel, options: TrainStep, seed: int
) -> list[list[list[int]]]:
    sizes = [model.size(example.branches) for example in task.examples]
    budget = model.token_budget(options)
    return [
        batch
        for epoch in range(options.epochs)
        for batch in plan_epoch(sizes, options.batch_size, budget, seed, epoch)
    ]


def make_optimizer(model: TrainModel, options: TrainStep) -> torch.optim.Optimizer:
    """AdamW over the fp32 masters."""
    # A rank may have no part of a small weight.
    masters = [master for master in model.masters.values() if master.numel()]
    shared: dict[str, Any] = {
        "lr": options.learning_rate,
        "betas": options.adam_betas,
        "weight_decay": options.weight_decay,
    }
    if options.optimizer == "adamw":
        return torch.optim.AdamW(masters, **shared, fused=True)
    try:
        kind = import_module("bitsandbytes.optim").AdamW8bit
    except ImportError:
        raise EngineError(
            "`optimizer: adamw_8bit` needs bitsandbytes. Run: pip install bitsandbytes"
        ) from None
    optimizer: torch.optim.Optimizer = kind(masters, **shared)
    return optimizer


def optimiser_step(
    task: Task,
    model: TrainModel,
    optimizer: torch.optim.Optimizer,
    batch: list[list[int]],
    options: TrainStep,
    step: int,
    steps: int,
    work: Path,
) -> dict[str, Any]:
    """One optimiser step: the gradients of a global batch into the masters, clipped, and applied.
    Returns the row for metrics.jsonl."""
    started = time.perf_counter()
    everything = [i for micro in batch for i in micro]
    total = task.total(everything)
    sums: Sums = {}
    own_tokens, own_loss = 0, 0.0
    with memory_advice(options):
        for micro in parallel.share(batch):
            loss, parts, count = task.loss(model, micro, total, step)
            value = float(loss.detach())
            _require_finite("loss", value, task, micro, step, work)
            # Some models assert in their backward pass that they are in training mode.
            with trainable_code(model.module):
                loss.backward()  # type: ignore[no-untyped-call]
            own_loss += value
            own_tokens += count
            join_sums(sums, parts)
        if model.sharded:
            # Times 0: only the collectives inside have to be met.
            for micro in parallel.filler(batch):
                loss, _, _ = task.loss(model, micro, total, step)
                (0.0 * loss).backward()  # type: ignore[no-untyped-call]
        # Summed before the norm is taken, or each rank would clip by a norm of its own.
        model.sum_gradients()
        ranks = parallel.gather((sums, own_tokens, own_loss))
        norm = model.clip_gradients(options.max_grad_norm)
        # Before the step, so that the masters and the last checkpoint stay good.
        _require_finite("gradient norm", norm, task, everything, step, work)
        rate = learning_rate(step, steps, options)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    # Zeroed in place: giving the memory back and faulting it in again costs more.
    optimizer.zero_grad(set_to_none=False)
    model.sync()
    seconds = time.perf_counter() - started
    joined: Sums = {}
    for found, _, _ in ranks:
        join_sums(joined, found)
    means = {name: amount / weight for name, (amount, weight) in joined.items() if weight}
    tokens = sum(count for _, count, _ in ranks)
    return {
        "step": step + 1,
        **dict(sorted({"loss": sum(part for _, _, part in ranks), **means}.items())),
        "grad_norm": norm,
        "learning_rate": rate,
        "tokens": tokens,
        "timing": _measure_timing(model, seconds, tokens),
    }


def _measure_timing(model: TrainModel, seconds: float, tokens: int) -> dict[str, float]:
    """Throughput in tokens and FLOP (6 for each parameter and token, as if no prompt were shared),
    its share of the device's peak where that is known, and the peak memory of this process."""
    parameters = sum(p.numel() for p in model.module.parameters())
    # Per device: the tokens are those of all ranks.
    rate = 6.0 * parameters * tokens / seconds / parallel.world()
    timing = {"seconds": seconds, "tokens_per_second": tokens / seconds, "tflops": rate / 1e12}
    peak = peak_flops(model.device)
    if peak is not None:
        timing["mfu"] = rate / peak
    timing["memory_gb"] = peak_memory(model.device) / 1e9
    return timing


def join_sums(into: Sums, parts: Sums) -> None:
    """Take the metrics of one more part of the batch into those of the others."""
    for name, (amount, weight) in parts.items():
        before = into.get(name)
        if before is None:
            into[name] = (amount, weight)
        elif name.endswith("_min"):
            into[name] = (min(before[0], amount), 1.0)
        elif name.endswith("_max"):
            into[name] = (max(before[0], amount), 1.0)
        else:
            into[name] = (before[0] + amount, before[1] + weight)


def _require_finite(
    what: str, value: float, task: Task, indices: Sequence[int], step: int, work: Path
) -> None:
    """Raise RlaifError for a number that is not finite, and keep which examples it is of."""
    if math.isfinite(value):
        return
    examples = [task.examples[i] for i in indices]
    prompts = sorted({e.prompt_id for e in examples})
    path = work / "nonfinite.json"
    detail = {
        "step": step + 1,
        "what": what,
        "value": str(value),
        "prompt_ids": prompts,
        "example_ids": [e.example_id for e in examples],
    }
    path.write_text(json.dumps(detail, indent=1))
    shown = ", ".join(prompts[:4]) + (" ..." if len(prompts) > 4 else "")
    raise RlaifError(
        f"training stopped at step {step + 1}: the {what} is {value} (prompts {shown}; all in "
        f"{path}). Lower `learning_rate`, or look at these examples."
    )


@contextmanager
def memory_advice(options: TextStep) -> Iterator[None]:
    """Turn an out-of-memory error of torch into an EngineError that names the options to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        # On a CPU torch raises a plain RuntimeError, which its message alone tells.
        exhausted = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not exhausted and "allocate memory" not in text and "not enough memory" not in text:
            raise
        raise EngineError(f"training ran out of memory: {options.memory_advice}") from None


def _select_numbers(row: dict[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in row.items() if k not in ("step", "tokens", "timing")}


def progress_of(row: dict[str, Any], steps: int) -> TrainProgress:
    """What a row of metrics.jsonl says to whoever watches."""
    speed = row["timing"]["tokens_per_second"]
    return TrainProgress(row["step"], steps, row.get("loss"), speed, _select_numbers(row))


def summary_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """first_, last_ and mean_ of every per-step metric."""
    numbers = [_select_numbers(row) for row in rows]
    summary = {}
    # A metric may be absent in a step that had nothing to measure it on.
    for name in dict.fromkeys(name for row in numbers for name in row):
        values = [row[name] for row in numbers if name in row]
        summary["first_" + name] = values[0]
        summary["last_" + name] = values[-1]
        summary["mean_" + name] = sum(values) / len(values)
    return summary


S = TypeVar("S", bound=TextStep, covariant=True)


class Collect(Protocol):
    """Samples from a policy, and asks the judges."""

    def __call__(
        self,
        number: int,
        model: TrainModel | None,
        /,
        *,
        redraw: Redraw | None = None,
        rollbacks: int = 0,
        lead: int | None = None,
    ) -> Sequence[Group]:
        """Fresh answers of the policy `model` with the values of the reward's terms, for rollout
        `number` (from 0) after so many rollbacks, each with answers of its own. Below 0 it is a
        draw from the start policy that `normalise: reference` is fitted on: only the values of such
        terms are needed. A `redraw` is of other prompts for the rollout; none where all have been
        asked. `lead` is a token that the policy sees before every prompt. Without a `model`
        these are the answers that were sampled before."""


OUTCOME = "outcome.json"
"""The file in a training's work folder that says it ended, and how."""


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """Where a training stands after an optimiser step. `loss` is None after a rollout that there
    was nothing to learn from."""

    step: int
    total_steps: int
    loss: float | None
    tokens_per_second: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class TrainJob(Generic[S]):
    """What a training is given, from the step to the loop.

    `start` and `reference` (None: the start itself) are checkpoint folders; fp32 weights in their
    `masters/` are preferred to the bf16 ones. `texts` are learned from as they are, without a chat
    template. `token_ids` maps completion ids to the tokens the policy sampled, `unfinished` are
    those without an end, and `judgements` rate completions. On-policy methods have their answers
    from `collect`, which samples with the settings `spec`, and `fingerprint` covers all that
    decides what it gives; of several processes the first alone has `collect`. `work` holds what a
    rerun continues from; `out` is complete or absent, and of a `member` of an ensemble the adapter
    alone. `launch` does the job in processes elsewhere, where there is such a place.
    """

    options: S
    start: Path
    out: Path
    work: Path
    seed: int
    device: torch.device
    preferences: Sequence[Preference] = ()
    token_ids: Mapping[str, list[int]] = field(default_factory=dict)
    judgements: Sequence[Judgement] = ()
    texts: Sequence[str] = ()
    unfinished: frozenset[str] = frozenset()
    reference: Path | None = None
    chat: ChatSettings = KEEP
    collect: Collect | None = None
    spec: ModelSpec | None = None
    fingerprint: str = ""
    member: bool = False
    progress: Callable[[TrainProgress], None] | None = None
    launch: Callable[[TrainJob[Any]], TrainOutcome] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of forward and backward."""
        return compute_dtype(self.options.precision, self.device)

    @property
    def starts_from_reference(self) -> bool:
        """Whether the reference is the starting model."""
        # One folder may be named in two ways.
        return self.reference is None or self.reference.resolve() == self.start.resolve()


@dataclass(frozen=True, slots=True)
class TrainOutcome:
    """What a training did. `metrics` has first_, last_ and mean_ of every per-step metric;
    `kernels` are `rlaif.train.model.kernels_in_use`, and `notes` what its reader should know."""

    steps: int
    tokens: int
    metrics: dict[str, float]
    skipped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    compute_dtype: str = ""
    kernels: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def write_outcome(work: Path, outcome: TrainOutcome) -> None:
    """Keep what a training did."""
    write_sealed(work / OUTCOME, asdict(outcome))


def read_outcome(work: Path, out: Path) -> TrainOutcome | None:
    """What the training did whose model is in `out`; None where it has not ended. Raises StoreError
    where either is damaged."""
    if not out.exists():
        return None
    advice = f"Delete the folder {work} to train again."
    row = read_sealed(work / OUTCOME, advice, required=False)
    # It is written before `out` gets its name, so an `out` without it is not this training's.
    if row is None:
        return None
    verify_folder(out, advice, (MASTERS,))
    try:
        return TrainOutcome(**row)
    except TypeError:
        raise StoreError(f"{work / OUTCOME}: damaged. {advice}") from None
