"""Elo ratings of paired comparisons (Elo 1978), averaged over orders: one run of the update depends
on its order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlaif.core.records import content_hash
from rlaif.metrics.figure_rules import FigureRule
from rlaif.metrics.pooled import jackknife_interval, left_out
from rlaif.metrics.ranking import Comparison

Floats = NDArray[np.float64]

START, STEP, SPREAD = 1000.0, 4.0, 400.0
"""Where all begin, the K factor (as FastChat has them), and the lead with odds of 10 to 1."""
ORDERS = 50
"""Over how many orders ratings are averaged."""
RULE = FigureRule("jackknife")


@dataclass(frozen=True, slots=True)
class EloRating:
    """A player's rating with the ends of its 95% interval, None where one prompt sets none."""

    player: str
    rating: float
    low: float | None
    high: float | None


def elo_ratings(
    comparisons: Sequence[Comparison], seed: int, orders: int = ORDERS
) -> list[EloRating]:
    """The mean rating of each player over `orders` orders of the comparisons that are drawn by seed
    (the same for the same comparisons, in whatever order they come), best first.

    With each, R_a += K weight (s - E) and R_b -= the same, with E = 1 / (1 + 10^((R_b - R_a) /
    400)) and s the probability that a is better, 0.5 for a tie. All sums of ratings are equal.
    The interval is the jackknife's over units (K6), by leaving out the comparisons of each.
    Ratings of few comparisons stay near the start, whatever the strengths: an Elo gap is no
    estimate of the log-odds, as that of Bradley and Terry is.
    """
    fought = sorted(c for c in comparisons if c.first != c.second)
    players = sorted({name for c in fought for name in (c.first, c.second)})
    units = sorted({c.unit for c in fought})
    number = {name: i for i, name in enumerate(players)}
    block = left_out(len(units))[[units.index(c.unit) for c in fought]]
    blocks = int(block.max()) + 1
    # [comparisons, 1 + blocks]: the first column has all comparisons, the others lack one block.
    share = np.ones((len(fought), 1 + blocks))
    share[np.arange(len(fought)), 1 + block] = 0.0
    step = STEP * share * np.asarray([c.weight for c in fought])[:, None]
    generator = np.random.default_rng(int(content_hash("elo", seed, fought), 16) % 2**63)
    order = np.stack([generator.permutation(len(fought)) for _ in range(orders)])
    pairs = np.asarray([(number[c.first], number[c.second]) for c in fought])
    probs = np.asarray([c.prob for c in fought])
    found = _play(order, pairs, probs, step, len(players)).mean(axis=0)  # [1 + blocks, players]
    made = []
    for name, column in zip(players, found.T, strict=True):
        interval = jackknife_interval(float(column[0]), column[1:], RULE, len(fought), len(units))
        made.append(EloRating(name, interval.mean, interval.low, interval.high))
    return sorted(made, key=lambda r: (-r.rating, r.player))


def _play(
    order: NDArray[np.intp], pairs: NDArray[np.intp], probs: Floats, step: Floats, players: int
) -> Floats:
    """Ratings after all comparisons, (orders, replicates, players): `order` (orders, n) says which
    comparison comes when, and `step` (n, replicates) by how much it may move ratings."""
    rows = np.arange(len(order))
    ratings = np.full((len(order), step.shape[1], players), START)
    for turn in order.T:  # [orders]
        a, b = pairs[turn].T
        first, second = ratings[rows, :, a], ratings[rows, :, b]  # [orders, replicates]
        expected = 1.0 / (1.0 + 10.0 ** ((second - first) / SPREAD))
        moved = step[turn] * (probs[turn][:, None] - expected)
        ratings[rows, :, a] = first + moved
        ratings[rows, :, b] = second - moved
    return ratings
