"""Planning the filters."""

from __future__ import annotations

from rlaif.config.filters import HELDOUT, FilterStep
from rlaif.constitution.own_rules import code_of
from rlaif.pipeline.plan.base import Planned, step_hash
from rlaif.pipeline.plan.walk import Walk


def plan_filter(walk: Walk, index: int, step: FilterStep) -> None:
    """The latest completions or preferences without those that a filter refuses, which stand where
    all stood."""
    whole = {p.id: p for p in walk.preferences}
    sources = list((walk.completions if step.records == "completions" else whole).values())
    if not sources:
        needed = "sample" if step.records == "completions" else "pair, label or load"
        raise walk.inputs.fail(
            index, f"filter {step.id!r} has no {step.records}: add a {needed} step before it"
        )
    inputs = {f"{step.records}/{i}": p.hash for i, p in enumerate(sources)}
    # What training wants to know of the answers is found through the step that it reads.
    below = [p.inputs for p in sources] if step.records == "preferences" else []
    kinds = ("completions/", "judgements/")
    inputs |= {n: h for found in below for n, h in found.items() if n.startswith(kinds)}
    prompts = tuple(dict.fromkeys(p for s in sources for p in s.prompts))
    planned = walk.add(
        Planned(
            step_hash(
                "filter",
                step.model_dump(mode="json", exclude={"id"}),
                [s.hash for s in sources],
                {name: walk.inputs.files[name] for name in [*step.files(), *step.models()]},
                _heldout(walk, step),
                walk.facts(prompts or None)
                + code_of(f.rule for f in step.filters if f.kind == "rule"),
            ),
            "filter",
            step.id,
            walk.seed,
            walk.round,
            step,
            inputs,
            prompts=prompts,
        )
    )
    walk.by_id[step.id, walk.round] = planned
    if step.records == "completions":
        walk.completions = {step.id: planned}
    else:
        walk.preferences = [planned]


def _heldout(walk: Walk, step: FilterStep) -> list[str]:
    """The held-out prompts, where a filter compares with them."""
    compared = any(f.kind == "contamination" and HELDOUT in f.against for f in step.filters)
    return sorted(p.prompt_id for p in walk.inputs.prompts.heldout) if compared else []
