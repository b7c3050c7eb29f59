"""From the list of steps to the plan: every seed, every round.

Steps whose output nothing reads are refused: what they ask is paid for all the same.
"""

from __future__ import annotations

from dataclasses import replace

from rlaif.config.rounds import in_rounds
from rlaif.pipeline.plan.base import PlanInputs, Planned, Walk
from rlaif.pipeline.steps import step_module
from rlaif.pipeline.steps.compare import plan_comparisons
from rlaif.pipeline.steps.evaluate import check_judges, evaluated


def make_plan(inputs: PlanInputs) -> list[Planned]:
    """Every step of every seed and arm, in the order of running; equal steps appear once."""
    planned: dict[str, Planned] = {}
    arms: dict[str, list[str]] = {}
    experiment = inputs.experiment
    for seed in experiment.all_seeds:
        walks = {n: Walk(inputs, seed, experiment.arms.get(n)) for n in experiment.arm_names}
        for arm, walk in walks.items():
            for step in _walk_rounds(walk):
                # Arms that have not parted yet plan steps of the same hash, which run once.
                planned.setdefault(step.hash, step)
                arms.setdefault(step.hash, []).append(arm)
            refuse_unread(walk)
        for step in plan_comparisons(inputs, walks) if len(walks) > 1 else ():
            planned[step.hash] = step
            arms[step.hash] = list(walks)
    # One walk may plan the same step more than once, such as M0's evaluation.
    return [replace(p, arms=tuple(dict.fromkeys(arms[p.hash]))) for p in planned.values()]


def _walk_rounds(walk: Walk) -> list[Planned]:
    """The whole plan of one walk: M0's evaluation, then the rounds."""
    experiment = walk.experiment
    distilled = {e.distill.id for e in experiment.steps if e.distill is not None}
    # For its errors alone: a model that is not there is reported at the step that names it.
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
            if in_rounds(entry.when, walk.round):
                step_module(entry.kind).plan(walk, index, entry.step)
    return walk.done


def refuse_unread(walk: Walk) -> None:
    """Refuse what another step took the place of before any step read it, and judges of loaded
    pairs that no step labels or chooses from. What is last of its kind may be wanted for itself.
    Raises ConfigError at the step."""
    read = {digest for planned in walk.done for digest in planned.inputs.values()}
    dataset = walk.experiment.dataset
    wanted = {dataset.uses} if dataset is not None else set()
    for planned, by in walk.replaced.values():
        if planned.hash not in read and planned.id not in wanted:
            raise walk.inputs.fail(_step_index(walk, planned), _describe_unread(planned, by))
    _refuse_idle_pairs(walk)


def _describe_unread(planned: Planned, by: str) -> str:
    makes = step_module(planned.kind).MAKES
    what = {"completions": "answers", "preferences": "pairs"}.get(makes, makes)
    other = f"Name it in `uses` of the step that should read it, or remove it or {by!r}"
    remedy = {
        "sample": "Sample all answers in one step (`pool` names several models), judge these "
        "before that step, or remove this one",
        "judge": f"Put it after {by!r}, or remove it",
    }.get(planned.kind, other)
    return (
        f"no step reads the {what} of {planned.id!r}: step {by!r} takes their place before one "
        f"does. {remedy}"
    )


def _refuse_idle_pairs(walk: Walk) -> None:
    """Refuse a judge of loaded pairs where no step makes anything of these."""
    loaded = {
        p.hash: p
        for p in walk.done
        if p.kind == "load" and p.step.type == "pairs" and p.id == p.step.id
    }
    used = {
        digest
        for planned in walk.done
        if planned.kind in ("label", "pair", "filter")
        for digest in planned.inputs.values()
    }
    for judge in walk.done:
        own = [h for name, h in judge.inputs.items() if name.startswith("completions/")]
        idle = next((loaded[h] for h in own if h in loaded and h not in used), None)
        if judge.kind == "judge" and judge.id == judge.step.id and idle is not None:
            raise walk.inputs.fail(
                _step_index(walk, judge),
                f"judge {judge.id!r} judges the pairs that {idle.id!r} loads, and no step uses "
                "them: add `label` after it, or `pair`. How good a judge is on labelled pairs is "
                "measured by `rlaif judge-bench`",
            )


def _step_index(walk: Walk, planned: Planned) -> int:
    """The place of a step in the experiment; members of a pool are called ID/NUMBER."""
    name = planned.id.partition("/")[0]
    return next(i for i, e in enumerate(walk.experiment.steps) if e.step.id == name)
