"""Logistic regression by Newton's method, for a handful of features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_STEPS = 50
SEPARATED = 30.0
"""A linear predictor of this size says that the likelihood has no maximum: exp(-30) is 1e-13."""


def sigmoid(values: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1.0, small) / (1.0 + small)


def fit_logistic(features: Floats, outcome: Floats) -> Floats | None:
    """The maximum-likelihood coefficients, shape (k,), of `features` (n, k; no intercept is added)
    for `outcome` (n,) on [0, 1].

    None where there is none: features that determine one another, or outcomes that they separate.
    """
    if features.shape[0] == 0:
        return None
    beta = np.zeros(features.shape[1])
    for _ in range(MAX_STEPS):
        prob = sigmoid(features @ beta)
        hessian = features.T @ (features * (prob * (1.0 - prob))[:, None])
        if np.linalg.cond(hessian) > 1e12:
            return None
        step = np.linalg.solve(hessian, features.T @ (outcome - prob))
        beta = beta + step
        if np.abs(features @ beta).max() > SEPARATED:
            return None
        if np.abs(step).max() <= 1e-12 * max(1.0, float(np.abs(beta).max())):
            return beta
    return None
