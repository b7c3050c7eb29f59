"""What filters read of judgements and people's labels: found in the plan, and read when they run.

A filter by a judge reads the judgements that there are. It asks nothing, so the judge must have
been asked about all of the answers before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.config.filters import AgreesFilter, BalanceFilter, BestFilter, FilterStep, ScoreFilter
from rlaif.constitution.textstats import is_blank
from rlaif.core.labelled import GivenPair
from rlaif.core.records import VALUED, Judgement, Prompt, from_json
from rlaif.core.yamlio import suggest
from rlaif.data.hygiene import Item, Judged
from rlaif.pipeline.plan.base import Planned, Walk
from rlaif.pipeline.steps.context import StepContext
from rlaif.preferences.aggregate import candidate_scores, compared_scores, weights_of
from rlaif.preferences.agreement import find_contradicting, find_disagreeing
from rlaif.preferences.labels import annotator_verdicts


def plan_judged(
    walk: Walk, index: int, step: FilterStep, sources: Sequence[Planned], ids: Sequence[str]
) -> tuple[dict[str, str], list[Any]]:
    """The inputs that filters of `sources`, which are of the prompts `ids`, read besides, and what
    else decides their outcome. Raises ConfigError where a judge has not been asked about all."""
    inputs: dict[str, str] = {}
    decides: list[Any] = []
    for wanted in step.filters:
        if isinstance(wanted, BestFilter | ScoreFilter):
            judging = _find_judging(walk, index, wanted.kind, wanted.by, sources)
            inputs |= {f"scores/{wanted.by}/{i}": p.hash for i, p in enumerate(judging)}
            decides += [wanted.by, [p.hash for p in judging], walk.principle_weights()]
        elif isinstance(wanted, AgreesFilter) and wanted.with_ in walk.inputs.judges:
            steps = {planned.hash: planned for planned in walk.done}
            answers = [steps[h] for source in sources for h in list_judged(source) if h in steps]
            judging = _find_judging(walk, index, wanted.kind, wanted.with_, answers)
            inputs |= {f"scores/{wanted.with_}/{i}": p.hash for i, p in enumerate(judging)}
            decides += [wanted.with_, [p.hash for p in judging], walk.principle_weights()]
        elif isinstance(wanted, AgreesFilter):
            load = _find_labels(walk, index, wanted, sources)
            inputs[f"labels/{wanted.with_}"] = load.hash
            decides.append(load.hash)
        elif isinstance(wanted, BalanceFilter):
            decides.append(walk.seed)
            if wanted.by == "source":
                decides.append(walk.origins(list(ids or walk.inputs.prompts_by_id)))
    return inputs, decides


def _find_judging(
    walk: Walk, index: int, kind: str, by: str, sources: Sequence[Planned]
) -> list[Planned]:
    """The steps in which judge `by` was asked about the sources; `kind` is the filter's."""
    judge = walk.inputs.judges.get(by)
    if judge is None:
        message = f"{kind}: {by!r} is no judge{suggest(by, sorted(walk.inputs.judges))}"
        raise walk.inputs.fail(index, message, "filters")
    if judge.comparative:
        raise walk.inputs.fail(
            index,
            f"{kind}: judge {by!r} compares two answers, and a filter needs the "
            "scores of a judge of single answers",
            "filters",
        )
    steps = {planned.hash: planned for planned in walk.done}
    asked = [p for p in walk.done if p.kind == "judge" and p.id == by]
    found: dict[str, Planned] = {}
    left = list(sources)
    while left:
        source = left.pop(0)
        # The latest, since a judge that is trained may have been asked once more.
        about = next((p for p in reversed(asked) if source.hash in list_judged(p)), None)
        if about is not None:
            found[about.hash] = about
        elif source.kind == "filter":
            left += [steps[h] for h in list_judged(source) if h in steps]
        else:
            raise walk.inputs.fail(
                index,
                f"{kind}: judge {by!r} has not been asked about the answers of {source.id!r}: put "
                f"`- judge: {{id: {by}, uses: [{source.id}]}}` before "
                "this step",
                "filters",
            )
    return list(found.values())


def list_judged(planned: Planned) -> list[str]:
    """The hashes of the completions that a step reads."""
    return [h for name, h in planned.inputs.items() if name.startswith("completions/")]


def _find_labels(
    walk: Walk, index: int, wanted: AgreesFilter, sources: Sequence[Planned]
) -> Planned:
    """The load of labelled pairs whose answers the sources have judged."""
    loads = {p.id: p for p in walk.done if p.kind == "load" and p.step.type == "pairs"}
    load = loads.get(wanted.with_)
    if load is None:
        hint = suggest(wanted.with_, sorted(loads))
        raise walk.inputs.fail(
            index,
            f"agrees: {wanted.with_!r} is no load of labelled pairs before this step, and no "
            f"judge{hint}",
            "filters",
        )
    for source in sources:
        if load.hash not in list_judged(source):
            raise walk.inputs.fail(
                index,
                f"agrees: {source.id!r} has not judged the pairs of {load.id!r}, whose labels its "
                f"verdicts would be compared with: say `uses: [{load.id}]` in the judge step",
                "filters",
            )
    return load


def read_judged(
    context: StepContext, rows: Sequence[Mapping[str, Any]], items: Sequence[Item]
) -> Judged:
    """What the filters of a step read besides its rows, which are `items` as filters see them."""
    step: FilterStep = context.planned.step
    scores: dict[str, dict[str, float]] = {}
    compared: dict[str, dict[str, float]] = {}
    disagreeing: dict[tuple[str, bool], dict[str, str]] = {}
    values: dict[str, dict[str, Any]] = {}
    for wanted in step.filters:
        if isinstance(wanted, BestFilter | ScoreFilter):
            among = isinstance(wanted, BestFilter) and wanted.per == "prompt"
            (compared if among else scores)[wanted.by] = _read_scores(
                context, wanted.by, items, among
            )
        elif isinstance(wanted, AgreesFilter):
            judgements = [from_json(Judgement, row) for row in rows]
            if wanted.with_ in context.inputs.judges:
                marks = _read_marks(context, wanted.with_, judgements)
                found = find_contradicting(judgements, marks, wanted.strict)
                disagreeing[wanted.with_, wanted.strict] = found
                continue
            name = f"labels/{wanted.with_}"
            given = [GivenPair(**row) for row in context.read_all(name, "pairs")]
            labels = annotator_verdicts(given, {wanted.with_: context.judgements(name)}, {})
            found = find_disagreeing(judgements, given, labels, wanted.strict)
            disagreeing[wanted.with_, wanted.strict] = found
        elif isinstance(wanted, BalanceFilter):
            values[wanted.by] = {
                item.name: _value_of(row, item.prompt, wanted.by)
                for row, item in zip(rows, items, strict=True)
            }
    return Judged(scores, compared, disagreeing, values, context.planned.seed)


def _read_scores(
    context: StepContext, judge: str, items: Sequence[Item], among: bool
) -> dict[str, float]:
    """The judge's combined scores of the answers that have one; `among`: compared with the others
    of their prompt."""
    weights = weights_of(judge, context.planned.options["principle_weights"])
    names = {item.name for item in items}
    blank = {item.name for item in items if is_blank("".join(item.answers))}
    found: dict[str, float] = {}
    for rows in _read_about(context, f"scores/{judge}", names).values():
        if among:
            given = compared_scores(rows, weights, blank=blank)
        else:
            given = candidate_scores(rows, weights)
        found |= {name: score for name, score in given.items() if score is not None}
    return found


def _read_marks(
    context: StepContext, judge: str, judgements: Sequence[Judgement]
) -> dict[str, float]:
    """The judge's combined scores of the answers that these judgements show."""
    weights = weights_of(judge, context.planned.options["principle_weights"])
    names = {name for judgement in judgements for name in judgement.shown}
    found: dict[str, float] = {}
    for rows in _read_about(context, f"scores/{judge}", names).values():
        given = candidate_scores(rows, weights)
        found |= {name: score for name, score in given.items() if score is not None}
    return found


def _read_about(context: StepContext, prefix: str, names: set[str]) -> dict[str, list[Judgement]]:
    """The judgements in the inputs under `prefix` of answers that are among `names`, by prompt."""
    by_prompt: dict[str, list[Judgement]] = defaultdict(list)
    for digest in context.inputs_under(prefix):
        for judgement in context.store.step(digest).records(Judgement):
            if judgement.subject in names:
                by_prompt[judgement.prompt_id].append(judgement)
    return by_prompt


def _value_of(row: Mapping[str, Any], prompt: Prompt, by: str) -> Any:
    """What a record is balanced by; None where it has no such value."""
    if by == "reference":
        return prompt.reference
    if by == "verdict":
        value = row["score"] if row["prob_first"] is None else row["prob_first"]
        prob = value if row["status"] in VALUED else None
        return None if prob is None else "tie" if prob == 0.5 else _PLACES[prob < 0.5]
    if by == "source" and "source" not in row:
        return prompt.source or None
    return row[by]


_PLACES = ("first", "second")
