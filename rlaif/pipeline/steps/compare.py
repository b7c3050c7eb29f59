"""compare: the arms of an experiment beside one another, and how far their labels agree."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from rlaif.config.arms import MAIN
from rlaif.config.base import hashed_keys
from rlaif.config.models import RESERVED_MODELS
from rlaif.config.steps import EvaluateStep, LabelStep
from rlaif.constitution.own_rules import code_of
from rlaif.metrics import metrics
from rlaif.metrics.agreement import label_agreement
from rlaif.metrics.metrics import Measured
from rlaif.pipeline.plan.base import Known, PlanInputs, Planned, Size, Walk
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext
from rlaif.pipeline.steps.evaluate import OF_SET, answer_values

VERSION = 2
MAKES = "metrics"
SECONDS_PER_UNIT = 0.0


def plan_comparisons(
    inputs: PlanInputs, walks: Mapping[str, Walk]
) -> list[tuple[Planned, list[str]]]:
    """The policies of the arms beside one another after each round in which the last evaluation of
    a stage ran in at least two of them, with the labels that they were trained on; and these
    arms."""
    found = []
    for stage in inputs.experiment.all_stages:
        evaluate = next((e.evaluate for e in reversed(stage.steps) if e.evaluate), None)
        label = next((e.label for e in stage.steps if e.label is not None), None)
        if evaluate is None:
            continue
        first = next(iter(walks.values())).stage_starts[stage.id]
        for number in range(first + 1, first + stage.rounds + 1):
            own = {arm: w for arm, w in walks.items() if (evaluate.id, number) in w.by_id}
            if len(own) > 1:
                found.append((_plan_comparison(own, evaluate, label, number), list(own)))
    return found


def _plan_comparison(
    walks: Mapping[str, Walk], step: EvaluateStep, label: LabelStep | None, number: int
) -> Planned:
    inputs: dict[str, str] = {}
    labelled = label is not None and all((label.id, number) in w.by_id for w in walks.values())
    for arm, walk in walks.items():
        evaluation = walk.by_id[step.id, number]
        shown = {n: h for n, h in evaluation.inputs.items() if _is_own(n)}
        inputs |= {f"arms/{arm}/{name}": digest for name, digest in shown.items()}
        if label is not None and labelled:
            inputs[f"labels/{arm}"] = walk.by_id[label.id, number].hash
    walk = next(iter(walks.values()))
    evaluation = walk.by_id[step.id, number]
    ids = evaluation.prompts
    facts = walk.facts(ids) if step.checks else []
    facts += code_of(check.rule for check in step.checks)
    weights = walk.yardstick_weights()
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
        stage=evaluation.stage,
        number=evaluation.number,
    )


def _is_own(name: str) -> bool:
    """Whether an input of an evaluation is of the evaluated model itself."""
    return name.partition("/")[0] not in {*RESERVED_MODELS, "against", "train", "drift"}


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
    values = {arm: _read_values(context, arm) for arm in arms}
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
        if chosen[first] and chosen[second]:
            row["labels"][name] = label_agreement(chosen[first], chosen[second])
        row["deltas"][name] = {
            f"{prefix}{metric}": change
            for prefix, new in values[second].items()
            for metric, change in metrics.compute_differences(new, values[first][prefix]).items()
        }
    if not context.folder.read("comparison"):
        context.folder.append("comparison", [row])
    return {"counts": {"arms": len(arms), "pairs": len(chosen[arms[0]])}}


def _read_values(context: StepContext, arm: str) -> dict[str, dict[str, Measured]]:
    """An arm's figures, by what the names of their set of prompts begin with."""
    sets = context.planned.step.prompts or [MAIN]
    prefixes = ["" if name == MAIN else f"{name}{OF_SET}" for name in sets]
    return {prefix: answer_values(context, f"arms/{arm}/{prefix}") for prefix in prefixes}
