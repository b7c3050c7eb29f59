"""Which two models meet next, where not all can meet on every prompt. Pure functions; all choices
are drawn by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlaif.core.numbers import sigmoids
from rlaif.core.records import content_hash
from rlaif.metrics.ranking import fit_strengths

Floats = NDArray[np.float64]
Pairing = Literal["information", "variance", "uniform"]

PRIOR = 1.0
"""Precision of the normal prior of a log-strength about 0: a model that nobody met is uncertain."""
PRIOR_VARIANCE = 0.25
"""The largest variance of a value on [0, 1]: what one imagined battle of each pair had."""


@dataclass(frozen=True, slots=True)
class Fixture:
    """Two models, by number, that meet on a prompt, and the probability with which this fixture was
    drawn among all that were left."""

    first: int
    second: int
    prompt: str
    chance: float


@dataclass(frozen=True, slots=True)
class Played:
    """By pair of models, (E,): battles, the sum of the first's wins, and of their squares. Pending
    battles count in `battles` alone."""

    battles: Floats
    judged: Floats
    won: Floats
    squares: Floats


@dataclass(frozen=True, slots=True)
class DrawOptions:
    """How fixtures are drawn: `explore` is the share of draws that are uniform over pairs, and
    `least` how many battles each model has before anything else decides."""

    pairing: Pairing
    explore: float
    least: int
    seed: int


def list_pairs(players: int) -> NDArray[np.intp]:
    """All pairs of players, (E, 2)."""
    return np.asarray(list(combinations(range(players), 2)), dtype=np.intp)


def variance_gains(variance: Floats, battles: Floats) -> Floats:
    """sqrt(s / n) - sqrt(s / (n + 1)), (E,): by how much one more battle narrows a pair's mean
    (Chiang et al. 2024, arXiv 2403.04132); infinite for pairs that have not met."""
    with np.errstate(divide="ignore"):
        gains: Floats = np.sqrt(variance / battles) - np.sqrt(variance / (battles + 1))
    return gains


def information_gains(covariance: Floats, probs: Floats, pairs: NDArray[np.intp]) -> Floats:
    """1/2 ln(1 + p (1 - p) v), (E,), with v the posterior variance of the pair's difference in
    log-strength: the gain in nats of one battle (D-optimality)."""
    a, b = pairs.T
    spread = covariance[a, a] + covariance[b, b] - 2 * covariance[a, b]
    gains: Floats = 0.5 * np.log1p(probs * (1 - probs) * spread)
    return gains


def posterior_covariance(battles: Floats, probs: Floats, pairs: NDArray[np.intp]) -> Floats:
    """The covariance of log-strengths, (players, players), under a normal prior and the information
    p (1 - p) of each battle."""
    players = int(pairs.max()) + 1
    sides = np.eye(players)[pairs[:, 0]] - np.eye(players)[pairs[:, 1]]
    information = sides.T @ ((battles * probs * (1 - probs))[:, None] * sides)
    return np.asarray(np.linalg.inv(information + PRIOR * np.eye(players)))


def draw_fixtures(
    played: Played, left: Sequence[Sequence[str]], count: int, options: DrawOptions, batch: int
) -> list[Fixture]:
    """Up to `count` fixtures of a batch, one after the other; those drawn before are pending.

    `left` are the sorted prompts on which each pair has not met. Pairs of the model with the fewest
    battles come first until all have `options.least`. Draws depend on the seed, the number of the
    batch and what was judged before it, not on the order in which verdicts came.
    """
    players = next(n for n in range(2, len(left) + 2) if n * (n - 1) // 2 == len(left))
    pairs = list_pairs(players)
    battles, open_prompts = played.battles.copy(), [list(prompts) for prompts in left]
    probs = _win_probabilities(played, pairs)
    drawn = []
    for turn in range(count):
        chances = _pair_chances(played, battles, probs, pairs, open_prompts, options)
        if chances is None:
            break
        at = _draw("pair", options.seed, batch, turn)
        pair = int(np.searchsorted(np.cumsum(chances), at * chances.sum(), side="right"))
        prompts = open_prompts[pair]
        place = int(_draw("prompt", options.seed, batch, turn) * len(prompts))
        chance = float(chances[pair]) / len(prompts)
        first, second = pairs[pair].tolist()
        drawn.append(Fixture(first, second, prompts.pop(place), chance))
        battles[pair] += 1
    return drawn


def _draw(*parts: object) -> float:
    """A number on [0, 1)."""
    return int(content_hash("fixture", *parts, length=13), 16) / 16**13


def _win_probabilities(played: Played, pairs: NDArray[np.intp]) -> Floats:
    """P(first wins) of each pair by the strengths of greatest posterior."""
    both = np.concatenate([pairs, pairs[:, ::-1]])
    tables = np.concatenate([played.won, played.judged - played.won])
    strengths = fit_strengths(tables[None], both, int(pairs.max()) + 1, PRIOR)[0]
    return sigmoids(strengths[pairs[:, 0]] - strengths[pairs[:, 1]])


def _pair_chances(
    played: Played,
    battles: Floats,
    probs: Floats,
    pairs: NDArray[np.intp],
    left: Sequence[Sequence[str]],
    options: DrawOptions,
) -> Floats | None:
    """The probability of each pair to be drawn next, (E,); None where nothing is left."""
    is_open = np.asarray([bool(prompts) for prompts in left])
    if not is_open.any():
        return None
    games = np.bincount(pairs.ravel(), np.repeat(battles, 2))
    reachable = np.zeros(len(games), dtype=bool)
    reachable[pairs[is_open].ravel()] = True
    fewest = games[reachable].min()
    if fewest < options.least:
        behind = reachable & (games == fewest)
        is_open &= behind[pairs].any(axis=1)
        rarest: Floats = is_open / is_open.sum()
        return rarest
    uniform: Floats = is_open / is_open.sum()
    gains = np.where(is_open, _gains(played, battles, probs, pairs, options.pairing), 0.0)
    if np.isinf(gains).any():
        gains = np.isinf(gains).astype(np.float64)
    if not gains.sum() > 0:
        return uniform
    mixed: Floats = options.explore * uniform + (1 - options.explore) * gains / gains.sum()
    return mixed


def _gains(
    played: Played, battles: Floats, probs: Floats, pairs: NDArray[np.intp], pairing: Pairing
) -> Floats:
    if pairing == "uniform":
        return np.ones(len(pairs))
    if pairing == "information":
        covariance = posterior_covariance(battles, probs, pairs)
        return information_gains(covariance, probs, pairs)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(played.judged > 0, played.won / played.judged, 0.5)
    squares = np.maximum(played.squares - played.judged * mean**2, 0.0)
    return variance_gains((squares + PRIOR_VARIANCE) / (played.judged + 1), battles)
