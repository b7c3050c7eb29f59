"""Planning the steps that make models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.config.distill import DistillStep, FitStep
from rlaif.config.models import TRAINABLE
from rlaif.config.on_policy import OnPolicyTrain
from rlaif.config.training import ReferenceTrain, TextStep, TrainStep
from rlaif.core.records import Prompt
from rlaif.core.yamlio import suggest
from rlaif.engines.base import Model
from rlaif.engines.local.adapters import DORA
from rlaif.judges.base import Judge, has_raw_value
from rlaif.pipeline.plan.base import VERSIONS, Planned, round_prompts, step_hash
from rlaif.pipeline.plan.walk import Walk

UNHASHED = {"id", "uses", "checkpoint_every", "trackers", "gates"}
"""Keys of a training that change nothing in what it makes: a gate ends it or leaves it alone."""
PREFERENCES = ("pair", "label", "filter", "load")
"""Kinds of steps that give preferences."""


def plan_train(walk: Walk, index: int, step: TrainStep) -> None:
    """The next policy, from preferences."""
    used = _preferences(walk, index, step)
    walk.policy = _trained(walk, index, "train", step, used, f"M{walk.round}")


def plan_distill(walk: Walk, index: int, step: DistillStep | FitStep) -> None:
    """A reward model from preferences, known to judges by the step's id. From its own id it goes on
    from the last round's, and in the first round from M0. With `refresh` the last round's may be
    kept."""
    used = _preferences(walk, index, step)
    if step.from_ == step.id and step.id not in walk.reward_models:
        step = step.model_copy(update={"from_": "initial"})
    last = walk.reward_models.get(step.id)
    kept = {"last": last} if step.refresh is not None and last is not None else {}
    made = _trained(walk, index, "distill", step, used, f"{step.id}{walk.round}", more=kept)
    walk.reward_models[step.id] = made


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
        [VERSIONS["judge"], VERSIONS["on_policy"]],
        {name: model.identity() for name, model in asked.items()},
        walk.principle_weights(),
        ids,
        walk.facts(ids),
        walk.round,
        *([walk.origins(list(ids))] if conditions else []),
    ]
    label = f"M{walk.round}"
    walk.policy = _trained(walk, index, "train", step, used, label, parts, asked, prompts=ids)


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


def _preferences(walk: Walk, index: int, step: TextStep) -> list[Planned]:
    latest = {p.id: p for p in walk.preferences}
    used = walk.used(index, step.uses, latest, PREFERENCES)
    if not used:
        kind = walk.experiment.steps[index].kind
        raise walk.inputs.fail(index, f"{kind} has no preferences: add a pair, label or load step")
    return used


def _trained(
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
                "completions": [h for p in used for h in _inputs(p, "completions")],
                "judgements": [h for p in used for h in _inputs(p, "judgements")],
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


def _inputs(planned: Planned, kind: str) -> list[str]:
    return [h for name, h in planned.inputs.items() if name.startswith(f"{kind}/")]
