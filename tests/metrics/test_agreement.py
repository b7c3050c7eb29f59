"""Agreement statistics against the libraries that have them, and by hand."""

from __future__ import annotations

import krippendorff
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from rlaif.metrics.agreement import (
    cohen_kappa,
    effective_votes,
    interval,
    kendall,
    krippendorff_alpha,
    mcnemar,
    nominal,
    pearson,
    sign_test,
    spearman,
)
from tests.support.weights import plain

MISSING = float("nan")
CLASSIC = np.asarray(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, MISSING, MISSING, MISSING],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, MISSING, 3],
        [MISSING, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, MISSING],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, MISSING],
    ]
)


def drawn(seed: int, size: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Two codings that agree more than by chance, with many ties."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, levels, size).astype(np.float64)
    noise = rng.integers(0, levels, size).astype(np.float64)
    return first, np.where(rng.random(size) < 0.4, first, noise)


def test_kappa_of_the_textbook_table() -> None:
    first = np.repeat([1.0, 1.0, 0.0, 0.0], [20, 5, 10, 15])
    second = np.repeat([1.0, 0.0, 1.0, 0.0], [20, 5, 10, 15])
    assert plain(cohen_kappa(first, second), first.size) == pytest.approx(0.4, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [2, 3, 7])
def test_kappa_equals_scikit_learn(seed: int, levels: int) -> None:
    first, second = drawn(seed, 83, levels)
    expected = sklearn.metrics.cohen_kappa_score(first, second)
    assert plain(cohen_kappa(first, second), first.size) == pytest.approx(expected, abs=1e-9)


def test_kappa_is_undefined_where_chance_agrees_always() -> None:
    assert plain(cohen_kappa(np.ones(4), np.ones(4)), 4) is None
    assert plain(cohen_kappa(np.zeros(0), np.zeros(0)), 0) is None
    assert plain(cohen_kappa(np.asarray([0.0, 1.0]), np.asarray([0.0, 1.0])), 2) == 1.0


def test_alpha_of_the_classic_set() -> None:
    assert plain(krippendorff_alpha(CLASSIC), 12) == pytest.approx(0.743421, abs=1e-6)
    assert plain(krippendorff_alpha(CLASSIC, interval), 12) == pytest.approx(0.849107, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("level", ["nominal", "interval"])
def test_alpha_equals_krippendorff(seed: int, level: str) -> None:
    rng = np.random.default_rng(seed)
    ratings = rng.integers(-1, 3, (4, 40)).astype(np.float64)
    ratings[rng.random(ratings.shape) < 0.3] = MISSING
    distance = interval if level == "interval" else nominal
    mine = plain(krippendorff_alpha(ratings, distance), 40)
    expected = krippendorff.alpha(reliability_data=ratings, level_of_measurement=level)
    assert mine == pytest.approx(expected, abs=1e-9)


def test_alpha_needs_two_values_in_a_unit_that_differ_somewhere() -> None:
    alone = np.asarray([[1.0, MISSING], [MISSING, 2.0]])
    assert plain(krippendorff_alpha(alone), 2) is None
    assert plain(krippendorff_alpha(np.ones((2, 5))), 5) is None
    perfect = np.asarray([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    assert plain(krippendorff_alpha(perfect), 3) == 1.0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("size", "levels"), [(2, 2), (9, 3), (64, 2), (101, 400), (1000, 12)])
def test_rank_correlations_equal_scipy(seed: int, size: int, levels: int) -> None:
    x, y = drawn(seed, size, levels)
    for mine, theirs in ((kendall, scipy.stats.kendalltau), (spearman, scipy.stats.spearmanr)):
        found = plain(mine(x, y), size)
        if np.ptp(x) and np.ptp(y):
            assert found == pytest.approx(theirs(x, y).statistic, abs=1e-9)
        else:
            assert found is None


def test_correlation_with_a_constant_is_undefined() -> None:
    for statistic in (pearson, kendall, spearman):
        assert plain(statistic(np.full(3, 0.3), np.arange(3.0)), 3) is None
        assert plain(statistic(np.arange(3.0), np.full(3, 0.3)), 3) is None


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (1, 0), (5, 5), (2, 9), (40, 61), (700, 800)]
)
def test_the_sign_test_equals_scipy(first: int, second: int) -> None:
    expected = scipy.stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert sign_test(first, second) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar_equals_statsmodels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, two = (rng.random((2, 120)) < [[0.7], [0.6]]).astype(np.float64)
    table = [[((one == a) & (two == b)).sum() for b in (1, 0)] for a in (1, 0)]
    alone, other, p = mcnemar(one, two)
    assert (alone, other) == (table[0][1], table[1][0])
    assert p == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue, abs=1e-9)


def test_votes_that_err_alike_are_one_vote() -> None:
    correlation = np.asarray([0.0, 1.0, 0.25, -0.5, -0.01])
    assert effective_votes(3, correlation) == pytest.approx([3.0, 1.0, 2.0, 3.0, 3.0])
