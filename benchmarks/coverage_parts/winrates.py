"""Win rates, length-controlled win rates and ratings: how often their intervals hold the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlaif.core.numbers import sigmoids
from rlaif.metrics.ends import share_ends, spread_of, t_quantile
from rlaif.metrics.length_control import lc_minimal, penalised_rate
from rlaif.metrics.ranking import Comparison, bradley_terry

Floats = NDArray[np.float64]

RATES = (0.047, 0.1, 0.5, 0.82)
LEADS = (0.0, 1.5, 3.0)
LENGTH_EFFECT = -1.0
"""What a gap of one standard deviation and more adds to the log-odds, through tanh."""
LEAST = 0.93


@dataclass(frozen=True, slots=True)
class Cell:
    figure: str
    size: int
    truth: float
    replicates: int
    coverage: float
    width: float
    t_width: float | None
    estimate: float

    @property
    def holds(self) -> bool:
        error = math.sqrt(LEAST * (1 - LEAST) / self.replicates)
        return self.coverage >= LEAST - 3 * error


def _battles(size: int, truth: float, replicates: int, seed: int) -> tuple[Floats, Floats]:
    """Wins, 0 or 1, and the length term, each (replicates, size), at this rate for equal length."""
    rng = np.random.default_rng([seed, size, round(1000 * truth)])
    gaps = rng.normal(0.0, 100.0, (replicates, size))
    term = np.tanh(gaps / gaps.std(axis=1, ddof=1, keepdims=True))
    prob = sigmoids(math.log(truth / (1 - truth)) + LENGTH_EFFECT * term)
    return (rng.random((replicates, size)) < prob).astype(np.float64), term


def _cell(
    figure: str, truth: float, found: tuple[Floats, Floats, Floats], won: Floats, scale: float
) -> Cell:
    """From estimates and ends, each (B,), and the wins that they are of, (B, n)."""
    estimate, low, high = found
    square = spread_of(won)[1]
    t = 2 * scale * float((t_quantile(won.shape[1] - 1.0) * np.sqrt(square)).mean())
    inside = (low <= truth + 1e-12) & (truth <= high + 1e-12)
    return Cell(
        figure, won.shape[1], truth, len(won), float(inside.mean()), float((high - low).mean()),
        t, float(estimate.mean()),
    )  # fmt: skip


def raw(size: int, truth: float, replicates: int, seed: int) -> Cell:
    """K1 of wins that are 0 or 1, by chance `truth`."""
    rng = np.random.default_rng([seed, size, round(1000 * truth), 1])
    won = (rng.random((replicates, size)) < truth).astype(np.float64)
    found = share_ends(*spread_of(won), size)
    return _cell("win rate", truth, (found.mean, found.low, found.high), won, 1.0)


def controlled(size: int, truth: float, replicates: int, seed: int) -> Cell:
    """The penalised form, on the samples that both sides won battles of."""
    won, term = _battles(size, truth, replicates, seed)
    mixed = won.min(axis=1) < won.max(axis=1)
    won, term = won[mixed], term[mixed]
    features = np.stack([term, np.ones_like(term)], axis=2)
    found = penalised_rate(features, won, np.arange(size), np.ones(size))
    return _cell("LC (small n)", 100 * truth, found, won, 100.0)


def minimal(size: int, truth: float, replicates: int, seed: int) -> Cell:
    """AlpacaEval's formula with the interval that is printed beside it."""
    won, term = _battles(size, truth, replicates, seed)
    features = np.stack([term, np.ones_like(term)], axis=2)
    _, low, high = penalised_rate(features, won, np.arange(size), np.ones(size))
    # The formula takes gaps, whose tanh it makes: these give its term back up to their spread.
    point = np.asarray([lc_minimal(w, np.arctanh(t)) for w, t in zip(won, term, strict=True)])
    found = point, np.minimum(point, low), np.maximum(point, high)
    return _cell("LC-minimal", 100 * truth, found, won, 100.0)


def rating(size: int, lead: float, replicates: int, seed: int) -> Cell:
    """The strongest of four players, `lead` log-odds ahead of the anchor, where each meets each on
    every prompt."""
    names, truth = ("anchor", "b", "c", "strong"), np.asarray([0.0, -0.5, 0.5, lead])
    rng = np.random.default_rng([seed, size, round(10 * lead), 2])
    meets = [(i, j) for i in range(4) for j in range(i)]
    estimates, lows, highs = [], [], []
    for _ in range(replicates):
        prob = sigmoids(np.asarray([[truth[i] - truth[j] for i, j in meets]] * size))
        won = (rng.random(prob.shape) < prob).astype(float)
        fought = [
            Comparison(str(unit), names[i], names[j], won[unit, k])
            for unit in range(size)
            for k, (i, j) in enumerate(meets)
        ]
        found = next(r for r in bradley_terry(fought, "anchor") if r.player == "strong")
        estimates.append(found.rating)
        lows.append(-math.inf if found.low is None else found.low)
        highs.append(math.inf if found.high is None else found.high)
    elo = 1000 + 400 / math.log(10) * lead
    inside = float(np.mean([low <= elo <= high for low, high in zip(lows, highs, strict=True)]))
    width = float(np.mean(np.subtract(highs, lows)))
    return Cell("rating", size, elo, replicates, inside, width, None, float(np.mean(estimates)))
