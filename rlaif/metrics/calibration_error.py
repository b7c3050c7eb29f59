"""How far a judge's probabilities are from what they say, with an interval that holds near 0.

ECE is a sum of absolute values: of a calibrated judge it is above 0 by chance alone, and its
bootstrap never reaches 0. So it stands beside what it would be if the judge were calibrated; what
has an interval is the root mean square of the bins' errors, less what chance adds to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from rlaif.metrics.calibration import bin_of, reliability
from rlaif.metrics.intervals import Interval
from rlaif.metrics.weighted import Floats, Ints

DRAWS = 500
LEAST_DISTINCT = 10
"""Fewer distinct probabilities than these are verdicts, not degrees of belief."""
NOT_GRADED = "no graded probabilities"
_PAIRS_PER_BIN, _FEWEST_BINS, _MOST_BINS = 20, 3, 10
_POWER = 0.8


@dataclass(frozen=True, slots=True)
class CalibrationError:
    """The root mean square error over bins with its interval, and the smallest true error that so
    many pairs tell from 0 in 80% of runs (None where that is unknown)."""

    error: Interval
    detectable: float | None


def graded(prob: Floats) -> bool:
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
    covariance = _covariance(outcome - prob - errors[place], place, sizes, code, names.size)
    share = sizes / prob.size
    square = float(share @ errors**2)
    if covariance is None or names.size <= bins or not covariance.any():
        note = "too few prompts" if names.size <= bins else "no spread within the bins"
        none = Interval(float(np.sqrt(square)), None, None, prob.size, names.size, note=note)
        return CalibrationError(none, None)
    product = share[:, None] * covariance
    trace, trace_of_square = float(np.trace(product)), float(np.trace(product @ product))
    scale, df = trace_of_square / trace, trace**2 / trace_of_square
    ends = [
        float(np.sqrt(scale * noncentrality(square / scale, df, tail))) for tail in (0.975, 0.025)
    ]
    critical = float(special.chdtri(df, 0.025))
    least = float(np.sqrt(scale * noncentrality(critical, df, 1 - _POWER)))
    estimate = float(np.sqrt(max(0.0, square - trace)))
    found = Interval(estimate, ends[0], ends[1], prob.size, names.size)
    return CalibrationError(found, least)


def _covariance(
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


def ece_of(prob: Floats, outcome: Floats) -> float:
    """Expected calibration error, ten bins of equal width."""
    return float(reliability(prob, outcome, np.ones((1, prob.size))).ece()[0])
