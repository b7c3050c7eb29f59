"""judge: a judge's judgements of the completions so far."""

from __future__ import annotations

from typing import Any

from rlaif.errors import ConfigError
from rlaif.records import VALUED
from rlaif.steps.asking import Group, Kept, verdicts
from rlaif.steps.context import StepContext, by_prompt


def run(context: StepContext) -> dict[str, Any]:
    """Judge what is still missing; whole batches are committed as they come."""
    planned, judge = context.planned, context.judge()
    judgements = verdicts(
        judge,
        planned.models,
        context.engines,
        _groups(context),
        planned.seed,
        Kept(context.folder),
        context.progress,
    )
    statuses: dict[str, int] = {}
    for judgement in judgements:
        statuses[judgement.status] = statuses.get(judgement.status, 0) + 1
    valued = sum(count for status, count in statuses.items() if status in VALUED)
    counts = {
        "calls": len({j.call_id for j in judgements}),
        "judgements": len(judgements),
        "with_value": valued,
    }
    return {"counts": counts, "statuses": statuses}


def _groups(context: StepContext) -> list[Group]:
    groups = by_prompt(context.completions())
    wanted = set(context.planned.prompts) or set(groups)
    found: list[Group] = []
    for prompt_id in sorted(set(groups) & wanted):
        prompt = context.prompts.get(prompt_id)
        if prompt is None:
            raise ConfigError(
                f"completions of prompt {prompt_id} were loaded, and that prompt is not among the "
                "experiment's prompts; add it to the prompts file"
            )
        found.append((prompt, groups[prompt_id]))
    return found
