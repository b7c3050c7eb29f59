"""From the list of steps to the plan: every seed, every round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rlaif.config.on_policy import OnPolicyTrain
from rlaif.pipeline.plan.base import PlanInputs, Planned
from rlaif.pipeline.plan.evaluation import check_judges, evaluated, plan_evaluate
from rlaif.pipeline.plan.filters import plan_filter
from rlaif.pipeline.plan.labels import plan_comparisons, plan_label
from rlaif.pipeline.plan.steps import plan_judge, plan_load, plan_pair, plan_sample
from rlaif.pipeline.plan.training import plan_distill, plan_on_policy, plan_train
from rlaif.pipeline.plan.unread import refuse_unread
from rlaif.pipeline.plan.walk import Walk

_STEPS: dict[str, Callable[[Walk, int, Any], None]] = {
    "sample": plan_sample,
    "load": plan_load,
    "filter": plan_filter,
    "judge": plan_judge,
    "pair": plan_pair,
    "label": plan_label,
    "distill": plan_distill,
    "train": plan_train,
    "evaluate": plan_evaluate,
}


def make_plan(inputs: PlanInputs) -> list[Planned]:
    """Every step of every seed and arm, in the order of running; equal steps appear once."""
    planned: dict[str, Planned] = {}
    arms: dict[str, list[str]] = {}
    experiment = inputs.experiment
    for seed in experiment.all_seeds:
        walks = {n: Walk(inputs, seed, experiment.arms.get(n)) for n in experiment.arm_names}
        for arm, walk in walks.items():
            for step in _walked(walk):
                planned.setdefault(step.hash, step)
                arms.setdefault(step.hash, []).append(arm)
            refuse_unread(walk)
        for step in plan_comparisons(inputs, walks):
            planned[step.hash] = step
            arms[step.hash] = list(walks)
    return [replace(p, arms=tuple(dict.fromkeys(arms[p.hash]))) for p in planned.values()]


def _walked(walk: Walk) -> list[Planned]:
    """The whole plan of one walk: M0's evaluation, then the rounds."""
    experiment = walk.experiment
    distilled = {e.distill.id for e in experiment.steps if e.distill is not None}
    for index, entry in enumerate(experiment.steps):
        if entry.judge is not None and not distilled & set(entry.judge.asks().values()):
            walk.asked(index, entry.judge)
    for index, entry in enumerate(experiment.steps):
        if entry.evaluate is not None:
            check_judges(walk, index, entry.evaluate)
            evaluated(walk, entry.evaluate, walk.initial)
    for _ in range(experiment.rounds):
        walk.next_round()
        for index, entry in enumerate(experiment.steps):
            if isinstance(entry.step, OnPolicyTrain):
                plan_on_policy(walk, index, entry.step)
            else:
                _STEPS[entry.kind](walk, index, entry.step)
    return walk.done
