"""From the stages to the plan: every seed, every arm, every round.

Steps whose output nothing reads are refused: what they ask is paid for all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rlaif.config.models import INITIAL
from rlaif.core.errors import ConfigError
from rlaif.core.yamlio import line_of
from rlaif.engines.base import Model
from rlaif.pipeline.plan.base import PlanInputs, Planned, Walk
from rlaif.pipeline.plan.episodes import refuse_episodes
from rlaif.pipeline.stages import Stage, StepEntry, has_arm, in_rounds
from rlaif.pipeline.steps import step_module
from rlaif.pipeline.steps.choose import check_until, plan_choice, plan_round
from rlaif.pipeline.steps.compare import plan_comparisons
from rlaif.pipeline.steps.evaluate import check_evaluation, plan_start


def make_plan(inputs: PlanInputs) -> list[Planned]:
    """Every step of every seed and arm, in the order of running; equal steps appear once."""
    planned: dict[str, Planned] = {}
    arms: dict[str, list[str]] = {}
    for seed in inputs.experiment.all_seeds:
        walks = {
            name: Walk(inputs.arms.get(name, inputs), seed, name, inputs)
            for name in inputs.experiment.arm_names
        }
        for arm, walk in walks.items():
            for step in _walk_stages(walk):
                # Arms that have not parted yet plan steps of the same hash, which run once.
                planned.setdefault(step.hash, step)
                arms.setdefault(step.hash, []).append(arm)
            refuse_unread(walk)
        if len(walks) > 1:
            _refuse_unlike(inputs, walks)
        for step, own in plan_comparisons(inputs, walks) if len(walks) > 1 else ():
            planned[step.hash] = step
            arms[step.hash] = own
    # One walk may plan the same step more than once, such as M0's evaluation.
    return [replace(p, arms=tuple(dict.fromkeys(arms[p.hash]))) for p in planned.values()]


def _walk_stages(walk: Walk) -> list[Planned]:
    """The whole plan of one walk: M0's evaluation, then the rounds of every stage."""
    experiment = walk.experiment
    stages = experiment.all_stages
    made = set(experiment.made_models)
    # For its errors alone: a model that is not there is reported at the step that names it.
    for index, entry in enumerate(experiment.entries):
        asks = entry.judge.asks().values() if entry.judge is not None else ()
        if entry.judge is not None and not made & {name.partition("@")[0] for name in asks}:
            walk.asked(index, entry.judge)
    index = 0
    for stage in stages:
        # M0's figures belong to the stage of their evaluation.
        walk.stage = stage
        for entry in stage.steps:
            if entry.evaluate is not None and _has(walk, stage, entry):
                check_evaluation(walk, index, entry.evaluate)
                plan_start(walk, index, entry.evaluate)
                refuse_episodes(walk, index, walk.done)
            index += 1
    before = 0
    for place, stage in enumerate(stages):
        walk.begin_stage(stage)
        until = stage.until if has_arm(stage.arms, walk.arm) else None
        judged: list[tuple[Model, Planned]] = []
        if until is not None:
            check_until(walk, stage, until)
        for number in range(1, stage.rounds + 1):
            if not has_arm(stage.arms, walk.arm):
                walk.round += 1
                continue
            walk.next_round()
            for offset, entry in enumerate(walk.inputs.at.get((place, number), stage.steps)):
                if _has(walk, stage, entry) and in_rounds(entry.when, number):
                    known = len(walk.done)
                    step_module(entry.kind).plan(walk, before + offset, entry.step)
                    refuse_episodes(walk, before + offset, walk.done[known:])
            if until is not None:
                judged.append(plan_round(walk, stage, until))
        if until is not None:
            _refuse_untrained(walk, stage, judged)
            plan_choice(walk, stage, until, judged)
        before += len(stage.steps)
    return walk.done


def _refuse_untrained(walk: Walk, stage: Stage, judged: list[tuple[Model, Planned]]) -> None:
    """Raise ConfigError where a round of a stage with `until` makes no policy of its own."""
    if len({model.key for model, _ in judged} - {walk.initial.key}) < len(judged):
        raise walk.inputs.fail_stage(stage, "until: every round has to train a policy")


def _has(walk: Walk, stage: Stage, entry: StepEntry) -> bool:
    return has_arm(stage.arms, walk.arm) and has_arm(entry.arms, walk.arm)


def _refuse_unlike(inputs: PlanInputs, walks: Mapping[str, Walk]) -> None:
    """Refuse arms that cannot be compared: one that trains nothing where another does, and
    evaluations by judges that are not the same. Raises ConfigError."""
    trained = {arm: [p for p in walk.done if p.kind == "train"] for arm, walk in walks.items()}
    idle = next((arm for arm, steps in trained.items() if not steps), None)
    if idle is not None and any(trained.values()):
        raise ConfigError(
            f"arm {idle} trains nothing, and others do. M0, the policy before training, is in "
            "every comparison: leave that arm out, or give it a train step",
            inputs.path,
            line_of(("arms", idle), inputs.lines),
        )
    for index, entry in enumerate(inputs.experiment.entries):
        name = entry.evaluate.judged_by if entry.evaluate else INITIAL
        judges = {m.key for walk in walks.values() if (m := walk.made_by(name)) is not None}
        if len(judges) > 1:
            raise inputs.fail(
                index,
                f"judged_by: {name!r} is another model in each arm, and one has to judge them all. "
                "Train it in steps that all arms share",
                "judged_by",
            )


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
        if planned.kind in ("label", "pair", "filter", "train") or planned.compares_judgements
        for digest in planned.inputs.values()
    }
    for judge in walk.done:
        own = [h for name, h in judge.inputs.items() if name.startswith("completions/")]
        idle = next((loaded[h] for h in own if h in loaded and h not in used), None)
        if judge.hash in used or idle is None:
            continue
        if judge.kind == "judge" and judge.id == judge.step.id:
            raise walk.inputs.fail(
                _step_index(walk, judge),
                f"judge {judge.id!r} judges the pairs that {idle.id!r} loads, and no step uses "
                "them: add `label` after it, or `pair`. How good a judge is on labelled pairs is "
                "measured by `rlaif judge-bench`",
            )


def _step_index(walk: Walk, planned: Planned) -> int:
    """The place of a step in the experiment; members of a pool are called ID/NUMBER."""
    name = planned.id.partition("/")[0]
    return next(i for i, e in enumerate(walk.experiment.entries) if e.step.id == name)
