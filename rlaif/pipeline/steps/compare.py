"""compare: the arms of an experiment beside one another, and how far their labels agree."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from rlaif.config.base import hashed_keys
from rlaif.config.steps import EvaluateStep, LabelStep
from rlaif.constitution.own_rules import code_of
from rlaif.metrics import metrics
from rlaif.metrics.agreement import label_agreement
from rlaif.pipeline.plan.base import Known, PlanInputs, Planned, Size, Walk
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext
from rlaif.pipeline.steps.evaluate import answer_values

VERSION = 2
MAKES = "metrics"
SECONDS_PER_UNIT = 0.0


def plan_comparisons(inputs: PlanInputs, walks: Mapping[str, Walk]) -> list[Planned]:
    """Each round's policies of all arms beside one another, and their labels."""
    experiment = inputs.experiment
    evaluate = next((e.evaluate for e in reversed(experiment.steps) if e.evaluate), None)
    label = next((e.label for e in experiment.steps if e.label is not None), None)
    if evaluate is None or label is None:
        return []
    needed = (evaluate.id, label.id)
    rounds = [
        number
        for number in range(1, experiment.rounds + 1)
        if all((name, number) in walk.by_id for name in needed for walk in walks.values())
    ]
    return [_plan_comparison(walks, evaluate, label, number) for number in rounds]


def _plan_comparison(
    walks: Mapping[str, Walk], step: EvaluateStep, label: LabelStep, number: int
) -> Planned:
    inputs: dict[str, str] = {}
    for arm, walk in walks.items():
        policy = walk.by_id[step.id, number].models["policy"]
        parts = walk.evaluations[step.id, policy.key]
        inputs |= {f"arms/{arm}/{name}": digest for name, digest in parts.items()}
        inputs[f"labels/{arm}"] = walk.by_id[label.id, number].hash
    walk = next(iter(walks.values()))
    ids = tuple(p.prompt_id for p in walk.inputs.prompts.heldout)
    facts = walk.facts(ids) if step.checks else []
    facts += code_of(check.rule for check in step.checks)
    weights = walk.principle_weights()
    keys = hashed_keys(step, exclude={"id"})
    return Planned(
        step_hash("compare", keys, inputs, weights, facts, walk.seed, number),
        "compare",
        f"{step.id}.arms",
        walk.seed,
        number,
        step,
        inputs,
        prompts=ids,
        options={"principle_weights": weights, "arms": list(walks)},
    )


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """One row of values for each prompt."""
    return Size(len(planned.prompts))


def run(context: StepContext) -> dict[str, Any]:
    """One row: {arms, labels, deltas}.

    `labels` holds the agreement of every two arms' labels on the pairs that all trained on;
    `deltas`, for every two arms, the paired differences (second less first) of every metric over
    the same held-out prompts. Names of two arms are joined by a slash.
    """
    arms: list[str] = context.planned.options["arms"]
    values = {arm: answer_values(context, f"arms/{arm}/") for arm in arms}
    chosen = {
        arm: {
            p.preference_id: (p.prompt_id, p.chosen_id < p.rejected_id)
            for p in context.preferences(f"labels/{arm}")
        }
        for arm in arms
    }
    row: dict[str, Any] = {"arms": arms, "labels": {}, "deltas": {}}
    for first, second in combinations(arms, 2):
        name = f"{first}/{second}"
        row["labels"][name] = label_agreement(chosen[first], chosen[second])
        row["deltas"][name] = metrics.compute_differences(values[second], values[first])
    if not context.folder.read("comparison"):
        context.folder.append("comparison", [row])
    return {"counts": {"arms": len(arms), "pairs": len(chosen[arms[0]])}}
