"""Whether a judge's probabilities mean what they say. Pure functions on arrays of shape (n,).

`prob` is the probability that the first answer is better and `outcome` is 1 where people said so,
else 0. Sources: Brier 1950; Guo et al. 2017 (1706.04599) for ECE and temperature scaling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlaif.compare.logistic import sigmoid

Floats = NDArray[np.float64]
BINS = 10
STEEPEST = 1e3
"""Largest 1/T: where the logits' signs are never wrong, no finite temperature is best."""


@dataclass(frozen=True, slots=True)
class Bin:
    """One point of a reliability curve: `count` pairs of mean `prob` whose mean outcome is
    `share`."""

    prob: float
    share: float
    count: int


def brier(prob: Floats, outcome: Floats) -> float | None:
    """Mean of (p - y)^2, in [0, 1]; 0.25 for one who always says 0.5."""
    return float(((prob - outcome) ** 2).mean()) if prob.size else None


def reliability(
    prob: Floats, outcome: Floats, bins: int = BINS, equal_mass: bool = False
) -> list[Bin]:
    """The non-empty bins, of equal width over [0, 1] or of equal mass, lowest first."""
    if prob.size == 0:
        return []
    inner = np.linspace(0.0, 1.0, bins + 1)[1:-1]
    edges = np.quantile(prob, inner) if equal_mass else inner
    place = np.searchsorted(edges, prob)
    counts = np.bincount(place, minlength=bins)
    probs = np.bincount(place, prob, bins)
    outcomes = np.bincount(place, outcome, bins)
    return [
        Bin(float(probs[i] / counts[i]), float(outcomes[i] / counts[i]), int(counts[i]))
        for i in np.flatnonzero(counts)
    ]


def ece(prob: Floats, outcome: Floats, bins: int = BINS, equal_mass: bool = False) -> float | None:
    """Expected calibration error, the sum over bins of n_b / n |share_b - prob_b|, in [0, 1]."""
    curve = reliability(prob, outcome, bins, equal_mass)
    if not curve:
        return None
    return sum(b.count * abs(b.share - b.prob) for b in curve) / prob.size


def log_odds(prob: Floats) -> Floats:
    """log(p / (1 - p)), with p kept 1e-12 away from 0 and 1."""
    kept = np.clip(prob, 1e-12, 1.0 - 1e-12)
    return np.log(kept) - np.log1p(-kept)


def fit_steepness(logits: Floats, outcome: Floats) -> float | None:
    """1/T of temperature scaling: the a >= 0 of least negative log-likelihood of sigmoid(a z).

    0 (T infinite) where the logits point the wrong way or nowhere; at most `STEEPEST`. None
    without pairs.
    """
    if logits.size == 0:
        return None
    low, high, a = 0.0, STEEPEST, 1.0
    if float(logits @ (0.5 - outcome)) >= 0.0:
        return 0.0
    for _ in range(100):
        prob = sigmoid(a * logits)
        slope = float(logits @ (prob - outcome))
        low, high = (low, a) if slope > 0.0 else (a, high)
        curvature = float((logits**2) @ (prob * (1.0 - prob)))
        following = a - slope / curvature if curvature > 0.0 else high
        if not low < following < high:
            following = (low + high) / 2.0
        if abs(following - a) <= 1e-13 * max(1.0, a):
            break
        a = following
    return a


def scale_held_out(prob: Floats, outcome: Floats, fold: NDArray[np.int64]) -> Floats | None:
    """`prob` after temperature scaling, each fold by the temperature that the others fit.

    None where there is one fold only.
    """
    folds = np.unique(fold)
    if folds.size < 2:
        return None
    logits = log_odds(prob)
    scaled = np.empty_like(prob)
    for number in folds:
        inside = fold == number
        steepness = fit_steepness(logits[~inside], outcome[~inside])
        assert steepness is not None
        scaled[inside] = sigmoid(steepness * logits[inside])
    return scaled
