"""filter: the records that every filter lets pass, and why the others were left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rlaif.config.base import hashed_keys
from rlaif.config.filters import HELDOUT, BestFilter, FilterSet, FilterStep
from rlaif.constitution.own_rules import code_of
from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Judgement, Preference, Prompt, from_json
from rlaif.core.resources import find
from rlaif.core.yamlio import read_text
from rlaif.data.embed import embed_texts, model_folder
from rlaif.data.hygiene import (
    Beside,
    Item,
    Sifted,
    of_completion,
    of_judgement,
    of_preference,
    sift_items,
)
from rlaif.data.sources import every_prompt
from rlaif.pipeline.plan.base import Known, PlanInputs, Planned, Size, Walk
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext
from rlaif.pipeline.steps.judged_filters import list_judged, plan_judged, read_judged
from rlaif.pipeline.steps.training_data import data_kind
from rlaif.pipeline.steps.written import judge_of

VERSION = 2
MAKES = "records"
SECONDS_PER_UNIT = 0.0


IDS = {
    "completions": "completion_id",
    "preferences": "preference_id",
    "judgements": "judgement_id",
}
"""The key of the id of each kind of records."""
_GIVERS = {
    "completions": ("sample", "revise", "filter", "load"),
    "preferences": ("pair", "label", "filter", "load"),
    "judgements": ("judge", "filter", "load"),
}
"""Kinds of steps that give each kind of records."""
_NEEDED = {
    "completions": "sample",
    "preferences": "pair, label or load",
    "judgements": "judge",
}


def plan(walk: Walk, index: int, step: FilterStep) -> None:
    """The latest records of a kind, or those that `uses` names, without those that a filter
    refuses, which stand where all stood."""
    sources = _find_sources(walk, index, step)
    inputs = {f"{step.records}/{i}": p.hash for i, p in enumerate(sources)}
    inputs |= _list_below(step, sources)
    prompts = tuple(dict.fromkeys(p for s in sources for p in s.prompts))
    beside, decides = plan_judged(walk, index, step, sources, prompts)
    options = {"principle_weights": walk.principle_weights()} if decides else {}
    planned = walk.add(
        Planned(
            step_hash(
                "filter",
                hashed_keys(step, exclude={"id", "uses"}),
                [s.hash for s in sources],
                {name: walk.inputs.files[name] for name in [*step.files(), *step.models()]},
                _compared_prompts(walk, step),
                walk.facts(prompts or None)
                + code_of(f.rule for f in step.filters if f.kind == "rule"),
                *([decides] if decides else []),
            ),
            "filter",
            step.id,
            walk.seed,
            walk.round,
            step,
            inputs | beside,
            prompts=prompts,
            options=options,
        )
    )
    walk.by_id[step.id, walk.round] = planned
    _stand_for(walk, step, sources, planned)


def _find_sources(walk: Walk, index: int, step: FilterStep) -> list[Planned]:
    """The steps whose records are filtered. Raises ConfigError where there are none, and for steps
    that give other ones."""
    kind = step.records
    latest: dict[str, Mapping[str, Planned]] = {
        "completions": walk.completions,
        "preferences": {p.id: p for p in walk.preferences},
        "judgements": walk.judgements,
    }
    sources = walk.used(index, step.uses, latest[kind], _GIVERS[kind])
    if not sources:
        raise walk.inputs.fail(
            index, f"filter {step.id!r} has no {kind}: add a {_NEEDED[kind]} step before it"
        )
    for source in sources if step.uses is not None else ():
        given = data_kind(source)
        # Loaded pairs bring the answers that they are of.
        if given != kind and (given, kind) != ("pairs", "completions"):
            message = f"uses: {source.id!r} gives {given}, and this filter is of {kind} (`records`)"
            raise walk.inputs.fail(index, message, "uses")
    judges = sorted({judge_of(walk, p) for p in sources}) if kind == "judgements" else []
    if len(judges) > 1:
        raise walk.inputs.fail(
            index,
            f"filter {step.id!r} has judgements of {' and '.join(judges)}: filter those of each "
            "judge in a step of its own, and name them with `uses`",
        )
    return sources


def _list_below(step: FilterStep, sources: list[Planned]) -> dict[str, str]:
    """What the filtered records were made of: training and pairing find the answers through the
    step that they read."""
    if step.records == "preferences":
        kinds = ("completions/", "judgements/")
        below = [p.inputs.items() for p in sources]
        return {n: h for found in below for n, h in found if n.startswith(kinds)}
    if step.records == "judgements":
        judged = dict.fromkeys(h for source in sources for h in list_judged(source))
        return {f"completions/{i}": digest for i, digest in enumerate(judged)}
    return {}


def _stand_for(walk: Walk, step: FilterStep, sources: list[Planned], planned: Planned) -> None:
    """Later steps see what the filter left where its sources stood."""
    used = {source.hash for source in sources}
    if step.records == "completions":
        walk.replace([p for p in walk.completions.values() if p.hash not in used], step.id)
        walk.completions = {step.id: planned}
    elif step.records == "preferences":
        walk.replace([p for p in walk.preferences if p.hash not in used], step.id)
        walk.preferences = [planned]
    else:
        # Of other judges the judgements are as current as before.
        others = {name: p for name, p in walk.judgements.items() if p.hash not in used}
        walk.judgements = {**others, step.id: planned}


def _compared_prompts(walk: Walk, step: FilterStep) -> list[str]:
    """The held-out prompts, where a filter compares with them."""
    compared = any(f.kind == "contamination" and HELDOUT in f.against for f in step.filters)
    return sorted(p.prompt_id for p in walk.inputs.prompts.heldout) if compared else []


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """All records, of which none may be refused, or as many as a filter of the best lets pass."""
    count = known.records_read(planned, str(planned.step.records))
    for wanted in planned.step.filters:
        if isinstance(wanted, BestFilter):
            groups = len(planned.prompts) if wanted.per == "prompt" else 1
            # Loaded completions bring prompts of their own, whose number is not known.
            count = min(count, wanted.k * groups) if groups else count
    return Size(count)


def run(context: StepContext) -> dict[str, Any]:
    """All records at once, since duplicates are among all; nothing is resumed within it."""
    step = context.planned.step
    rows = list(context.read_all(step.records, step.records))
    items = [_make_item(row, step.records, context.prompts) for row in rows]
    beside = read_beside(
        step, context.inputs.path, [p.question for p in context.inputs.prompts.heldout]
    )
    beside = replace(beside, judged=read_judged(context, rows, items))
    sifted = sift_items(items, step.filters, beside)
    if rows and not sifted.kept:
        raise ConfigError(nothing_left(step.records, sifted))
    kept = set(sifted.kept)
    name = IDS[step.records]
    # A kill may have come between the two, which are one batch each.
    for kind, made in (
        (step.records, [row for row in rows if row[name] in kept]),
        ("refused", refused_rows(sifted)),
    ):
        if not context.folder.count(kind):
            context.folder.append(kind, made)
    return {
        "counts": {step.records: len(kept), "refused": len(rows) - len(kept)},
        "funnel": sifted.funnel(),
    }


def _make_item(row: dict[str, Any], records: str, prompts: Mapping[str, Prompt]) -> Item:
    prompt = prompts.get(row["prompt_id"])
    if records != "preferences":
        if prompt is None:
            raise ConfigError(
                f"{records.removesuffix('s')} {row[IDS[records]]} was loaded, and its prompt is "
                "not among the experiment's prompts; add it to the prompts file"
            )
        if records == "completions":
            return of_completion(from_json(Completion, row), prompt)
        return of_judgement(from_json(Judgement, row), prompt)
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
