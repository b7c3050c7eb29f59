"""Calibration against scikit-learn, and on simulated judges."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics

from rlaif.compare.calibration import (
    brier,
    ece,
    fit_steepness,
    log_odds,
    reliability,
    scale_held_out,
)
from rlaif.compare.logistic import sigmoid


def simulated(seed: int, size: int, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a judge whose logits are `temperature` times too large, and outcomes."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, 2.0, size)
    outcome = (rng.random(size) < sigmoid(logits)).astype(np.float64)
    return sigmoid(logits * temperature), outcome


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_reliability_and_brier_equal_scikit_learn(seed: int, strategy: str) -> None:
    prob, outcome = simulated(seed, 157)
    share, mean = sklearn.calibration.calibration_curve(outcome, prob, n_bins=10, strategy=strategy)
    curve = reliability(prob, outcome, equal_mass=strategy == "quantile")
    assert [b.share for b in curve] == pytest.approx(list(share), abs=1e-9)
    assert [b.prob for b in curve] == pytest.approx(list(mean), abs=1e-9)
    assert sum(b.count for b in curve) == 157
    expected = sklearn.metrics.brier_score_loss(outcome, prob)
    assert brier(prob, outcome) == pytest.approx(expected, abs=1e-9)


def test_ece_by_hand() -> None:
    prob, outcome = np.asarray([0.15, 0.15, 0.95, 0.95]), np.asarray([0.0, 1.0, 1.0, 1.0])
    assert ece(prob, outcome) == pytest.approx(0.5 * 0.35 + 0.5 * 0.05)


def test_a_calibrated_judge_has_no_error_and_a_constant_one_a_quarter() -> None:
    prob, outcome = simulated(1, 200_000)
    found = ece(prob, outcome)
    assert found is not None and found < 0.01
    assert brier(np.full(10, 0.5), outcome[:10]) == 0.25
    assert ece(np.zeros(0), np.zeros(0)) is None


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_recovered(temperature: float) -> None:
    prob, outcome = simulated(2, 60_000, temperature)
    steepness = fit_steepness(log_odds(prob), outcome)
    assert steepness is not None
    assert 1.0 / steepness == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("seed", range(4))
def test_the_temperature_is_the_best_one(seed: int) -> None:
    prob, outcome = simulated(seed, 90, 2.5)
    logits = log_odds(prob)
    best = fit_steepness(logits, outcome)
    assert best is not None

    def loss(steepness: float) -> float:
        return float(sklearn.metrics.log_loss(outcome, sigmoid(steepness * logits)))

    assert loss(best) <= min(loss(1.0), loss(best * 1.01), loss(best * 0.99))
    slope = logits @ (sigmoid(best * logits) - outcome)
    assert slope == pytest.approx(0.0, abs=1e-8)


def test_logits_that_point_the_wrong_way_are_flattened() -> None:
    prob, outcome = simulated(3, 500)
    assert fit_steepness(-log_odds(prob), outcome) == 0.0
    always_right = fit_steepness(np.asarray([2.0, -2.0]), np.asarray([1.0, 0.0]))
    assert always_right is not None and always_right > 10


def test_scaling_is_held_out_and_keeps_every_verdict() -> None:
    prob, outcome = simulated(4, 4_000, 3.0)
    fold = np.arange(4_000) % 2
    scaled = scale_held_out(prob, outcome, fold)
    assert scaled is not None
    assert ((scaled > 0.5) == (prob > 0.5)).all()
    before, after = ece(prob, outcome), ece(scaled, outcome)
    assert before is not None and after is not None and after < before / 2
    changed = outcome.copy()
    changed[fold == 0] = 1.0 - changed[fold == 0]
    again = scale_held_out(prob, changed, fold)
    assert again is not None
    # The labels of a fold move the other fold's probabilities alone.
    assert (again[fold == 0] == scaled[fold == 0]).all()
    assert (again[fold == 1] != scaled[fold == 1]).all()
    assert scale_held_out(prob, outcome, np.zeros(4_000, dtype=np.int64)) is None
