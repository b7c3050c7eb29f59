"""Style: what of a rating is length and markdown. A Bradley–Terry model with the style of the two
answers beside the players (Li, Angelopoulos and Chiang 2024; the Arena's `arena-rank`)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlaif.core.numbers import sigmoids
from rlaif.metrics.ends import t_quantile
from rlaif.metrics.penalised import Trials, design_effect, fit_coefficients, profile_ends
from rlaif.metrics.ranking import ANCHOR, SCALE, Comparison, Rating

Floats = NDArray[np.float64]

FEATURES = ("words", "headers", "lists", "bold")
"""What is counted in an answer. The Arena counts tokens of one tokenizer; words need none."""
LEAST_BATTLES = 50
"""A pair of players has weight 1 / max(battles, this), so that often drawn pairs do not decide."""
_HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
_ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class StyledComparison:
    """A comparison with the style counts of its two answers, by feature."""

    comparison: Comparison
    first: Mapping[str, int]
    second: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class StyleRatings:
    """Ratings at equal style, best first, and what one standard deviation of each feature's
    difference is worth in rating points. A feature that never differs has none."""

    ratings: list[Rating]
    effects: dict[str, float]


def count_style(text: str) -> dict[str, int]:
    """The features of an answer; what is in code fences counts as words alone."""
    plain = _FENCED.sub("", text)
    found = (text.split(), *(form.findall(plain) for form in (_HEADER, _ITEM, _BOLD)))
    return {name: len(hits) for name, hits in zip(FEATURES, found, strict=True)}


def style_gap(first: int, second: int) -> float:
    """(first - second) / (first + second), 0 where there is none of it."""
    return (first - second) / max(first + second, 1)


def rate_with_style(styled: Sequence[StyledComparison], anchor: str | None = None) -> StyleRatings:
    """The model logit P(first wins) = theta_first - theta_second + z . gamma.

    z are the `style_gap`s over their standard deviation. Both orders of a battle were judged, so
    each gap counts with both signs and has a mean of 0. Weights: 1 / max(battles of the pair, 50),
    scaled to a mean of 1; penalty on gamma alone, 1/2 |gamma|^2 beside the mean loss: all as the
    Arena does. The strengths have Jeffreys' penalty, which keeps undefeated players finite, and
    the intervals are by profile likelihood, clustered by unit (see `ranking.bradley_terry`).
    Players must be linked by comparisons.
    """
    fought = sorted(styled, key=lambda s: s.comparison)
    players = sorted({name for s in fought for name in s.comparison[1:3]})
    zero = players.index(anchor) if anchor in players else None
    kept = [i for i in range(len(players)) if i != (len(players) - 1 if zero is None else zero)]
    names = np.eye(len(players))
    pairs = np.asarray([[players.index(name) for name in s.comparison[1:3]] for s in fought])
    sides = (names[pairs[:, 0]] - names[pairs[:, 1]])[:, kept]  # [battles, players - 1]
    used, gaps = _scale_gaps(fought)  # [battles, features]
    weights = _weigh_pairs(fought)
    probs = np.asarray([s.comparison.prob for s in fought])
    precision = np.concatenate([np.zeros(len(kept)), np.full(len(used), weights.sum())])
    features = np.concatenate([sides, gaps], axis=1)
    trials = Trials(features[None], (weights * probs)[None], weights[None], precision)
    beta = fit_coefficients(trials)
    strengths = names[:, kept] @ beta[0, : len(kept)]
    contrasts = (names - (1 / len(players) if zero is None else names[zero]))[:, kept]
    contrasts = np.concatenate([contrasts, np.zeros((len(players), len(used)))], axis=1)
    asked = [i for i in range(len(players)) if i != zero]
    low, high = _find_ends(trials, beta, contrasts[asked], fought, [players[i] for i in asked])
    ends = dict(zip(asked, zip(low.tolist(), high.tolist(), strict=True), strict=True))
    strengths = strengths - (strengths.mean() if zero is None else strengths[zero])
    ratings = [
        Rating(
            name,
            ANCHOR + SCALE * float(strengths[i]),
            *_to_ratings(*ends.get(i, (np.inf, np.inf))),
            _count_units(fought, name),
            i == zero,
        )
        for i, name in enumerate(players)
    ]
    effects = dict(zip(used, (SCALE * beta[0, len(kept) :]).tolist(), strict=True))
    return StyleRatings(sorted(ratings, key=lambda r: (-r.rating, r.player)), effects)


def _to_ratings(low: float, high: float) -> tuple[float | None, float | None]:
    """The ends on the rating's scale, None where they are infinite."""
    below, above = (ANCHOR + SCALE * end if np.isfinite(end) else None for end in (low, high))
    return below, above


def _scale_gaps(fought: Sequence[StyledComparison]) -> tuple[list[str], Floats]:
    """The features that differ somewhere, and their scaled gaps, [battles, features]."""
    raw = np.asarray([[style_gap(s.first[f], s.second[f]) for f in FEATURES] for s in fought])
    spread = np.sqrt((raw**2).mean(axis=0))
    differs = spread > 0
    used = [name for name, some in zip(FEATURES, differs.tolist(), strict=True) if some]
    return used, raw[:, differs] / spread[differs]


def _weigh_pairs(fought: Sequence[StyledComparison]) -> Floats:
    met = [frozenset(s.comparison[1:3]) for s in fought]
    counts = Counter(met)
    own = [s.comparison.weight for s in fought]
    weights = np.asarray([w / max(counts[p], LEAST_BATTLES) for p, w in zip(met, own, strict=True)])
    scaled: Floats = weights / weights.mean()
    return scaled


def _count_units(fought: Sequence[StyledComparison], player: str) -> int:
    return len({s.comparison.unit for s in fought if player in s.comparison[1:3]})


def _find_ends(
    trials: Trials,
    beta: Floats,
    contrasts: Floats,
    fought: Sequence[StyledComparison],
    asked: Sequence[str],
) -> tuple[Floats, Floats]:
    """The ends of each contrast of the coefficients, (contrasts, k), by profile likelihood."""
    each, start = trials.repeated(len(contrasts)), np.tile(beta, (len(contrasts), 1))
    units = np.unique([s.comparison.unit for s in fought], return_inverse=True)[1]
    residuals = trials.won[0] - trials.counts[0] * sigmoids(trials.features[0] @ beta[0])
    scores = np.zeros((units.max() + 1, beta.shape[1]))
    np.add.at(scores, units, residuals[:, None] * trials.features[0])
    whole = np.broadcast_to(scores, (len(contrasts), *scores.shape))
    # `fmax` passes over NaN: an effect that is not defined counts as 1.
    effect = np.fmax(1.0, design_effect(each, start, contrasts, whole))
    prompts = np.asarray([_count_units(fought, name) for name in asked], dtype=np.float64)
    return profile_ends(each, start, contrasts, t_quantile(prompts - 1.0) ** 2 * effect)
