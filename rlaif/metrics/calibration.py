"""Whether a judge's probabilities mean what they say. Pure functions on arrays of shape (n,).

`prob` is the probability that the first answer is better and `outcome` is 1 where people said so,
else 0; `weights` as in `weighted`. Sources: Brier 1950; Guo et al. 2017 (1706.04599) for ECE and
temperature scaling.

ECE is a sum of absolute values: of a calibrated judge it is above 0 by chance alone, and its
bootstrap never reaches 0. So it stands beside what it would be if the judge were calibrated; what
has an interval is the root mean square of the bins' errors, less what chance adds to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from rlaif.core.numbers import sigmoids
from rlaif.metrics.intervals import Interval
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


def bin_reliability(
    prob: Floats, outcome: Floats, weights: Floats, equal_mass: bool = False, bins: int = BINS
) -> Curve:
    """The bins, of equal width over [0, 1] or of equal mass, lowest first.

    `prob` may differ by sample, shape (B, n); not with `equal_mass`.
    """
    if equal_mass:
        edges = _weighted_quantiles(prob, weights, _inner_edges(bins))
        place = np.stack([prob > edge[:, None] for edge in edges.T]).sum(axis=0)
    else:
        place = np.broadcast_to(bin_of(prob, bins), weights.shape)
    count = weights.shape[0]
    cells = (place + bins * np.arange(count)[:, None]).ravel()

    def sum_cells(values: Floats) -> Floats:
        sums = np.bincount(cells, values.ravel(), minlength=bins * count)
        return sums.reshape(count, bins).astype(np.float64)

    return Curve(sum_cells(weights), sum_cells(weights * prob), sum_cells(weights * outcome))


def bin_of(prob: Floats, bins: int = BINS) -> Ints:
    """The bin of equal width that each probability lies in, from 0; an edge is in the lower one."""
    return np.searchsorted(_inner_edges(bins), prob)


def _inner_edges(bins: int) -> Floats:
    return np.linspace(0.0, 1.0, bins + 1)[1:-1]


def _weighted_quantiles(values: Floats, weights: Floats, shares: Floats) -> Floats:
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


def measure_steepness(logits: Floats, outcome: Floats) -> Measure:
    """1/T of temperature scaling: the a >= 0 of least negative log-likelihood of sigmoid(a z).

    0 (T infinite) where the logits point the wrong way or nowhere; at most `STEEPEST`. NaN without
    pairs.
    """
    # A pair counts by its distance from 0 and by whether its sign is right.
    sizes, codes = np.unique(np.abs(logits), return_inverse=True)
    right = np.where(logits > 0, outcome, 1.0 - outcome)
    by_size = sums_by(codes.astype(np.int64))

    def fit_steepness(weights: Floats) -> Floats:
        count, hits = by_size(weights), by_size(weights * right)
        found = _solve_steepness(sizes, count, hits)
        return np.where(count.sum(axis=1) > 0, found, np.nan)

    return fit_steepness


def _solve_steepness(sizes: Floats, count: Floats, hits: Floats) -> Floats:
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
    fits = [measure_steepness(logits[~inside], outcome[~inside]) for inside in insides]

    def scale_samples(weights: Floats) -> Floats:
        scaled = np.full(weights.shape, np.nan)
        for inside, fit in zip(insides, fits, strict=True):
            if not inside.all():
                scale = fit(weights[:, ~inside])
                scaled[:, inside] = sigmoids(scale[:, None] * logits[inside])
        return scaled

    return scale_samples


DRAWS = 500
LEAST_DISTINCT = 10
"""Fewer distinct probabilities than these are verdicts, not degrees of belief."""
_PAIRS_PER_BIN, _FEWEST_BINS, _MOST_BINS = 20, 3, 10
_POWER = 0.8


@dataclass(frozen=True, slots=True)
class CalibrationError:
    """The root mean square error over bins with its interval, and the smallest true error that so
    many pairs tell from 0 in 80% of runs (None where that is unknown)."""

    error: Interval
    detectable: float | None


def is_graded(prob: Floats) -> bool:
    """Whether there are degrees in the probabilities: ten or more, and none is exactly 0 or 1."""
    return bool(np.unique(prob).size >= LEAST_DISTINCT and prob.min() > 0 and prob.max() < 1)


def equal_mass_bins(prob: Floats) -> Ints:
    """The bin of each probability, (n,), lowest first: 3 to 10 of them, one for every 20 pairs.
    Equal probabilities share a bin, so there may be fewer."""
    wanted = prob.size / np.clip(prob.size // _PAIRS_PER_BIN, _FEWEST_BINS, _MOST_BINS)
    levels, codes, counts = np.unique(prob, return_inverse=True, return_counts=True)
    place, held, bins = 0, 0, np.zeros(levels.size, dtype=np.int64)
    for i, count in enumerate(counts.tolist()):
        if held >= wanted - 1e-9:
            place, held = place + 1, 0
        bins[i], held = place, held + count
    # What is left over is no bin of its own.
    if place and held < wanted / 2:
        bins[bins == place] = place - 1
    found: Ints = bins[codes]
    return found


def calibration_error(
    prob: Floats, outcome: Floats, prompts: Sequence[str] | Ints
) -> CalibrationError:
    """Of n pairs with the probability and the outcome (0 or 1) of their first answer, (n,) each.

    T is the weighted mean square of the bins' mean errors. Its expectation under calibration is the
    trace of their covariance (by prompt), which is subtracted; T itself is close to a scaled
    noncentral chi-square (Satterthwaite 1946), whose noncentrality gives the interval.
    """
    place = equal_mass_bins(prob)
    bins = int(place.max()) + 1
    sizes = np.bincount(place).astype(np.float64)
    errors = np.bincount(place, outcome - prob) / sizes
    names, code = np.unique(np.asarray(prompts), return_inverse=True)
    covariance = _estimate_covariance(
        outcome - prob - errors[place], place, sizes, code, names.size
    )
    share = sizes / prob.size
    square = float(share @ errors**2)
    if covariance is None or names.size <= bins or not covariance.any():
        note = "too few prompts" if names.size <= bins else "no spread within the bins"
        none = Interval(float(np.sqrt(square)), None, None, prob.size, names.size, note=note)
        return CalibrationError(none, None)
    product = share[:, None] * covariance
    trace, trace_of_square = float(np.trace(product)), float(np.trace(product @ product))
    scale, df = trace_of_square / trace, trace**2 / trace_of_square

    def error_at(x: float, probability: float) -> float:
        return float(np.sqrt(scale * noncentrality(x, df, probability)))

    low, high = (error_at(square / scale, tail) for tail in (0.975, 0.025))
    least = error_at(float(special.chdtri(df, 0.025)), 1 - _POWER)
    estimate = float(np.sqrt(max(0.0, square - trace)))
    found = Interval(estimate, low, high, prob.size, names.size)
    return CalibrationError(found, least)


def _estimate_covariance(
    residuals: Floats, place: Ints, sizes: Floats, code: Ints, prompts: int
) -> Floats | None:
    """The covariance (bins, bins) of the bins' mean errors, robust to clusters; None where a bin
    has one pair."""
    if sizes.min() < 2:
        return None
    bins = sizes.size
    sums = np.bincount(code * bins + place, residuals, minlength=prompts * bins)
    by_prompt = sums.reshape(prompts, bins) / sizes * np.sqrt(sizes / (sizes - 1))
    found: Floats = by_prompt.T @ by_prompt
    clustered = prompts < residuals.size
    return found * (prompts / (prompts - bins) if clustered and prompts > bins else 1.0)


def noncentrality(x: float, df: float, probability: float) -> float:
    """The noncentrality at which a chi-square of `df` is at most x with this probability; 0 where
    it is less probable even without any."""
    if special.chndtr(x, df, 0.0) <= probability:
        return 0.0
    low, high = 0.0, max(1.0, x)
    while special.chndtr(x, df, high) > probability:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if special.chndtr(x, df, middle) > probability else (low, middle)
    return (low + high) / 2


def ece_if_calibrated(prob: Floats, seed: int, draws: int = DRAWS) -> Interval:
    """What ECE (ten bins of equal width) is of a calibrated judge with these probabilities, (n,):
    its mean and the range of 95% of `draws` drawn sets of outcomes."""
    rng = np.random.default_rng(seed)
    place = bin_of(prob)
    errors = np.zeros((draws, int(place.max()) + 1))
    for start in range(0, draws, 50):
        outcomes = rng.random((min(50, draws - start), prob.size)) < prob
        away = outcomes - prob
        for b in np.unique(place):
            errors[start : start + len(away), b] = away[:, place == b].sum(axis=1)
    found = np.abs(errors).sum(axis=1) / prob.size
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(float(found.mean()), float(low), float(high), prob.size)
