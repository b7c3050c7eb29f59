"""compare: the arms of an experiment beside one another, and how far their labels agree."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from rlaif.metrics import metrics
from rlaif.metrics.agreement import label_agreement
from rlaif.pipeline.steps.context import StepContext
from rlaif.pipeline.steps.evaluate import answer_values


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
