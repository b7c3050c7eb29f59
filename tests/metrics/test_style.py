"""Ratings at equal style: the features by hand, the fit against a general optimiser."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from rlaif.metrics.ranking import SCALE, Comparison, bradley_terry
from rlaif.metrics.style import (
    FEATURES,
    StyledComparison,
    StyleRatings,
    count_style,
    rate_with_style,
    style_gap,
)

PLAIN = {"words": 10, "headers": 0, "lists": 0, "bold": 0}


def test_what_is_counted_in_an_answer() -> None:
    items = "- one\n* two\n1. three\n\n"
    text = f"# Title\n\nSome **bold** words:\n\n{items}```\n# no header\n- none\n```\n"
    assert count_style(text) == {"words": 18, "headers": 1, "lists": 3, "bold": 1}
    assert count_style("") == dict.fromkeys(FEATURES, 0)


def test_the_gap_by_its_golden_value() -> None:
    assert style_gap(300, 100) == 0.5 and style_gap(100, 300) == -0.5 and style_gap(0, 0) == 0.0


def styled(
    count: int, effect: float, strengths: dict[str, float], seed: int = 1
) -> list[StyledComparison]:
    """Battles of which length decides by `effect` for each unit of its gap, and the strengths."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        first, second = sorted(draw.sample(sorted(strengths), 2))
        words = draw.randint(5, 200), draw.randint(5, 200)
        logit = strengths[first] - strengths[second] + effect * style_gap(*words)
        won = float(draw.random() < 1 / (1 + math.exp(-logit)))
        sides = [PLAIN | {"words": n, "lists": draw.randint(0, 3)} for n in words]
        found.append(
            StyledComparison(Comparison(f"p{number % 40}", first, second, won), sides[0], sides[1])
        )
    return found


def peer(battles: Sequence[StyledComparison], players: Sequence[str]) -> NDArray[np.float64]:
    """The strengths about their mean and the effects, by a general optimiser of the Arena's mean
    loss with its weights and its penalty, and Jeffreys' on the strengths."""
    met = [c.comparison[1:3] for c in battles]
    weights = np.asarray([1 / max(met.count(pair), 50) for pair in met])
    weights /= weights.mean()
    gaps = [[style_gap(s.first[f], s.second[f]) for f in ("words", "lists")] for s in battles]
    z = np.asarray(gaps) / np.sqrt((np.asarray(gaps) ** 2).mean(axis=0))
    design = np.zeros((len(battles), len(players) - 1))
    for row, pair in enumerate(met):
        for name, sign in zip(pair, (1.0, -1.0), strict=True):
            if name != players[-1]:
                design[row, players.index(name)] = sign
    x = np.concatenate([design, z], axis=1)
    y = np.asarray([s.comparison.prob for s in battles])
    size = design.shape[1]

    def loss(beta: NDArray[np.float64]) -> float:
        score = x @ beta
        each = np.logaddexp(0.0, score) - y * score
        p = 1 / (1 + np.exp(-score))
        inside = design.T @ ((weights * p * (1 - p))[:, None] * design)
        jeffreys = np.linalg.slogdet(inside)[1] / 2 / len(battles)
        ridge = 0.5 * float(beta[size:] @ beta[size:])
        return float((weights * each).mean() + ridge - jeffreys)

    beta = minimize(loss, np.zeros(x.shape[1]), method="BFGS", options={"gtol": 1e-9}).x
    strengths = np.append(beta[:size], 0.0)
    return np.concatenate([strengths - strengths.mean(), beta[size:]])


def in_order(found: StyleRatings) -> list[float]:
    rated = {r.player: (r.rating - 1000) / SCALE for r in found.ratings}
    return [*(rated[name] for name in sorted(rated)), *(e / SCALE for e in found.effects.values())]


def test_the_fit_is_that_of_a_general_optimiser() -> None:
    battles = styled(400, 2.0, {"a": 0.8, "b": 0.0, "c": -0.5})
    found = rate_with_style(battles)
    assert list(found.effects) == ["words", "lists"]
    assert in_order(found) == pytest.approx(peer(battles, "abc"), abs=2e-4)


def test_verdicts_of_length_alone_leave_the_models_equal() -> None:
    found = rate_with_style(styled(3000, 3.0, {"a": 0.0, "b": 0.0}))
    assert found.effects["words"] > 20
    assert abs(found.effects["lists"]) < 10
    for rating in found.ratings:
        assert rating.low is not None and rating.high is not None
        assert rating.low < 1000 < rating.high


def test_a_longer_model_that_wins_by_length_is_rated_lower_at_equal_style() -> None:
    draw = random.Random(2)
    battles = []
    for number in range(400):
        sides = PLAIN | {"words": draw.randint(60, 100)}, PLAIN | {"words": draw.randint(30, 110)}
        won = float(sides[0]["words"] > sides[1]["words"])
        battles.append(StyledComparison(Comparison(f"p{number % 40}", "a", "b", won), *sides))
    plain = {r.player: r.rating for r in bradley_terry([s.comparison for s in battles])}
    at_style = {r.player: r.rating for r in rate_with_style(battles).ratings}
    assert plain["a"] > at_style["a"] > 1000


def test_features_that_never_differ_leave_plain_ratings() -> None:
    comparisons = [
        Comparison(f"p{n % 12}", *pair, float(n % 3 > 0))
        for n in range(60)
        for pair in (("a", "b"), ("b", "c"), ("a", "c"))
    ]
    found = rate_with_style([StyledComparison(c, PLAIN, PLAIN) for c in comparisons])
    plain = bradley_terry(comparisons)
    assert found.effects == {}
    for one, other in zip(found.ratings, plain, strict=True):
        assert (one.player, one.prompts) == (other.player, other.prompts)
        assert one.rating == pytest.approx(other.rating, abs=1e-6)
        assert one.low == pytest.approx(other.low, abs=0.01)
        assert one.high == pytest.approx(other.high, abs=0.01)


def test_swapping_the_sides_changes_nothing() -> None:
    battles = styled(200, 1.0, {"a": 0.4, "b": 0.0, "c": -0.5})
    turned = [
        StyledComparison(
            Comparison(
                s.comparison.unit, s.comparison.second, s.comparison.first, 1 - s.comparison.prob
            ),
            s.second,
            s.first,
        )
        for s in battles
    ]
    assert in_order(rate_with_style(turned)) == pytest.approx(in_order(rate_with_style(battles)))


def test_the_anchor_is_1000_without_ends_and_an_undefeated_model_is_finite() -> None:
    battles = [
        StyledComparison(Comparison(f"p{n}", "a", "b", 1.0), PLAIN | {"words": 5 + n}, PLAIN)
        for n in range(12)
    ]
    found = {r.player: r for r in rate_with_style(battles, "b").ratings}
    assert (found["b"].rating, found["b"].low, found["b"].high) == (1000.0, None, None)
    assert found["b"].is_anchor and 1000 < found["a"].rating < 2500
    assert found["a"].low is not None and found["a"].low > 1000
