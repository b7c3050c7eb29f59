"""Every figure of a judge on labelled pairs, and of judges beside one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif.compare import agreement as agree
from rlaif.compare import bias, calibration
from rlaif.compare.bootstrap import Counted, Interval, Rows, figure_intervals
from rlaif.compare.rewardbench import section_scores
from rlaif.compare.verdicts import VerdictTable

Floats = NDArray[np.float64]


def figures(t: VerdictTable) -> dict[str, Counted]:
    """Figure name to value and count; what is undefined on these pairs is absent.

    `agreement` leaves out pairs with a tie on either side; `agreement_half` counts them one half;
    in `agreement_three_way` a tie is a verdict of its own (chance is one third).
    """
    return (
        agreements(t)
        | _association(t)
        | _slots(t)
        | _lengths(t)
        | _calibrated(t)
        | _answers(t)
        | section_scores(t)
    )


def agreements(t: VerdictTable) -> dict[str, Counted]:
    """Agreement with the labels under the three ways to count a tie."""
    judged, said = _sides(t.prob), _sides(t.label)
    both = ~np.isnan(judged) & ~np.isnan(said)
    same = (judged == said)[both].astype(np.float64)
    tied = ((judged == 0) | (said == 0))[both]
    return (
        _mean("agreement", same[~tied])
        | _mean("agreement_half", np.where(tied, 0.5, same))
        | _mean("agreement_three_way", same)
        | _mean("tie_rate", (judged == 0)[~np.isnan(judged)].astype(np.float64))
    )


def _sides(prob: Floats) -> Floats:
    return np.sign(prob - 0.5)


def _mean(name: str, values: Floats) -> dict[str, Counted]:
    return {name: (float(values.mean()), values.size)} if values.size else {}


def _named(count: int, **values: float | None) -> dict[str, Counted]:
    return {name: (value, count) for name, value in values.items() if value is not None}


def _association(t: VerdictTable) -> dict[str, Counted]:
    known = ~np.isnan(t.prob) & ~np.isnan(t.label)
    prob, label = t.prob[known], t.label[known]
    judged, said = _sides(prob), _sides(label)
    clear = (judged != 0) & (said != 0)
    return _named(
        int(known.sum()),
        kappa_three_way=agree.cohen_kappa(judged, said),
        alpha=agree.krippendorff_alpha(np.stack([judged, said])) if known.any() else None,
        spearman=agree.spearman(prob, label),
        kendall=agree.kendall(prob, label),
    ) | _named(int(clear.sum()), kappa=agree.cohen_kappa(judged[clear], said[clear]))


def _slots(t: VerdictTable) -> dict[str, Counted]:
    counts = bias.slots(t.as_first, t.as_second)
    found = _ratio("slot_one_rate", t.slot_one, t.slot_decided)
    if counts.total:
        found |= _named(
            counts.total,
            same_slot=(counts.first + counts.second) / counts.total,
            same_slot_first=counts.first / counts.total,
            same_slot_second=counts.second / counts.total,
            order_consistency=counts.consistent / counts.total,
        )
    return found


def _ratio(name: str, part: Floats, whole: Floats) -> dict[str, Counted]:
    total = float(whole.sum())
    return {name: (float(part.sum()) / total, int(total))} if total else {}


def _lengths(t: VerdictTable) -> dict[str, Counted]:
    found = {
        "prefers_longer": bias.prefers_longer(t.prob, t.longer_by),
        "people_prefer_longer": bias.prefers_longer(t.label, t.longer_by),
        "length_coefficient": bias.length_coefficient(t.prob, t.label, t.longer_by),
        "self_preference": bias.self_preference(t.prob, t.label, t.own),
    }
    return {name: value for name, value in found.items() if value is not None}


def _calibrated(t: VerdictTable) -> dict[str, Counted]:
    prob, outcome, fold = outcomes(t)
    scaled = calibration.scale_held_out(prob, outcome, fold)
    steepness = calibration.fit_steepness(calibration.log_odds(prob), outcome)
    found = _named(
        prob.size,
        ece=calibration.ece(prob, outcome),
        ece_equal_mass=calibration.ece(prob, outcome, equal_mass=True),
        brier=calibration.brier(prob, outcome),
        temperature=1.0 / steepness if steepness else None,
    )
    if scaled is not None:
        found |= _named(
            prob.size,
            ece_scaled=calibration.ece(scaled, outcome),
            brier_scaled=calibration.brier(scaled, outcome),
        )
    return found


def outcomes(t: VerdictTable) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """P(first), whether people chose the first, and the fold, where the label is no tie."""
    known = ~np.isnan(t.prob) & bias.decided(t.label)
    return t.prob[known], (t.label[known] > 0.5).astype(np.float64), t.fold[known]


def _answers(t: VerdictTable) -> dict[str, Counted]:
    """How the judge answered: what could be read, what it cost."""
    return (
        _mean("coverage", (~np.isnan(t.prob)).astype(np.float64))
        | _ratio("abstain_rate", t.abstained, t.judgements)
        | _ratio("unread_rate", t.unread, t.judgements)
        | _mean("label_mass", t.label_mass[~np.isnan(t.label_mass)])
        | _mean("self_consistency", t.same[~np.isnan(t.same)])
        | _mean("calls_per_pair", t.calls)
        | _mean("seconds_per_pair", t.seconds[~np.isnan(t.seconds)])
    )


def judge_intervals(t: VerdictTable, seed: int, resamples: int) -> dict[str, Interval]:
    """Every figure with its interval over prompts."""
    return figure_intervals(lambda rows: figures(t.take(rows)), list(t.prompt), seed, resamples)


def subset_intervals(t: VerdictTable, seed: int, resamples: int) -> dict[str, dict[str, Interval]]:
    """The agreements within each subset, in order of name; nothing where the pairs have none."""
    found = {}
    for name in sorted(set(t.subset.tolist()) - {""}):
        part = t.take(np.flatnonzero(t.subset == name))
        found[name] = figure_intervals(
            lambda rows, part=part: agreements(part.take(rows)),  # type: ignore[misc]
            list(part.prompt),
            seed,
            resamples,
        )
    return found


def correctness(t: VerdictTable) -> Floats:
    """1 where judge and label agree, 0 where not, NaN where either is missing or a tie."""
    known = bias.decided(t.prob) & bias.decided(t.label)
    return np.where(known, (_sides(t.prob) == _sides(t.label)).astype(np.float64), np.nan)


def compare_judges(
    first: VerdictTable, second: VerdictTable, seed: int, resamples: int
) -> dict[str, Any] | None:
    """Two judges on the pairs that both decided: the difference in agreement (first less second)
    and the correlation of their errors with intervals, and McNemar's exact test. None without such
    a pair."""
    one, two = correctness(first), correctness(second)
    rows = np.flatnonzero(~np.isnan(one) & ~np.isnan(two))
    if not rows.size:
        return None
    one, two = one[rows], two[rows]

    def measure(drawn: Rows) -> dict[str, Counted]:
        return _mean("difference", one[drawn] - two[drawn]) | _named(
            drawn.size, error_correlation=agree.pearson(one[drawn], two[drawn])
        )

    found = figure_intervals(measure, list(first.prompt[rows]), seed, resamples)
    alone, other, p = agree.mcnemar(one, two)
    return {
        "n": int(rows.size),
        "first_alone_right": alone,
        "second_alone_right": other,
        "mcnemar_p": p,
        **{name: value.to_json() for name, value in found.items()},
    }


def joint_votes(tables: Mapping[str, VerdictTable], seed: int, resamples: int) -> Interval | None:
    """How many independent judges these are worth together, from the correlation of their errors
    over the pairs that all decided; None where it is undefined."""
    right = np.stack([correctness(t) for t in tables.values()])
    rows = np.flatnonzero(~np.isnan(right).any(axis=0))
    right = right[:, rows]
    if not rows.size:
        return None

    def measure(drawn: Rows) -> dict[str, Counted]:
        found = [agree.pearson(a[drawn], b[drawn]) for a, b in combinations(right, 2)]
        known = [r for r in found if r is not None]
        return _named(drawn.size, votes=agree.effective_votes(len(right), known))

    prompts = list(next(iter(tables.values())).prompt[rows])
    return figure_intervals(measure, prompts, seed, resamples).get("votes")


def flip_interval(
    clean: VerdictTable, attacked: Sequence[float], seed: int, resamples: int
) -> Interval | None:
    """How often an attack on the answer that a judge had found worse made it the better one.

    `attacked` is P(the first answer is better) with the attack in place, NaN where it is missing.
    """
    after = np.asarray(attacked, dtype=np.float64)
    known = bias.decided(clean.prob) & ~np.isnan(after)
    rows = np.flatnonzero(known)
    if not rows.size:
        return None
    flipped = (_sides(after) == -_sides(clean.prob))[rows].astype(np.float64)
    return figure_intervals(
        lambda drawn: _mean("flips", flipped[drawn]), list(clean.prompt[rows]), seed, resamples
    )["flips"]
