"""From preferences and a starting checkpoint to a trained checkpoint: what a train step calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from rlaif.config.distill import DistillStep
from rlaif.config.on_policy import OnPolicyTrain, PpoTrain
from rlaif.config.training import KtoTrain, ReferenceTrain, TextStep, TrainStep
from rlaif.core.chat import KEEP, ChatSettings
from rlaif.core.errors import ConfigError, RlaifError
from rlaif.core.records import Preference, to_json
from rlaif.engines.build import whole
from rlaif.kernels.device import release_freed_memory
from rlaif.train import checkpoint, parallel
from rlaif.train.export import export, export_member, from_masters
from rlaif.train.loading import load_module
from rlaif.train.loop import (
    Task,
    TrainOutcome,
    TrainProgress,
    memory_advice,
    read_outcome,
    run_training,
    write_outcome,
)
from rlaif.train.model import TrainModel, compute_dtype, prepare
from rlaif.train.on_policy import Collect, add_critic, drop_critic, run_on_policy
from rlaif.train.preference import (
    KtoTask,
    PreferenceTask,
    Reference,
    SftTask,
    add_mismatched,
    compute_reference,
    read_reference,
)
from rlaif.train.reward_model import RewardTask, examples_of, prepared, region_of
from rlaif.train.tokenise import (
    Encoded,
    Example,
    encode,
    load_tokenizer,
    model_limits,
    refuse_empty,
    refuse_other_tokens,
)

CHOSEN_ONLY = ("sft", "ppo")
"""Methods that learn from good answers; ppo where it mixes some in."""
log = logging.getLogger(__name__)


def train(
    options: TrainStep,
    preferences: Sequence[Preference],
    token_ids: Mapping[str, list[int]],
    start: str | Path,
    reference: str | Path | None,
    out: str | Path,
    work: str | Path,
    seed: int,
    device: str = "auto",
    progress: Callable[[TrainProgress], None] | None = None,
    chat: ChatSettings = KEEP,
    merge: bool = True,
) -> TrainOutcome:
    """Train `start` on `preferences` and write the result to `out`; without `merge` the adapter of
    a reward model alone.

    `start` and `reference` (None: the start itself) are checkpoint folders; fp32 weights in their
    `masters/` are preferred to the bf16 ones. `token_ids` maps completion ids to the tokens the
    policy sampled. `work` holds what a rerun continues from. `out` is complete or absent; when it
    is there already, the outcome stored beside it is returned.
    """
    start, out, work = whole(Path(start)), Path(out), Path(work)
    reference = None if reference is None else whole(Path(reference))
    known = read_outcome(work, out)
    if known is not None:
        checkpoint.clear(work)
        return known
    if not preferences:
        raise RlaifError(
            "there are no preferences to train on. Every pair was dropped: lower `min_margin` in "
            "`pair`, sample more answers per prompt, or look at the judges' scores."
        )
    where = torch.device(_pick(device))
    processes = _processes(options, where)
    if processes > 1 and parallel.world() == 1:
        request = {
            "kind": options.method,
            "options": options.model_dump(mode="json", by_alias=True),
            "preferences": [to_json(p) for p in preferences],
            "token_ids": dict(token_ids),
            "start": str(start),
            "reference": str(reference) if reference else None,
            "seed": seed,
            "device": str(where),
            "chat": asdict(chat),
            "merge": merge,
        }
        return _launch(request, processes, out, work, progress)
    encoded = _encode(options, preferences, token_ids, start, chat)
    return _train_here(options, encoded, start, reference, out, work, seed, where, progress, merge)


def _train_here(
    options: TrainStep,
    encoded: Encoded,
    start: Path,
    reference: Path | None,
    out: Path,
    work: Path,
    seed: int,
    where: torch.device,
    progress: Callable[[TrainProgress], None] | None,
    merge: bool,
) -> TrainOutcome:
    """Train in this process, which may be one of several."""
    work.mkdir(parents=True, exist_ok=True)
    dtype = compute_dtype(options.precision, where)
    same = reference is None or reference.resolve() == start.resolve()
    stored: Reference = {}
    compares = isinstance(options, ReferenceTrain)
    if compares and reference is not None and not same:
        refuse_other_tokens(start, reference, encoded.examples)
        stored = _other_reference(reference, encoded.examples, options, seed, work, where, dtype)
    torch.manual_seed(seed)
    with memory_advice(options):
        model = _trainable(options, start, where, dtype)
        if compares and same:
            path = work / "reference.jsonl"
            stored = compute_reference(model, encoded.examples, options, seed, path)
    outcome = _run(options, encoded, stored, same, model, work, seed, progress)
    known = merge and isinstance(options, DistillStep)
    region = region_of(model, encoded.examples, options) if known else None
    model.gather()
    if parallel.rank() == 0:
        if merge:
            export(model, start, out, options.lora, region)
        else:
            assert options.lora is not None
            export_member(model, start, out, options.lora)
        checkpoint.clear(work)
    parallel.wait()
    del model
    release_freed_memory()
    return outcome


def _trainable(
    options: TrainStep, folder: Path, device: torch.device, dtype: torch.dtype
) -> TrainModel:
    reward, exact = isinstance(options, DistillStep), from_masters(folder, options.lora)
    module = load_module(folder, _load_on(options, device), reward, exact)
    checkpointing, sharded = options.gradient_checkpointing, options.sharding == "full"
    return prepare(module, device, dtype, options.lora, checkpointing, sharded=sharded)


def _processes(options: TrainStep, device: torch.device) -> int:
    count = options.processes
    if count == "auto":
        all_devices = device.type == "cuda" and device.index is None
        count = torch.cuda.device_count() if all_devices else 1
    if options.sharding == "full" and count * parallel.world() == 1:
        raise ConfigError(
            "`sharding: full` splits the model over several processes, and `processes: auto` means "
            f"one on {device}: set `processes`, or `sharding: none`"
        )
    return count


def _load_on(options: TrainStep, device: torch.device) -> torch.device:
    """A model that is to be split may be too large for one device."""
    return torch.device("cpu") if options.sharding == "full" else device


def _launch(
    request: dict[str, Any],
    processes: int,
    out: Path,
    work: Path,
    progress: Callable[[TrainProgress], None] | None,
) -> TrainOutcome:
    def told(row: dict[str, Any]) -> None:
        """A line of progress from the first process."""
        if progress is not None:
            progress(TrainProgress(**row))

    whole = {**request, "out": str(out), "work": str(work)}
    return TrainOutcome(**parallel.launch(whole, processes, work, told))


def train_on_policy(
    options: OnPolicyTrain,
    collect: Collect,
    preferences: Sequence[Preference],
    start: Path,
    reference: Path | None,
    out: Path,
    work: Path,
    seed: int,
    fingerprint: str,
    device: str = "auto",
    progress: Callable[[TrainProgress], None] | None = None,
    chat: ChatSettings = KEEP,
) -> TrainOutcome:
    """Train `start` on answers that `collect` samples from it, and write the result to `out`.

    `preferences` are those that PPO's `ptx_weight` mixes in. `fingerprint` covers all that decides
    the result. Otherwise as `train`.
    """
    known = read_outcome(work, out)
    if known is not None:
        checkpoint.clear(work)
        return known
    work.mkdir(parents=True, exist_ok=True)
    if reference is not None and options.compares:
        refuse_other_tokens(start, reference)
    where = torch.device(_pick(device))
    dtype = compute_dtype(options.precision, where)
    torch.manual_seed(seed)
    ptx: list[Example] = []
    if isinstance(options, PpoTrain) and options.ptx_weight > 0:
        if not preferences:
            raise RlaifError(
                "ptx_weight mixes in chosen answers, and there are no preferences: run ppo in an "
                "experiment after a pair or load step, or set `ptx_weight: 0`"
            )
        ptx = _encode(options, preferences, {}, start, chat).examples
    critic = None
    with memory_advice(options):
        model = _trainable(options, start, where, dtype)
        if isinstance(options, PpoTrain):
            separate = options.critic == "separate"
            own = _trainable(options, start, where, dtype) if separate else None
            critic = add_critic(model, own)
        frozen = _reference_model(options, model, start, reference, where, dtype)
    outcome = run_on_policy(
        model, options, collect, frozen, critic, ptx, work, seed, fingerprint, progress
    )
    write_outcome(work, outcome)
    if critic is not None:
        drop_critic(model)
    export(model, start, out, options.lora)
    checkpoint.clear(work)
    del model, frozen
    release_freed_memory()
    return outcome


def _reference_model(
    options: OnPolicyTrain,
    model: TrainModel,
    start: Path,
    reference: Path | None,
    device: torch.device,
    dtype: torch.dtype,
) -> TrainModel | None:
    """The policy itself, whose adapters are to be switched off, or a second model in memory."""
    if not options.compares:
        return None
    if reference is None and options.lora is not None:
        return model
    folder = reference or start
    log.info("the reference is a second copy in memory: %s", folder)
    return prepare(load_module(folder, device), device, dtype, trainable=False)


def _pick(device: str) -> str:
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _encode(
    options: TrainStep,
    preferences: Sequence[Preference],
    token_ids: Mapping[str, list[int]],
    start: Path,
    chat: ChatSettings,
) -> Encoded:
    refuse_single(options, preferences)
    repeated = 0
    if isinstance(options, DistillStep):
        preferences, repeated = prepared(preferences, options)
    limits = model_limits(start)
    encoded = encode(
        preferences,
        load_tokenizer(start),
        token_ids,
        both=options.method not in CHOSEN_ONLY,
        max_length=options.max_length,
        overlong=options.overlong,
        train_on_eos=options.train_on_eos,
        chat=chat,
        always_end=isinstance(options, DistillStep),
        reasoning=options.reasoning,
        limits=limits,
        on_error=options.on_error,
    )
    refuse_empty(encoded, len(preferences), options.max_length, options.overlong, limits)
    if options.method == "kto":
        if any(e.prob != 1.0 for e in encoded.examples):
            raise RlaifError(
                "kto learns from each answer for itself and has no use for a pair's soft label "
                "(`prob`): take another method, or leave `consistency` out of `pair`"
            )
        refuse_one_class(encoded.examples)
        encoded.examples = add_mismatched(encoded.examples)
    if isinstance(options, DistillStep):
        encoded.examples = examples_of(encoded.examples, options)
        encoded.counts["repeated"] = repeated
    return encoded


def refuse_single(options: TextStep, preferences: Sequence[Preference]) -> None:
    """Raise RlaifError when some answers stand alone and the method cannot learn from them."""
    if options.method == "kto":
        return
    if options.method in CHOSEN_ONLY:
        unfit = [p for p in preferences if not p.chosen]
        what, wanted = "are answers labelled bad", "good answers"
    else:
        unfit = [p for p in preferences if not p.paired]
        what, wanted = "are answers that stand alone", "pairs of a chosen and a rejected answer"
    if unfit:
        text = unfit[0].prompt[-1]["content"]
        raise RlaifError(
            f"{len(unfit)} of {len(preferences)} rows {what}, and {options.method} learns from "
            f"{wanted}. The first is to the prompt {text[:60]!r} ({unfit[0].prompt_id}). Answers "
            "that stand alone are for kto, and good ones for sft as well."
        )


def refuse_one_class(examples: Sequence[Example]) -> None:
    """Raise RlaifError when all answers are good or all are bad: kto tells the two apart."""
    classes = {good for example in examples for good in example.desirable}
    if len(classes) == 1:
        said = "good" if True in classes else "bad"
        raise RlaifError(
            f"all {len(examples)} answers are {said}, and kto learns to tell good from bad: add "
            "rows with the other `label`. Good answers alone are for sft."
        )


def _other_reference(
    folder: Path,
    examples: Sequence[Example],
    options: TrainStep,
    seed: int,
    work: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> Reference:
    """Log-probs of a reference that is not the start; its memory is free again afterwards."""
    path = work / "reference.jsonl"
    known = read_reference(path)
    if all(e.example_id in known for e in examples):
        return known
    with memory_advice(options):
        module = load_module(folder, _load_on(options, device))
        sharded = options.sharding == "full"
        model = prepare(module, device, dtype, trainable=False, sharded=sharded)
        del module
        known = compute_reference(model, examples, options, seed, path)
    del model
    release_freed_memory()
    return known


def _run(
    options: TrainStep,
    encoded: Encoded,
    stored: Reference,
    same: bool,
    model: TrainModel,
    work: Path,
    seed: int,
    progress: Callable[[TrainProgress], None] | None,
) -> TrainOutcome:
    task: Task
    if isinstance(options, DistillStep):
        task = RewardTask(encoded.examples, options)
    elif options.method == "sft":
        task = SftTask(encoded.examples)
    elif isinstance(options, KtoTrain):
        task = KtoTask(encoded.examples, stored, options, same)
    else:
        task = PreferenceTask(encoded.examples, stored, options, same)
    outcome = run_training(task, model, options, work, seed, progress)
    outcome = replace(outcome, skipped=encoded.counts)
    if parallel.rank() == 0:
        write_outcome(work, outcome)
    return outcome
