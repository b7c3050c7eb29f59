"""Logistic regression by Newton's method, for a handful of features."""

from __future__ import annotations

import numpy as np

from rlaif.core.numbers import sigmoids
from rlaif.metrics.weighted import Floats

MAX_STEPS = 50


def fit_logistic(features: Floats, outcome: Floats, weights: Floats) -> Floats:
    """The maximum-likelihood coefficients, shape (B, k), of `features` (n, k; no intercept is
    added) for `outcome` (n,) on [0, 1], with each of the `weights` (B, n).

    NaN where there are none: features that determine one another, or outcomes that they separate,
    on which Newton's steps never become small.
    """
    count, size = weights.shape[0], features.shape[1]
    products = (features[:, :, None] * features[:, None, :]).reshape(-1, size * size)
    found, beta = np.full((count, size), np.nan), np.zeros((count, size))
    going = np.arange(count)
    for _ in range(MAX_STEPS):
        prob = sigmoids(beta[going] @ features.T)
        used = weights[going]
        hessian = ((used * prob * (1.0 - prob)) @ products).reshape(-1, size, size)
        slope = (used * (outcome - prob)) @ features
        sound = np.linalg.cond(hessian) < 1e12
        going, hessian, slope = going[sound], hessian[sound], slope[sound]
        step = np.linalg.solve(hessian, slope[:, :, None])[:, :, 0]
        beta[going] += step
        largest = np.maximum(1.0, np.abs(beta[going]).max(axis=1))
        ended = np.abs(step).max(axis=1) <= 1e-12 * largest
        found[going[ended]] = beta[going[ended]]
        going = going[~ended]
        if not going.size:
            break
    return found
