"""Intervals by kind of figure: against scipy, published formulas and values by hand, and their
edges. That they cover is tested in test_coverage.py."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from rlaif.metrics import ends
from rlaif.metrics.intervals import (
    MIN_PROMPTS,
    Interval,
    IntervalJson,
    direction,
    factor_interval,
    mean_interval,
    paired_interval,
    paired_share_interval,
    rare_share_interval,
    share_interval,
    show_interval,
    show_number,
    skewed_interval,
    win_rate_interval,
)


def _values(data: np.ndarray) -> dict[str, float]:
    return {f"p{i:04d}": float(x) for i, x in enumerate(data)}


def test_a_mean_is_by_students_t() -> None:
    data = np.random.default_rng(1).normal(size=9)
    ours, theirs = mean_interval(_values(data), 0.0), stats.ttest_1samp(data, 0.0)
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.n, ours.df) == (9, 8.0)


def test_a_paired_difference_is_by_the_paired_t_test() -> None:
    rng = np.random.default_rng(2)
    new, old = rng.normal(size=12), rng.normal(size=12)
    ours, theirs = paired_interval(_values(new), _values(old)), stats.ttest_rel(new, old)
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert ours.p == pytest.approx(theirs.pvalue)


def test_a_share_of_ones_and_zeros_is_wilsons_with_t() -> None:
    """Of 0/1 values s^2 (C-1)/C is m (1 - m), so v = m(1-m)(C+1)/C^2 and the effective n is C by
    the lower limit: Wilson's formula with n = 20 and t(19) = 2.0930."""
    ours = share_interval(_values(np.arange(20) < 15), 0.5)
    assert ours is not None
    low, high = proportion_confint(15, 20, 2 * stats.norm.sf(stats.t.ppf(0.975, 19)), "wilson")
    assert (ours.low, ours.high) == pytest.approx((low, high))
    # (0.75 - 0.5) / sqrt(0.25 / 20) = 2.2361
    assert ours.p == pytest.approx(2 * stats.t.sf(2.2360680, 19))


def test_a_share_of_scores_that_hardly_vary_has_more_effective_items() -> None:
    """m = 0.5, values 0.4 and 0.6: s^2 = 0.01 x 10/9, v = (0.1 + 0.25) / 100, n = 0.25 / v = 71.43
    for 10 prompts, of which at most 80 are believed."""
    data = np.tile([0.4, 0.6], 5)
    ours = share_interval(_values(data))
    assert ours is not None
    items, t = 0.25 / 0.0035, stats.t.ppf(0.975, 9)
    half = t / (1 + t**2 / items) * sqrt(0.25 / items + t**2 / (4 * items**2))
    assert (ours.low, ours.high) == pytest.approx((0.5 - half, 0.5 + half))


def test_none_of_64_is_not_known_to_be_none() -> None:
    """The rule of Clopper and Pearson: 1 - 0.025^(1/64) = 0.0560."""
    found = rare_share_interval({str(i): (0, 1) for i in range(64)})
    assert found is not None
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 64))
    assert show_interval(found.to_json()) == "0 of 64 [0.000, 0.056]"
    every = rare_share_interval({str(i): (1, 1) for i in range(64)})
    assert every is not None
    assert show_interval(every.to_json()) == "64 of 64 [0.944, 1.000]"


@pytest.mark.parametrize("counted", [1, 3, 30, 63])
def test_independent_items_have_clopper_and_pearsons_interval(counted: int) -> None:
    """Of single items v is p (1 - p) C / (C - 1) / C, so the effective n is C - 1 items."""
    found = rare_share_interval({f"{i:02d}": (int(i < counted), 1) for i in range(64)})
    assert found is not None
    share = counted / 64
    x, n = share * 63, 63
    assert found.low == pytest.approx(stats.beta.ppf(0.025, x, n - x + 1))
    assert found.high == pytest.approx(stats.beta.ppf(0.975, x + 1, n - x))
    assert (found.count, found.n) == (counted, 64)


def test_items_that_come_together_count_as_fewer() -> None:
    """Ten prompts of eight answers, all or none of which are refused, are hardly more than ten
    answers: Korn and Graubard's n is 9 (t_79 / t_9)^2."""
    together = rare_share_interval({str(i): (8 * (i < 2), 8) for i in range(10)})
    apart = rare_share_interval({f"{i:02d}": (int(i < 16), 1) for i in range(80)})
    assert together is not None and apart is not None
    n = 9 * (stats.t.ppf(0.975, 79) / stats.t.ppf(0.975, 9)) ** 2
    assert together.high == pytest.approx(stats.beta.ppf(0.975, 0.2 * n + 1, 0.8 * n))
    assert apart.high < together.high  # type: ignore[operator]
    assert (together.count, together.n, together.prompts) == (16, 80, 10)


def test_paired_shares_by_bonett_and_price() -> None:
    """20 prompts, of which 6 turned to 1 and 1 to 0: p1 = 7/22, p2 = 2/22, difference 5/22,
    SE = sqrt((9/22 - 25/484) / 22) = 0.12744."""
    new = _values(np.asarray([1.0] * 6 + [0.0] + [1.0] * 13))
    old = _values(np.asarray([0.0] * 6 + [1.0] + [1.0] * 13))
    found = paired_share_interval(new, old)
    assert found is not None
    se = sqrt((9 / 22 - 25 / 484) / 22)
    assert found.mean == 5 / 20
    assert found.low == pytest.approx(5 / 22 - 1.959964 * se)
    assert found.high == pytest.approx(5 / 22 + 1.959964 * se)
    assert found.p == pytest.approx(2 * stats.norm.sf(5 / 22 / se))
    with pytest.raises(ValueError, match="0 and 1"):
        paired_share_interval({"a": 0.5}, {"a": 1.0})


def test_halls_transform_is_undone() -> None:
    """The ends are where the transformed t is -+ t_(n-1): put them in and get it back."""
    data = np.random.default_rng(3).lognormal(size=24)
    found = skewed_interval(_values(data))
    assert found is not None
    g, n = stats.skew(data), data.size
    for end, sign in ((found.low, 1), (found.high, -1)):
        t = (data.mean() - end) / (data.std(ddof=1) / sqrt(n))
        bent = t + g / (3 * sqrt(n)) * t**2 + g**2 / (27 * n) * t**3 + g / (6 * sqrt(n))
        assert bent == pytest.approx(sign * stats.t.ppf(0.975, n - 1))
    assert found.median == pytest.approx(np.median(data))


def test_the_p_of_skewed_values_is_that_of_their_interval() -> None:
    """At an end of the interval p is 0.05, outside it less, and inside it more."""
    data = np.random.default_rng(3).lognormal(size=24)[None]
    found = ends.skewed_ends(data)
    for end, beyond in ((found.low[0], -0.01), (found.high[0], 0.01)):
        assert ends.skewed_ends(data, null=end).p[0] == pytest.approx(0.05)
        assert ends.skewed_ends(data, null=end + beyond).p[0] < 0.05
        assert ends.skewed_ends(data, null=end - beyond).p[0] > 0.05
    assert np.isnan(found.p[0])


def test_without_skewness_it_is_students_t() -> None:
    data = np.asarray([-3.0, -1.0, -0.5, 0.5, 1.0, 3.0])
    bent, straight = skewed_interval(_values(data)), mean_interval(_values(data))
    assert bent is not None and straight is not None
    assert (bent.low, bent.high) == pytest.approx((straight.low, straight.high))


def test_lengths_are_compared_by_a_factor() -> None:
    """Twice as long on every prompt but one, where it is four times: the logs' t, exponentiated."""
    old = _values(np.full(8, 10.0))
    new = _values(np.asarray([20.0] * 7 + [40.0]))
    found = factor_interval(new, old)
    assert found is not None
    theirs = stats.ttest_1samp(np.log([2.0] * 7 + [4.0]), 0.0)
    assert found.mean == pytest.approx(2 ** (9 / 8))
    assert (found.low, found.high) == pytest.approx(tuple(np.exp(theirs.confidence_interval())))
    assert factor_interval({"a": 0.0}, {"a": 3.0}) is None


def test_a_difference_that_is_the_same_everywhere_is_said_and_not_claimed() -> None:
    """1 - 0.05^(1/20) = 13.9%."""
    values = _values(np.linspace(0, 1, 20))
    found = paired_interval(values, values)
    assert found is not None
    assert (found.low, found.high, found.p) == (None, None, None)
    assert found.note == ("no prompt differed; with 95% confidence fewer than 14% of prompts do")
    assert direction(found.to_json()) == 0
    assert show_interval(found.to_json(), signed=True) == "+0.000 [no interval]"


def test_an_interval_does_not_depend_on_the_order() -> None:
    values = _values(np.random.default_rng(5).random(30))
    assert share_interval(values) == share_interval(dict(reversed(values.items())))


def test_small_and_empty_inputs() -> None:
    assert share_interval({}) is None
    assert mean_interval({}) is None
    assert rare_share_interval({"a": (0, 0)}) is None
    assert paired_interval({"a": 1.0}, {"b": 1.0}) is None
    one = share_interval({"a": 0.25})
    assert one is not None and (one.low, one.high) == (0.0, 1.0)
    alone = mean_interval({"a": 0.25})
    assert alone is not None and (alone.low, alone.note) == (None, "one prompt")
    constant = share_interval({str(i): 0.1 for i in range(7)})
    assert constant is not None
    assert constant.low is not None and constant.high is not None
    assert constant.low < 0.1 < constant.high


def test_only_common_prompts_are_compared() -> None:
    interval = paired_interval({"a": 1.0, "b": 3.0, "c": 99.0}, {"a": 0.0, "b": 1.0, "d": 5.0})
    assert interval is not None
    assert (interval.mean, interval.n) == (1.5, 2)


def test_win_rate_counts_ties_as_half() -> None:
    old = dict.fromkeys("abcd", 0.5)
    interval = win_rate_interval({"a": 1.0, "b": 0.5, "c": 0.1, "d": 0.9, "e": 1.0}, old)
    assert interval is not None
    assert (interval.mean, interval.n) == (2.5 / 4, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_missing_value_written_as_nan_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"'b'.*leave missing values out"):
        mean_interval({"a": 1.0, "b": bad})


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=2, max_size=40))
def test_a_share_stays_within_its_bounds_and_p_agrees_with_the_ends(data: list[float]) -> None:
    found = share_interval(_values(np.asarray(data)), 0.5)
    assert found is not None and found.low is not None and found.high is not None
    assert found.p is not None
    assert 0 <= found.low <= found.mean + 1e-12 and found.mean - 1e-12 <= found.high <= 1
    assert found.low < found.high
    out = found.low > 0.5 or found.high < 0.5
    assert out == (found.p < 0.05) or abs(found.p - 0.05) < 1e-9


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(4, 6)), min_size=2, max_size=30),
)
def test_a_rare_share_is_never_of_no_width(rows: list[tuple[int, int]]) -> None:
    found = rare_share_interval({str(i): row for i, row in enumerate(rows)})
    assert found is not None and found.low is not None and found.high is not None
    assert 0 <= found.low <= found.mean <= found.high <= 1 and found.low < found.high


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=40), st.floats(-0.5, 0.5))
def test_p_is_below_5_percent_where_the_ends_leave_zero_out(data: list[int], shift: float) -> None:
    sample = np.asarray(data, dtype=np.float64)[None] + shift
    found = ends.mean_ends(sample)
    if np.isfinite(found.low[0]) and abs(found.p[0] - 0.05) > 1e-9:
        assert (found.low[0] > 0 or found.high[0] < 0) == (found.p[0] < 0.05)


@pytest.mark.parametrize(
    ("low", "high", "n", "side"),
    [
        (0.1, 0.2, MIN_PROMPTS, 1),
        (-0.2, -0.1, MIN_PROMPTS, -1),
        (-0.1, 0.1, 500, 0),
        (0.0, 0.1, 500, 0),
        (0.1, 0.2, MIN_PROMPTS - 1, 0),
    ],
)
def test_direction(low: float, high: float, n: int, side: int) -> None:
    interval: IntervalJson = {"mean": (low + high) / 2, "low": low, "high": high, "n": n}
    assert direction(interval) == side
    # Many pairs of few prompts are few prompts.
    assert direction({**interval, "n": 900, "prompts": n}) == side
    assert direction({**interval, "low": None, "high": None}) == 0
    assert direction(None) == 0


def test_direction_about_par() -> None:
    interval: IntervalJson = {"mean": 0.7, "low": 0.6, "high": 0.8, "n": 40}
    assert direction(interval, 0.5) == 1
    assert direction(interval, 0.65) == 0


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.000"), (0.1234, "0.123"), (12.345, "12.35"), (123.45, "123.5"), (-2e-6, "-2.0e-06")],
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert show_number(value) == shown
    assert show_number(0.5, signed=True) == "+0.500"
    assert show_number(123456.0) == "123456"


def test_an_interval_as_text_and_json() -> None:
    interval = Interval(0.5, 0.25, 0.75, 9).to_json()
    assert interval == {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 9}
    assert Interval(0.5, None, None, 1, note="one prompt").to_json() == {
        "mean": 0.5,
        "low": None,
        "high": None,
        "n": 1,
        "note": "one prompt",
    }
    assert show_interval(interval, signed=True) == "+0.500 [+0.250, +0.750]"
