"""Judgements of labelled pairs: which are of which pair, and what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from rlaif.core.groups import group_by
from rlaif.core.records import Judgement
from rlaif.judges.base import Answered, Call
from rlaif.metrics.verdicts import Cost, total_cost
from rlaif.pipeline.steps.asking import Kept


def count_failures(judgements: Iterable[Judgement]) -> Counter[str]:
    """Why judgements failed, and how many."""
    failed = (j for j in judgements if j.status == "failed")
    return Counter(j.error or "no reason was given" for j in failed)


def by_call(calls: Sequence[Sequence[Call]], judged: Iterable[Judgement]) -> list[list[Judgement]]:
    """The judgements of each pair's calls."""
    found = group_by(judged, lambda j: j.call_id)
    names = [dict.fromkeys(call.call_id for call in own) for own in calls]
    return [[j for name in own for j in found.get(name, [])] for own in names]


def call_costs(calls: Iterable[Call], kept: Kept) -> dict[str, Cost]:
    """What each call cost that was answered here; one that had its reasons written first is two
    questions."""
    found: dict[str, Cost] = {}
    for call in calls:
        judged = kept.judgements.get(call.call_id)
        if call.request is None or not judged or call.call_id in found:
            continue
        one, reasons = judged[0], kept.reasons.get(call.call_id)
        own = Cost(1.0, one.latency, one.prompt_tokens, one.new_tokens, one.cost)
        if reasons is not None:
            # Where the reasons failed nothing more was asked, and `one` carries their cost.
            failed = reasons.answer is None or reasons.answer.error is not None
            own = answer_cost(reasons) if failed else total_cost([answer_cost(reasons), own])
        found[call.call_id] = own
    return found


def answer_cost(answered: Answered) -> Cost:
    """What one answer cost."""
    return Cost(1.0, answered.latency, answered.prompt_tokens, answered.new_tokens, answered.cost)


def pair_cost(calls: Sequence[Call], each: Mapping[str, Cost]) -> Cost:
    """What a pair would cost alone: an answer that stands in two pairs counts in both."""
    names = dict.fromkeys(call.call_id for call in calls)
    return total_cost(each[name] for name in names if name in each)


def share_cost(whole: Cost, count: int) -> Cost:
    """A part of a cost, where verdicts rest on several answers and no pair's own are told."""
    parts = {name: value / count for name, value in asdict(whole).items() if value is not None}
    return Cost(**parts)
