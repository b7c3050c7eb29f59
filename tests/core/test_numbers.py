"""Small functions of numbers, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlaif.core.numbers import rank_correlation, sigmoid, sigmoids


@pytest.mark.parametrize(
    ("first", "second", "tau"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        # Two pairs agree and one does not.
        ([1, 2, 3], [1, 3, 2], 1 / 3),
        # What either side ties counts for neither.
        ([1, 1, 2], [1, 2, 3], 1.0),
        ([1, 2, 3], [5, 5, 6], 1.0),
        ([1, 1, 2, 3], [4, 2, 4, 3], 0.0),
        ([1, 1], [1, 2], None),
        ([1, 2], [3, 3], None),
        ([1], [1], None),
        ([], [], None),
    ],
)
def test_rank_correlation_is_over_the_pairs_that_neither_side_ties(
    first: list[float], second: list[float], tau: float | None
) -> None:
    assert rank_correlation(first, second) == (None if tau is None else pytest.approx(tau))
    assert rank_correlation(second, first) == rank_correlation(first, second)


def test_sigmoids_do_not_overflow() -> None:
    assert [sigmoid(x) for x in (-1000.0, 0.0, 1000.0)] == [0.0, 0.5, 1.0]
    assert sigmoid(2.0) == pytest.approx(1 / (1 + math.exp(-2)))
    values = np.array([[-1000.0, -2.0], [0.0, 2.0]])
    assert sigmoids(values) == pytest.approx(np.array([[0.0, 1 - sigmoid(2.0)], [0.5, sigmoid(2)]]))
