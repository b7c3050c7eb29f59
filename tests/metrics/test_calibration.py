"""Calibration against scikit-learn, and on simulated judges."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics

from rlaif.core.numbers import sigmoids
from rlaif.metrics import calibration
from rlaif.metrics.calibration import (
    bin_reliability,
    brier,
    log_odds,
    measure_steepness,
    scale_held_out,
)
from tests.support.weights import plain


def ones(size: int) -> np.ndarray:
    return np.ones((1, size))


def ece(prob: np.ndarray, outcome: np.ndarray) -> float:
    return float(bin_reliability(prob, outcome, ones(prob.size)).ece()[0])


def simulated(seed: int, size: int, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a judge whose logits are `temperature` times too large, and outcomes."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, 2.0, size)
    outcome = (rng.random(size) < sigmoids(logits)).astype(np.float64)
    return sigmoids(logits * temperature), outcome


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_reliability_and_brier_equal_scikit_learn(seed: int, strategy: str) -> None:
    prob, outcome = simulated(seed, 157)
    share, mean = sklearn.calibration.calibration_curve(outcome, prob, n_bins=10, strategy=strategy)
    curve = bin_reliability(prob, outcome, ones(157), equal_mass=strategy == "quantile")
    used = curve.count[0] > 0
    assert curve.share()[0, used] == pytest.approx(share, abs=1e-9)
    assert (curve.prob / curve.count)[0, used] == pytest.approx(mean, abs=1e-9)
    assert curve.count.sum() == 157
    expected = sklearn.metrics.brier_score_loss(outcome, prob)
    assert brier(prob, outcome, ones(157)) == pytest.approx(expected, abs=1e-9)


def test_ece_by_hand() -> None:
    prob, outcome = np.asarray([0.15, 0.15, 0.95, 0.95]), np.asarray([0.0, 1.0, 1.0, 1.0])
    assert ece(prob, outcome) == pytest.approx(0.5 * 0.35 + 0.5 * 0.05)


def test_a_calibrated_judge_has_no_error_and_a_constant_one_a_quarter() -> None:
    prob, outcome = simulated(1, 200_000)
    assert ece(prob, outcome) < 0.01
    assert brier(np.full(10, 0.5), outcome[:10], ones(10)) == 0.25


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_recovered(temperature: float) -> None:
    prob, outcome = simulated(2, 60_000, temperature)
    found = measure_steepness(log_odds(prob), outcome)(ones(60_000))[0]
    assert 1.0 / found == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("seed", range(4))
def test_the_temperature_is_the_best_one(seed: int) -> None:
    prob, outcome = simulated(seed, 90, 2.5)
    logits = log_odds(prob)
    best = measure_steepness(logits, outcome)(ones(90))[0]

    def loss(scale: float) -> float:
        return float(sklearn.metrics.log_loss(outcome, sigmoids(scale * logits)))

    assert loss(best) <= min(loss(1.0), loss(best * 1.01), loss(best * 0.99))
    slope = logits @ (sigmoids(best * logits) - outcome)
    assert slope == pytest.approx(0.0, abs=1e-8)


def test_logits_that_point_the_wrong_way_are_flattened() -> None:
    prob, outcome = simulated(3, 500)
    assert plain(measure_steepness(-log_odds(prob), outcome), 500) == 0.0
    always_right = measure_steepness(np.asarray([2.0, -2.0]), np.asarray([1.0, 0.0]))
    assert always_right(ones(2))[0] > 10
    assert plain(measure_steepness(np.zeros(3), np.ones(3)), 3) == 0.0


def test_scaling_is_held_out_and_keeps_every_verdict() -> None:
    prob, outcome = simulated(4, 4_000, 3.0)
    fold = np.arange(4_000) % 2
    [scaled] = scale_held_out(prob, outcome, fold)(ones(4_000))
    assert ((scaled > 0.5) == (prob > 0.5)).all()
    assert ece(scaled, outcome) < ece(prob, outcome) / 2
    changed = outcome.copy()
    changed[fold == 0] = 1.0 - changed[fold == 0]
    [again] = scale_held_out(prob, changed, fold)(ones(4_000))
    # The labels of a fold move the other fold's probabilities alone.
    assert (again[fold == 0] == scaled[fold == 0]).all()
    assert (again[fold == 1] != scaled[fold == 1]).all()
    one_fold = scale_held_out(prob, outcome, np.zeros(4_000, dtype=np.int64))
    assert np.isnan(one_fold(ones(4_000))).all()


def test_temperatures_end_where_the_slope_is_nothing_but_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Newton's step of 1e-16 may leave a bracket that has closed: no reason to halve it again."""
    calls = 0

    def counted(values: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return sigmoids(values)

    monkeypatch.setattr(calibration, "sigmoids", counted)
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1.5, 300)
    outcome = (rng.random(300) < sigmoids(logits)).astype(float)
    measure_steepness(logits, outcome)(1.0 - np.eye(300))
    assert 3 <= calls <= 10
