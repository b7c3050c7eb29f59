"""Labelled pairs judged and stored: what was judged once is read, and no engine is asked again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.analysis.bench.entrants import Entrant
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Judgement, content_hash
from rlaif.core.store import Store
from rlaif.judges.base import Call, Judge, is_staged
from rlaif.metrics.verdicts import Cost, Verdict, make_verdict, total_cost
from rlaif.pipeline.experiment import StepProgress
from rlaif.pipeline.judged_pairs import (
    answer_cost,
    by_call,
    call_costs,
    count_failures,
    pair_cost,
    share_cost,
)
from rlaif.pipeline.steps import judge as judge_step
from rlaif.pipeline.steps.asking import Group, Kept, verdicts_by_group
from rlaif.pipeline.steps.context import Engines, refuse_all_failed


@dataclass(frozen=True, slots=True)
class Judged:
    """One verdict per pair, every judgement, and what all answers cost, each counted once.

    `wall` are the seconds by the clock in which `asked` pairs were judged, by the process that
    finished them; None where no model was asked. `step` is the hash of the folder that has it all.
    """

    verdicts: list[Verdict]
    judgements: list[Judgement]
    cost: Cost
    wall: float | None = None
    asked: int = 0
    step: str = ""


@dataclass(frozen=True)
class Workplace:
    """Where judges are asked, and what they said is kept."""

    store: Store
    engines: Engines
    progress: StepProgress


def judge_pairs(
    work: Workplace,
    entrant: Entrant,
    pairs: Sequence[LabelledPair],
    seed: int,
    known: Sequence[Judgement] = (),
) -> Judged:
    """The pairs judged, and stored. Where a judge looks at one answer at a time, an answer that has
    a judgement in `known` is not judged again, and costs nothing more."""
    judge = entrant.judge
    calls = [judge.calls(p.prompt, [p.first, p.second], seed) for p in pairs]
    groups = _group_answers(judge, pairs, calls, {j.subject for j in known})
    step = _hash_step(entrant, groups, seed)
    folder = work.store.step(step)
    marker = folder.done()
    work.progress.begin_step(judge.id)
    if marker is None:
        folder.repair()
    kept = Kept(folder)
    asked, began = _count_unanswered(calls, kept), time.monotonic()
    by_group = verdicts_by_group(
        judge, entrant.models, work.engines, groups, seed, kept, work.progress
    )
    if marker is None:
        made, who = [j for own in by_group for j in own], f"of judge {judge.id}"
        failures = count_failures(made)
        refuse_all_failed(f"verdicts {who}", f"calls {who}", len(made), failures, folder.path)
        wall = round(time.monotonic() - began, 4) if asked else None
        about = {"kind": "judge-bench", "judge": judge.id, "judge_hash": judge.judge_hash}
        marker = folder.finish(about | {"wall_seconds": wall, "asked_pairs": asked})
    judged = list({j.judgement_id: j for own in (known, *by_group) for j in own}.values())
    if is_staged(judge):
        by_pair = _by_answers(pairs, groups, by_group)
        total = total_cost(map(answer_cost, (*kept.answers.values(), *kept.reasons.values())))
        costs = [share_cost(total, len(pairs))] * len(pairs)
    else:
        by_pair = by_call(calls, judged)
        each = call_costs((call for own in calls for call in own), kept)
        total = total_cost(each.values())
        costs = [pair_cost(own, each) for own in calls]
    said = [
        make_verdict(pair, own, entrant.weights, cost)
        for pair, own, cost in zip(pairs, by_pair, costs, strict=True)
    ]
    wall, asked = marker.get("wall_seconds"), marker.get("asked_pairs", 0)
    return Judged(said, judged, total, wall, asked, step)


def _count_unanswered(calls: Sequence[Sequence[Call]], kept: Kept) -> int:
    """How many pairs have a question to a model that was not answered before."""
    known = kept.answers.keys() | kept.judgements.keys()
    return sum(any(c.request is not None and c.call_id not in known for c in own) for own in calls)


def _group_answers(
    judge: Judge, pairs: Sequence[LabelledPair], calls: Sequence[Sequence[Call]], known: set[str]
) -> list[Group]:
    """Each pair once; for a judge that looks at one answer at a time, each answer once."""
    taken = set(known)
    groups: dict[tuple[str, ...], Group] = {}
    for pair, own in zip(pairs, calls, strict=True):
        answers = [pair.first, pair.second]
        if not is_staged(judge) and all(len(call.shown) == 1 for call in own):
            answers = [a for a in answers if a.completion_id not in taken]
            taken |= {a.completion_id for a in answers}
        if answers:
            groups.setdefault(tuple(a.completion_id for a in answers), (pair.prompt, answers))
    return list(groups.values())


def _by_answers(
    pairs: Sequence[LabelledPair], groups: Sequence[Group], by_group: Sequence[list[Judgement]]
) -> list[list[Judgement]]:
    """Each pair's judgements, where verdicts rest on several calls and may differ with what an
    answer stands beside."""
    found = {
        tuple(answer.completion_id for answer in answers): own
        for (_, answers), own in zip(groups, by_group, strict=True)
    }
    return [found[pair.first.completion_id, pair.second.completion_id] for pair in pairs]


def _hash_step(entrant: Entrant, groups: Sequence[Group], seed: int) -> str:
    return content_hash(
        "judge-bench",
        judge_step.VERSION,
        entrant.judge.judge_hash,
        {role: model.identity() for role, model in sorted(entrant.models.items())},
        [
            [p.prompt_id, p.tags, p.reference, [[a.completion_id, a.digest] for a in answers]]
            for p, answers in groups
        ],
        seed,
    )
