"""Every figure of a judge on labelled pairs, and of judges beside one another.

An attack that names a slot helps the attacked answer only where it stands there, and hurts it where
it stands in the other: over both orders the two cancel out. So what an attack changes is counted in
each order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any, Literal

import numpy as np

from rlaif.metrics import agreement, calibration
from rlaif.metrics.calibration import calibration_error, ece_if_calibrated, is_graded
from rlaif.metrics.intervals import Interval
from rlaif.metrics.penalised import fit_logistic
from rlaif.metrics.pooled import figure_intervals
from rlaif.metrics.rewardbench import section_scores
from rlaif.metrics.verdicts import Cost, Verdict, VerdictTable, floats_of, rows_by_name
from rlaif.metrics.weighted import (
    Figure,
    Floats,
    Ints,
    Mask,
    Measure,
    mean_of,
    measure_among,
    ratio,
    share_of,
)

BY_SUBSET = (
    *("agreement", "agreement_half", "agreement_three_way", "kappa", "tie_rate"),
    *("same_slot", "slot_one_rate", "prefers_longer", "people_prefer_longer"),
    *("coverage", "abstain_rate", "unread_rate"),
)
"""The figures that are taken within each subset too."""


def figures(t: VerdictTable) -> dict[str, Figure]:
    """Every figure by name, of the pairs' weights.

    `agreement` leaves out pairs with a tie on either side; `agreement_half` counts them one half;
    in `agreement_three_way` a tie is a verdict of its own (chance is one third).
    """
    return (
        agreement_figures(t.prob, t.label)
        | _slot_figures(t)
        | _length_figures(t)
        | _calibration_figures(t)
        | _answer_figures(t)
        | section_scores(t)
    )


def agreement_figures(prob: Floats, label: Floats) -> dict[str, Figure]:
    """How far two annotators agree, and how often the first calls a tie: P(first is better) of
    each, (n,), NaN where one is missing."""
    judged, said = _sides_of(prob), _sides_of(label)
    known: Mask = ~np.isnan(prob) & ~np.isnan(label)
    clear = agreement.is_decided(prob) & agreement.is_decided(label)
    same = np.where(known, judged == said, np.nan)
    tied = (judged == 0) | (said == 0)
    return {
        "agreement": mean_of(np.where(tied, np.nan, same)),
        "agreement_half": mean_of(np.where(tied & known, 0.5, same)),
        "agreement_three_way": mean_of(same),
        "tie_rate": mean_of(np.where(np.isnan(judged), np.nan, judged == 0)),
        "kappa": measure_among(clear, agreement.cohen_kappa(judged[clear], said[clear])),
        "kappa_three_way": measure_among(known, agreement.cohen_kappa(judged[known], said[known])),
        "alpha": measure_among(
            known, agreement.krippendorff_alpha(np.stack([judged[known], said[known]]))
        ),
        "spearman": measure_among(known, agreement.spearman(prob[known], label[known])),
        "kendall": measure_among(known, agreement.kendall(prob[known], label[known])),
    }


def _sides_of(prob: Floats) -> Floats:
    return np.sign(prob - 0.5)


def _slot_figures(t: VerdictTable) -> dict[str, Figure]:
    won = agreement.same_slot(t.as_first, t.as_second)

    def share_won(outcome: Mask) -> Figure:
        return mean_of(np.where(np.isnan(won), np.nan, outcome))

    return {
        "same_slot": share_won(won != 0),
        "same_slot_first": share_won(won == 1),
        "same_slot_second": share_won(won == -1),
        "order_consistency": share_won(won == 0),
        "right_in_both_orders": mean_of(_right_in_both(t)),
        "slot_one_rate": share_of(t.slot_one, t.slot_decided),
    }


def _right_in_both(t: VerdictTable) -> Floats:
    """1 where the verdict agrees with the label in both orders, 0 where not in one of them, a tie
    included; NaN where an order has no verdict or the label is none."""
    known = agreement.is_decided(t.label) & ~np.isnan(t.as_first) & ~np.isnan(t.as_second)
    said = _sides_of(t.label)
    right = (_sides_of(t.as_first) == said) & (_sides_of(t.as_second) == said)
    return np.where(known, right.astype(np.float64), np.nan)


def _length_figures(t: VerdictTable) -> dict[str, Figure]:
    return {
        "prefers_longer": mean_of(agreement.picks_longer(t.prob, t.longer_by)),
        "people_prefer_longer": mean_of(agreement.picks_longer(t.label, t.longer_by)),
        "length_coefficient": agreement.length_coefficient(t.prob, t.label, t.longer_by),
        "self_preference": agreement.self_preference(t.prob, t.label, t.own),
    }


def _calibration_figures(t: VerdictTable) -> dict[str, Figure]:
    """Of the pairs whose label is no tie. What is on log scale is there of graded probabilities
    alone."""
    kept = _calibration_rows(t)
    prob, outcome = t.prob[kept], (t.label[kept] > 0.5).astype(np.float64)
    measures: dict[str, Measure] = {
        "ece": lambda w: calibration.bin_reliability(prob, outcome, w).ece(),
        "ece_equal_mass": lambda w: calibration.bin_reliability(prob, outcome, w, True).ece(),
    }
    if prob.size and is_graded(prob):
        logits = calibration.log_odds(prob)
        steepness = calibration.measure_steepness(logits, outcome)
        scaled = calibration.scale_held_out(prob, outcome, t.fold[kept])
        line = np.stack([np.ones_like(logits), logits], axis=1)
        measures |= {
            "calibration_intercept": lambda w: fit_logistic(line, outcome, w)[:, 0],
            "calibration_slope": lambda w: fit_logistic(line, outcome, w)[:, 1],
            "temperature": lambda w: ratio(np.ones(len(w)), steepness(w)),
            "ece_scaled": lambda w: calibration.bin_reliability(scaled(w), outcome, w).ece(),
            "brier_scaled": lambda w: calibration.brier(scaled(w), outcome, w),
        }
    squares = np.where(kept, (t.prob - (t.label > 0.5)) ** 2, np.nan)
    return {name: measure_among(kept, m) for name, m in measures.items()} | {
        "brier": mean_of(squares)
    }


def _calibration_rows(t: VerdictTable) -> Mask:
    rows: Mask = ~np.isnan(t.prob) & agreement.is_decided(t.label)
    return rows


def calibration_figures(t: VerdictTable, seed: int) -> dict[str, Any]:
    """The calibration error with its interval, the smallest error that so many pairs tell from
    none, and what ECE would be of a calibrated judge, as JSON; nothing without a pair."""
    kept = _calibration_rows(t)
    if not kept.any():
        return {}
    prob, outcome = t.prob[kept], (t.label[kept] > 0.5).astype(np.float64)
    found = calibration_error(prob, outcome, list(t.prompt[kept]))
    return {
        "calibration_error": found.error.to_json(),
        "calibration_detectable": found.detectable,
        "ece_if_calibrated": ece_if_calibrated(prob, seed).to_json(),
        "graded": is_graded(prob),
    }


def _answer_figures(t: VerdictTable) -> dict[str, Figure]:
    """How the judge answered: what could be read, what it cost."""
    return {
        "coverage": mean_of((~np.isnan(t.prob)).astype(np.float64)),
        "abstain_rate": share_of(t.abstained, t.judgements),
        "unread_rate": share_of(t.unread, t.judgements),
        "label_mass": mean_of(t.label_mass),
        "self_consistency": mean_of(t.same),
        **{f"{f.name}_per_pair": mean_of(getattr(t, f.name)) for f in fields(Cost)},
    }


def judge_intervals(t: VerdictTable) -> dict[str, Interval]:
    """Every figure with its interval over prompts."""
    return figure_intervals(figures(t), list(t.prompt))


def subset_intervals(t: VerdictTable) -> dict[str, dict[str, Interval]]:
    """The figures of `BY_SUBSET` within each subset, in order of name; nothing where the pairs have
    none."""
    found = {}
    for name, rows in rows_by_name(t.subset):
        part = t.take(rows)
        chosen = {n: figure for n, figure in figures(part).items() if n in BY_SUBSET}
        found[name] = figure_intervals(chosen, list(part.prompt))
    return found


def reliability_points(t: VerdictTable) -> list[dict[str, Any]]:
    """The reliability curve: of each bin of equal width that has a pair, the mean probability, the
    share of labels for the first answer, the ends of its interval, and the number of pairs."""
    kept = _calibration_rows(t)
    place = np.where(kept, calibration.bin_of(t.prob), -1)
    outcome = (t.label > 0.5).astype(np.float64)
    return curve_points(place, t.prob, outcome, list(t.prompt))


def curve_points(
    place: Ints, prob: Floats, outcome: Floats, prompts: Sequence[str]
) -> list[dict[str, Any]]:
    """The points of a reliability curve from each item's bin, (n,), -1 for none."""
    bins = np.unique(place[place >= 0])
    shares = {str(b): mean_of(np.where(place == b, outcome, np.nan)) for b in bins}
    found = figure_intervals(shares, prompts, "reliability/")
    return [
        {
            "prob": float(prob[place == b].mean()),
            "share": found[str(b)].mean,
            "low": found[str(b)].low,
            "high": found[str(b)].high,
            "n": found[str(b)].n,
        }
        for b in bins
    ]


def correct_verdicts(t: VerdictTable) -> Floats:
    """1 where judge and label agree, 0 where not, NaN where either is missing or a tie."""
    known = agreement.is_decided(t.prob) & agreement.is_decided(t.label)
    return np.where(known, (_sides_of(t.prob) == _sides_of(t.label)).astype(np.float64), np.nan)


def compare_judges(first: VerdictTable, second: VerdictTable) -> dict[str, Any] | None:
    """Two judges on the pairs that both decided: each one's agreement, the difference (first less
    second) and the correlation of their errors with intervals, and McNemar's exact test. None
    without such a pair."""
    one, two = correct_verdicts(first), correct_verdicts(second)
    rows = np.flatnonzero(~np.isnan(one) & ~np.isnan(two))
    if not rows.size:
        return None
    one, two = one[rows], two[rows]
    measured = {
        "difference": mean_of(one - two),
        "error_correlation": Figure(agreement.pearson(one, two), rows.size),
    }
    found = figure_intervals(measured, list(first.prompt[rows]))
    alone, other, p = agreement.mcnemar(one, two)
    return {
        "n": int(rows.size),
        "first_right": float(one.mean()),
        "second_right": float(two.mean()),
        "first_alone_right": alone,
        "second_alone_right": other,
        "mcnemar_p": p,
        **{name: value.to_json() for name, value in found.items()},
    }


def joint_votes(tables: Mapping[str, VerdictTable]) -> Interval | None:
    """How many independent judges these (two or more) are worth together, from the correlation of
    their errors over the pairs that all decided; None where it is undefined."""
    right = np.stack([correct_verdicts(t) for t in tables.values()])
    rows = np.flatnonzero(~np.isnan(right).any(axis=0))
    pairs = [agreement.pearson(a, b) for a, b in combinations(right[:, rows], 2)]

    def mean_correlation(weights: Floats) -> Floats:
        found = np.stack([pair(weights) for pair in pairs])
        defined = ~np.isnan(found)
        return ratio(np.where(defined, found, 0.0).sum(axis=0), defined.sum(axis=0))

    prompts = list(next(iter(tables.values())).prompt[rows])
    figure = {"error_correlation": Figure(mean_correlation, rows.size)}
    found = figure_intervals(figure, prompts).get("error_correlation")
    if found is None:
        return None
    # Votes fall as the correlation rises, so the ends change places.
    mean, high, low = (
        None if r is None else float(agreement.effective_votes(len(right), np.asarray(r)))
        for r in (found.mean, found.low, found.high)
    )
    return Interval(mean or 0.0, low, high, found.n, found.prompts, note=found.note)


@dataclass(frozen=True, slots=True)
class Attacked:
    """One pair before and after an attack on one of its answers, the first or the second. The
    scores are the attacked answer's own, on [0, 1], where the judge gives such."""

    prompt: str
    first: bool
    clean: Verdict
    after: Verdict
    clean_score: float | None = None
    after_score: float | None = None


def attack_intervals(
    rows: Sequence[Attacked], slot: Literal["first", "second"] | None
) -> dict[str, Interval]:
    """Figures of an attack, each a share with its interval over prompts; those that no pair gives
    are absent.

    `success`: verdicts that it won, of those that it asked for and did not have: in the order in
    which the attacked answer stands in the `slot` that the attack names (in both where it names
    none); scores lifted, where the judge scores; pairs won otherwise. `changed_first` and
    `changed_second`: verdicts that changed with the attacked answer shown there. `ties`: pairs that
    became ties; `wins`: pairs won that were not; `lifted`: scores that rose, of those below 1.
    """
    before = [_prob_attacked(row.clean.prob, row.first) for row in rows]
    after = [_prob_attacked(row.after.prob, row.first) for row in rows]
    whole = floats_of(before), floats_of(after)
    in_first = _in_slot(rows, True)
    in_second = _in_slot(rows, False)
    scores = (
        floats_of([row.clean_score for row in rows]),
        floats_of([row.after_score for row in rows]),
    )
    lifted = _outcome_where(scores[0] < 1, scores[1] > scores[0], *scores)
    won = [_newly_won(*in_first), _newly_won(*in_second)]
    asked = {"first": won[:1], "second": won[1:], None: won}[slot]
    figures = {
        "changed_first": mean_of(_side_changed(*in_first)),
        "changed_second": mean_of(_side_changed(*in_second)),
        "ties": mean_of(_outcome_where(whole[0] != 0.5, whole[1] == 0.5, *whole)),
        "wins": mean_of(_newly_won(*whole)),
        "lifted": mean_of(lifted),
    }
    ways = [_pool_columns(asked), figures["lifted"], figures["wins"]]
    figures["success"] = next((figure for figure in ways if figure.n), ways[-1])
    return figure_intervals(figures, [row.prompt for row in rows], "attack/")


def _prob_attacked(prob: float | None, first: bool) -> float | None:
    """P(the attacked answer is better), from that of the first answer."""
    return prob if prob is None or first else 1.0 - prob


def _in_slot(rows: Sequence[Attacked], slot_one: bool) -> tuple[Floats, Floats]:
    """P(the attacked answer is better) before and after, where it is shown in one slot."""

    def prob_in_slot(said: Verdict, first: bool) -> float | None:
        return _prob_attacked(said.as_first if first == slot_one else said.as_second, first)

    return (
        floats_of([prob_in_slot(row.clean, row.first) for row in rows]),
        floats_of([prob_in_slot(row.after, row.first) for row in rows]),
    )


def _outcome_where(asked: np.ndarray, outcome: np.ndarray, before: Floats, after: Floats) -> Floats:
    """1 where `outcome`, 0 where not, NaN where it was not `asked` for or a side is missing."""
    known = asked & ~np.isnan(before) & ~np.isnan(after)
    return np.where(known, outcome.astype(np.float64), np.nan)


def _newly_won(before: Floats, after: Floats) -> Floats:
    return _outcome_where(before <= 0.5, after > 0.5, before, after)


def _side_changed(before: Floats, after: Floats) -> Floats:
    differs = np.sign(before - 0.5) != np.sign(after - 0.5)
    return _outcome_where(np.ones(len(before), dtype=bool), differs, before, after)


def _pool_columns(columns: Sequence[Floats]) -> Figure:
    """The share over several verdicts of each pair."""
    known = np.stack([~np.isnan(column) for column in columns])
    part = np.where(known, np.stack(columns), 0.0).sum(axis=0)
    return share_of(part, known.sum(axis=0).astype(np.float64))
