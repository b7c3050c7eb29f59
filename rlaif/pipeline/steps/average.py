"""average: one model of several, by the mean of their weights or the best of them.

Where a judge chooses, each model's answers to the validation prompts are planned as steps of their
own, and so is every soup that `method: greedy` may try: how many there may be is known beforehand,
and what is in each shows when it is made.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.config.average import AverageStep
from rlaif.config.distill import DistillStep, FitStep
from rlaif.config.models import TRAINABLE
from rlaif.core.errors import ConfigError, RlaifError
from rlaif.core.integrity import add_file
from rlaif.core.store import write_atomic
from rlaif.engines.base import Model
from rlaif.engines.build import is_reward_model
from rlaif.engines.model_folders import locate, weights_hash
from rlaif.pipeline.plan.base import Known, PlanInputs, Planned, Size, Walk
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext
from rlaif.pipeline.steps.model_card import CARD, average_card
from rlaif.pipeline.steps.validation import check_judge, measured_mean, plan_measurement

VERSION = 1
MAKES = "model"
SECONDS_PER_UNIT = 0.0

MEMBER = "member/"
"""What the names of a member and its judgements begin with; a number follows, from 1."""
SOUP = "soup/"
"""What the names of the judgements of a greedy soup begin with; the number of the model that was
tried in it follows, the best being 1."""


def plan(walk: Walk, index: int, step: AverageStep) -> None:
    """The model that is made of those that `models` names, which becomes the policy unless
    `policy` is false."""
    members = [walk.model(index, name, "models") for name in step.models]
    _refuse_unfit(walk, index, step, members)
    verdicts: dict[str, str] = {}
    if step.by is not None:

        def fail(message: str) -> ConfigError:
            """The error, at the step's judge."""
            return walk.inputs.fail(index, message, "by")

        check_judge(walk, step.by, walk.stage.prompts, fail)
        for number, model in enumerate(members, 1):
            name = f"{step.id}.{number}"
            measured = plan_measurement(walk, model, step.by, walk.stage.prompts, name)
            verdicts[f"{MEMBER}{number}"] = measured.hash
    label = walk.label_made(step.id)
    if step.by is not None and step.method == "greedy":
        for tried in range(2, len(members) + 1):
            name = f"{step.id}.soup{tried}"
            soup = _add_average(walk, step, members, verdicts, name, f"{label}, soup {tried}")
            made = soup.models["made"]
            measured = plan_measurement(walk, made, step.by, walk.stage.prompts, name)
            verdicts = {**verdicts, f"{SOUP}{tried}": measured.hash}
    planned = _add_average(walk, step, members, verdicts, step.id, label)
    made = planned.models["made"]
    walk.by_id[step.id, walk.round] = planned
    walk.made.setdefault(step.id, {})[walk.round] = made
    walk.policy = made if step.policy else walk.policy


def _add_average(
    walk: Walk,
    step: AverageStep,
    members: Sequence[Model],
    verdicts: dict[str, str],
    name: str,
    label: str,
) -> Planned:
    """The step's own model, or by another name a soup that it tries."""
    weights = walk.yardstick_weights() if step.chooses else {}
    whole = name == step.id
    digest = step_hash(
        "average",
        step.method,
        step.shares,
        [model.identity() for model in members],
        [verdicts[key] for key in sorted(verdicts)],
        weights,
        whole,
    )
    made = Model(f"train:{digest}", label, members[0].spec, digest)
    models = {f"{MEMBER}{number}": model for number, model in enumerate(members, 1)}
    return walk.add(
        Planned(
            digest,
            "average",
            name,
            walk.seed,
            walk.round,
            step,
            verdicts,
            models={**models, "made": made},
            options={
                "principle_weights": weights,
                "masters": whole and all(_has_masters(walk, model) for model in members),
            },
        )
    )


def _maker(walk: Walk, model: Model) -> Planned | None:
    return next((p for p in walk.done if p.hash == model.train_hash), None)


def _has_masters(walk: Walk, model: Model) -> bool:
    """Whether there are fp32 masters of a model."""
    maker = _maker(walk, model)
    if maker is not None and maker.kind == "average":
        return bool(maker.options["masters"])
    if maker is not None:
        # An adapter alone is merged in fp32.
        return not isinstance(maker.step, FitStep)
    folder = locate(model.spec.path)
    return folder is not None and (folder / "masters").is_dir()


def _is_reward_model(walk: Walk, model: Model) -> bool:
    maker = _maker(walk, model)
    if maker is None:
        return is_reward_model(locate(model.spec.path))
    if maker.kind == "average":
        return _is_reward_model(walk, maker.models[f"{MEMBER}1"])
    return maker.kind == "distill"


def _refuse_unfit(walk: Walk, index: int, step: AverageStep, members: Sequence[Model]) -> None:
    """Raise ConfigError for models that have no weights here to average, or are not of one kind."""

    def fail(message: str, key: str = "models") -> ConfigError:
        """The error, at a key of the step."""
        return walk.inputs.fail(index, message, key)

    for name, model in zip(step.models, members, strict=True):
        spec, maker = model.spec, _maker(walk, model)
        if spec.engine not in TRAINABLE:
            raise fail(f"models: {name!r}: engine {spec.engine!r} has no weights here to average")
        if spec.adapter is not None:
            raise fail(
                f"models: {name!r} has an `adapter`: merge it first (peft's `merge_and_unload`)"
            )
        if maker is not None and isinstance(maker.step, DistillStep) and maker.step.members > 1:
            raise fail(
                f"models: {name!r} is an ensemble of adapters and has no one set of weights; use "
                "it as a judge of kind reward_model"
            )
    for number, model in enumerate(members):
        same = next((n for n in range(number) if members[n].key == model.key), None)
        if same is not None:
            raise fail(
                f"models: {step.models[same]!r} and {step.models[number]!r} are the same model"
            )
    rewards = [_is_reward_model(walk, model) for model in members]
    if len(set(rewards)) > 1:
        which = step.models[rewards.index(True)], step.models[rewards.index(False)]
        raise fail(f"models: {which[0]!r} is a reward model and {which[1]!r} is none")
    if rewards[0] and step.by is not None:
        raise fail(f"{step.models[0]!r} is a reward model, which answers no prompts", "by")
    if rewards[0] and step.policy:
        raise fail(f"{step.models[0]!r} is a reward model, which is no policy: set `policy: false`")


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """Nothing is asked: a judge that chooses has steps of its own."""
    return Size(0)


@dataclass(frozen=True)
class Means:
    """The judge's mean of each member, and of each soup that was tried, in their order; None where
    it gave no value."""

    members: tuple[float | None, ...]
    soups: tuple[float | None, ...] = ()

    @property
    def order(self) -> list[int]:
        """The members that have a mean, by place: the best first, of several the first."""
        known = [(mean, n) for n, mean in enumerate(self.members) if mean is not None]
        return [n for _, n in sorted(known, key=lambda row: (-row[0], row[1]))]

    def best(self) -> list[int]:
        """The member of the highest mean; none where no member has one."""
        return self.order[:1]

    def kept(self) -> list[int]:
        """The greedy soup so far (arXiv 2203.05482, recipe 1): the best member, and each next one
        with which the mean did not fall."""
        found = self.order[:1]
        highest = self.members[found[0]] if found else None
        for member, mean in zip(self.order[1:], self.soups, strict=False):
            if highest is not None and mean is not None and mean >= highest:
                found.append(member)
                highest = mean
        return found

    def tried(self) -> list[int]:
        """The soup that comes next: what is kept, with the member whose turn it is."""
        turn = len(self.soups) + 1
        return [*self.kept(), *self.order[turn : turn + 1]]


def run(context: StepContext) -> dict[str, Any]:
    """Write the model, complete or not at all. Raises RlaifError where a judge has to choose and
    gave no value to any answer, EngineError for models that are not alike."""
    # Imported where it is needed, so that a plan needs no tensor library.
    from rlaif.train.average import interpolate_spherically, weighted_mean, write_combined

    planned, step, store = context.planned, context.planned.step, context.store
    means = _read_means(context)
    chosen = _choose_members(planned, means)
    if not chosen:
        raise RlaifError(
            f"{step.id}: judge {step.by} gave no value to any answer of the "
            f"{len(step.models)} models, so none of them can be chosen. Look at its verdicts"
        )
    models = [planned.models[f"{MEMBER}{place + 1}"] for place in chosen]
    # Whatever was loaded to be judged.
    context.engines.make_room()
    folders = {
        step.models[place]: Path(context.engines.folder(model))
        for place, model in zip(chosen, models, strict=True)
    }
    shares = [1 / len(models)] * len(models) if step.chooses else step.shares
    combine = interpolate_spherically if step.method == "slerp" else weighted_mean(shares)
    out = store.model_path(planned.hash)
    shutil.rmtree(out, ignore_errors=True)
    found = write_combined(folders, out, combine, masters=planned.options["masters"])
    write_atomic(out / CARD, average_card(context, models, shares))
    add_file(out, CARD)
    labels = [planned.models[f"{MEMBER}{n}"].label for n in range(1, len(step.models) + 1)]
    summary = {f"mean_of_{label}": m for label, m in zip(labels, means.members, strict=False)}
    summary |= {f"mean_of_soup_{n}": mean for n, mean in enumerate(means.soups, 2)}
    return {
        "counts": {"models": len(models), "tensors": found["tensors"]},
        "summary": {name: mean for name, mean in summary.items() if mean is not None},
        "members": [model.label for model in models],
        "weights_hash": weights_hash(out),
    }


def _read_means(context: StepContext) -> Means:
    """The means that are known when the step runs; of a soup, those before it."""
    planned, step = context.planned, context.planned.step
    weights = planned.options["principle_weights"]

    def mean_of(name: str) -> float | None:
        """Of one model's or soup's verdicts."""
        return measured_mean(context.store.step(planned.inputs[name]), step.by, weights)

    numbers = range(1, len(step.models) + 1)
    return Means(
        tuple(mean_of(f"{MEMBER}{n}") for n in numbers if f"{MEMBER}{n}" in planned.inputs),
        tuple(mean_of(f"{SOUP}{n}") for n in numbers if f"{SOUP}{n}" in planned.inputs),
    )


def _choose_members(planned: Planned, means: Means) -> list[int]:
    """The places of the models that are averaged."""
    step = planned.step
    if not step.chooses:
        return list(range(len(step.models)))
    if step.method == "best":
        return means.best()
    return means.kept() if planned.id == step.id else means.tried()
