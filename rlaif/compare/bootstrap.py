"""Bootstrap intervals whose resampling unit is the prompt.

Samples of one prompt share its difficulty, so they are averaged per prompt first and prompts are
resampled (Efron & Tibshirani 1993, percentile method). Results depend on the values, the seed and
nothing else: keys are sorted before anything is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from rlaif.compare.weighted import Figure, Floats, defined

MIN_PROMPTS = 6
"""Fewest prompts from which a direction is read: n equal signs happen by chance 2^(1-n) of the
time, which first falls below 5% at six."""

_DRAWS_AT_ONCE = 4_000_000
_WEIGHTS_AT_ONCE = 400_000
"""What figures make of so many weights stays in a processor's cache."""


class IntervalJson(TypedDict):
    """An `Interval` as it stands in JSON."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over `n` prompts and the ends of its bootstrap interval.

    With one prompt nothing can be resampled and low = mean = high; `n` tells, and `direction`
    refuses to read anything below `MIN_PROMPTS`.
    """

    mean: float
    low: float
    high: float
    n: int

    def to_json(self) -> IntervalJson:
        """The four numbers as a plain dict."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}


def mean_interval(
    values: Mapping[str, float], seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Interval | None:
    """The mean of one value per prompt id, with its percentile bootstrap interval.

    A prompt without a value is absent from `values`. No prompt at all gives None. Raises
    ValueError on a value that is not finite: a missing value must be left out, not written as NaN.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if not values:
        return None
    keys = sorted(values)
    data = np.asarray([values[key] for key in keys], dtype=np.float64)
    if not np.isfinite(data).all():
        bad = keys[int(np.flatnonzero(~np.isfinite(data))[0])]
        raise ValueError(f"the value of prompt {bad!r} is {values[bad]}; leave missing values out")
    if data.min() == data.max():
        # Summing equal floats can differ in the last bit, which would put the mean off its ends.
        same = float(data[0])
        return Interval(same, same, same, data.size)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(_resampled_means(data, seed, resamples), [tail, 1.0 - tail])
    return Interval(float(data.mean()), float(low), float(high), data.size)


def paired_interval(
    new: Mapping[str, float],
    old: Mapping[str, float],
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval | None:
    """The mean of new - old over the prompts that both have; None when they share none."""
    differences = {key: new[key] - old[key] for key in new.keys() & old.keys()}
    return mean_interval(differences, seed, resamples, level)


def win_rate_interval(
    new: Mapping[str, float],
    old: Mapping[str, float],
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval | None:
    """How often new beats old on the prompts that both have: win 1, tie 0.5, loss 0."""
    wins = {
        key: 1.0 if new[key] > old[key] else 0.0 if new[key] < old[key] else 0.5
        for key in new.keys() & old.keys()
    }
    return mean_interval(wins, seed, resamples, level)


def figure_intervals(
    figures: Mapping[str, Figure],
    prompts: Sequence[str],
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Every figure that is defined, with its percentile interval, all from the same resamples.

    `prompts` gives the prompt of each item: all items of a drawn prompt come with it (cluster
    bootstrap), so a figure is pooled over items. A figure that a resample cannot give is missing
    from that resample; one that is missing from more than half of them is left out, since no
    interval would be honest.
    """
    found = defined(figures, len(prompts))
    if not found:
        return {}
    drawn: dict[str, list[Floats]] = {name: [] for name in found}
    for weights in _resampled_weights(prompts, seed, resamples):
        for name, batches in drawn.items():
            batches.append(figures[name].of(weights))
    tail = (1.0 - level) / 2.0
    intervals = {}
    for name, batches in drawn.items():
        every = np.concatenate(batches)
        given = every[~np.isnan(every)]
        if 2 * given.size >= resamples:
            low, high = np.quantile(given, [tail, 1.0 - tail])
            intervals[name] = Interval(found[name], float(low), float(high), figures[name].n)
    return intervals


def _resampled_weights(prompts: Sequence[str], seed: int, resamples: int) -> Iterator[Floats]:
    """How often each item was drawn, (B, n), in batches that stay small."""
    names, code = np.unique(np.asarray(prompts), return_inverse=True)
    rng = np.random.default_rng(seed)
    rows = max(1, _WEIGHTS_AT_ONCE // max(1, code.size))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = rng.integers(0, names.size, size=(count, names.size))
        cells = drawn + names.size * np.arange(count)[:, None]
        times = np.bincount(cells.ravel(), minlength=count * names.size)
        yield times.reshape(count, names.size)[:, code].astype(np.float64)


def direction(interval: IntervalJson | None, value: float = 0.0) -> int:
    """+1 when the whole interval lies above `value`, -1 when below, 0 when it cannot be told."""
    if interval is None or interval["n"] < MIN_PROMPTS:
        return 0
    return int(interval["low"] > value) - int(interval["high"] < value)


def show_number(value: float, signed: bool = False) -> str:
    """A short, steady rendering: three significant places below 100, none above 1000."""
    # What is left of a sum that cancels is 0.
    value = 0.0 if abs(value) < 1e-12 else value
    size = abs(value)
    if size != 0.0 and size < 0.0005:
        return f"{value:+.1e}" if signed else f"{value:.1e}"
    places = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{value:+.{places}f}" if signed else f"{value:.{places}f}"


def show_interval(interval: IntervalJson, signed: bool = False) -> str:
    """`mean [low, high]` as text."""
    mean, low, high = (
        show_number(x, signed) for x in (interval["mean"], interval["low"], interval["high"])
    )
    return f"{mean} [{low}, {high}]"


def _resampled_means(data: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """Means of `resamples` draws with replacement, shape (resamples,), in bounded memory."""
    rng = np.random.default_rng(seed)
    rows = max(1, _DRAWS_AT_ONCE // data.size)
    means = np.empty(resamples, dtype=np.float64)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        draws = rng.integers(0, data.size, size=(stop - start, data.size))
        means[start:stop] = data[draws].mean(axis=1)
    return means
