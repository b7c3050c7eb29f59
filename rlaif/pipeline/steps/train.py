"""train: a policy from preferences or from its own answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.config.base import hashed_keys
from rlaif.config.distill import DistillStep, Refresh
from rlaif.config.models import INITIAL, TRAINABLE
from rlaif.config.on_policy import RolloutTrain
from rlaif.config.rewards import REFERENCE_ANSWERS
from rlaif.config.training import ReferenceTrain, TextStep, TrainStep
from rlaif.core.errors import RlaifError
from rlaif.core.integrity import add_file
from rlaif.core.records import Judgement, Preference, Prompt
from rlaif.core.store import write_atomic
from rlaif.engines.base import Model
from rlaif.engines.build import whole
from rlaif.engines.model_folders import COPIES, DORA, weights_hash
from rlaif.judges.base import Judge, roles_of
from rlaif.pipeline.plan.base import (
    UNHASHED,
    Known,
    PlanInputs,
    Planned,
    Size,
    Walk,
    count_judge_calls,
    group_prompts,
    round_prompts,
    widen_to_groups,
)
from rlaif.pipeline.plan.episodes import most_turns
from rlaif.pipeline.steps import judge as judge_step
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext, lost_notes
from rlaif.pipeline.steps.model_card import CARD, model_card
from rlaif.pipeline.steps.pair import why_no_pairs
from rlaif.pipeline.steps.reward_judges import reward_models, terms_fault, turned_costs
from rlaif.pipeline.steps.sample import questions_of, refuse_unasked_set
from rlaif.pipeline.steps.training_data import (
    TrainingData,
    choose_data,
    find_sources,
    find_told,
    name_inputs,
    read_data,
)
from rlaif.pipeline.steps.written import find_judge_steps, list_asked
from rlaif.train.methods.on_policy_distillation import OnPolicyDistillationTrain
from rlaif.train.trackers import Log, Tracked, open_trackers

if TYPE_CHECKING:
    from rlaif.train.loop import TrainJob, TrainProgress

VERSION = 5
ON_POLICY_VERSION = 1
SUMMED_VERSION = 2
"""That of sums of several terms, since a judge that does not apply to an answer adds nothing to it
and answers without a reward are in no running mean."""
"""Of what a train step makes of fresh answers, beside `VERSION`."""
MAKES = "model"
SECONDS_PER_UNIT = 1.2


def plan(walk: Walk, index: int, step: TrainStep) -> None:
    """The next policy, from preferences and other given data, or from its own answers."""
    if isinstance(step, RolloutTrain):
        plan_on_policy(walk, index, step)
        return
    used = choose_data(walk, index, step)
    made = plan_training(walk, index, "train", step, used, walk.label_made(step.id))
    walk.policy = made if step.policy else walk.policy


def plan_on_policy(walk: Walk, index: int, step: RolloutTrain) -> None:
    """The rewards' judges and the prompts stand where other methods have preferences."""
    asked = reward_models(walk, index, step)
    used = choose_data(walk, index, step) if step.mixes_data else []
    names = step.prompts or [walk.stage.prompts]
    refuse_unasked_set(walk, index, *names)
    train = [p for name in names for p in walk.inputs.set_named(name).train]
    ids = tuple(round_prompts(train, None, walk.seed, walk.round))
    needed = step.batch_size * step.sync_every
    if needed > len(ids):
        raise walk.inputs.fail(
            index,
            f"a rollout needs {needed} prompts (batch_size x sync_every), and {len(ids)} are "
            "for training",
            "batch_size",
        )
    if step.n < 2 and any(walk.inputs.judges[name].comparative for name in step.reward_judges):
        raise walk.inputs.fail(index, "a judge that compares answers needs n of 2 or more", "n")
    fault = terms_fault(step, walk.inputs.judges, train)
    if fault is not None:
        raise walk.inputs.fail(index, fault, "rewards")
    turned = turned_costs(walk, index, step, asked)
    fault = _batches_fault(step, train)
    if fault is not None:
        raise walk.inputs.fail(index, fault, "batch_size")
    summed = step.adds_terms and len(step.terms) > 1
    conditions = any(term.when is not None for term in step.terms)
    asked_any = bool(step.terms)
    parts = [
        {name: walk.inputs.judges[name].judge_hash for name in step.reward_judges},
        # The judges are asked as in a judge step, whose number counts here too.
        [judge_step.VERSION, SUMMED_VERSION if summed else ON_POLICY_VERSION],
        {name: model.identity() for name, model in asked.items()},
        walk.principle_weights() if asked_any else {},
        ids,
        walk.facts(ids) if asked_any else [],
        walk.round,
        *([walk.origins(list(ids))] if conditions else []),
    ]
    label = walk.label_made(step.id)
    more = {}
    if isinstance(step, OnPolicyDistillationTrain):
        more = {"teacher": walk.model(index, step.teacher, "teacher")}
    inputs = questions_of(walk, *names)
    made = plan_training(
        walk, index, "train", step, used, label, parts, asked, more, ids, inputs, turned
    )
    walk.policy = made if step.policy else walk.policy


def _batches_fault(step: RolloutTrain, prompts: Sequence[Prompt]) -> str | None:
    """Why batches of this size would part the prompts of a group; None where they do not."""
    widths = sorted({len(unit) for unit in group_prompts(prompts)})
    if widths == [1] or (len(widths) == 1 and step.batch_size % widths[0] == 0):
        return None
    if len(widths) > 1:
        return (
            f"the training prompts stand in groups of {', '.join(map(str, widths))}, which no "
            "batch may part: train on sets whose groups are all of one size"
        )
    return (
        f"batch_size {step.batch_size} counts prompts, and these stand in groups of {widths[0]}, "
        f"which no batch may part: take a multiple of {widths[0]}"
    )


def plan_training(
    walk: Walk,
    index: int,
    kind: str,
    step: TextStep,
    used: list[Planned],
    label: str,
    parts: Sequence[Any] = (),
    judges: Mapping[str, Model] | None = None,
    more: Mapping[str, Model] | None = None,
    prompts: tuple[str, ...] = (),
    inputs: Mapping[str, str] | None = None,
    turned: Sequence[int] = (),
) -> Model:
    """Plan one training and return the model that it will make. `more` are models that it looks at
    besides, by role, `inputs` steps that it rests on besides, by name, and `turned` the places of
    costs whose judges give more to what is better."""
    if step.from_ == step.id and walk.made_by(step.id) is None:
        # From its own model of the round before; in the first round from M0.
        step = step.model_copy(update={"from_": INITIAL})
    models = {"start": walk.model(index, step.from_, "from"), **(more or {})}
    if isinstance(step, ReferenceTrain):
        models["reference"] = walk.model(index, step.reference, "reference")
    _refuse_untrainable(walk, index, step, models)
    keys = hashed_keys(step, exclude=UNHASHED)
    if isinstance(step, RolloutTrain):
        keys |= step.rollback_keys
    digest = step_hash(
        kind,
        keys,
        [p.hash for p in used],
        {role: model.identity() for role, model in models.items()},
        walk.seed,
        *parts,
    )
    made = Model(f"train:{digest}", label, models["start"].spec, digest)
    planned = walk.add(
        Planned(
            digest,
            kind,
            step.id,
            walk.seed,
            walk.round,
            step,
            inputs=name_inputs(used) | dict(inputs or {}),
            models={**models, **(judges or {}), "made": made},
            prompts=prompts,
            options={
                "completions": find_sources(used, "completions"),
                "judgements": find_sources(used, "judgements"),
                "asked": list_asked(find_judge_steps(walk, used)),
                "told": find_told(walk, index, step, used),
                "principle_weights": walk.principle_weights(),
                "turned_costs": list(turned),
                "plays": not walk.inputs.starts.keys().isdisjoint(prompts),
            },
            judges={name: walk.inputs.judges[name] for name in getattr(step, "reward_judges", ())},
        )
    )
    walk.by_id[step.id, walk.round] = planned
    walk.made.setdefault(step.id, {})[walk.round] = made
    return made


def _refuse_untrainable(
    walk: Walk, index: int, step: TextStep, models: Mapping[str, Model]
) -> None:
    """Raise ConfigError for a model that this training cannot start from or refer to."""
    for role, model in models.items():
        if model.spec.engine not in TRAINABLE:
            why = "cannot be trained" if role != "teacher" else "has no weights here"
            raise walk.inputs.fail(index, f"{model.label}: engine {model.spec.engine!r} {why}")
        if model.spec.adapter is not None:
            raise walk.inputs.fail(
                index,
                f"{model.label} has an `adapter`, and training starts from a whole checkpoint: "
                "merge it first (peft's `merge_and_unload`), or train with `lora` from `path`",
            )
    steps = {p.hash: p.step for p in walk.done}
    before = steps.get(models["start"].train_hash or "")
    _refuse_unstackable(walk, index, step, before)
    if isinstance(before, DistillStep) and before.members > 1:
        raise walk.inputs.fail(
            index,
            f"{models['start'].label} is an ensemble of adapters, and training needs one model to "
            "start from: take `from: initial`, or distill without `members`",
            "from",
        )
    _refuse_quantile_tokens(walk, index, step, models["start"], before)
    if isinstance(step, RolloutTrain) and models["start"].spec.engine == "vllm-server":
        raise walk.inputs.fail(
            index,
            f"{step.method} needs the token ids and log-probs of the answers, and engine "
            "vllm-server gives their text alone: use engine vllm or hf for the policy",
        )


def _refuse_quantile_tokens(
    walk: Walk, index: int, step: TextStep, start: Model, before: Any
) -> None:
    """Raise ConfigError for a model that cannot be given quantile tokens. `before` is the step that
    made it."""
    if not isinstance(step, RolloutTrain) or not step.quantile_tokens:
        return
    if start.spec.engine != "hf":
        raise walk.inputs.fail(
            index,
            f"{step.method} samples after tokens that only the module in training has: use engine "
            "hf for the policy",
        )
    if isinstance(before, RolloutTrain) and before.keeps_quantile_tokens:
        raise walk.inputs.fail(
            index,
            f"{start.label} has quantile tokens of its own, since step {before.id} keeps them: set "
            "`keep_tokens: false` there, or take another `from`",
            "from",
        )


def _refuse_unstackable(walk: Walk, index: int, step: TextStep, before: Any) -> None:
    """Raise ConfigError where an adapter is to be kept whose base would be an adapter alone, and
    the two cannot be written as one. `before` is the step that made the start."""
    first = before.lora if isinstance(before, TrainStep) else None
    second = step.lora if isinstance(step, TrainStep) else None
    if first is None or first.export != "adapter" or second is None or second.export == "merged":
        return
    if first.dora or second.dora:
        raise walk.inputs.fail(index, DORA, "lora")


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """Optimiser examples, and on-policy the rollouts with their verdicts."""
    step = planned.step
    if not isinstance(step, RolloutTrain):
        return Size(known.records_read(planned, "") * getattr(step, "epochs", 1))
    judges = [
        count_judge_calls(
            inputs,
            planned,
            planned.judges[name],
            _models_of_judge(planned, name, planned.judges[name]),
            _count_answered_prompts(inputs, planned, name),
            step.n,
        )
        for name in step.reward_judges
    ]
    sampled = step.sampled_rollouts
    learned = (sampled * step.n + step.rollouts - sampled) * step.batch_size * step.sync_every
    answers = _count_answered_prompts(inputs, planned) * step.n
    answers *= most_turns(inputs, planned.prompts)
    calls, tokens = sum(j.calls for j in judges), sum(j.tokens for j in judges)
    new_tokens = answers * step.max_new_tokens + tokens
    return Size(learned * step.epochs, answers + calls, new_tokens, tuple(judges))


def _models_of_judge(planned: Planned, name: str, judge: Judge) -> dict[str, Model]:
    roles = {
        role: f"judge/{name}" if role == "by" else f"judge/{name}/{role}"
        for role in roles_of(judge)
    }
    return {role: planned.models[p] for role, p in roles.items() if p in planned.models}


def _count_answered_prompts(inputs: PlanInputs, planned: Planned, judge: str | None = None) -> int:
    """How often a prompt is answered, and judged by a judge: in the rollouts, and before them where
    `normalise: reference` is fitted on answers of the start policy."""
    step = planned.step
    rollout = step.batch_size * step.sync_every
    if step.redraws:
        # At most: each time all of its prompts, as long as there are others.
        rollout = max(rollout, min(rollout * (1 + step.redraws), len(planned.prompts)))
    count: int = step.sampled_rollouts * rollout
    if not any(t.fits_reference and judge in (None, *t.judges) for t in step.terms):
        return count
    answers: int = step.n
    groups = map(inputs.groups.get, planned.prompts)
    widened = widen_to_groups(groups, -(-REFERENCE_ANSWERS // answers))
    at_once = min(len(planned.prompts), widened)
    return count + -(-REFERENCE_ANSWERS // (at_once * answers)) * at_once


def run(context: StepContext) -> dict[str, Any]:
    """Train from the last checkpoint, or from the start; the export is complete or absent. With
    `refresh` a reward model of the last round may be kept instead."""
    # Imported where it is trained, so that a plan needs no tensor library.
    from rlaif.train.reward_model import split
    from rlaif.train.run import find_trainer

    planned, step = context.planned, context.planned.step
    data = read_data(context)
    preferences = data.preferences
    if not (preferences or data.texts or step.SAMPLES):
        raise _nothing_to_train_on(context, data)
    refresh = step.refresh if planned.kind == "distill" else None
    measured: list[Preference] = []
    if refresh is not None:
        preferences, measured = split(preferences, refresh.held_out)
        kept = _keep_fresh(context, refresh, measured)
        if kept is not None:
            return kept
    # Sampling and judging are over: their memory is needed for gradients and optimiser state.
    context.engines.make_room(_count_processes(planned))
    out, work = context.store.model_path(planned.hash), context.folder.path / "work"
    if out.exists() and step.makes_masters and not (out / "masters").is_dir():
        # It was trained and its fp32 masters were dropped; a later step needs them again.
        for stale in (out, work):
            shutil.rmtree(stale)
    with open_trackers(step.trackers, _describe_training(context, len(preferences))) as trackers:
        job = _make_job(context, preferences, _report_steps(context, trackers))
        job = replace(job, texts=data.texts, unfinished=data.unfinished)
        if step.SAMPLES:
            from rlaif.pipeline.steps.on_policy import train_on_rollouts

            outcome = train_on_rollouts(context, job)
        else:
            outcome = find_trainer(job)(job)
    write_atomic(out / CARD, model_card(context, preferences, len(data.texts)))
    add_file(out, CARD)
    summary = {
        "counts": {
            "preferences": len(preferences),
            "steps": outcome.steps,
            **data.counts,
            **outcome.skipped,
        },
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


def _count_processes(planned: Planned) -> int:
    """How many processes the training is done by; a fit of heads is done by one."""
    import torch

    from rlaif.kernels.device import pick_device
    from rlaif.train.run import count_processes

    if not isinstance(planned.step, TrainStep):
        return 1
    device = pick_device(planned.models["start"].spec.device)
    return count_processes(planned.step, torch.device(device))


def _make_job(
    context: StepContext,
    preferences: list[Preference],
    report: Callable[[TrainProgress], None],
) -> TrainJob[Any]:
    """The step as a training: everything that it reads, and where it writes."""
    import torch

    from rlaif.kernels.device import pick_device
    from rlaif.train.loop import TrainJob

    planned, store = context.planned, context.store
    start = planned.models["start"]
    reference = planned.models.get("reference", planned.models.get("teacher"))
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
        spec=start.spec,
        fingerprint=planned.hash,
        progress=report,
        launch=context.launch,
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
    return Tracked(context.inputs.experiment.name, name, context.folder.path, keys | about)


def _with_accuracy(
    context: StepContext, summary: dict[str, Any], measured: list[Preference]
) -> dict[str, Any]:
    """The summary with the accuracy of what was trained on pairs that it was not trained on, which
    is also kept beside the model."""
    from rlaif.train.reward_model import accuracy, write_trained

    planned = context.planned
    out = context.store.model_path(planned.hash)
    folder = whole(out, context.store.root / COPIES)
    label = planned.models["made"].label
    engine = context.engines.load(planned.models["start"].spec, folder, label)
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
    from rlaif.train.reward_model import accuracy, is_stale, keep, read_trained

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


def _nothing_to_train_on(context: StepContext, data: TrainingData) -> RlaifError:
    if failed := data.counts.get("failed"):
        return RlaifError(
            f"there is nothing to train on: all {failed} answers failed. Look at their errors in "
            "the step that sampled them."
        )
    why = why_no_pairs(context.store, context.planned.inputs.values())
    return RlaifError(
        f"there are no preferences to train on{why}. Lower `min_margin` in `pair`, sample more "
        "answers per prompt, or look at the judges' answers and scores."
    )
