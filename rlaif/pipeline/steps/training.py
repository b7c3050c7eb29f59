"""What a train or distill step runs: one model from preferences, exported as a Hugging Face
checkpoint with a model card."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rlaif.config.distill import Refresh
from rlaif.core.errors import RlaifError
from rlaif.core.integrity import add_file
from rlaif.core.records import Judgement, Preference
from rlaif.core.store import write_atomic
from rlaif.engines.build import load_engine, whole
from rlaif.engines.model_folders import COPIES, weights_hash
from rlaif.kernels.device import pick_device
from rlaif.pipeline.plan.base import UNHASHED
from rlaif.pipeline.steps.context import StepContext, lost_notes
from rlaif.pipeline.steps.model_card import model_card
from rlaif.pipeline.steps.pair import why_no_pairs
from rlaif.train.loop import TrainJob, TrainProgress
from rlaif.train.reward_model import accuracy, is_stale, keep, read_trained, split, write_trained
from rlaif.train.run import find_trainer
from rlaif.train.trackers import Log, Tracked, open_trackers

CARD = "README.md"


def run_training(context: StepContext) -> dict[str, Any]:
    """Train from the last checkpoint, or from the start; the export is complete or absent. With
    `refresh` a reward model of the last round may be kept instead."""
    planned, step = context.planned, context.planned.step
    preferences = context.preferences()
    if not preferences and not step.SAMPLES:
        raise _nothing_to_train_on(context)
    refresh = step.refresh if planned.kind == "distill" else None
    measured: list[Preference] = []
    if refresh is not None:
        preferences, measured = split(preferences, refresh.held_out)
        kept = _keep_fresh(context, refresh, measured)
        if kept is not None:
            return kept
    # Sampling and judging are over: their memory is needed for gradients and optimiser state.
    context.engines.make_room()
    out, work = context.store.model_path(planned.hash), context.folder.path / "work"
    if out.exists() and step.makes_masters and not (out / "masters").is_dir():
        # It was trained and its fp32 masters were dropped; a later step needs them again.
        for stale in (out, work):
            shutil.rmtree(stale)
    with open_trackers(step.trackers, _describe_training(context, len(preferences))) as trackers:
        job = _make_job(context, preferences, _report_steps(context, trackers))
        if step.SAMPLES:
            from rlaif.pipeline.steps.on_policy import train_on_rollouts

            outcome = train_on_rollouts(context, job)
        else:
            outcome = find_trainer(job)(job)
    write_atomic(out / CARD, model_card(context, preferences))
    add_file(out, CARD)
    summary = {
        "counts": {"preferences": len(preferences), "steps": outcome.steps, **outcome.skipped},
        "tokens": outcome.tokens,
        "summary": outcome.metrics,
        "kernels": outcome.kernels,
        "notes": [
            *(f"{planned.id}: {why}" for why in outcome.kernels.get("left_out", ())),
            *(f"{planned.id}: {why}" for why in outcome.notes),
            *lost_notes(planned.id, outcome.skipped),
        ],
        "weights_hash": weights_hash(out),
    }
    return summary if refresh is None else _with_accuracy(context, summary, measured)


def _make_job(
    context: StepContext,
    preferences: list[Preference],
    report: Callable[[TrainProgress], None],
) -> TrainJob[Any]:
    """The step as a training: everything that it reads, and where it writes."""
    planned, store = context.planned, context.store
    start, reference = planned.models["start"], planned.models.get("reference")
    token_ids: dict[str, list[int]] = {}
    judgements: list[Judgement] = []
    if not planned.step.SAMPLES:
        for digest in planned.options["completions"]:
            rows = store.step(digest).read("completions")
            token_ids |= {r["completion_id"]: r["token_ids"] for r in rows if r["token_ids"]}
    if planned.step.USES_RATINGS:
        for digest in planned.options["judgements"]:
            judgements += store.step(digest).records(Judgement)
    other = None if reference in (None, start) else reference
    return TrainJob(
        options=planned.step,
        start=Path(context.engines.folder(start)),
        reference=None if other is None else Path(context.engines.folder(other)),
        out=store.model_path(planned.hash),
        work=context.folder.path / "work",
        seed=planned.seed,
        device=torch.device(pick_device(start.spec.device)),
        preferences=preferences,
        token_ids=token_ids,
        judgements=judgements,
        chat=start.spec.chat,
        fingerprint=planned.hash,
        progress=report,
    )


def _report_steps(context: StepContext, trackers: Sequence[Log]) -> Callable[[TrainProgress], None]:
    """What shows every optimiser step, and tells the trackers."""
    done: int | None = None

    def report_step(progress: TrainProgress) -> None:
        nonlocal done
        if done is None:
            done = progress.step - 1
            context.progress.start("optimiser steps", progress.total_steps, done)
        name = "reward" if "reward" in progress.metrics else "loss"
        what = f"{name} {progress.metrics[name]:.3f}"
        for log in trackers:
            log(progress.step, progress.metrics)
        # A rollout with few pairs leaves out steps.
        note = f"{progress.tokens_per_second:.0f} tok/s, {what}"
        context.progress.advance(progress.step - done, note=note)
        done = progress.step

    return report_step


def _describe_training(context: StepContext, preferences: int) -> Tracked:
    """What trackers are told of this training besides its numbers."""
    planned, step = context.planned, context.planned.step
    start, reference = planned.models["start"], planned.models.get("reference")
    about = {
        "step": planned.id,
        "seed": planned.seed,
        "round": planned.round,
        "model": start.spec.path,
        "start": start.label,
        "reference": None if reference is None else reference.label,
        "preferences": preferences,
        "hash": planned.hash,
    }
    # The rest of the keys is in no hash: it may change under a training that goes on.
    keys = step.model_dump(mode="json", by_alias=True, exclude=UNHASHED)
    name = f"{planned.id}-seed{planned.seed}-round{planned.round}-{planned.hash[:8]}"
    return Tracked(context.inputs.experiment.name, name, context.folder.path, about | keys)


def _with_accuracy(
    context: StepContext, summary: dict[str, Any], measured: list[Preference]
) -> dict[str, Any]:
    """The summary with the accuracy of what was trained on pairs that it was not trained on, which
    is also kept beside the model."""
    planned = context.planned
    out = context.store.model_path(planned.hash)
    folder = whole(out, context.store.root / COPIES)
    engine = load_engine(planned.models["start"].spec, folder, planned.models["made"].label)
    try:
        found = accuracy(engine, measured, planned.step)
    finally:
        engine.close()
    write_trained(out, planned.round, found)
    return summary | {"summary": summary["summary"] | {"held_out_accuracy": found.mean}}


def _keep_fresh(
    context: StepContext, refresh: Refresh, measured: list[Preference]
) -> dict[str, Any] | None:
    """The step's summary where the last round's model is kept; None where there is none yet, or it
    is stale."""
    planned = context.planned
    last = planned.models.get("last")
    if last is None or last.train_hash is None:
        return None
    folder = context.store.model_path(last.train_hash)
    trained = read_trained(folder)
    found = accuracy(context.engines.get(last), measured, planned.step)
    if is_stale(trained, found, refresh.drop):
        return None
    out = context.store.model_path(planned.hash)
    keep(folder, out)
    return {
        "counts": {"preferences": 0, "steps": 0, "kept_since_round": trained.round},
        "summary": {"held_out_accuracy": found.mean, "accuracy_when_trained": trained.mean},
        "weights_hash": weights_hash(out),
    }


def _nothing_to_train_on(context: StepContext) -> RlaifError:
    why = why_no_pairs(context.store, context.planned.inputs.values())
    return RlaifError(
        f"there are no preferences to train on{why}. Lower `min_margin` in `pair`, sample more "
        "answers per prompt, or look at the judges' answers and scores."
    )
