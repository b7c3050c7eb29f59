"""questions: what a judge asks about labelled pairs, as prompts.

The set itself is made before the plan (`rlaif.pipeline.question_sets`), since its ids are in the
hashes of the steps that draw from it. This step keeps the questions among the records of the run,
where they can be followed to the pairs.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from rlaif.config.judge_training import QuestionsStep
from rlaif.core.records import to_json
from rlaif.pipeline.plan.base import Known, PlanInputs, Planned, Size, Walk
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext

VERSION = 1
MAKES = "questions"
SECONDS_PER_UNIT = 0.0

BATCH = 1000


def plan(walk: Walk, index: int, step: QuestionsStep) -> None:
    """The questions of a set, from the pairs that were loaded before."""
    sources = walk.used(index, step.uses, walk.pairs, ("load",))
    ids = tuple(sorted(p.prompt_id for p in walk.inputs.set_named(step.id).train))
    planned = walk.add(
        Planned(
            step_hash("questions", ids, walk.facts(ids), walk.origins(list(ids))),
            "questions",
            step.id,
            walk.seed,
            walk.round,
            step,
            inputs={f"pairs/{i}": p.hash for i, p in enumerate(sources)},
            prompts=ids,
        )
    )
    walk.by_id[step.id, walk.round] = planned


def questions_of(walk: Walk, *sets: str) -> dict[str, str]:
    """The steps that made these sets of questions, as inputs of one that draws from them."""
    made = {p.id: p.hash for p in walk.done if p.kind == "questions"}
    return {f"questions/{name}": made[name] for name in sets if name in made}


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """The questions, which are known."""
    return Size(len(planned.prompts))


def run(context: StepContext) -> dict[str, Any]:
    """Commit the questions; those that are stored already are not written again."""
    rows = [to_json(prompt) for prompt in context.chosen_prompts()]
    done = context.folder.count("questions")
    for start in range(done, len(rows), BATCH):
        context.folder.append("questions", rows[start : start + BATCH])
    groups = Counter(row["group"] for row in rows)
    return {"counts": {"questions": len(rows), "groups": len(groups)}}
