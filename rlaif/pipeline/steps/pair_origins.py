"""Pairs by origin: `chosen` and `rejected` name the steps whose answers these are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from rlaif.config.steps import REFERENCE_ANSWER, PairStep
from rlaif.core.records import Completion, Judgement, Preference
from rlaif.pipeline.plan.base import Known, Planned, Walk
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext
from rlaif.pipeline.steps.written import find_judge_steps, weights_by_step
from rlaif.preferences.origins import Match, OriginSettings, origin_preferences

ANSWERING = ("sample", "revise", "filter", "load")
"""Kinds of steps that give completions."""
PairPlan = tuple[str, dict[str, str], list[Planned], dict[str, Any]]
"""Of a pair step its hash, its inputs, the steps that it reads and its options."""


def name_steps(steps: list[Planned]) -> dict[str, Planned]:
    """Steps by id; those of several rounds of one by ID@ROUND."""
    ids = [planned.id for planned in steps]
    return {p.id if ids.count(p.id) == 1 else f"{p.id}@{p.round}": p for p in steps}


def plan_origins(walk: Walk, index: int, step: PairStep, judges: list[Planned]) -> PairPlan:
    """The pairs of two steps' answers; `judges` are the steps whose scores decide, where any do."""
    sides = {key: _find_side(walk, index, step, key) for key in ("chosen", "rejected")}
    used = [planned for side in sides.values() for planned in side]
    match = _choose_match(walk, step, sides)
    inputs = {f"{k}/{i}": p.hash for k, side in sides.items() for i, p in enumerate(side)}
    for judge in find_judge_steps(walk, judges):
        refuse_unasked(walk, index, judge, used)
    inputs |= {f"judgements/{p.id}": p.hash for p in judges}
    weights = weights_by_step(walk, judges) if judges else {}
    facts: list[Any] = []
    if REFERENCE_ANSWER in (step.chosen, step.rejected):
        ids = tuple(p for planned in used for p in planned.prompts)
        facts = walk.facts(ids or None)
        if not any(row[2] for row in facts):
            key = "chosen" if step.chosen == REFERENCE_ANSWER else "rejected"
            raise walk.inputs.fail(
                index,
                f"{key}: none of the prompts has a `reference` answer; give the prompts file that "
                "column, or name it with `prompts.columns.reference`",
                key,
            )
    digest = step_hash("pair", "origin", step.keys(), match, inputs, weights, facts, walk.round)
    return digest, inputs, used, {"match": match, "principle_weights": weights}


def _find_side(walk: Walk, index: int, step: PairStep, key: str) -> list[Planned]:
    name = getattr(step, key)
    if name == REFERENCE_ANSWER:
        return []
    return walk.used(index, [name], {}, ANSWERING, key)


def _choose_match(walk: Walk, step: PairStep, sides: Mapping[str, list[Planned]]) -> Match:
    if REFERENCE_ANSWER in (step.chosen, step.rejected):
        return "all"
    if step.match is not None:
        return step.match
    chosen, rejected = sides["chosen"], sides["rejected"]
    revised = _revises(walk, chosen, rejected) or _revises(walk, rejected, chosen)
    return "parent" if revised else "index"


def _revises(walk: Walk, side: list[Planned], other: list[Planned]) -> bool:
    """Whether a step of one side revises answers of the other, at once or over others."""
    known = {planned.hash: planned for planned in walk.done}
    originals = _sources_of(other, known)
    left = [(planned, False) for planned in side]
    while left:
        planned, revised = left.pop()
        revised = revised or planned.kind == "revise"
        if planned.kind not in ("revise", "filter"):
            continue
        below = [known[h] for h in planned.inputs.values() if h in known]
        if revised and any(p.hash in originals for p in below):
            return True
        left += [(p, revised) for p in below]
    return False


def _sources_of(steps: list[Planned], known: Mapping[str, Planned]) -> set[str]:
    """The hashes of steps and, where they are filters, of what these read."""
    found, left = set[str](), list(steps)
    while left:
        planned = left.pop()
        found.add(planned.hash)
        if planned.kind == "filter":
            left += [known[h] for h in planned.inputs.values() if h in known]
    return found


def refuse_unasked(walk: Walk, index: int, judge: Planned, answers: list[Planned]) -> None:
    """Raise ConfigError where a judge was not asked about all answers that it has to decide on.
    What a filter let pass was judged where all that it was given was."""
    judged = {h for n, h in judge.inputs.items() if n.startswith("completions/")}
    known = {planned.hash: planned for planned in walk.done}
    for one in answers:
        left = [one]
        while left:
            planned = left.pop()
            if planned.hash in judged:
                continue
            below = [known[h] for n, h in planned.inputs.items() if n.startswith("completions/")]
            if planned.kind != "filter" or not below:
                raise walk.inputs.fail(
                    index,
                    f"judge {judge.id!r} was not asked about the answers of {one.id!r}, which it "
                    f"has to decide on: name {one.id!r} in `uses` of the judge step too, or leave "
                    "that judge out of this step's `uses`",
                    "uses",
                )
            left += below


def size_origins(planned: Planned, known: Known) -> int:
    """How many pairs there may be at most."""
    chosen, rejected = (known.records_read(planned, f"{key}/") for key in ("chosen", "rejected"))
    if planned.options["match"] != "all" or not (chosen and rejected):
        return max(chosen, rejected)
    return -(-chosen * rejected // max(1, len(planned.prompts)))


def make_origin_pairs(
    context: StepContext, weights: Mapping[str, float], counts: Counter[str]
) -> Iterator[Preference]:
    """The pairs of one prompt after the other, in the order of ids; `counts` has what was left out
    by why. Raises ConfigError where answers are of a prompt that the experiment lacks."""
    planned, step = context.planned, context.planned.step
    options = planned.options
    settings = OriginSettings(
        step, options["match"], planned.round, weights, options["principle_weights"]
    )
    sides = [context.by_prompt(key, Completion) for key in ("chosen", "rejected")]
    judges = {judge: context.by_prompt(f"judgements/{judge}", Judgement) for judge in weights}
    names = sorted({name for side in sides for name in side.prompts()})
    context.refuse_strangers(names)
    counts["prompts"] = len(names)
    for name in names:
        said = {judge: given.of(name) for judge, given in judges.items()}
        chosen, rejected = (side.of(name) for side in sides)
        made, left_out = origin_preferences(settings, context.prompts[name], chosen, rejected, said)
        counts.update(left_out)
        yield from sorted(made, key=lambda p: p.preference_id)
