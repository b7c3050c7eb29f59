"""From judgements to one number per candidate: a score on [0, 1], or the judge's own number. Pure
functions.

Samples are averaged first, then presentation orders, then opponents, then principles by their
weights, then judges by theirs. What has no value is missing and never becomes a number. A principle
that does not apply drops out; where candidates are compared, it drops out for all of them, so that
no answer wins by escaping a principle.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from operator import mul
from typing import Literal

import numpy as np
from msgspec.structs import replace

from rlaif.core.numbers import sigmoids
from rlaif.core.records import VALUED, Judgement

Scores = dict[str, float | None]
_Cell = tuple[float | None, bool]
"""A candidate's value under one principle, and whether the principle applied to it."""
_UNASKED: _Cell = (None, False)


def candidate_scores(
    judgements: Iterable[Judgement],
    weights: Mapping[str, float] | None = None,
    renormalise: bool = False,
) -> Scores:
    """One judge's scores of the candidates of one prompt, each on [0, 1] or None (missing), each on
    the principles that apply to it.

    `weights` is the weight of each principle, 1 where it is not given. A candidate that has no
    value under a principle that applied is missing, unless `renormalise`: then the other
    principles' weights make up for it. Pairwise verdicts become the mean win probability over the
    opponents seen.
    """
    return _score_candidates(_group_columns(judgements, renormalise), weights, renormalise)


def compared_scores(
    judgements: Iterable[Judgement],
    weights: Mapping[str, float] | None = None,
    renormalise: bool = False,
    blank: Container[str] = (),
) -> Scores:
    """`candidate_scores` for candidates that are compared: each on the principles that apply to all
    of them, or None where there is no such principle.

    `blank` are the candidates that say nothing: a principle that applies to others applies to them
    too, with a score of 0. Candidates that are missing have no say in which principles are shared.
    """
    columns = _group_columns(judgements, renormalise)
    given = _score_candidates(columns, weights, renormalise)
    # Nothing drops out, so all principles are shared.
    if all(applied for column in columns.values() for _, applied in column.values()):
        return given
    present = {c for c, score in given.items() if score is not None and c not in blank}
    shared: dict[str | None, Mapping[str, _Cell]] = {}
    for principle, column in columns.items():
        cells = {c: column[c] for c in sorted(present & column.keys())}
        # It applies to all that say something; the blank ones that escaped it failed it.
        if all(applied for _, applied in cells.values()):
            failed = {c: (0.0, True) for c, cell in column.items() if c in blank and not cell[1]}
            shared[principle] = {**column, **failed} if cells else column
    # Candidates that no shared principle is left for stay, as missing.
    return dict.fromkeys(given) | _score_candidates(shared, weights, renormalise)


def principle_values(judgements: Iterable[Judgement]) -> dict[str, dict[str | None, float]]:
    """By candidate and principle, the values that a score is the weighted mean of; what has no
    value is absent."""
    values: dict[str, dict[str | None, float]] = defaultdict(dict)
    for principle, column in _group_columns(judgements, renormalise=True).items():
        for candidate, (value, _) in column.items():
            if value is not None:
                values[candidate][principle] = value
    return dict(values)


def _group_columns(
    judgements: Iterable[Judgement], renormalise: bool
) -> dict[str | None, dict[str, _Cell]]:
    """Per principle, the candidates' values. Raises ValueError for judgements of several prompts or
    judges."""
    rated: dict[str | None, dict[str, list[Judgement]]] = defaultdict(dict)
    compared: dict[str | None, list[Judgement]] = defaultdict(list)
    whose = None
    for judgement in judgements:
        whose = whose or judgement
        if judgement.prompt_id != whose.prompt_id or judgement.judge != whose.judge:
            raise ValueError("the judgements are of several prompts or judges; group them first")
        texts = len(judgement.shown)
        if texts == 1:
            rated[judgement.principle].setdefault(judgement.subject, []).append(judgement)
        elif texts == 2:
            compared[judgement.principle].append(judgement)
    columns = {principle: _average_groups(groups) for principle, groups in rated.items()}
    for principle, group in compared.items():
        columns.setdefault(principle, {}).update(win_rates(group, renormalise))
    return columns


def _score_candidates(
    columns: Mapping[str | None, Mapping[str, _Cell]],
    weights: Mapping[str, float] | None,
    renormalise: bool,
) -> Scores:
    weighted = [
        (column, principle_weight(principle, weights)) for principle, column in columns.items()
    ]
    return {
        candidate: _over_principles(candidate, weighted, renormalise)
        for candidate in sorted(set[str]().union(*columns.values()))
    }


def candidate_raw_values(
    judgements: Iterable[Judgement], weights: Mapping[str, float] | None = None
) -> Scores:
    """As `candidate_scores`, of the judge's raw values: each of any size, or None (missing)."""
    return candidate_scores([_as_raw(judgement) for judgement in judgements], weights)


def _as_raw(judgement: Judgement) -> Judgement:
    """The judgement with its raw value in place of its score; unparsed where it has none."""
    raw = raw_value(judgement)
    if raw is not None:
        return replace(judgement, score=raw, prob_first=None, raw_value=None)
    if judgement.status not in VALUED:
        return judgement
    return replace(judgement, status="unparsed", score=None, prob_first=None)


def raw_value(judgement: Judgement) -> float | None:
    """The number that the score was made of, None where there is none. Judgements of versions that
    kept no `raw_value` have a reward among their parts."""
    if judgement.raw_value is not None or judgement.status not in VALUED:
        return judgement.raw_value
    return (judgement.distribution or {}).get("reward")


def weights_of(judge: str, weights: Mapping[str, float]) -> Mapping[str, float]:
    """The weights of the principles that a judge judges by: those called JUDGE/PRINCIPLE, where it
    has a constitution of its own, or all."""
    start = f"{judge}/"
    own = {name[len(start) :]: w for name, w in weights.items() if name.startswith(start)}
    return own or weights


def principle_weight(principle: str | None, weights: Mapping[str, float] | None) -> float:
    """The weight of a principle: 1 where none is given."""
    return 1.0 if weights is None or principle is None else weights.get(principle, 1.0)


def _over_principles(
    candidate: str, weighted: Sequence[tuple[Mapping[str, _Cell], float]], renormalise: bool
) -> float | None:
    pairs = []
    for column, weight in weighted:
        value, applied = column.get(candidate, _UNASKED)
        if value is not None:
            pairs.append((value, weight))
        elif applied and weight > 0 and not renormalise:
            return None
    return weighted_mean(pairs)


def weighted_mean(pairs: Iterable[tuple[float, float]]) -> float | None:
    """The mean of (value, weight) pairs, the same in any order; None at total weight 0."""
    kept = [pair for pair in pairs if pair[1] > 0]
    if len(kept) < 2:
        # One value is returned as it is, without rounding.
        return kept[0][0] if kept else None
    values = [value for value, _ in kept]
    weights = [weight for _, weight in kept]
    mean = math.fsum(map(mul, values, weights)) / math.fsum(weights)
    # Rounding must not put a mean beyond its values.
    return min(max(values), max(min(values), mean))


def pointwise_values(judgements: Sequence[Judgement]) -> dict[str, _Cell]:
    """Per candidate, the mean over the samples that have a value, under one principle."""
    groups: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        groups.setdefault(judgement.subject, []).append(judgement)
    return _average_groups(groups)


def _average_groups(groups: Mapping[str, Sequence[Judgement]]) -> dict[str, _Cell]:
    return {subject: _average_group(group) for subject, group in groups.items()}


def _average_group(group: Sequence[Judgement]) -> _Cell:
    if len(group) == 1:
        return group[0].score, group[0].status != "not_applicable"
    return _mean_of_present([j.score for j in group]), _any_applied(group)


def win_rates(judgements: Sequence[Judgement], renormalise: bool = False) -> dict[str, _Cell]:
    """Per candidate, the mean win probability over its opponents, under one principle.

    A pair's probability is the mean of both orders, p(A) = (p_AB + 1 - p_BA) / 2 (2309.00267,
    section "Addressing Position Bias"), where p_XY is the probability that the first of X, Y shown
    wins; so a preference for a slot cancels. A pair that was asked in two orders and answered in
    one is missing, unless `renormalise`.
    """
    groups: dict[tuple[str, str], list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        first, second = sorted(judgement.shown)
        groups[first, second].append(judgement)
    wins: dict[str, list[float]] = defaultdict(list)
    applied: dict[str, bool] = defaultdict(bool)
    for (first, second), group in groups.items():
        # A principle may apply to a pair whose verdict is missing.
        for candidate in (first, second):
            applied[candidate] = applied[candidate] or _any_applied(group)
        prob = pair_probability(group, first, renormalise)
        if prob is not None:
            wins[first].append(prob)
            wins[second].append(1 - prob)
    return {
        candidate: (_mean_of_present(wins[candidate]), applied[candidate]) for candidate in applied
    }


def pair_probability(
    judgements: Sequence[Judgement], candidate: str, renormalise: bool = False
) -> float | None:
    """The probability that `candidate` wins its pair, samples and then orders averaged."""
    orders: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        orders[judgement.shown[0]].append(judgement)
    probs: list[float | None] = []
    for first, group in orders.items():
        prob = _mean_of_present([j.prob_first for j in group])
        probs.append(prob if prob is None or first == candidate else 1 - prob)
    if None in probs and not renormalise:
        return None
    return _mean_of_present(probs)


def answer_probability(
    judgements: Iterable[Judgement],
    first: str,
    second: str,
    weights: Mapping[str, float] | None = None,
) -> float | None:
    """P(`first` is better than `second`) by one judge's judgements of these two answers, on [0, 1];
    None where either has no score.

    Of comparisons it is the win probability. Of rewards r and t, which are kept beside their
    sigmoids, it is the Bradley-Terry probability sigmoid(r - t). Scores s and t on a scale are no
    log-odds: they give 1/2 + (s - t) / 2, so that a larger gap never gets a smaller probability.
    """
    given = list(judgements)
    scores = compared_scores(given, weights)
    one, two = scores.get(first), scores.get(second)
    if one is None or two is None:
        return None
    # Then the scores of the two add up to 1, and the first is the probability.
    if any(len(j.shown) == 2 for j in given):
        return one
    rewards = [_mean_of_present(_list_rewards(given, answer)) for answer in (first, second)]
    if rewards[0] is not None and rewards[1] is not None:
        gap = rewards[0] - rewards[1]
        prob = float(sigmoids(np.asarray([gap]))[0])
    else:
        gap = one - two
        prob = 0.5 + gap / 2.0
    # A gap that is smaller than a probability can show is no tie.
    return prob if prob != 0.5 or gap == 0 else float(np.nextafter(0.5, float(gap > 0)))


def _list_rewards(judgements: Iterable[Judgement], answer: str) -> list[float]:
    """The rewards of the judgements of one answer whose score is the sigmoid of a reward."""
    kept = [j.distribution or {} for j in judgements if j.subject == answer and j.status in VALUED]
    return [values["reward"] for values in kept if "reward" in values]


def _mean_of_present(values: Sequence[float | None]) -> float | None:
    if len(values) == 1:
        return values[0]
    kept = [value for value in values if value is not None]
    if len(kept) < 2:
        return kept[0] if kept else None
    return math.fsum(kept) / len(kept)


def _any_applied(judgements: Iterable[Judgement]) -> bool:
    return any(j.status != "not_applicable" for j in judgements)


def combine(
    scores_by_judge: Mapping[str, Mapping[str, float | None]],
    weights: Mapping[str, float] | None = None,
    missing: Literal["drop", "renormalise"] = "drop",
) -> Scores:
    """The judges' scores combined per candidate, each on [0, 1] or None (dropped).

    `weights` names the judges that count, by id; all count equally when it is None. A candidate
    that lacks a judge of positive weight is None, unless `missing` is renormalise: then the judges
    it has share the weight.
    """
    used = dict.fromkeys(scores_by_judge, 1.0) if weights is None else weights
    used = {judge: weight for judge, weight in used.items() if weight > 0}
    columns = [(scores_by_judge.get(judge, {}), weight) for judge, weight in used.items()]
    candidates = sorted(set[str]().union(*scores_by_judge.values()))
    if len(columns) == 1:
        return {candidate: columns[0][0].get(candidate) for candidate in candidates}
    combined: Scores = {}
    for candidate in candidates:
        row = [(scores.get(candidate), weight) for scores, weight in columns]
        valued = [(score, weight) for score, weight in row if score is not None]
        whole = len(valued) == len(row)
        combined[candidate] = weighted_mean(valued) if whole or missing == "renormalise" else None
    return combined
