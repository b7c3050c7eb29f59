"""Coverage of the intervals of win rates, length-controlled win rates and ratings.

    python benchmarks/coverage_winrates.py [--quick] [--json]

`cells(replicates, seed)` gives a row for each figure, size and truth: how often the 95% interval
holds the truth, its mean width beside that of Student's t of the mean of the same verdicts, and the
mean estimate. A cell fails where coverage is below 0.93 by more than three Monte-Carlo standard
errors.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from rlaif.compare.ends import share_ends, spread_of, t_quantile
from rlaif.compare.length_control import lc_minimal, penalised_rate
from rlaif.compare.logistic import sigmoid
from rlaif.compare.ranking import Comparison, bradley_terry

Floats = NDArray[np.float64]

RATES = (0.047, 0.1, 0.5, 0.82)
SIZES = (6, 16, 20, 30, 64, 100)
LENGTH_EFFECT = -1.0
"""What a gap of one standard deviation and more adds to the log-odds, through tanh."""
LEAST = 0.93
SLOW = 40
"""AlpacaEval's formula cross-validates each sample: a replicate takes a tenth of a second."""


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


def cells(replicates: int, seed: int = 0, slow: int = SLOW) -> Iterator[Cell]:
    """All cells; `slow` is the number of replicates of those that cannot be vectorised."""
    for size in SIZES:
        for truth in RATES:
            yield raw(size, truth, replicates, seed)
            yield controlled(size, truth, replicates, seed)
    for truth in RATES:
        yield minimal(200, truth, slow, seed)
    for size in (10, 20, 64):
        for lead in (0.0, 1.5, 3.0):
            yield rating(size, lead, max(slow, replicates // 10), seed)


def _battles(size: int, truth: float, replicates: int, seed: int) -> tuple[Floats, Floats]:
    """Wins, 0 or 1, and the length term, each (replicates, size), at this rate for equal length."""
    rng = np.random.default_rng([seed, size, round(1000 * truth)])
    gaps = rng.normal(0.0, 100.0, (replicates, size))
    term = np.tanh(gaps / gaps.std(axis=1, ddof=1, keepdims=True))
    prob = sigmoid(math.log(truth / (1 - truth)) + LENGTH_EFFECT * term)
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
        prob = sigmoid(np.asarray([[truth[i] - truth[j] for i, j in meets]] * size))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the replicates")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = []
    for cell in cells(400 if asked.quick else 4000, slow=SLOW // 4 if asked.quick else SLOW):
        found.append(cell)
        ratio = "" if cell.t_width is None else f"  t {cell.t_width:8.3f}"
        print(
            f"{cell.figure:13} n {cell.size:3}  truth {cell.truth:8.3f}  mean {cell.estimate:8.3f}"
            f"  coverage {cell.coverage:.3f}  width {cell.width:8.3f}{ratio}"
            f"{'' if cell.holds else '  FAILS'}",
            flush=True,
        )
    if asked.json:
        print(json.dumps([asdict(cell) | {"holds": cell.holds} for cell in found]))


if __name__ == "__main__":
    main()
