"""What disagreement is associated with: golden Shapley values, the ceiling, planted causes."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats
from sklearn.linear_model import LogisticRegression

from rlaif.core.numbers import sigmoids
from rlaif.metrics.disagreement import (
    L2,
    Disagreement,
    VotedPairs,
    differing_votes,
    entropy_bounds,
    explain_disagreement,
    log_losses,
    shapley_values,
    vote_entropy,
)
from rlaif.metrics.ridge import fit_ridge

NONE: frozenset[str] = frozenset()


def plant(pairs: int, bias: float, noise: float, seed: int, people: int = 3) -> VotedPairs:
    """People vote by quality; the judge sees quality, a length bias and noise, in log-odds."""
    rng = np.random.default_rng(seed)
    quality, length = rng.normal(0, 1.5, pairs), rng.normal(size=pairs)
    votes = (rng.random((pairs, people)) < sigmoids(quality)[:, None]).astype(float)
    judge = sigmoids(quality + bias * length + noise * rng.normal(size=pairs))
    features = {
        "length": length[:, None],
        "format": rng.integers(-1, 2, (pairs, 2)).astype(float),
        "refusal": np.zeros((pairs, 1)),
    }
    differ = np.asarray([differing_votes(row.tolist()) for row in votes])
    prompts = [f"p{n}" for n in range(pairs)]
    return VotedPairs(prompts, votes.mean(axis=1), differ, judge, features)


def test_shapley_values_of_two_groups_by_hand() -> None:
    """Losses .693147 without any, .5, .6, and .45 with both: (.193147 + .15) / 2 and so on."""
    losses = {NONE: 0.693147, frozenset("a"): 0.5, frozenset("b"): 0.6, frozenset("ab"): 0.45}
    found = shapley_values({chosen: np.asarray(-loss) for chosen, loss in losses.items()})
    assert float(found["a"]) == pytest.approx(0.1715735)
    assert float(found["b"]) == pytest.approx(0.0715735)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=8, max_size=8))
def test_shapley_values_are_the_mean_over_all_orders_and_add_up(values: list[float]) -> None:
    sets = [frozenset(c for bit, c in enumerate("abc") if n >> bit & 1) for n in range(8)]
    known = dict(zip(sets, map(np.asarray, values), strict=True))
    found = shapley_values(known)
    for name in "abc":
        gains = []
        for order in permutations("abc"):
            before = frozenset(order[: order.index(name)])
            gains.append(float(known[before | {name}] - known[before]))
        assert float(found[name]) == pytest.approx(sum(gains) / 6, abs=1e-12)
    whole = float(known[frozenset("abc")] - known[NONE])
    assert sum(map(float, found.values())) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("a", [0.2, 1.0, 3.0])
def test_the_ceiling_is_the_mean_entropy_of_beta_shares(a: float) -> None:
    """By quadrature: E[H(p)] and d = E[2 p (1 - p)] of Beta(a, a)."""
    density = stats.beta(a, a).pdf

    # In log-odds, where the density has no poles.
    def mean_of(value: object) -> float:
        def inside(z: float) -> float:
            p = special.expit(z)
            return float(value(p) * density(p) * p * (1 - p))  # type: ignore[operator]

        return float(integrate.quad(inside, -35, 35, limit=400)[0])

    differ = mean_of(lambda p: 2 * p * (1 - p))
    entropy = mean_of(lambda p: special.entr(p) + special.entr(1 - p))
    assert differ == pytest.approx(a / (2 * a + 1), rel=1e-6)
    assert float(vote_entropy(np.asarray(differ))) == pytest.approx(entropy, rel=1e-6)
    low, high = entropy_bounds(differ)
    assert low < entropy < high


def test_the_ends_of_the_ceiling() -> None:
    assert vote_entropy(np.asarray([0.0, 0.5, 0.6])) == pytest.approx(
        [0.0, math.log(2), math.log(2)]
    )
    assert entropy_bounds(0.5) == pytest.approx((math.log(2), math.log(2)))
    # All shares 0.9: d = 0.18, and the greatest entropy is that of 0.9.
    assert entropy_bounds(0.18)[1] == pytest.approx(0.325083, abs=1e-6)


def test_how_often_two_votes_differ() -> None:
    assert differing_votes([1, 1, 0]) == pytest.approx(2 / 3)
    assert differing_votes([1, 0]) == 1.0
    assert differing_votes([1, 0.5]) == 0.5
    assert math.isnan(differing_votes([1]))


def test_the_ridge_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 3))
    votes = (rng.random(80) < 0.5).astype(float)
    peer = LogisticRegression(C=1 / L2, fit_intercept=False, tol=1e-10).fit(features, votes)
    assert fit_ridge(features, votes, L2) == pytest.approx(peer.coef_[0], abs=1e-5)


def clear(found: Disagreement) -> list[str]:
    return [name for name, part in found.parts.items() if part.low is not None and part.low > 0]


def test_a_length_bias_is_assigned_to_length() -> None:
    found = explain_disagreement(plant(400, 1.5, 0.0, 1))
    assert clear(found) == ["length"]
    assert found.gap is not None and found.gap.low is not None and found.gap.low > 0
    assert found.shares is not None
    assert found.shares["length"] == pytest.approx(1.0, abs=0.4)
    assert abs(found.shares["format"]) < 0.1
    assert found.constant == ["refusal"]


def test_the_noise_of_an_unbiased_judge_is_assigned_to_nothing() -> None:
    found = explain_disagreement(plant(400, 0.0, 1.5, 2))
    assert found.gap is not None and found.gap.low is not None and found.gap.low > 0
    assert clear(found) == []
    assert all(abs(part.mean) < 0.1 * found.gap.mean for part in found.parts.values())


def test_parts_add_up_and_a_group_twice_shares_equally() -> None:
    data = plant(300, 1.5, 0.0, 3)
    twice = VotedPairs(
        data.prompts,
        data.share,
        data.differ,
        data.judge,
        {"length": data.features["length"], "again": data.features["length"]},
    )
    found = explain_disagreement(twice)
    fallen = found.alone.mean - found.full.mean
    assert sum(part.mean for part in found.parts.values()) == pytest.approx(fallen, abs=1e-12)
    assert found.parts["length"].mean == pytest.approx(found.parts["again"].mean, abs=1e-12)


def test_naming_the_answers_the_other_way_round_changes_nothing() -> None:
    data = plant(220, 1.0, 0.5, 4)
    rng = np.random.default_rng(5)
    side = rng.choice([-1.0, 1.0], 220)

    def turn(prob: np.ndarray) -> np.ndarray:
        return np.where(side > 0, prob, 1 - prob)

    turned = VotedPairs(
        data.prompts,
        turn(data.share),
        data.differ,
        turn(data.judge),
        {name: side[:, None] * x for name, x in data.features.items()},
    )
    one, other = explain_disagreement(data), explain_disagreement(turned)
    assert one.alone.mean == pytest.approx(other.alone.mean, abs=1e-9)
    for name in one.parts:
        assert one.parts[name].mean == pytest.approx(other.parts[name].mean, abs=1e-9)


def test_the_gap_is_the_loss_less_the_ceiling() -> None:
    data = plant(200, 0.0, 1.0, 6)
    found = explain_disagreement(data)
    assert found.gap is not None and found.ceiling is not None
    assert found.gap.mean == pytest.approx(found.alone.mean - found.ceiling.mean, abs=1e-12)
    mean = np.asarray(data.differ.mean())
    assert found.ceiling.mean == pytest.approx(float(vote_entropy(mean)))


def test_one_vote_a_pair_has_parts_and_no_ceiling() -> None:
    found = explain_disagreement(plant(250, 1.5, 0.0, 7, people=1))
    assert (found.ceiling, found.gap, found.shares) == (None, None, None)
    assert clear(found) == ["length"]


def test_fewer_than_200_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="199 pairs; 200 are needed"):
        explain_disagreement(plant(199, 0, 0, 8))


def test_log_loss_by_hand() -> None:
    found = log_losses(np.asarray([0.8, 0.8]), np.asarray([1.0, 0.5]))
    assert found == pytest.approx([-math.log(0.8), -(math.log(0.8) + math.log(0.2)) / 2])
