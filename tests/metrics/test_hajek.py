"""The Hájek estimator: by hand, and over many draws from planted items."""

from __future__ import annotations

import numpy as np
import pytest

from rlaif.metrics.active_choice import (
    hajek_interval,
    hajek_weights,
    inclusion_probabilities,
    weigh_figure,
)
from rlaif.metrics.agreement import krippendorff_alpha
from rlaif.metrics.weighted import Figure
from tests.support.weights import plain

DRAWS = 500


def test_a_mean_by_hand() -> None:
    values, probabilities = np.asarray([1.0, 0.0, 1.0]), np.asarray([0.5, 1.0, 0.25])
    found = hajek_interval(values, probabilities, ["p", "q", "r"])
    assert found is not None and found.mean == pytest.approx((2 + 0 + 4) / 7)
    without = [(0 + 4) / 5, (2 + 4) / 6, 2 / 3]
    square = 2 / 3 * sum((x - np.mean(without)) ** 2 for x in without)
    assert found.se == pytest.approx(np.sqrt(square))


def test_a_missing_value_is_left_out_with_its_weight() -> None:
    values, probabilities = np.asarray([1.0, np.nan, 0.0]), np.asarray([0.5, 0.01, 0.5])
    found = hajek_interval(values, probabilities, ["p", "q", "r"])
    assert found is not None and (found.mean, found.n) == (0.5, 2)
    assert hajek_interval(np.asarray([np.nan]), np.asarray([0.5]), ["p"]) is None


@pytest.mark.parametrize("wrong", [0.0, -0.5, 1.5, np.nan])
def test_what_is_no_probability_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="inclusion probabilities"):
        hajek_weights(np.asarray([0.5, wrong]))


def test_any_figure_is_weighted_as_if_items_were_repeated() -> None:
    rng = np.random.default_rng(0)
    ratings = rng.integers(0, 3, (3, 40)).astype(np.float64)
    own = rng.integers(1, 4, 40).astype(np.float64)
    figure = weigh_figure(Figure(krippendorff_alpha(ratings), 40), own)
    repeated = np.repeat(ratings, own.astype(int), axis=1)
    expected = plain(krippendorff_alpha(repeated), repeated.shape[1])
    assert plain(figure.of, 40) == pytest.approx(expected, abs=1e-12)


def draw_items(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Planted items: their values, and inclusion probabilities that go with them; and draws."""
    rng = np.random.default_rng(7)
    u = rng.beta(0.6, 1.2, 3000)
    if kind == "rate":
        # People agree with the judge the less, the less certain it is.
        values = (rng.random(3000) < 0.95 - 0.45 * u).astype(np.float64)
    else:
        values = 3.0 - 2.0 * u + rng.normal(0.0, 0.7, 3000)
    probabilities = inclusion_probabilities(u.tolist(), 400)
    return values, probabilities, rng.random((DRAWS, 3000)) < probabilities


@pytest.mark.parametrize("kind", ["rate", "mean"])
def test_no_bias_and_intervals_that_cover(kind: str) -> None:
    values, probabilities, drawn = draw_items(kind)
    names = np.asarray([f"p{n}" for n in range(values.size)])
    truth = float(values.mean())
    plain_means, estimates, covered = [], [], 0
    for taken in drawn:
        found = hajek_interval(values[taken], probabilities[taken], names[taken].tolist())
        assert found is not None and found.low is not None and found.high is not None
        plain_means.append(float(values[taken].mean()))
        estimates.append(found.mean)
        covered += found.low <= truth <= found.high
    # A plain mean of the same draws is far off: the draws are of what the judge doubts.
    assert abs(np.mean(plain_means) / truth - 1) > 0.05
    assert abs(np.mean(estimates) / truth - 1) < 0.01
    assert covered / DRAWS > 0.92
