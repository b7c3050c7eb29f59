"""Ranking by paired comparisons: Bradley–Terry strengths with profile likelihood intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlaif.core.errors import RlaifError
from rlaif.core.numbers import sigmoids
from rlaif.metrics.ends import t_quantile
from rlaif.metrics.penalised import Trials, design_effect, fit_coefficients, profile_ends

Floats = NDArray[np.float64]

SCALE = 400 / math.log(10)
"""Rating points per unit of log-strength: a lead of 400 means odds of 10 to 1."""
ANCHOR = 1000.0
"""The rating of the anchor, or of the mean where there is none."""


class Comparison(NamedTuple):
    """`first` against `second` on one unit (prompt), with the probability that `first` is better.

    `weight` is how many comparisons it stands for: a half for each of two rows that are the same.
    """

    unit: str
    first: str
    second: str
    prob: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Rating:
    """A player's strength on the Elo scale, 1000 being the anchor's (or the mean), and the ends of
    its 95% interval.

    An end is None where the comparisons set no limit (one prompt sets none), and both are of the
    anchor, whose 1000 is by definition. `prompts` are those that the player took part in.
    """

    player: str
    rating: float
    low: float | None
    high: float | None
    prompts: int
    is_anchor: bool


@dataclass(frozen=True, slots=True)
class _Games:
    """Who met whom, (E, 2), the first's wins, (U, E), and the comparisons, (U, E), by unit."""

    pairs: NDArray[np.intp]
    won: Floats
    counts: Floats


def bradley_terry(comparisons: Iterable[Comparison], anchor: str | None = None) -> list[Rating]:
    """Ratings of all players, best first (Bradley & Terry 1952; ties and shares count in parts).

    The likelihood has Jeffreys' penalty, which keeps an undefeated player finite. An interval is of
    the difference to the anchor (or to the mean of all): where twice the penalised log-likelihood,
    greatest over all other strengths, has fallen by t^2 of C - 1 degrees of freedom, C being the
    player's prompts, times the design effect of comparisons that share a prompt where that is above
    1. Raises RlaifError where there is no comparison, or where two groups of players never met,
    since nothing then says how the groups compare.
    """
    fought = sorted(c for c in comparisons if c.first != c.second)
    if not fought:
        raise RlaifError("ranking: no comparison of two different generators")
    players = sorted({name for c in fought for name in (c.first, c.second)})
    groups = connected_groups(players, [(c.first, c.second) for c in fought])
    if len(groups) > 1:
        shown = "; ".join(", ".join(sorted(group)[:4]) for group in groups)
        raise RlaifError(f"ranking: these groups were never compared with each other: {shown}")
    zero = players.index(anchor) if anchor in players else None
    games = _tally_games(fought, players)
    strengths, low, high = _compute_intervals(games, len(players), zero)
    found = [
        Rating(
            name,
            ANCHOR + SCALE * float(strengths[i]),
            None if i == zero else _rating_end(low[i]),
            None if i == zero else _rating_end(high[i]),
            _count_prompts(games, i),
            i == zero,
        )
        for i, name in enumerate(players)
    ]
    return sorted(found, key=lambda r: (-r.rating, r.player))


def _rating_end(strength: float) -> float | None:
    return ANCHOR + SCALE * float(strength) if math.isfinite(strength) else None


def _compute_intervals(
    games: _Games, players: int, zero: int | None
) -> tuple[Floats, Floats, Floats]:
    """Each player's strength against `zero` (None: the mean), and its ends, each (players,)."""
    names = np.eye(players)
    # One strength has no column: only differences are known.
    kept = [i for i in range(players) if i != (players - 1 if zero is None else zero)]
    # [players, players - 1]
    contrasts = (names - (1 / players if zero is None else names[zero]))[:, kept]
    asked = [i for i in range(players) if i != zero]
    # [pairs, players - 1]
    features = (names[games.pairs[:, 0]] - names[games.pairs[:, 1]])[:, kept]
    no_prior = np.zeros(len(kept))
    won, counts = games.won.sum(axis=0), games.counts.sum(axis=0)
    one = Trials(features[None], won[None], counts[None], no_prior)
    beta = fit_coefficients(one)[0]
    residuals = games.won - games.counts * sigmoids(features @ beta)  # [prompts, pairs]
    each, start = one.repeated(len(asked)), np.tile(beta, (len(asked), 1))
    scores = np.broadcast_to(residuals @ features, (len(asked), len(residuals), len(kept)))
    effect = design_effect(each, start, contrasts[asked], scores)
    # `fmax` passes over NaN: an effect that is not defined counts as 1.
    effect = np.fmax(1.0, np.fmax(effect, [_one_sided(games, i) for i in asked]))
    prompts = np.asarray([_count_prompts(games, i) for i in asked], dtype=np.float64)
    fall = t_quantile(prompts - 1.0) ** 2 * effect
    ends = np.full((2, players), np.nan)
    ends[:, asked] = profile_ends(each, start, contrasts[asked], fall)
    return contrasts @ beta, ends[0], ends[1]


def _count_prompts(games: _Games, player: int) -> int:
    mine = (games.pairs == player).any(axis=1)
    return int((games.counts[:, mine] > 0).any(axis=1).sum())


def _one_sided(games: _Games, player: int) -> float:
    """A player's comparisons per prompt where it won or lost all, else 0.

    Nothing then shows how those of one prompt go together, so they count as one.
    """
    first, second = games.pairs[:, 0] == player, games.pairs[:, 1] == player
    lost = games.counts - games.won
    own = games.won[:, first].sum() + lost[:, second].sum()
    others = lost[:, first].sum() + games.won[:, second].sum()
    return 0.0 if own and others else float(own + others) / _count_prompts(games, player)


def connected_groups(players: Iterable[str], pairs: Iterable[tuple[str, str]]) -> list[set[str]]:
    """The groups of players that are linked by comparisons."""
    group = {name: {name} for name in players}
    # Linked players share one set, so identity is enough.
    for first, second in pairs:
        if group[first] is not group[second]:
            merged = group[first] | group[second]
            group |= dict.fromkeys(merged, merged)
    return list({id(members): members for members in group.values()}.values())


def _tally_games(fought: Sequence[Comparison], players: Sequence[str]) -> _Games:
    number = {name: i for i, name in enumerate(players)}
    units = {unit: i for i, unit in enumerate(dict.fromkeys(c.unit for c in fought))}
    pairs = sorted({tuple(sorted((number[c.first], number[c.second]))) for c in fought})
    column = {pair: i for i, pair in enumerate(pairs)}
    won, counts = np.zeros((2, len(units), len(pairs)))  # Both [prompts, pairs].
    for c in fought:
        first, second = number[c.first], number[c.second]
        place = units[c.unit], column[min(first, second), max(first, second)]
        won[place] += c.weight * (c.prob if first < second else 1 - c.prob)
        counts[place] += c.weight
    return _Games(np.asarray(pairs, dtype=np.intp), won, counts)


def fit_strengths(tables: Floats, pairs: NDArray[np.intp], players: int, prior: float) -> Floats:
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
