"""The logistic fit: against scikit-learn and scipy, its folds, and what it recovers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from rlaif.metrics.ridge import (
    Array,
    cross_validate,
    fit_ridge,
    group_folds,
    log_loss,
    predict_probability,
)


def data(rows: int = 300, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4))
    truth = np.array([2.0, 0.5, 0.0, -1.0])
    return x, (rng.random(rows) < predict_probability(x, truth)).astype(np.float64)


@pytest.mark.parametrize("l2", [0.01, 1.0, 50.0])
def test_equals_scikit_learn(l2: float) -> None:
    x, y = data()
    counts = np.random.default_rng(1).integers(0, 3, len(y)).astype(np.float64)
    for weight in (None, counts):
        theirs = LogisticRegression(
            C=1 / l2, fit_intercept=False, tol=1e-13, solver="newton-cholesky", max_iter=1000
        ).fit(x, y, sample_weight=weight)
        assert fit_ridge(x, y, l2, weight) == pytest.approx(theirs.coef_[0], abs=1e-9)


def test_shares_count_as_two_weighted_rows() -> None:
    x, y = data()
    share = np.where(y > 0, 0.8, 0.3)
    twice, labels = np.vstack([x, x]), np.concatenate([np.ones(len(y)), np.zeros(len(y))])
    weight = np.concatenate([share, 1 - share])
    assert fit_ridge(x, share, 1.0) == pytest.approx(fit_ridge(twice, labels, 1.0, weight))


def test_nonnegative_is_the_constrained_minimum() -> None:
    x, y = data()

    def objective(w: Array) -> float:
        z = x @ w
        loss = y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)
        return float(loss.sum() + 0.5 * w @ w)

    best = minimize(objective, np.ones(4), bounds=[(0, None)] * 4, options={"ftol": 1e-15})
    found = fit_ridge(x, y, 1.0, nonnegative=True)
    assert found[3] == 0
    assert objective(found) <= best.fun + 1e-9
    assert found == pytest.approx(best.x, abs=1e-4)


def test_separable_data_and_large_values_stay_finite() -> None:
    x = np.array([[1e4], [-1e4], [2e4]])
    weights = fit_ridge(x, np.array([1.0, 0.0, 1.0]), 1e-3)
    assert np.isfinite(weights).all() and weights[0] > 0
    with pytest.raises(ValueError, match="above 0"):
        fit_ridge(x, np.ones(3), 0.0)


def test_swapping_the_answers_changes_nothing() -> None:
    x, y = data()
    assert fit_ridge(-x, 1 - y, 1.0) == pytest.approx(fit_ridge(x, y, 1.0), abs=1e-9)


def test_folds_keep_groups_together_and_depend_on_the_seed_alone() -> None:
    groups = [f"g{i // 3}" for i in range(30)]
    fold = group_folds(groups, 4, 7)
    assert all(len({fold[i] for i in range(30) if groups[i] == g}) == 1 for g in groups)
    sizes = np.bincount(fold)
    assert len(sizes) == 4 and sizes.max() - sizes.min() <= 3
    backwards = group_folds(groups[::-1], 4, 7)
    assert list(backwards[::-1]) == list(fold)
    assert list(group_folds(groups, 4, 8)) != list(fold)
    with pytest.raises(ValueError, match="folds of 10 groups"):
        group_folds(groups, 11, 0)


def test_cross_validation_predicts_what_it_did_not_see() -> None:
    x, y = data(200)
    groups = [f"g{i}" for i in range(200)]
    found = cross_validate(x, y, groups, folds=5, seed=3)
    fold = group_folds(groups, 5, 3)
    first = fit_ridge(x[fold != 0], y[fold != 0], found.l2)
    assert found.predictions[fold == 0] == pytest.approx(predict_probability(x[fold == 0], first))
    assert found.log_loss == log_loss(found.predictions, y) < 0.6
    noise = np.random.default_rng(0).integers(0, 2, 200).astype(np.float64)
    assert cross_validate(x, noise, groups).l2 == 100.0, "noise asks for the largest penalty"
