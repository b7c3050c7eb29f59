"""How good a reward model is on labelled pairs. Pure functions on arrays.

A reward's unit is log-odds (Bradley-Terry): sigmoid of the gap of two rewards is the probability
that the first answer is better. Only gaps within a prompt mean anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlaif.core.numbers import sigmoids
from rlaif.metrics.agreement import spearman
from rlaif.metrics.calibration import bin_of, bin_reliability
from rlaif.metrics.intervals import Interval
from rlaif.metrics.judge_figures import curve_points
from rlaif.metrics.metrics import value_interval
from rlaif.metrics.pooled import figure_intervals
from rlaif.metrics.verdicts import rows_by_name
from rlaif.metrics.weighted import Figure, Floats, Measure, mean_of, ratio

Names = NDArray[np.str_]
BINS = 4
"""Bins of equal mass in which accuracy is shown by margin."""


@dataclass(frozen=True, slots=True)
class RewardTable:
    """Labelled pairs by column, each (n,). `chosen` and `rejected` are rewards; the lengths are in
    characters; `sure` is |2 p - 1| of the label p, 1 where people said it plainly."""

    prompt: Names
    subset: Names
    source: Names
    chosen: Floats
    rejected: Floats
    chosen_length: Floats
    rejected_length: Floats
    sure: Floats

    @property
    def gap(self) -> Floats:
        """(n,) the chosen answer's reward less the rejected one's."""
        return self.chosen - self.rejected


def reward_figures(t: RewardTable) -> dict[str, Figure]:
    """Every figure by name, of the pairs' weights: accuracy (a tie of rewards is one half), log
    loss (nats), calibration, what length has to do with it, and where the rewards lie.

    Which answer is chosen is known to the reader of a pair and not to the model, so what compares
    probabilities or gaps takes every pair in both orders.
    """
    wordier = t.chosen_length - t.rejected_length
    right, longer = _right_order(t.gap), np.sign(wordier)
    prob, outcome = _doubled_outcomes(t)
    rewards = _both_orders(t.chosen, t.rejected)
    correlated = spearman(_both_orders(t.gap, -t.gap), _both_orders(wordier, -wordier))
    measures: dict[str, Measure] = {
        "ece": lambda w: bin_reliability(prob, outcome, w).ece(),
        "length_spearman": correlated,
        "reward_spread": lambda w: _weighted_spread(rewards, w),
    }
    n = t.gap.size
    return {
        "accuracy": mean_of(right),
        "log_loss": mean_of(np.logaddexp(0.0, -t.gap)),
        "brier": mean_of(sigmoids(-t.gap) ** 2),
        "reward_mean": mean_of((t.chosen + t.rejected) / 2),
        "accuracy_where_longer_wins": mean_of(np.where(longer > 0, right, np.nan)),
        "accuracy_where_shorter_wins": mean_of(np.where(longer < 0, right, np.nan)),
        "prefers_longer": mean_of(np.where(longer != 0, _right_order(t.gap * longer), np.nan)),
        **{name: Figure(_measure_doubled(measure), n) for name, measure in measures.items()},
    }


def _right_order(gap: Floats) -> Floats:
    return np.where(gap > 0, 1.0, np.where(gap < 0, 0.0, 0.5))


def _both_orders(one: Floats, other: Floats) -> Floats:
    return np.concatenate([one, other])


def _doubled_outcomes(t: RewardTable) -> tuple[Floats, Floats]:
    """The probability that the first answer is better, and whether it is, in both orders."""
    return _both_orders(sigmoids(t.gap), sigmoids(-t.gap)), np.repeat([1.0, 0.0], t.gap.size)


def _measure_doubled(measure: Measure) -> Measure:
    """The measure of items that stand in both orders, from the weights of the pairs."""
    return lambda weights: measure(np.concatenate([weights, weights], axis=1))


def _weighted_spread(values: Floats, weights: Floats) -> Floats:
    whole = weights.sum(axis=1)
    mean = ratio((weights * values).sum(axis=1), whole)
    squares = (weights * (values - mean[:, None]) ** 2).sum(axis=1)
    found: Floats = np.sqrt(ratio(squares, whole))
    return found


def reward_intervals(t: RewardTable) -> dict[str, Interval]:
    """Every figure with its interval over prompts."""
    return figure_intervals(reward_figures(t), list(t.prompt))


def accuracy_by(t: RewardTable, names: Sequence[str]) -> dict[str, Interval]:
    """The accuracy on the pairs of each name, (n,) names, in order of name; "" is left out."""
    found = {}
    for name, rows in rows_by_name(np.asarray(names)):
        figures = {"accuracy": mean_of(_right_order(t.gap[rows]))}
        own = figure_intervals(figures, list(t.prompt[rows]))
        found[name] = own["accuracy"]
    return found


def reliability_of(t: RewardTable) -> list[dict[str, Any]]:
    """The reliability curve: of each bin of equal width the mean probability, the share of answers
    that are better, the ends of its interval, and the answers, every pair in both orders."""
    prob, outcome = _doubled_outcomes(t)
    place = bin_of(prob)
    return curve_points(place, prob, outcome, [*t.prompt, *t.prompt])


def margin_bins(values: Floats, bins: int = BINS) -> list[str]:
    """Each value's bin of equal mass by its ends, as text that sorts by size; fewer bins where
    values are equal."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    if edges.size < 3:
        return [f"0: {edges[0]:.3g}"] * values.size
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, edges.size - 2)
    return [f"{i}: {edges[i]:.3g} to {edges[i + 1]:.3g}" for i in place.tolist()]


def best_of_n_kl(n: int) -> float:
    """ln n - (n - 1) / n: the most by which best-of-n can differ from sampling, in nats
    (2210.10760)."""
    return math.log(n) - (n - 1) / n


def best_of_n(
    proxy: Mapping[str, Floats], gold: Mapping[str, Floats], n: int
) -> dict[str, dict[str, float]]:
    """For each prompt, what the best of n answers by the proxy is worth on average over all draws
    of n of its m answers: {"proxy": prompt to value, "gold": ...}. A prompt with m < n is absent.

    Exact and without sampling (2112.09332, appendix): the answer of rank i from below is the best
    of n in C(i, n - 1) of C(m, n) draws. Of answers with equal rewards one is taken by its place.
    """
    found: dict[str, dict[str, float]] = {"proxy": {}, "gold": {}}
    for prompt, rewards in proxy.items():
        m = rewards.size
        if m < n:
            continue
        order = np.argsort(rewards, kind="stable")
        weight = np.array([math.comb(i, n - 1) for i in range(m)]) / math.comb(m, n)
        found["proxy"][prompt] = float(weight @ rewards[order])
        found["gold"][prompt] = float(weight @ gold[prompt][order])
    return found


def best_of_n_sizes(most: int) -> list[int]:
    """The powers of two up to `most`, and `most`."""
    powers = [2**k for k in range(most.bit_length())]
    return sorted({*powers, most} - {0})


def best_of_n_curve(
    proxy: Mapping[str, Floats], gold: Mapping[str, Floats]
) -> list[dict[str, Any]]:
    """What best-of-n by the proxy earns of either reward, for n = 1, 2, 4 ... and for as many as
    every prompt has answers: rows of n, its KL and two intervals over prompts. Where the proxy goes
    on rising and gold falls, the proxy is exploited (2210.10760)."""
    rows: list[dict[str, Any]] = []
    for n in best_of_n_sizes(min((v.size for v in proxy.values()), default=0)):
        found = best_of_n(proxy, gold, n)
        parts = {side: value_interval(f"best_of_n/{side}", found[side]) for side in found}
        rows.append(
            {"n": n, "kl": best_of_n_kl(n)}
            | {side: value.to_json() for side, value in parts.items() if value is not None}
        )
    return rows


def label_noise(prob: Floats) -> tuple[float, NDArray[np.bool_]]:
    """How many labels are likely wrong, as a share, and which, (n,), by confident learning
    (Northcutt et al. 2021, 1911.00068) from `prob` (n,), the held-out probability that the chosen
    answer is better.

    A label is suspect where the other answer is as likely to be better as labels are right on
    average. With a model that knows little nothing is: the share is a lower bound.
    """
    if not prob.size:
        return 0.0, np.zeros(0, dtype=bool)
    suspect = 1.0 - prob > max(0.5, float(prob.mean()))
    return float(suspect.mean()), suspect


def measure_staleness(by_round: Mapping[int, Interval]) -> dict[str, Any] | None:
    """The accuracy on the pairs of the oldest and of the newest round, and whether the model is
    stale: whether it has fallen by more than the half-widths of the two intervals together, as
    independent errors add (their root sum of squares). None with one round.
    """
    if len(by_round) < 2:
        return None
    first, last = min(by_round), max(by_round)
    old, new = by_round[first], by_round[last]
    half = math.hypot(_half_width(old), _half_width(new))
    return {
        "oldest": {"round": first, **old.to_json()},
        "newest": {"round": last, **new.to_json()},
        "stale": old.mean - new.mean > half,
    }


def _half_width(interval: Interval) -> float:
    """Of a share, which has ends even where there is one prompt."""
    low, high = interval.low, interval.high
    return 0.5 if low is None or high is None else (high - low) / 2
