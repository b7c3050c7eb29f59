"""Ranking by paired comparisons: Bradley–Terry strengths with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlaif.errors import RlaifError

Floats = NDArray[np.float64]

SCALE = 400 / math.log(10)
"""Rating points per unit of log-strength: a lead of 400 means odds of 10 to 1."""
PRIOR = 0.01
"""Precision of the normal prior on a log-strength. It keeps an undefeated player finite and is
worth less than a tenth of one even comparison."""


@dataclass(frozen=True, slots=True)
class Rating:
    """A player's strength on the Elo scale, 1000 being the anchor's (or the mean), and the ends of
    its bootstrap interval."""

    player: str
    rating: float
    low: float
    high: float


Comparison = tuple[str, str, str, float]
"""(unit of resampling, first player, second player, probability that the first is better)."""


def bradley_terry(
    comparisons: Iterable[Comparison],
    anchor: str | None = None,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> list[Rating]:
    """Ratings of all players, best first (Bradley & Terry 1952; ties and shares count in parts).

    Intervals resample the units (prompts) with replacement. Differences to the anchor are what is
    estimated, so its own interval has no width. Raises RlaifError where there is no comparison, or
    where two groups of players never met, since nothing then says how the groups compare.
    """
    fought = sorted(c for c in comparisons if c[1] != c[2])
    if not fought:
        raise RlaifError("ranking: no comparison of two different generators")
    players = sorted({name for _, first, second, _ in fought for name in (first, second)})
    groups = connected(players, [(first, second) for _, first, second, _ in fought])
    if len(groups) > 1:
        shown = "; ".join(", ".join(sorted(group)[:4]) for group in groups)
        raise RlaifError(f"ranking: these groups were never compared with each other: {shown}")
    wins, pairs = _wins_by_unit(fought, players)
    drawn = np.random.default_rng(seed).multinomial(
        wins.shape[0], np.full(wins.shape[0], 1 / wins.shape[0]), size=resamples
    )
    tables = np.concatenate([wins.sum(0, keepdims=True), drawn @ wins])
    ratings = SCALE * strengths(tables, pairs, len(players), PRIOR)
    zero = players.index(anchor) if anchor in players else None
    ratings -= ratings.mean(1, keepdims=True) if zero is None else ratings[:, [zero]]
    tail = (1 - level) / 2
    low, high = np.quantile(ratings[1:], [tail, 1 - tail], axis=0)
    found = [
        Rating(name, *(1000 + float(x) for x in (ratings[0, i], low[i], high[i])))
        for i, name in enumerate(players)
    ]
    return sorted(found, key=lambda r: (-r.rating, r.player))


def connected(players: Iterable[str], pairs: Iterable[tuple[str, str]]) -> list[set[str]]:
    """The groups of players that are linked by comparisons."""
    group = {name: {name} for name in players}
    for first, second in pairs:
        if group[first] is not group[second]:
            merged = group[first] | group[second]
            group |= dict.fromkeys(merged, merged)
    return list({id(members): members for members in group.values()}.values())


def _wins_by_unit(
    fought: Sequence[Comparison], players: Sequence[str]
) -> tuple[Floats, NDArray[np.intp]]:
    """Wins (units, E) and who won against whom (E, 2), for every ordered pair that met."""
    number = {name: i for i, name in enumerate(players)}
    units = {unit: i for i, unit in enumerate(dict.fromkeys(c[0] for c in fought))}
    met = {(number[a], number[b]) for _, a, b, _ in fought}
    pairs = sorted(met | {(b, a) for a, b in met})
    column = {pair: i for i, pair in enumerate(pairs)}
    wins = np.zeros((len(units), len(pairs)))
    for unit, first, second, prob in fought:
        a, b = number[first], number[second]
        wins[units[unit], column[a, b]] += prob
        wins[units[unit], column[b, a]] += 1 - prob
    return wins, np.asarray(pairs, dtype=np.intp)


def strengths(tables: Floats, pairs: NDArray[np.intp], players: int, prior: float) -> Floats:
    """Log-strengths (T, players) of maximum posterior for each of T tables of wins (T, E), where
    `pairs` (E, 2) says who won against whom and `prior` is the precision about 0.

    Newton's method on all tables at once; the log-likelihood is concave.
    """
    winner, loser = pairs[:, 0], pairs[:, 1]
    found = np.zeros((tables.shape[0], players))
    diagonal = np.arange(players)
    for _ in range(100):
        lost = 1 / (1 + np.exp(found[:, winner] - found[:, loser]))
        pull = tables * lost
        slope = -prior * found
        bend = np.zeros((tables.shape[0], players, players))
        bend[:, diagonal, diagonal] = prior
        curve = tables * lost * (1 - lost)
        for edge in range(len(pairs)):
            a, b = winner[edge], loser[edge]
            slope[:, a] += pull[:, edge]
            slope[:, b] -= pull[:, edge]
            bend[:, a, a] += curve[:, edge]
            bend[:, b, b] += curve[:, edge]
            bend[:, a, b] -= curve[:, edge]
            bend[:, b, a] -= curve[:, edge]
        step = np.linalg.solve(bend, slope[:, :, None])[:, :, 0]
        # A step of more than two units is where Newton's model stops holding.
        found += step * np.minimum(1.0, 2.0 / np.maximum(np.abs(step).max(1, keepdims=True), 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    return found
