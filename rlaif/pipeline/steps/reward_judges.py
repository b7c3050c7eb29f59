"""Whether the judges of rewards and costs can be what their terms take them for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlaif.config.distill import DistillStep
from rlaif.config.on_policy import RolloutTrain
from rlaif.core.records import Prompt
from rlaif.core.yamlio import suggest
from rlaif.engines.base import Model
from rlaif.judges.base import Judge, compares_judgements, has_raw_value, is_grouped
from rlaif.pipeline.plan.base import Walk, group_prompts


def reward_models(walk: Walk, index: int, step: RolloutTrain) -> dict[str, Model]:
    """The models that the rewards' judges ask, by judge and role. Raises ConfigError for a judge
    that is not there."""
    judges = walk.experiment.all_judges()
    asked: dict[str, Model] = {}
    for name in step.reward_judges:
        key = _key_of(step, name)
        if name not in judges:
            hint = suggest(name, sorted(judges))
            raise walk.inputs.fail(index, f"{key}: {name!r} is no judge{hint}", key)
        if compares_judgements(walk.inputs.judges[name]):
            fault = f"{key}: {name!r} compares judgements, and answers are judged here"
            raise walk.inputs.fail(index, fault, key)
        for role, model in walk.asked(index, judges[name], key).items():
            asked[f"judge/{name}" if role == "by" else f"judge/{name}/{role}"] = model
    return asked


def _key_of(step: RolloutTrain, judge: str) -> str:
    """The key that names a judge."""
    rewarding = any(judge in term.judges for term in step.terms)
    return "rewards" if rewarding or not step.constraints else "costs"


def terms_fault(
    step: RolloutTrain, judges: Mapping[str, Judge], prompts: Sequence[Prompt]
) -> str | None:
    """What is wrong with the reward's terms: a raw value that the judge does not have, or a term
    that is for none of the training prompts."""
    for term in step.terms:
        if term.value == "raw" and not has_raw_value(judges[term.judge]):
            return _no_raw_value("rewards", term.judge)
        alone = sum(len(unit) == 1 for unit in group_prompts(prompts))
        if is_grouped(judges[term.judge]) and alone:
            return (
                f"rewards: judge {term.judge!r} marks the answers to a group of prompts together, "
                f"and {alone} of {len(prompts)} training prompts stand alone. Its prompts are "
                "those of a `questions` step with `orders: both`"
            )
        if term.when is not None and not any(term.is_for(prompt) for prompt in prompts):
            where = {key: known for key, known in term.when.model_dump().items() if known}
            tags = sorted({tag for prompt in prompts for tag in prompt.tags})
            sources = sorted({prompt.source for prompt in prompts} - {""})
            return (
                f"rewards: the term of judge {term.judge!r} is for none of the {len(prompts)} "
                f"training prompts (where: {where}). They have the tags {tags[:20]} and the "
                f"sources {sources[:20]}"
            )
    return None


def turned_costs(
    walk: Walk, index: int, step: RolloutTrain, asked: Mapping[str, Model]
) -> list[int]:
    """The places of the costs whose judges give more to what is better. Raises ConfigError where
    that is not known, or wrong."""
    steps = {p.hash: p.step for p in walk.done}
    turned = []
    for place, cost in enumerate(step.constraints):
        judge = walk.inputs.judges[cost.judge]
        if cost.value == "raw" and not has_raw_value(judge):
            raise walk.inputs.fail(index, _no_raw_value("costs", cost.judge), "costs")
        model = asked.get(f"judge/{cost.judge}")
        made_by = steps.get(model.train_hash or "") if model is not None else None
        is_cost_model = (
            walk.experiment.all_judges()[cost.judge].kind == "reward_model"
            and isinstance(made_by, DistillStep)
            and made_by.method == "cost"
        )
        if is_cost_model and cost.higher == "worse":
            fault = (
                f"costs: judge {cost.judge!r} reads a model of `distill: {{method: cost}}`, whose "
                "reward is minus its cost: leave `higher` out"
            )
            raise walk.inputs.fail(index, fault, "costs")
        if cost.higher is None and not is_cost_model:
            fault = (
                f"costs: is more of judge {cost.judge!r} worse, or better? Set `higher: worse` "
                "where its value is the cost, and `higher: better` where it is minus the cost (of "
                "a score: 1 - score)"
            )
            raise walk.inputs.fail(index, fault, "costs")
        if is_cost_model or cost.higher == "better":
            turned.append(place)
    return turned


def _no_raw_value(key: str, judge: str) -> str:
    return f"{key}: judge {judge!r} gives scores on [0, 1] and no raw value: leave `value: raw` out"
