"""Small functions of numbers that more than one room needs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)) without overflow."""
    small = math.exp(-abs(value))
    return 1.0 / (1.0 + small) if value >= 0 else small / (1.0 + small)


def sigmoids(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-x)) of every x in an array of any shape, without overflow."""
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1.0, small) / (1.0 + small)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-a over the pairs that neither side ties; None when there is none."""
    agree = total = 0
    for i in range(len(first)):
        for j in range(i):
            product = (first[i] - first[j]) * (second[i] - second[j])
            if product:
                total += 1
                agree += 1 if product > 0 else -1
    return agree / total if total else None
