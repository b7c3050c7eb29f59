"""Ridge logistic regression without an intercept, its penalty chosen by grouped cross-validation.

The objective is that of Hastie, Tibshirani and Friedman (The Elements of Statistical Learning,
section 4.4), with targets that may be shares:

    sum_i s_i [-y_i log p_i - (1 - y_i) log(1 - p_i)] + l2 / 2 |w|^2,   p_i = sigmoid(x_i . w)

No intercept: with differences of two answers as features, naming the answers the other way round
must give 1 - p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlaif.core.numbers import sigmoids

Array = NDArray[np.float64]

PENALTIES = tuple(float(x) for x in np.geomspace(0.01, 100.0, 9))
"""The values of `l2` that cross-validation tries."""

_STEPS, _TOLERANCE, _SMALLEST_STEP = 100, 1e-12, 1e-12


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """The penalty of least held-out log loss, that loss (nats per row), and with that penalty the
    prediction for each row by the model that did not see its group, shape (n,), on [0, 1]."""

    l2: float
    log_loss: float
    predictions: Array


def predict_probability(x: Array, weights: Array) -> Array:
    """sigmoid(x w), shape (n,), without overflow."""
    return sigmoids(x @ weights)


def fit_ridge(
    x: Array, y: Array, l2: float, sample_weight: Array | None = None, nonnegative: bool = False
) -> Array:
    """The weights, shape (k,), that minimise the objective for x (n, k) and y (n,) on [0, 1].

    With `nonnegative` the minimum over weights of 0 or more, by projected Newton steps (Bertsekas
    1982). Raises ValueError unless l2 > 0, which is what makes the minimum unique.
    """
    if not l2 > 0:
        raise ValueError(f"l2 must be above 0, got {l2}")
    counts = np.ones(len(y)) if sample_weight is None else sample_weight
    weights = np.zeros(x.shape[1])
    for _ in range(_STEPS):
        prob = predict_probability(x, weights)
        gradient = x.T @ (counts * (prob - y)) + l2 * weights
        free = ~((weights <= 0) & (gradient > 0)) if nonnegative else np.full(weights.shape, True)
        if np.abs(gradient[free]).max(initial=0.0) < _TOLERANCE * max(1.0, counts.sum()):
            break
        used = x[:, free]
        hessian = used.T @ ((counts * prob * (1 - prob))[:, None] * used)
        hessian[np.diag_indices_from(hessian)] += l2
        step = np.zeros_like(weights)
        step[free] = np.linalg.solve(hessian, -gradient[free])
        moved = _line_search(x, y, l2, counts, weights, step, nonnegative)
        if moved is None:
            break
        weights = moved
    return weights


def _line_search(
    x: Array, y: Array, l2: float, counts: Array, weights: Array, step: Array, nonnegative: bool
) -> Array | None:
    """The first of the halved steps that does not raise the objective; None when all do."""
    before, size = _evaluate_objective(x, y, l2, counts, weights), 1.0
    # Near the minimum the objective moves less than its own rounding.
    before += 1e-14 * abs(before)
    while size > _SMALLEST_STEP:
        moved = weights + size * step
        if nonnegative:
            moved = np.maximum(moved, 0.0)
        if _evaluate_objective(x, y, l2, counts, moved) <= before:
            return moved
        size /= 2
    return None


def _evaluate_objective(x: Array, y: Array, l2: float, counts: Array, weights: Array) -> float:
    z = x @ weights
    losses = y * np.logaddexp(0.0, -z) + (1 - y) * np.logaddexp(0.0, z)
    return float(counts @ losses + l2 / 2 * weights @ weights)


def group_folds(groups: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row, on [0, folds), rows of one group together, shape (n,).

    Depends on the set of groups and the seed alone. Raises ValueError for fewer groups than folds.
    """
    names = sorted(set(groups))
    if not 2 <= folds <= len(names):
        raise ValueError(f"{folds} folds of {len(names)} groups: 2 to {len(names)} are possible")
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {names[index]: place % folds for place, index in enumerate(order)}
    return np.asarray([fold[group] for group in groups], dtype=np.int64)


def cross_validate(
    x: Array,
    y: Array,
    groups: Sequence[str],
    folds: int = 5,
    seed: int = 0,
    nonnegative: bool = False,
    penalties: Sequence[float] = PENALTIES,
    sample_weight: Array | None = None,
) -> CrossValidation:
    """Try every penalty on the same folds; of equal ones the larger wins."""
    fold = group_folds(groups, folds, seed)
    counts = np.ones(len(y)) if sample_weight is None else sample_weight
    best: CrossValidation | None = None
    for l2 in sorted(penalties, reverse=True):
        predictions = np.empty(len(y))
        for held_out in range(folds):
            test = fold == held_out
            weights = fit_ridge(x[~test], y[~test], l2, counts[~test], nonnegative)
            predictions[test] = predict_probability(x[test], weights)
        loss = log_loss(predictions, y, counts)
        if best is None or loss < best.log_loss:
            best = CrossValidation(l2, loss, predictions)
    if best is None:
        raise ValueError("no penalty to try")
    return best


def log_loss(predictions: Array, y: Array, sample_weight: Array | None = None) -> float:
    """The weighted mean of -y log p - (1 - y) log(1 - p), in nats."""
    tiny = np.finfo(np.float64).tiny
    losses = y * np.log(np.maximum(predictions, tiny))
    losses += (1 - y) * np.log(np.maximum(1 - predictions, tiny))
    return float(-np.average(losses, weights=sample_weight))
