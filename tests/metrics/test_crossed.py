"""Several seeds on the same prompts: against the analysis of variance, and their edges."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from scipy import stats

from rlaif.metrics.pooled import crossed_ends, seeds_interval


def _by_seed(table: np.ndarray) -> list[dict[str, float]]:
    return [{f"p{i:03d}": float(x) for i, x in enumerate(row)} for row in table]


def test_the_variance_is_that_of_a_two_way_layout() -> None:
    """Mean squares by hand: var of the mean is (MS_seed + MS_prompt - MS_rest) / (S n)."""
    rng = np.random.default_rng(1)
    seeds, prompts = 4, 9
    table = (
        rng.normal(0, 0.3, (seeds, 1))
        + rng.normal(0, 0.5, (1, prompts))
        + rng.normal(0, 0.2, (seeds, prompts))
    )
    grand = table.mean()
    by_seed = prompts * ((table.mean(1) - grand) ** 2).sum() / (seeds - 1)
    by_prompt = seeds * ((table.mean(0) - grand) ** 2).sum() / (prompts - 1)
    rest = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + grand
    cells = (rest**2).sum() / ((seeds - 1) * (prompts - 1))
    size = seeds * prompts
    square = (by_seed + by_prompt - cells) / size
    df = square**2 / (
        (by_seed / size) ** 2 / (seeds - 1)
        + (by_prompt / size) ** 2 / (prompts - 1)
        + (cells / size) ** 2 / ((seeds - 1) * (prompts - 1))
    )
    found = seeds_interval(_by_seed(table), 0.0)
    assert found is not None and found.df is not None
    assert found.se == pytest.approx(sqrt(square))
    assert found.df == pytest.approx(max(df, 3))
    assert found.low == pytest.approx(grand - stats.t.ppf(0.975, found.df) * sqrt(square))
    assert found.n == prompts


def test_seeds_that_all_agree_do_not_make_prompts_more() -> None:
    """The same values in every seed: as sure as one seed, by t over prompts."""
    row = np.random.default_rng(2).normal(size=12)
    found = seeds_interval(_by_seed(np.stack([row] * 5)), 0.0)
    alone = stats.ttest_1samp(row, 0.0).confidence_interval()
    assert found is not None and found.low is not None
    assert found.se == pytest.approx(row.std(ddof=1) / sqrt(12))
    assert found.low == pytest.approx(alone.low)


def test_two_seeds_have_their_values_and_no_interval() -> None:
    found = seeds_interval(_by_seed(np.asarray([[0.1, 0.3], [0.5, 0.7]])))
    assert found is not None
    assert (found.mean, found.low, found.note) == (pytest.approx(0.4), None, "two seeds: 0.2, 0.6")


def test_a_prompt_that_a_seed_lacks_is_left_out() -> None:
    rows = _by_seed(np.arange(12.0).reshape(3, 4))
    del rows[1]["p002"]
    found = seeds_interval(rows)
    assert found is not None
    assert (found.n, found.mean) == (3, pytest.approx((0 + 1 + 3) / 3 + 4))


def test_seeds_with_prompts_of_their_own_are_the_units() -> None:
    rows = [{f"s{s}p{i}": float(s + i % 2) for i in range(10)} for s in range(4)]
    found = seeds_interval(rows, 0.0)
    means = [0.5, 1.5, 2.5, 3.5]
    assert found is not None
    assert (found.low, found.high) == pytest.approx(
        tuple(stats.ttest_1samp(means, 0.0).confidence_interval())
    )


def test_values_that_are_all_the_same_have_no_ends() -> None:
    found = seeds_interval(_by_seed(np.full((3, 5), 0.5)))
    assert found is not None
    assert (found.low, found.note) == (None, "the same everywhere")


def test_the_degrees_of_freedom_are_never_below_the_fewer_of_both() -> None:
    table = np.random.default_rng(3).normal(size=(200, 3, 6))
    assert crossed_ends(table).df.min() >= 2
