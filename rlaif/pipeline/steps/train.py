"""train: a policy from preferences or from its own answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.config.distill import DistillStep
from rlaif.config.models import TRAINABLE
from rlaif.config.on_policy import OnPolicyTrain
from rlaif.config.rewards import REFERENCE_ANSWERS
from rlaif.config.training import ReferenceTrain, TextStep, TrainStep
from rlaif.core.records import Prompt
from rlaif.core.yamlio import suggest
from rlaif.engines.base import Model
from rlaif.engines.model_folders import DORA
from rlaif.judges.base import Judge, has_raw_value, roles_of
from rlaif.pipeline.plan.base import (
    UNHASHED,
    Known,
    PlanInputs,
    Planned,
    Size,
    Walk,
    count_judge_calls,
    round_prompts,
)
from rlaif.pipeline.steps import judge as judge_step
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext

VERSION = 5
ON_POLICY_VERSION = 1
"""Of what a train step makes of fresh answers, beside `VERSION`."""
MAKES = "model"
SECONDS_PER_UNIT = 1.2

PREFERENCES = ("pair", "label", "filter", "load")
"""Kinds of steps that give preferences."""


def plan(walk: Walk, index: int, step: TrainStep) -> None:
    """The next policy, from preferences or from its own answers."""
    if isinstance(step, OnPolicyTrain):
        plan_on_policy(walk, index, step)
        return
    used = used_preferences(walk, index, step)
    walk.policy = plan_training(walk, index, "train", step, used, f"M{walk.round}")


def plan_on_policy(walk: Walk, index: int, step: OnPolicyTrain) -> None:
    """The rewards' judges and the prompts stand where other methods have preferences."""
    asked = _reward_models(walk, index, step)
    latest = {p.id: p for p in walk.preferences}
    mixes = getattr(step, "ptx_weight", 0.0) > 0
    used = walk.used(index, step.uses, latest, PREFERENCES) if mixes else []
    if mixes and not used:
        raise walk.inputs.fail(index, "ptx_weight needs preferences before it", "ptx_weight")
    ids = tuple(round_prompts(walk.inputs.prompts.train, None, walk.seed, walk.round))
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
    fault = terms_fault(step, walk.inputs.judges, walk.inputs.prompts.train)
    if fault is not None:
        raise walk.inputs.fail(index, fault, "rewards")
    conditions = any(term.when is not None for term in step.terms)
    parts = [
        {name: walk.inputs.judges[name].judge_hash for name in step.reward_judges},
        # The judges are asked as in a judge step, whose number counts here too.
        [judge_step.VERSION, ON_POLICY_VERSION],
        {name: model.identity() for name, model in asked.items()},
        walk.principle_weights(),
        ids,
        walk.facts(ids),
        walk.round,
        *([walk.origins(list(ids))] if conditions else []),
    ]
    label = f"M{walk.round}"
    walk.policy = plan_training(walk, index, "train", step, used, label, parts, asked, prompts=ids)


def _reward_models(walk: Walk, index: int, step: OnPolicyTrain) -> dict[str, Model]:
    """The models that the rewards' judges ask, by judge and role. Raises ConfigError for a judge
    that is not there."""
    judges = walk.experiment.all_judges()
    asked: dict[str, Model] = {}
    for name in step.reward_judges:
        if name not in judges:
            hint = suggest(name, sorted(judges))
            raise walk.inputs.fail(index, f"rewards: {name!r} is no judge{hint}", "rewards")
        for role, model in walk.asked(index, judges[name], "rewards").items():
            asked[f"judge/{name}" if role == "by" else f"judge/{name}/{role}"] = model
    return asked


def terms_fault(
    step: OnPolicyTrain, judges: Mapping[str, Judge], prompts: Sequence[Prompt]
) -> str | None:
    """What is wrong with the reward's terms: a raw value that the judge does not have, or a term
    that is for none of the training prompts."""
    for term in step.terms:
        if term.value == "raw" and not has_raw_value(judges[term.judge]):
            return (
                f"rewards: judge {term.judge!r} gives scores on [0, 1] and no raw value: leave "
                "`value: raw` out"
            )
        if term.when is not None and not any(term.is_for(prompt) for prompt in prompts):
            said = {key: known for key, known in term.when.model_dump().items() if known}
            tags = sorted({tag for prompt in prompts for tag in prompt.tags})
            sources = sorted({prompt.source for prompt in prompts} - {""})
            return (
                f"rewards: the term of judge {term.judge!r} is for none of the {len(prompts)} "
                f"training prompts (when: {said}). They have the tags {tags[:20]} and the sources "
                f"{sources[:20]}"
            )
    return None


def used_preferences(walk: Walk, index: int, step: TextStep) -> list[Planned]:
    """The steps whose preferences a training reads. Raises ConfigError where there are none."""
    latest = {p.id: p for p in walk.preferences}
    used = walk.used(index, step.uses, latest, PREFERENCES)
    if not used:
        kind = walk.experiment.steps[index].kind
        raise walk.inputs.fail(index, f"{kind} has no preferences: add a pair, label or load step")
    return used


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
) -> Model:
    """Plan one training and return the model that it will make. `more` are models that it looks at
    besides, by role."""
    models = {"start": walk.model(index, step.from_, "from"), **(more or {})}
    if isinstance(step, ReferenceTrain):
        models["reference"] = walk.model(index, step.reference, "reference")
    _refuse_untrainable(walk, index, step, models)
    keys = step.model_dump(mode="json", exclude=UNHASHED)
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
            inputs={f"preferences/{i}": p.hash for i, p in enumerate(used)},
            models={**models, **(judges or {}), "made": made},
            prompts=prompts,
            options={
                "completions": [h for p in used for h in _inputs_of_kind(p, "completions")],
                "judgements": [h for p in used for h in _inputs_of_kind(p, "judgements")],
                "principle_weights": walk.principle_weights(),
            },
        )
    )
    walk.by_id[step.id, walk.round] = planned
    return made


def _refuse_untrainable(
    walk: Walk, index: int, step: TextStep, models: Mapping[str, Model]
) -> None:
    """Raise ConfigError for a model that this training cannot start from or refer to."""
    for model in models.values():
        if model.spec.engine not in TRAINABLE:
            raise walk.inputs.fail(
                index, f"{model.label}: engine {model.spec.engine!r} cannot be trained"
            )
        if model.spec.adapter is not None:
            raise walk.inputs.fail(
                index,
                f"{model.label} has an `adapter`, and training starts from a whole checkpoint: "
                "merge it first (peft's `merge_and_unload`), or train with `lora` from `path`",
            )
    steps = [(p.hash, p.step) for p in walk.done]
    _refuse_unstackable(walk, index, step, dict(steps).get(models["start"].train_hash or ""))
    apart = {digest for digest, s in steps if isinstance(s, DistillStep) and s.members > 1}
    if models["start"].train_hash in apart:
        raise walk.inputs.fail(
            index,
            f"{models['start'].label} is an ensemble of adapters, and training needs one model to "
            "start from: take `from: initial`, or distill without `members`",
            "from",
        )
    if isinstance(step, OnPolicyTrain) and models["start"].spec.engine == "vllm-server":
        raise walk.inputs.fail(
            index,
            f"{step.method} samples from the weights of the moment, and a server would have to be "
            "started again for each of them: use engine vllm or hf for the policy",
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


def _inputs_of_kind(planned: Planned, kind: str) -> list[str]:
    return [h for name, h in planned.inputs.items() if name.startswith(f"{kind}/")]


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """Optimiser examples, and on-policy the rollouts with their verdicts."""
    step = planned.step
    if not isinstance(step, OnPolicyTrain):
        return Size(known.records_read(planned, "preferences") * getattr(step, "epochs", 1))
    judges = [
        count_judge_calls(
            inputs,
            planned,
            inputs.judges[name],
            _models_of_judge(planned, name, inputs.judges[name]),
            _count_answered_prompts(inputs, step, name),
            step.n,
        )
        for name in step.reward_judges
    ]
    learned = step.rollouts * step.batch_size * step.sync_every * step.n
    answers = _count_answered_prompts(inputs, step) * step.n
    calls, tokens = sum(j.calls for j in judges), sum(j.tokens for j in judges)
    new_tokens = answers * step.max_new_tokens + tokens
    return Size(learned * step.epochs, answers + calls, new_tokens, tuple(judges))


def _models_of_judge(planned: Planned, name: str, judge: Judge) -> dict[str, Model]:
    roles = {
        role: f"judge/{name}" if role == "by" else f"judge/{name}/{role}"
        for role in roles_of(judge)
    }
    return {role: planned.models[p] for role, p in roles.items() if p in planned.models}


def _count_answered_prompts(
    inputs: PlanInputs, step: OnPolicyTrain, judge: str | None = None
) -> int:
    """How often a prompt is answered, and judged by a judge: in the rollouts, and before them where
    `normalise: reference` is fitted on answers of the start policy."""
    count = step.rollouts * step.batch_size * step.sync_every
    if not any(t.normalise == "reference" and judge in (None, t.judge) for t in step.terms):
        return count
    at_once = min(len(inputs.prompts.train), -(-REFERENCE_ANSWERS // step.n))
    return count + -(-REFERENCE_ANSWERS // (at_once * step.n)) * at_once


def run(context: StepContext) -> dict[str, Any]:
    """Train from the last checkpoint, or from the start. What it needs is imported here, so that a
    plan needs no tensor library."""
    from rlaif.pipeline.steps.training import run_training

    return run_training(context)
