"""filter: the records that every filter lets pass, and why the others were left out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rlaif.config.base import hashed_keys
from rlaif.config.filters import HELDOUT, FilterSet, FilterStep
from rlaif.constitution.own_rules import code_of
from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Preference, Prompt, from_json
from rlaif.core.resources import find
from rlaif.core.yamlio import read_text
from rlaif.data.embed import embed_texts, model_folder
from rlaif.data.hygiene import Beside, Item, Sifted, of_completion, of_preference, sift_items
from rlaif.data.sources import every_prompt
from rlaif.pipeline.plan.base import Known, PlanInputs, Planned, Size, Walk
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext

VERSION = 2
MAKES = "records"
SECONDS_PER_UNIT = 0.0


def plan(walk: Walk, index: int, step: FilterStep) -> None:
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
                hashed_keys(step, exclude={"id"}),
                [s.hash for s in sources],
                {name: walk.inputs.files[name] for name in [*step.files(), *step.models()]},
                _compared_prompts(walk, step),
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


def _compared_prompts(walk: Walk, step: FilterStep) -> list[str]:
    """The held-out prompts, where a filter compares with them."""
    compared = any(f.kind == "contamination" and HELDOUT in f.against for f in step.filters)
    return sorted(p.prompt_id for p in walk.inputs.prompts.heldout) if compared else []


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """All records, of which none may be refused."""
    return Size(known.records_read(planned, str(planned.step.records)))


def run(context: StepContext) -> dict[str, Any]:
    """All records at once, since duplicates are among all; nothing is resumed within it."""
    step = context.planned.step
    rows = list(context.read_all(step.records, step.records))
    items = [_make_item(row, step.records, context.prompts) for row in rows]
    beside = read_beside(
        step, context.inputs.path, [p.question for p in context.inputs.prompts.heldout]
    )
    sifted = sift_items(items, step.filters, beside)
    if rows and not sifted.kept:
        raise ConfigError(nothing_left(step.records, sifted))
    kept = set(sifted.kept)
    name = "completion_id" if step.records == "completions" else "preference_id"
    if not context.folder.read(step.records):
        context.folder.append(step.records, [row for row in rows if row[name] in kept])
        context.folder.append("refused", refused_rows(sifted))
    return {
        "counts": {step.records: len(kept), "refused": len(rows) - len(kept)},
        "funnel": sifted.funnel(),
    }


def _make_item(row: dict[str, Any], records: str, prompts: Mapping[str, Prompt]) -> Item:
    prompt = prompts.get(row["prompt_id"])
    if records == "completions":
        completion = from_json(Completion, row)
        if prompt is None:
            raise ConfigError(
                f"completion {completion.completion_id} was loaded, and its prompt is not among "
                "the experiment's prompts; add it to the prompts file"
            )
        return of_completion(completion, prompt)
    preference = from_json(Preference, row)
    # Loaded preferences bring prompts of their own.
    return of_preference(preference, prompt or Prompt(preference.prompt_id, preference.prompt))


def read_beside(filters: FilterSet, path: Path | None, heldout: list[str]) -> Beside:
    """What the filters read from files, found as a config in `path` names them. Raises
    ConfigError."""
    evaluations = {HELDOUT: heldout}
    lexicons = {}
    for wanted in filters.filters:
        if wanted.kind == "lexicon":
            lines = read_text(find(wanted.path, path)).splitlines()
            lexicons[wanted.path] = [line for line in lines if not line.startswith("#")]
        elif wanted.kind == "contamination":
            for name in set(wanted.against) - {HELDOUT}:
                evaluations[name] = [p.question for p in every_prompt(find(name, path))]
    embeddings = {
        name: partial(embed_texts, folder=model_folder(name, path)) for name in filters.models()
    }
    return Beside(lexicons, evaluations, embeddings)


def refused_rows(sifted: Sifted) -> list[dict[str, Any]]:
    """A row for each record that was left out: {id, filter, why, detail}."""
    return [
        {"id": name, "filter": filter_, "why": refusal.why, "detail": refusal.detail}
        for name, (filter_, refusal) in sorted(sifted.refused.items())
    ]


def nothing_left(records: str, sifted: Sifted) -> str:
    """What is said where the filters leave nothing: the whole funnel."""
    stages = "".join(
        f"\n  {stage.filter}: {stage.came} in, {stage.left} left"
        + "".join(f"; {why}: {count}" for why, count in stage.why.items())
        for stage in sifted.stages
    )
    return f"the filters leave none of the {records}; loosen them or drop one:{stages}"
