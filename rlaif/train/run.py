"""From preferences and a starting checkpoint to a trained checkpoint: what a train step calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from rlaif.config.on_policy import RolloutTrain
from rlaif.config.training import TextStep, TrainStep
from rlaif.core.chat import KEEP, ChatSettings
from rlaif.core.errors import ConfigError, RlaifError
from rlaif.core.records import Preference, to_json
from rlaif.core.resources import find_object
from rlaif.engines.build import whole
from rlaif.kernels.device import pick_device, release_freed_memory
from rlaif.train import checkpoint, parallel
from rlaif.train.checkpoint import export, export_member, from_masters
from rlaif.train.loading import load_module
from rlaif.train.loop import (
    TrainJob,
    TrainOutcome,
    TrainProgress,
    memory_advice,
    read_outcome,
    run_training,
    write_outcome,
)
from rlaif.train.model import TrainModel, prepare
from rlaif.train.preference import Reference, compute_reference, read_reference
from rlaif.train.reward_model import prepared, region_of
from rlaif.train.texts import add_texts
from rlaif.train.tokenise import (
    Encoded,
    Example,
    encode,
    load_any_tokenizer,
    load_tokenizer,
    model_limits,
    refuse_empty,
    refuse_other_tokens,
)

Trainer = Callable[[TrainJob[Any]], TrainOutcome]


def train(
    options: TextStep,
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
) -> TrainOutcome:
    """Train `start` on `preferences` and write the result to `out`. See `TrainJob`."""
    job = TrainJob(
        options=options,
        start=whole(Path(start)),
        reference=None if reference is None else whole(Path(reference)),
        out=Path(out),
        work=Path(work),
        seed=seed,
        device=torch.device(pick_device(device)),
        preferences=preferences,
        token_ids=token_ids,
        chat=chat,
        progress=progress,
    )
    return find_trainer(job)(job)


def find_trainer(job: TrainJob[Any]) -> Trainer:
    """What does the job: the trainer of its method or, when `out` is there already, a function that
    returns the outcome stored beside it."""
    known = read_outcome(job.work, job.out)
    if known is not None:
        # A kill after the export may have left some.
        checkpoint.clear(job.work)
        return lambda job: known
    trainer: Trainer = train_on_preferences if job.member else find_object(job.options.trainer)
    return trainer


def train_on_preferences(job: TrainJob[TrainStep]) -> TrainOutcome:
    """Train on the job's preferences and texts, in this process or in several that it starts."""
    options, work = job.options, job.work
    if not (job.preferences or job.texts):
        raise RlaifError(
            "there are no preferences to train on. Every pair was dropped: lower `min_margin` in "
            "`pair`, sample more answers per prompt, or look at the judges' scores."
        )
    if job.launch is not None:
        return job.launch(job)
    processes = count_processes(job.options, job.device)
    # The ranks that are launched come here too, with a world above 1.
    if processes > 1 and parallel.world() == 1:
        return _launch_training(job, processes)
    encoded = encode_data(job)
    work.mkdir(parents=True, exist_ok=True)
    stored: Reference = {}
    if options.compares and job.reference is not None and not job.starts_from_reference:
        refuse_other_tokens(job.start, job.reference, encoded.examples)
        # Before the policy is loaded, since two models need not fit at once.
        stored = _other_reference(job, job.reference, encoded.examples)
    torch.manual_seed(job.seed)
    with memory_advice(options):
        model = load_trainable(job)
        if options.compares and job.starts_from_reference:
            path = work / "reference.jsonl"
            stored = compute_reference(model, encoded.examples, options, job.seed, path)
    task = find_object(options.TASK)(encoded.examples, stored, options, job.starts_from_reference)
    outcome = run_training(task, model, options, work, job.seed, job.progress)
    outcome = replace(outcome, skipped=encoded.counts)
    # Before the export: a model in `out` without its outcome would be trained again.
    if parallel.rank() == 0:
        write_outcome(work, outcome)
    known = options.MAKES_REWARD_MODEL and not job.member
    # While the model still runs: gathering and exporting take it apart.
    region = region_of(model, encoded.examples, options) if known else None
    model.gather()
    if parallel.rank() == 0:
        if job.member:
            assert options.lora is not None
            export_member(model, job.start, job.out, options.lora)
        else:
            export(model, job.start, job.out, options.lora, region)
        # Only now, since until `out` is there a rerun needs them.
        checkpoint.clear(work)
    parallel.wait()
    del model
    release_freed_memory()
    return outcome


def encode_data(job: TrainJob[Any]) -> Encoded:
    """The job's preferences and texts as the examples that its method learns from. Raises
    RlaifError where none is left, or some are such as the method cannot learn from."""
    options, preferences, counts = job.options, job.preferences, {}
    refuse_single(options, preferences)
    if options.MAKES_REWARD_MODEL:
        preferences, repeated = prepared(preferences, options)
        counts = {"repeated": repeated}
    limits = model_limits(job.start)
    encoded = Encoded()
    # Texts alone need no chat template.
    if preferences or not job.texts:
        encoded = encode(
            preferences,
            load_tokenizer(job.start),
            job.token_ids,
            both=options.LEARNS_FROM != "good answers",
            max_length=options.max_length,
            overlong=options.overlong,
            train_on_eos=options.MAKES_REWARD_MODEL or options.train_on_eos,
            chat=job.chat,
            always_end=options.MAKES_REWARD_MODEL,
            reasoning=options.reasoning,
            limits=limits,
            on_error=options.on_error,
            unfinished=job.unfinished,
        )
    if job.texts:
        add_texts(encoded, job.texts, load_any_tokenizer(job.start), options, limits)
    refuse_empty(
        encoded, len(preferences) + len(job.texts), options.max_length, options.overlong, limits
    )
    encoded.examples = options.arrange_examples(encoded.examples)
    encoded.counts |= counts
    return encoded


def refuse_single(options: TextStep, preferences: Sequence[Preference]) -> None:
    """Raise RlaifError when some answers stand alone and the method cannot learn from them."""
    if options.LEARNS_FROM == "answers":
        return
    if options.LEARNS_FROM == "good answers":
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


def load_trainable(job: TrainJob[Any]) -> TrainModel:
    """The job's start, made ready to be trained."""
    options = job.options
    module = load_module(
        job.start,
        _loading_device(job),
        options.MAKES_REWARD_MODEL,
        from_masters(job.start, options.lora),
    )
    return prepare(
        module,
        job.device,
        job.dtype,
        options.lora,
        options.gradient_checkpointing,
        sharded=options.sharding == "full",
    )


def load_frozen(job: TrainJob[Any], folder: Path) -> TrainModel:
    """The model in a folder as one that only computes log-probs."""
    module, sharded = load_module(folder, _loading_device(job)), job.options.sharding == "full"
    return prepare(module, job.device, job.dtype, trainable=False, sharded=sharded)


def load_copy(job: TrainJob[RolloutTrain]) -> TrainModel | None:
    """The job's start once more, whole on this rank, which samples with the weights that a split
    policy gives it. An engine that samples elsewhere gets them from the first rank's main memory;
    the others then need none."""
    assert job.spec is not None, "a rank that samples knows the model's settings"
    here = job.spec.engine == "hf"
    if not here and parallel.rank() > 0:
        return None
    device, lora = job.device if here else torch.device("cpu"), job.options.lora
    # In fp32 it need not fit the device.
    module = load_module(job.start, torch.device("cpu"), masters=from_masters(job.start, lora))
    copy = prepare(module, device, job.dtype, lora, trainable=False)
    copy.module.to(device)
    return copy


def _loading_device(job: TrainJob[TrainStep]) -> torch.device:
    """A model that is to be split may be too large for one device."""
    return torch.device("cpu") if job.options.sharding == "full" else job.device


def count_processes(options: TrainStep, device: torch.device) -> int:
    """How many processes a training is to be done by. Raises ConfigError where a model is to be
    split over one."""
    # `cuda:1` stands for itself, and `cuda` for all that there are.
    all_devices = device.type == "cuda" and device.index is None
    found = torch.cuda.device_count() if all_devices else 1
    count: int = found if options.processes == "auto" else options.processes
    if options.sharding == "full" and count * parallel.world() == 1:
        raise ConfigError(
            "`sharding: full` splits the model over several processes, and `processes: auto` means "
            f"one on {device}: set `processes`, or `sharding: none`"
        )
    return count


def request_of(job: TrainJob[Any]) -> dict[str, Any]:
    """The job as JSON, for the processes that run `rlaif.train.worker`."""
    return {
        "kind": job.options.method,
        "options": job.options.model_dump(mode="json", by_alias=True),
        "preferences": [to_json(p) for p in job.preferences],
        "token_ids": dict(job.token_ids),
        "texts": list(job.texts),
        "unfinished": sorted(job.unfinished),
        "start": str(job.start),
        "reference": str(job.reference) if job.reference else None,
        "seed": job.seed,
        "device": str(job.device),
        "chat": asdict(job.chat),
        "fingerprint": job.fingerprint,
        "spec": job.spec and job.spec.model_dump(mode="json", by_alias=True),
        "member": job.member,
        "out": str(job.out),
        "work": str(job.work),
    }


def _launch_training(job: TrainJob[TrainStep], processes: int) -> TrainOutcome:
    """Do the job in several processes, each of which runs `rlaif.train.worker`."""

    def report_row(row: dict[str, Any]) -> None:
        """A line of progress from the first process."""
        if job.progress is not None:
            job.progress(TrainProgress(**row))

    return TrainOutcome(**parallel.launch(request_of(job), processes, job.work, report_row))


def _other_reference(
    job: TrainJob[TrainStep], folder: Path, examples: Sequence[Example]
) -> Reference:
    """Log-probs of a reference that is not the start; its memory is free again afterwards."""
    path = job.work / "reference.jsonl"
    known = read_reference(path)
    # Nothing is missing, so the reference is not loaded.
    if all(e.example_id in known for e in examples):
        return known
    with memory_advice(job.options):
        model = load_frozen(job, folder)
        known = compute_reference(model, examples, job.options, job.seed, path)
    del model
    release_freed_memory()
    return known
