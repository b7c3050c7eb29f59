"""Intervals of figures, whose unit is the prompt.

Samples of one prompt share its difficulty, so they are averaged per prompt, or prompts are the
clusters of what is pooled. The formulas are in `ends`. Nothing is drawn at random: an interval
depends on the values alone, not on their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NotRequired, TypedDict, cast

import numpy as np

from rlaif.metrics import ends
from rlaif.metrics.ends import LEVEL, Ends
from rlaif.metrics.weighted import Floats

FEW_SKEWED = 24
"""Below so many prompts an interval of skewed values may be too narrow: it holds the mean of a
lognormal(1) in 89% of cases at 6 prompts and 92% at 16 (benchmarks/coverage.py)."""
SAME = "the same for every prompt"
SKEWED_NOTE = "skewed, and few prompts: the interval may be too narrow"
ROUNDING = 1e-12
MIN_PROMPTS = 6
"""Fewest prompts from which a direction is read: n equal signs happen by chance 2^(1-n) of the
time, which first falls below 5% at six."""


class IntervalJson(TypedDict):
    """An `Interval` as JSON: fields that are None are left out, except the ends."""

    mean: float
    low: float | None
    high: float | None
    n: int
    prompts: NotRequired[int]
    p: NotRequired[float]
    se: NotRequired[float]
    df: NotRequired[float]
    count: NotRequired[int]
    median: NotRequired[float]
    note: NotRequired[str]
    old: NotRequired[float]


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure of `n` items of `prompts` prompts, with the ends of its 95% interval.

    The ends are None where no interval would be honest; `note` then says why. `p` is two-sided,
    against the value that the figure has where nothing is the matter (a difference 0, a win rate
    1/2), by the statistic that the interval is made from: the interval leaves that value out where
    p < 0.05. `se` is the standard error on the figure's own scale, with `df` degrees of freedom
    (None: normal). `count`, of a share of what is counted, is how many of the `n` items there are.
    `median` is of a skewed figure's values. `prompts` is None where they are as many as the items.
    `old`, of a difference, is the mean that it is from, over the same prompts.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    prompts: int | None = None
    p: float | None = None
    se: float | None = None
    df: float | None = None
    count: int | None = None
    median: float | None = None
    note: str | None = None
    old: float | None = None

    def to_json(self) -> IntervalJson:
        """The fields that are there, as a plain dict."""
        known = {k: v for k, v in asdict(self).items() if v is not None or k in ("low", "high")}
        return cast(IntervalJson, known)


def share_interval(values: Mapping[str, float], null: float | None = None) -> Interval | None:
    """K1: the mean of one value on [0, 1] per prompt id; None without a prompt."""
    data = _make_column(values)
    if not data.size:
        return None
    # Probabilities may add up to a little more than 1.
    kept = np.clip(data, 0.0, 1.0)
    if np.abs(data - kept).max() > 1e-5:
        raise ValueError(f"values on [0, 1] expected, got {data.min()} to {data.max()}")
    mean, square = ends.spread_of(kept[None])
    return one_interval(ends.share_ends(mean, square, data.size, null), data.size)


def rare_share_interval(counts: Mapping[str, tuple[int, int]]) -> Interval | None:
    """K2: the share of what is counted, from (how many, of how many items) per prompt id. Prompts
    without an item are left out; None without any."""
    given = [counts[name] for name in sorted(counts) if counts[name][1] > 0]
    rows = np.asarray(given, dtype=np.float64).reshape(-1, 2)
    if not given:
        return None
    found = ends.rare_ends(rows[None, :, 0], rows[None, :, 1])
    counted, items = (int(x) for x in rows.sum(axis=0))
    return one_interval(found, items, len(rows), count=counted)


def mean_interval(values: Mapping[str, float], null: float | None = None) -> Interval | None:
    """K3: the mean of one unbounded value per prompt id, by t; None without a prompt."""
    data = _make_column(values)
    if not data.size:
        return None
    found = ends.mean_ends(data[None], null)
    return one_interval(found, data.size, note=None if has_variation(data) else SAME)


def paired_interval(new: Mapping[str, float], old: Mapping[str, float]) -> Interval | None:
    """K3: the mean of new - old over the prompts that both have; None where they share none.

    Where all differences are equal there is no spread to go by: no ends, and the note says what so
    many prompts can tell.
    """
    differences = {key: new[key] - old[key] for key in new.keys() & old.keys()}
    found = mean_interval(differences, 0.0)
    if found is None or found.note is None:
        return found
    # From (1 - most)^n = 1 - level: were the share larger, n equal prompts would be less likely.
    most = 1 - (1 - LEVEL) ** (1 / found.n)
    what = "differed" if abs(found.mean) < 1e-12 else "differed from the others"
    note = f"no prompt {what}; with 95% confidence fewer than {most:.0%} of prompts do"
    return Interval(found.mean, None, None, found.n, note=note)


def paired_share_interval(new: Mapping[str, float], old: Mapping[str, float]) -> Interval | None:
    """K4: the mean of new - old, where all values are 0 or 1, over the prompts that both have."""
    keys = sorted(new.keys() & old.keys())
    if not keys:
        return None
    one, other = (_make_column({key: side[key] for key in keys}) for side in (new, old))
    if not np.isin(one, (0.0, 1.0)).all() or not np.isin(other, (0.0, 1.0)).all():
        raise ValueError("values of 0 and 1 expected")
    # Only prompts on which the two differ say anything of the difference.
    more, less = (np.asarray([float((a > b).sum())]) for a, b in ((one, other), (other, one)))
    return one_interval(ends.discordant_ends(more, less, one.size), one.size)


def skewed_interval(values: Mapping[str, float]) -> Interval | None:
    """K5: the mean of one skewed value per prompt id, with the median; None without a prompt."""
    data = _make_column(values)
    if not data.size:
        return None
    found, median = ends.skewed_ends(data[None]), float(np.median(data))
    return one_interval(found, data.size, median=median, note=skewed_note(data))


def has_variation(data: Floats) -> bool:
    """Whether values by prompt, (C,), differ; of one prompt that is not known."""
    return data.size < 2 or bool(ends.find_varying(data[None])[0])


def skewed_note(data: Floats) -> str | None:
    """What is said beside the interval of skewed values by prompt, (C,)."""
    if not has_variation(data):
        return SAME
    return SKEWED_NOTE if 1 < data.size < FEW_SKEWED else None


def win_rate_interval(new: Mapping[str, float], old: Mapping[str, float]) -> Interval | None:
    """K1: how often new beats old on the prompts that both have: win 1, tie 0.5, loss 0; p is
    against 0.5."""
    wins = {
        key: 1.0 if new[key] > old[key] else 0.0 if new[key] < old[key] else 0.5
        for key in new.keys() & old.keys()
    }
    return share_interval(wins, 0.5)


def factor_interval(new: Mapping[str, float], old: Mapping[str, float]) -> Interval | None:
    """K7: the geometric mean of new / old, both above 0, over the prompts that both have, by t on
    log scale; p is against 1, `se` is of the log. None where there is no such prompt."""
    logs = {
        key: float(np.log(new[key] / old[key]))
        for key in new.keys() & old.keys()
        if new[key] > 0 and old[key] > 0
    }
    # Paired with zeros, so that equal factors get the note of equal differences.
    found = paired_interval(logs, dict.fromkeys(logs, 0.0))
    if found is None:
        return None
    low, high = (None if x is None else float(np.exp(x)) for x in (found.low, found.high))
    mean = float(np.exp(found.mean))
    return Interval(mean, low, high, found.n, p=found.p, se=found.se, df=found.df, note=found.note)


def one_interval(
    found: Ends,
    n: int,
    prompts: int | None = None,
    *,
    count: int | None = None,
    median: float | None = None,
    note: str | None = None,
) -> Interval:
    """The interval of the one sample that `found` is of."""
    low, high, p, se, df = (_finite_or_none(x[0]) for x in found[1:])
    mean = float(found.mean[0])
    # Rounding may put an end that is the mean itself beyond it.
    low = mean if low is not None and 0 < low - mean < ROUNDING else low
    high = mean if high is not None and 0 < mean - high < ROUNDING else high
    if low is None and note is None:
        note = "one prompt" if (prompts or n) == 1 else None
    shown = None if prompts == n else prompts
    return Interval(mean, low, high, n, shown, p, se, df, count, median, note)


def _finite_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _make_column(values: Mapping[str, float]) -> Floats:
    """The values in the order of their keys. Raises ValueError on one that is not finite: a missing
    value must be left out, not written as NaN."""
    keys = sorted(values)
    data = np.asarray([values[key] for key in keys], dtype=np.float64)
    if not np.isfinite(data).all():
        bad = keys[int(np.flatnonzero(~np.isfinite(data))[0])]
        raise ValueError(f"the value of prompt {bad!r} is {values[bad]}; leave missing values out")
    return data


def direction(interval: IntervalJson | None, value: float = 0.0) -> int:
    """+1 when the whole interval lies above `value`, -1 when below, 0 when it cannot be told."""
    if interval is None or prompts_of(interval) < MIN_PROMPTS:
        return 0
    low, high = interval["low"], interval["high"]
    if low is None or high is None:
        return 0
    return int(low > value) - int(high < value)


def prompts_of(interval: IntervalJson) -> int:
    """How many prompts the figure is of."""
    return interval.get("prompts", interval["n"])


def show_number(value: float, signed: bool = False) -> str:
    """A short, steady rendering: three significant places below 100, none above 1000."""
    # What is left of a sum that cancels is 0.
    value = 0.0 if abs(value) < 1e-12 else value
    size = abs(value)
    if size != 0.0 and size < 0.0005:
        return f"{value:+.1e}" if signed else f"{value:.1e}"
    places = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{value:+.{places}f}" if signed else f"{value:.{places}f}"


def show_ends(interval: IntervalJson, signed: bool = False) -> str:
    """`[low, high]`, or "[no interval]"."""
    low, high = interval["low"], interval["high"]
    if low is None or high is None:
        return "[no interval]"
    return f"[{show_number(low, signed)}, {show_number(high, signed)}]"


def show_value(interval: IntervalJson, signed: bool = False) -> str:
    """The figure without its ends: a number, or `count of n` of what is counted."""
    if "count" in interval and not signed:
        return f"{interval['count']} of {interval['n']}"
    return show_number(interval["mean"], signed)


def show_interval(interval: IntervalJson, signed: bool = False) -> str:
    """`mean [low, high]` as text; of what is counted `count of n [low, high]`."""
    return f"{show_value(interval, signed)} {show_ends(interval, signed)}"
