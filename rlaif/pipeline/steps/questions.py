"""questions: what a judge asks about labelled pairs or the run's own answers, as prompts.

A set of questions about loaded pairs is made before the plan (`rlaif.pipeline.question_sets`),
since its ids are in the hashes of the steps that draw from it. This step keeps the questions among
the records of the run, where they can be followed to the pairs. Those about answers of the run are
planned and made in `rlaif.pipeline.steps.run_questions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlaif.config.judge_training import QuestionsStep
from rlaif.core.records import Prompt, from_json, to_json
from rlaif.core.store import Store
from rlaif.pipeline.plan.base import Known, PlanInputs, Planned, Size, Walk
from rlaif.pipeline.question_sets import find_loads
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext
from rlaif.pipeline.steps.run_questions import make_own_questions, plan_own_questions

VERSION = 1
MAKES = "questions"
SECONDS_PER_UNIT = 0.0

BATCH = 1000


def plan(walk: Walk, index: int, step: QuestionsStep) -> None:
    """The questions of a set: from the pairs that were loaded before, or from the run's answers."""
    if not find_loads(walk.experiment, step):
        walk.by_id[step.id, walk.round] = plan_own_questions(walk, index, step)
        return
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


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """The questions, which are known, or as many as there may be about answers of the run."""
    return Size(len(planned.prompts))


def read_questions(store: Store, digest: str) -> Mapping[str, Prompt]:
    """The questions of a finished step, by id; none where it is not finished."""
    folder = store.step(digest)
    if folder.done() is None:
        return {}
    return {row["prompt_id"]: from_json(Prompt, row) for row in folder.rows("questions")}


def run(context: StepContext) -> dict[str, Any]:
    """Commit the questions; those that are stored already are not written again."""
    own = bool(context.planned.options)
    made, left_out = make_own_questions(context) if own else (context.chosen_prompts(), {})
    rows = [to_json(prompt) for prompt in made]
    groups = {prompt.group or prompt.prompt_id for prompt in made}
    done = context.folder.count("questions")
    for start in range(done, len(rows), BATCH):
        context.folder.append("questions", rows[start : start + BATCH])
    return {"counts": {"questions": len(rows), "groups": len(groups), **left_out}}
