"""Which judgements order answers as people do. Pure functions.

A judge of two answers agrees if the one that it calls better is people's. A judge of single answers
gives numbers: those of one sample, under one principle, to all answers that people ranked, must
have people's order (the evaluation data of self-rewarding models, arXiv 2401.10020).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from rlaif.core.labelled import GivenPair
from rlaif.core.records import VALUED, Judgement
from rlaif.preferences.aggregate import raw_value

UNLABELLED = "people do not order its answers"
NO_VERDICT = "no verdict"
EQUAL = "calls equal what people do not"
AGAINST = "against people's order"

Order = tuple[str, str]
"""The better answer, then the worse one, by their ids."""


def find_disagreeing(
    judgements: Iterable[Judgement],
    pairs: Iterable[GivenPair],
    labels: Mapping[str, float],
    strict: bool = True,
) -> dict[str, str]:
    """The ids of the judgements that do not agree with people's `labels`, P(first is better) by
    pair, and why. Pairs that people call equal impose no order.

    An answer may be in several pairs: with the others it makes one ranking, and numbers agree with
    all of it or not at all. A number that is missing is no agreement. `strict`: nor are equal ones.
    """
    orders: dict[str, list[Order]] = defaultdict(list)
    for pair in pairs:
        label = labels.get(pair.pair_id, 0.5)
        if label != 0.5:
            order = (pair.first, pair.second) if label > 0.5 else (pair.second, pair.first)
            orders[pair.prompt_id].append(order)
    found: dict[str, str] = {}
    alone: dict[tuple[str, str | None, int], list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        if len(judgement.shown) == 2:
            fault = _fault_of_verdict(judgement, orders[judgement.prompt_id], strict)
            if fault is not None:
                found[judgement.judgement_id] = fault
        else:
            place = (judgement.prompt_id, judgement.principle, judgement.sample_index)
            alone[place].append(judgement)
    rankings = {prompt_id: _find_rankings(own) for prompt_id, own in orders.items()}
    for (prompt_id, _, _), group in alone.items():
        for ranking in rankings.get(prompt_id, []):
            ranked = {answer for order in ranking for answer in order}
            own = [j for j in group if j.subject in ranked]
            fault = _fault_of_numbers({j.subject: _number_of(j) for j in own}, ranking, strict)
            if fault is not None:
                found |= {j.judgement_id: fault for j in own}
        every = {a for ranking in rankings.get(prompt_id, []) for order in ranking for a in order}
        found |= {j.judgement_id: UNLABELLED for j in group if j.subject not in every}
    return found


UNMARKED = "the other judge does not say what is right"


def find_contradicting(
    judgements: Iterable[Judgement], marks: Mapping[str, float], strict: bool = True
) -> dict[str, str]:
    """The ids of the judgements that do not agree with another judge's `marks`, on [0, 1] by
    answer, and why. Of two answers the one with the higher mark is the better; a single answer is
    right above 1/2 and wrong below it. An equal verdict agrees with neither, unless not
    `strict`."""
    found: dict[str, str] = {}
    for judgement in judgements:
        if len(judgement.shown) == 2:
            first, second = (marks.get(name) for name in judgement.shown)
            right = None if first is None or second is None else first - second
            value = judgement.prob_first
        else:
            mark = marks.get(judgement.subject)
            right = None if mark is None else mark - 0.5
            value = judgement.score
        if not right:
            found[judgement.judgement_id] = UNMARKED
        elif judgement.status not in VALUED or value is None:
            found[judgement.judgement_id] = NO_VERDICT
        elif value == 0.5:
            found |= {judgement.judgement_id: EQUAL} if strict else {}
        elif (value > 0.5) != (right > 0):
            found[judgement.judgement_id] = AGAINST
    return found


def _fault_of_verdict(judgement: Judgement, orders: Sequence[Order], strict: bool) -> str | None:
    order = next((o for o in orders if set(o) == set(judgement.shown)), None)
    if order is None:
        return UNLABELLED
    if judgement.status not in VALUED or judgement.prob_first is None:
        return NO_VERDICT
    if judgement.prob_first == 0.5:
        return EQUAL if strict else None
    chosen = judgement.shown[0] if judgement.prob_first > 0.5 else judgement.shown[1]
    return None if chosen == order[0] else AGAINST


def _number_of(judgement: Judgement) -> float | None:
    """The judge's own number, which a sigmoid may have made equal to another one, or its score."""
    raw = raw_value(judgement)
    return judgement.score if raw is None else raw


def _fault_of_numbers(
    numbers: Mapping[str, float | None], ranking: Sequence[Order], strict: bool
) -> str | None:
    found = set()
    for better, worse in ranking:
        high, low = numbers.get(better), numbers.get(worse)
        if high is None or low is None:
            return NO_VERDICT
        if high < low:
            found.add(AGAINST)
        elif high == low and strict:
            found.add(EQUAL)
    return next((fault for fault in (AGAINST, EQUAL) if fault in found), None)


def _find_rankings(orders: Sequence[Order]) -> list[list[Order]]:
    """The orders of a prompt, those that share answers together."""
    rankings: list[tuple[set[str], list[Order]]] = []
    for order in orders:
        joined = [r for r in rankings if r[0] & set(order)]
        rankings = [r for r in rankings if r not in joined]
        answers = set(order).union(*(r[0] for r in joined))
        rankings.append((answers, [o for r in joined for o in r[1]] + [order]))
    return [own for _, own in rankings]
