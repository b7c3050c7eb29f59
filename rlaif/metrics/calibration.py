"""Whether a judge's probabilities mean what they say. Pure functions on arrays of shape (n,).

`prob` is the probability that the first answer is better and `outcome` is 1 where people said so,
else 0; `weights` as in `weighted`. Sources: Brier 1950; Guo et al. 2017 (1706.04599) for ECE and
temperature scaling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rlaif.core.numbers import sigmoids
from rlaif.metrics.weighted import Floats, Ints, Measure, ratio, sums_by

BINS = 10
STEEPEST = 1e3
"""Largest 1/T: where the logits' signs are never wrong, no finite temperature is best."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A reliability curve: of each bin the weight of its pairs and the sums of their probabilities
    and outcomes, each shape (B, bins)."""

    count: Floats
    prob: Floats
    outcome: Floats

    def share(self) -> Floats:
        """The mean outcome of each bin, NaN in an empty one."""
        return ratio(self.outcome, self.count)

    def ece(self) -> Floats:
        """Expected calibration error, the sum over bins of n_b / n |share_b - prob_b|, in [0, 1];
        shape (B,)."""
        return ratio(np.abs(self.outcome - self.prob).sum(axis=1), self.count.sum(axis=1))


def brier(prob: Floats, outcome: Floats, weights: Floats) -> Floats:
    """Mean of (p - y)^2, in [0, 1]; 0.25 for one who always says 0.5. `prob` may differ by sample,
    shape (B, n)."""
    return ratio((weights * (prob - outcome) ** 2).sum(axis=1), weights.sum(axis=1))


def reliability(
    prob: Floats, outcome: Floats, weights: Floats, equal_mass: bool = False, bins: int = BINS
) -> Curve:
    """The bins, of equal width over [0, 1] or of equal mass, lowest first.

    `prob` may differ by sample, shape (B, n); not with `equal_mass`.
    """
    if equal_mass:
        edges = _quantiles(prob, weights, _inner_edges(bins))
        place = np.stack([prob > edge[:, None] for edge in edges.T]).sum(axis=0)
    else:
        place = np.broadcast_to(bin_of(prob, bins), weights.shape)
    count = weights.shape[0]
    cells = (place + bins * np.arange(count)[:, None]).ravel()

    def summed(values: Floats) -> Floats:
        sums = np.bincount(cells, values.ravel(), minlength=bins * count)
        return sums.reshape(count, bins).astype(np.float64)

    return Curve(summed(weights), summed(weights * prob), summed(weights * outcome))


def bin_of(prob: Floats, bins: int = BINS) -> Ints:
    """The bin of equal width that each probability lies in, from 0; an edge is in the lower one."""
    return np.searchsorted(_inner_edges(bins), prob)


def _inner_edges(bins: int) -> Floats:
    return np.linspace(0.0, 1.0, bins + 1)[1:-1]


def _quantiles(values: Floats, weights: Floats, shares: Floats) -> Floats:
    """Linear quantiles (B, m) of values that are repeated as the whole weights say."""
    order = np.argsort(values, kind="stable")
    ordered, upto = values[order], np.cumsum(weights[:, order], axis=1)
    wanted = (upto[:, -1:] - 1.0) * shares
    below = np.floor(wanted)
    low, high = (
        np.stack([np.searchsorted(c, p, side="right") for c, p in zip(upto, places, strict=True)])
        for places in (below, np.minimum(below + 1.0, upto[:, -1:] - 1.0))
    )
    left, right = ordered[low], ordered[high]
    quantiles: Floats = left + (right - left) * (wanted - below)
    return quantiles


def log_odds(prob: Floats) -> Floats:
    """log(p / (1 - p)), with p kept 1e-12 away from 0 and 1."""
    kept = np.clip(prob, 1e-12, 1.0 - 1e-12)
    return np.log(kept) - np.log1p(-kept)


def steepness(logits: Floats, outcome: Floats) -> Measure:
    """1/T of temperature scaling: the a >= 0 of least negative log-likelihood of sigmoid(a z).

    0 (T infinite) where the logits point the wrong way or nowhere; at most `STEEPEST`. NaN without
    pairs.
    """
    # A pair counts by its distance from 0 and by whether its sign is right.
    sizes, codes = np.unique(np.abs(logits), return_inverse=True)
    right = np.where(logits > 0, outcome, 1.0 - outcome)
    by_size = sums_by(codes.astype(np.int64))

    def of(weights: Floats) -> Floats:
        count, hits = by_size(weights), by_size(weights * right)
        found = _steepest(sizes, count, hits)
        return np.where(count.sum(axis=1) > 0, found, np.nan)

    return of


def _steepest(sizes: Floats, count: Floats, hits: Floats) -> Floats:
    """Newton's method within a bracket that is halved where it fails, for all samples at once."""
    target = hits @ sizes
    low, high = np.zeros(len(count)), np.full(len(count), STEEPEST)
    a = np.ones(len(count))
    for _ in range(100):
        prob = sigmoids(a[:, None] * sizes)
        slope = (count * prob) @ sizes - target
        low, high = np.where(slope > 0, low, a), np.where(slope > 0, a, high)
        curvature = (count * prob * (1.0 - prob)) @ sizes**2
        step = ratio(slope, curvature)
        # Where the slope is 0 but for rounding, the step may leave the bracket all the same.
        ended = np.abs(step) <= 1e-12 * np.maximum(1.0, a)
        inside = (low < a - step) & (a - step < high)
        following = np.where(inside, a - step, (low + high) / 2.0)
        ended |= np.abs(following - a) <= 1e-13 * np.maximum(1.0, a)
        if ended.all():
            break
        a = np.where(ended, a, following)
    return np.where(0.5 * (count @ sizes) >= target, 0.0, a)


def scale_held_out(prob: Floats, outcome: Floats, fold: Ints) -> Callable[[Floats], Floats]:
    """From weights to `prob` after temperature scaling, (B, n): each fold by the temperature that
    the others fit. NaN where there is one fold only."""
    logits = log_odds(prob)
    insides = [fold == number for number in np.unique(fold)]
    fits = [steepness(logits[~inside], outcome[~inside]) for inside in insides]

    def of(weights: Floats) -> Floats:
        scaled = np.full(weights.shape, np.nan)
        for inside, fit in zip(insides, fits, strict=True):
            if not inside.all():
                scale = fit(weights[:, ~inside])
                scaled[:, inside] = sigmoids(scale[:, None] * logits[inside])
        return scaled

    return of
