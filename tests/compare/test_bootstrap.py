"""Bootstrap intervals: against scipy, against the coverage they promise, and their edges."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rlaif.compare.bootstrap import (
    MIN_PROMPTS,
    Interval,
    IntervalJson,
    direction,
    mean_interval,
    paired_interval,
    show_interval,
    show_number,
    win_rate_interval,
)


def _values(data: np.ndarray) -> dict[str, float]:
    return {f"p{i:04d}": float(x) for i, x in enumerate(data)}


@pytest.mark.parametrize("n", [20, 200])
def test_close_to_scipy(n: int) -> None:
    data = np.random.default_rng(1).exponential(size=n)
    ours = mean_interval(_values(data), resamples=20_000)
    theirs = stats.bootstrap(
        (data,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    )
    assert ours is not None
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.mean == pytest.approx(data.mean())
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)
    assert ours.n == n


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(3)
    trials = 400
    held = 0
    for trial in range(trials):
        interval = mean_interval(_values(rng.normal(2.0, 1.0, 60)), seed=trial, resamples=500)
        assert interval is not None
        held += interval.low <= 2.0 <= interval.high
    # Four binomial standard errors about 0.94, the percentile method's coverage at n=60.
    assert 0.89 < held / trials < 0.99


def test_a_paired_interval_covers_the_difference_and_is_narrower() -> None:
    rng = np.random.default_rng(4)
    held, paired_widths, plain_widths = 0, [], []
    for trial in range(200):
        difficulty = rng.normal(0.0, 1.0, 50)
        old = _values(difficulty + rng.normal(0.0, 0.2, 50))
        new = _values(difficulty + 0.3 + rng.normal(0.0, 0.2, 50))
        paired, plain = paired_interval(new, old, seed=trial, resamples=400), mean_interval(new)
        assert paired is not None
        assert plain is not None
        held += paired.low <= 0.3 <= paired.high
        paired_widths.append(paired.high - paired.low)
        plain_widths.append(plain.high - plain.low)
    assert 0.87 < held / 200 < 0.99
    assert np.mean(paired_widths) < 0.5 * np.mean(plain_widths)


def test_half_width_at_805_prompts() -> None:
    # AlpacaEval's set size: 1.96 * sqrt(0.25 / 805) = 0.0345.
    wins = _values(np.arange(805) % 2)
    interval = mean_interval(wins, resamples=8000)
    assert interval is not None
    assert (interval.high - interval.low) / 2 == pytest.approx(0.0345, abs=0.001)


def test_the_order_of_keys_does_not_matter() -> None:
    values = _values(np.random.default_rng(5).normal(size=30))
    assert mean_interval(values) == mean_interval(dict(reversed(values.items())))
    other = dict.fromkeys(values, 0.0)
    assert paired_interval(values, other) == paired_interval(
        dict(reversed(values.items())), dict(reversed(other.items()))
    )


def test_seeds_differ_and_repeat() -> None:
    values = _values(np.random.default_rng(6).normal(size=30))
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)


def test_small_and_empty_inputs() -> None:
    assert mean_interval({}) is None
    assert mean_interval({"a": 0.25}) == Interval(0.25, 0.25, 0.25, 1)
    assert paired_interval({"a": 1.0}, {"b": 1.0}) is None
    constant = mean_interval({str(i): 0.1 for i in range(7)})
    assert constant == Interval(0.1, 0.1, 0.1, 7)


def test_only_common_prompts_are_compared() -> None:
    interval = paired_interval({"a": 1.0, "b": 3.0, "c": 99.0}, {"a": 0.0, "b": 1.0, "d": 5.0})
    assert interval is not None
    assert (interval.mean, interval.n) == (1.5, 2)


def test_win_rate_counts_ties_as_half() -> None:
    old = dict.fromkeys("abcd", 0.5)
    interval = win_rate_interval({"a": 1.0, "b": 0.5, "c": 0.1, "d": 0.9, "e": 1.0}, old)
    assert interval is not None
    assert (interval.mean, interval.n) == (2.5 / 4, 4)
    assert 0.0 <= interval.low <= interval.mean <= interval.high <= 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_missing_value_written_as_nan_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"'b'.*leave missing values out"):
        mean_interval({"a": 1.0, "b": bad})


@pytest.mark.parametrize(("level", "resamples"), [(0.0, 10), (1.0, 10), (0.9, 0)])
def test_impossible_settings_are_refused(level: float, resamples: int) -> None:
    with pytest.raises(ValueError, match=r"level|resamples"):
        mean_interval({"a": 1.0}, level=level, resamples=resamples)


def test_more_draws_than_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = _values(np.random.default_rng(7).normal(size=50))
    whole = mean_interval(values, resamples=999)
    monkeypatch.setattr("rlaif.compare.bootstrap._DRAWS_AT_ONCE", 700)
    assert mean_interval(values, resamples=999) == whole


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
    assert show_interval(interval, signed=True) == "+0.500 [+0.250, +0.750]"
