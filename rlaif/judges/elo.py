"""Elo of a few items from comparisons in both slots (meta-rewarding, 2407.19594, section 2.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RIDGE = 0.1
STEPS = 50


def battles(count: int, verdicts: Sequence[tuple[int, int, float]]) -> Floats:
    """B (count, count): B[i, j] is how much i won against j, each win weighted by its slot.

    A verdict is (shown first, shown second, probability that the first wins). A win in slot 1
    weighs win_2 / (win_1 + win_2) and one in slot 2 the rest, where win_k are the wins in slot k: a
    meta-judge that always takes one slot says nothing.
    """
    wins = np.zeros((count, count))
    first = sum(prob for _, _, prob in verdicts)
    second = len(verdicts) - first
    if not verdicts:
        return wins
    for i, j, prob in verdicts:
        wins[i, j] += second / len(verdicts) * prob
        wins[j, i] += first / len(verdicts) * (1 - prob)
    return wins


def elo(wins: Floats) -> Floats:
    """argmax of sum_ij B_ij log sigmoid(e_i - e_j) - 0.05 |e|^2 (count,), in natural-log units.

    The small ridge keeps an unbeaten item finite and the mean at 0. Newton's method; the function
    is strictly concave.
    """
    scores = np.zeros(len(wins))
    total = wins + wins.T
    for _ in range(STEPS):
        prob = 1 / (1 + np.exp(scores[None, :] - scores[:, None]))
        slope = wins.sum(1) - (total * prob).sum(1) - RIDGE * scores
        bend = total * prob * (1 - prob)
        hessian = np.diag(bend.sum(1) + RIDGE) - bend
        step = np.linalg.solve(hessian, slope)
        scores = scores + step
        if np.abs(step).max() < 1e-12:
            break
    centred: Floats = scores - scores.mean()
    return centred
