"""bench: judges measured on labelled pairs whose prompts are held out, each with some models in
turn: what `rlaif judge-bench` says of a judge, of the models of a run.

The pairs are loaded, and each judge asks each model, in steps of their own, which are found again
by their hashes; this one reads what they said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rlaif.config.arms import MAIN
from rlaif.config.judge_training import BenchStep
from rlaif.config.steps import LoadStep
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Judgement
from rlaif.core.yamlio import suggest
from rlaif.engines.base import Model
from rlaif.judges.base import Judge, compares_judgements, is_staged, roles_of
from rlaif.judges.build import BASELINES
from rlaif.judges.questions import judgement_notes
from rlaif.metrics.judge_tables import compare_all, describe_pairs, measure_subsets, measure_table
from rlaif.metrics.verdicts import VerdictTable, make_verdict, total_cost, verdict_table
from rlaif.pipeline.judged_pairs import (
    answer_cost,
    by_call,
    call_costs,
    count_failures,
    pair_cost,
    share_cost,
)
from rlaif.pipeline.plan.base import Known, PlanInputs, Planned, Size, Walk
from rlaif.pipeline.question_sets import read_pairs
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.asking import Kept
from rlaif.pipeline.steps.context import StepContext, keep_commonest
from rlaif.pipeline.steps.judge import judged
from rlaif.pipeline.steps.load import loaded_pairs
from rlaif.preferences.aggregate import weights_of

VERSION = 1
MAKES = "figures"
SECONDS_PER_UNIT = 0.0

JUDGED = "judged/"
"""What the inputs of a bench begin with that are a judge's verdicts: judged/JUDGE/NUMBER. The model
that gave them goes by JUDGE/NUMBER, where it is one."""
RESULT = "bench"
"""The file of what was measured."""


def plan(walk: Walk, index: int, step: BenchStep) -> None:
    """The held-out pairs, each judge's verdicts with each model, and their figures."""
    load = _find_load(walk, index, step)
    name = load.id if load.makes_set else MAIN
    ids = sorted(p.prompt_id for p in walk.inputs.set_named(name).heldout)
    if not ids:
        fault = f"pairs: no prompt of {step.pairs!r} is held out: set `holdout`"
        raise walk.inputs.fail(index, fault, "pairs")
    pairs = loaded_pairs(walk, load, ids, f"{step.id}.pairs")
    inputs = {"pairs": pairs.hash}
    models: dict[str, Model] = {}
    for judge in step.judges:
        found: dict[str, Planned] = {}
        for number, asked in enumerate(_choose_models(walk, index, step, judge)):
            planned = judged(
                walk,
                walk.yardstick.experiment.all_judges()[judge],
                [pairs],
                asked,
                f"{step.id}.{judge}.{number}",
                judge=walk.yardstick.judges[judge],
            )
            # Two names may stand for one model.
            if planned.hash in found:
                continue
            found[planned.hash] = planned
            inputs[f"{JUDGED}{judge}/{number}"] = planned.hash
            models |= {f"{judge}/{number}": asked["by"]} if "by" in asked else {}
    weights = walk.yardstick_weights()
    source = walk.inputs.loaded_hash(load)
    planned = Planned(
        step_hash("bench", inputs, source, weights, walk.seed),
        "bench",
        step.id,
        walk.seed,
        walk.round,
        step,
        inputs,
        models,
        tuple(ids),
        {"principle_weights": weights, "load": load},
        judges={name: walk.yardstick.judges[name] for name in step.judges},
    )
    walk.by_id[step.id, walk.round] = walk.add(planned)


def _find_load(walk: Walk, index: int, step: BenchStep) -> LoadStep:
    """The load of the pairs, as the file has it for every arm. Raises ConfigError."""
    entries = walk.yardstick.experiment.entries
    loads = {e.load.id: e.load for e in entries if e.load is not None and e.load.type == "pairs"}
    if step.pairs not in loads:
        raise walk.inputs.fail(
            index,
            f"pairs: {step.pairs!r} is no load of labelled pairs"
            f"{suggest(step.pairs, sorted(loads))}",
            "pairs",
        )
    load: LoadStep = loads[step.pairs]
    name = walk.experiment.loaded_name(load)
    return load if load.dataset or load.path else load.model_copy(update={"path": name})


def _choose_models(walk: Walk, index: int, step: BenchStep, judge: str) -> list[dict[str, Model]]:
    """The models that a judge asks, by role: those of its own, or with each of `by` in their place;
    nothing of a program."""
    judges = walk.yardstick.experiment.all_judges()
    if judge not in judges:
        hint = suggest(judge, sorted(judges))
        raise walk.inputs.fail(index, f"judges: {judge!r} is no judge{hint}", "judges")
    roles = roles_of(walk.yardstick.judges[judge])
    if judges[judge].kind == "verdict":
        fault = f"judges: {judge!r} marks answers to questions; measure the judge that it is of"
        raise walk.inputs.fail(index, fault, "judges")
    if compares_judgements(walk.yardstick.judges[judge]):
        fault = f"judges: {judge!r} compares judgements, and these are pairs of answers"
        raise walk.inputs.fail(index, fault, "judges")
    if not roles:
        return [{}]
    if not step.by:
        return [walk.asked(index, judges[judge], "judges")]
    if "by" not in roles:
        raise walk.inputs.fail(
            index,
            f"by: judge {judge!r} asks several models, of which none is its `by`: bench it without "
            "`by`, in a step of its own",
            "by",
        )
    own = {role: name for role, name in judges[judge].asks().items() if role in roles}
    others = {r: walk.model(index, name, "judges") for r, name in own.items() if r != "by"}
    return [others | {"by": walk.model(index, name, "by")} for name in step.by]


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """A row of figures for each judge and model."""
    return Size(sum(name.startswith(JUDGED) for name in planned.inputs))


def run(context: StepContext) -> dict[str, Any]:
    """The figures of every judge and model, and the comparisons among them."""
    ids, load = set(context.planned.prompts), context.planned.options["load"]
    read = read_pairs(context.inputs.experiment, load, context.inputs.path)
    pairs = [pair.as_loaded() for pair in read if pair.prompt.prompt_id in ids]
    tables: dict[str, VerdictTable] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, digest in context.planned.inputs.items():
        if name.startswith(JUDGED):
            place = name.removeprefix(JUDGED)
            tables[place], rows[place] = _measure_judge(context, pairs, place, digest)
    specs = context.inputs.experiment.all_judges()
    asked = [place for place in tables if specs[place.partition("/")[0]].kind not in BASELINES]
    result = {
        "pairs": describe_pairs(load.id, pairs),
        "judges": rows,
        **compare_all(tables, asked),
    }
    if not context.folder.count(RESULT):
        context.folder.append(RESULT, [result])
    return {
        "counts": {"figures": len(rows), "pairs": len(pairs)},
        "notes": [note for row in rows.values() for note in row["notes"]],
    }


def _measure_judge(
    context: StepContext, pairs: Sequence[LabelledPair], place: str, digest: str
) -> tuple[VerdictTable, dict[str, Any]]:
    """One judge's verdicts with one model, and all that is said of them."""
    name = place.partition("/")[0]
    judge: Judge = context.planned.judges[name]
    folder, seed = context.store.step(digest), context.planned.seed
    judgements = list(folder.records(Judgement))
    calls = [judge.calls(p.prompt, [p.first, p.second], seed) for p in pairs]
    kept = Kept(folder)
    if is_staged(judge):
        by_pair = [_select_judgements(pair, judgements) for pair in pairs]
        total = total_cost(map(answer_cost, (*kept.answers.values(), *kept.reasons.values())))
        costs = [share_cost(total, len(pairs))] * len(pairs)
    else:
        by_pair = by_call(calls, judgements)
        each = call_costs((call for own in calls for call in own), kept)
        total = total_cost(each.values())
        costs = [pair_cost(own, each) for own in calls]
    weights: Mapping[str, float] = weights_of(name, context.planned.options["principle_weights"])
    verdicts = [
        make_verdict(pair, own, weights, cost)
        for pair, own, cost in zip(pairs, by_pair, costs, strict=True)
    ]
    table = verdict_table(pairs, [verdicts])
    return table, {
        "judge": name,
        **measure_table(table, seed),
        "subsets": measure_subsets(table),
        "notes": judgement_notes(name, judgements),
        "total": asdict(total),
        "failures": keep_commonest(count_failures(judgements)),
    }


def _select_judgements(pair: LabelledPair, judgements: Sequence[Judgement]) -> list[Judgement]:
    answers = {pair.first.completion_id, pair.second.completion_id}
    return [j for j in judgements if set(j.shown) <= answers]
