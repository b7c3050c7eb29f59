"""The calibration error: of its parts by hand, and that it holds what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rlaif.core.numbers import sigmoids
from rlaif.metrics.calibration import (
    calibration_error,
    ece_if_calibrated,
    equal_mass_bins,
    is_graded,
    noncentrality,
)


@pytest.mark.parametrize("df", [1.3, 5.0, 9.2])
@pytest.mark.parametrize("x", [12.0, 30.0])
def test_the_noncentrality_gives_the_probability_back(df: float, x: float) -> None:
    for probability in (0.975, 0.025):
        found = noncentrality(x, df, probability)
        if found:
            assert stats.ncx2.cdf(x, df, found) == pytest.approx(probability, abs=1e-6)
        else:
            assert stats.chi2.cdf(x, df) <= probability


def test_bins_are_of_equal_mass_and_equal_probabilities_share_one() -> None:
    prob = np.random.default_rng(1).random(100)
    assert np.bincount(equal_mass_bins(prob)).tolist() == [20] * 5
    tied = np.concatenate([np.full(70, 0.5), np.linspace(0.6, 0.9, 30)])
    place = equal_mass_bins(tied)
    assert set(place[:70].tolist()) == {0}
    assert np.bincount(place).min() >= 10


def test_the_parts_of_unclustered_pairs_by_hand() -> None:
    """Three bins of 20. With independent pairs V is diagonal, s_b^2 / n_b by bin, so the trace of
    WV is the sum of s_b^2 / (3 x 20), and the estimate is sqrt(T - trace)."""
    rng = np.random.default_rng(2)
    prob = np.sort(rng.random(60))
    outcome = (rng.random(60) < np.clip(prob + 0.3, 0, 1)).astype(float)
    away = (outcome - prob).reshape(3, 20)
    square = (away.mean(axis=1) ** 2).mean()
    trace = (away.var(axis=1, ddof=1) / 20).mean()
    found = calibration_error(prob, outcome, np.arange(60)).error
    assert found.mean == pytest.approx(np.sqrt(square - trace))
    assert found.low is not None and found.high is not None
    assert found.low < found.mean < found.high


def test_of_a_calibrated_judge_the_interval_reaches_zero() -> None:
    rng = np.random.default_rng(3)
    reached = held = 0
    for _ in range(200):
        prob = sigmoids(rng.normal(0, 1.2, 100))
        calm = calibration_error(prob, (rng.random(100) < prob).astype(float), np.arange(100))
        reached += calm.error.low == 0
        # Twice as sure as it may be: the error over the bins' true shares.
        true = sigmoids(0.5 * np.log(prob / (1 - prob)))
        sure = calibration_error(prob, (rng.random(100) < true).astype(float), np.arange(100)).error
        place = equal_mass_bins(prob)
        error = np.bincount(place, true - prob) / np.bincount(place)
        truth = np.sqrt(np.bincount(place) / 100 @ error**2)
        held += sure.low <= truth <= sure.high  # type: ignore[operator]
    assert reached >= 0.92 * 200
    assert held >= 0.9 * 200


def test_pairs_of_few_prompts_tell_less() -> None:
    """Every pair five times over is one pair."""
    rng = np.random.default_rng(4)
    prob = sigmoids(rng.normal(0, 1.2, 40))
    outcome = (rng.random(40) < prob).astype(float)
    once = np.arange(40)
    apart = calibration_error(np.tile(prob, 5), np.tile(outcome, 5), np.arange(200)).error
    together = calibration_error(np.tile(prob, 5), np.tile(outcome, 5), np.tile(once, 5)).error
    assert together.prompts == 40
    assert together.high > apart.high  # type: ignore[operator]
    few = calibration_error(prob, outcome, np.repeat([0, 1, 2], [14, 13, 13])).error
    assert (few.low, few.note) == (None, "too few prompts")


def test_ece_of_a_calibrated_judge_is_not_zero() -> None:
    """0.10 at 100 pairs, as simulations of the outcomes themselves give it."""
    rng = np.random.default_rng(5)
    prob = sigmoids(rng.normal(0, 1.2, 100))
    found = ece_if_calibrated(prob, seed=1)
    bins = np.minimum((prob * 10).astype(int), 9)
    drawn = [
        np.abs(np.bincount(bins, (rng.random(100) < prob) - prob)).sum() / 100 for _ in range(500)
    ]
    assert found.mean == pytest.approx(np.mean(drawn), abs=0.006)
    assert found.low is not None and found.low > 0.03
    assert ece_if_calibrated(prob, seed=1) == found


def test_verdicts_are_no_graded_probabilities() -> None:
    assert not is_graded(np.asarray([0.0, 1.0] * 20))
    assert not is_graded(np.linspace(0.1, 0.9, 9))
    assert not is_graded(np.linspace(0.0, 0.9, 20))
    assert is_graded(np.linspace(0.1, 0.9, 10))
