"""The ends of 95% intervals, by rule. Pure functions of arrays.

Values have shape (B, C): B separate samples of C prompts, one value a prompt. A sample's results
are NaN where the rule gives none. Every `p` is two-sided and belongs to the interval: it is below
0.05 where the interval leaves the null value out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from rlaif.metrics.weighted import Floats

LEVEL = 0.95
_MOST_ITEMS = 8.0
"""Effective items per prompt, at most: a variance of a few prompts can be far too small by
chance."""


class Ends(NamedTuple):
    """Estimates, ends, p against the null (NaN where there is none), standard errors on the scale
    of the estimate, each (B,), and their degrees of freedom."""

    mean: Floats
    low: Floats
    high: Floats
    p: Floats
    se: Floats
    df: Floats


def t_quantile(df: Floats | float, level: float = LEVEL) -> Floats:
    """The upper end of Student's t that leaves (1 - level) / 2 above it; infinite for 0 df."""
    degrees = np.asarray(df, dtype=np.float64)
    found: Floats = np.where(
        degrees > 0, special.stdtrit(np.maximum(degrees, 1e-9), (1 + level) / 2), np.inf
    )
    return found


def t_p(t: Floats, df: Floats | float) -> Floats:
    """The two-sided p of a t statistic."""
    return np.asarray(2.0 * special.stdtr(df, -np.abs(t)))


def spread_of(values: Floats) -> tuple[Floats, Floats]:
    """The mean over prompts and its squared standard error, each (B,); of one prompt the latter is
    NaN."""
    count = values.shape[1]
    mean = values.mean(axis=1)
    squares = ((values - mean[:, None]) ** 2).sum(axis=1)
    return mean, squares / (count * (count - 1)) if count > 1 else np.full(mean.shape, np.nan)


def find_varying(values: Floats) -> NDArray[np.bool_]:
    """Which samples have different values, (B,): more so than rounding makes them."""
    size = np.maximum(np.abs(values).max(axis=1), 1.0)
    found: NDArray[np.bool_] = np.ptp(values, axis=1) > 1e-12 * size
    return found


def share_ends(
    mean: Floats, square: Floats, prompts: int, null: float | None = None, level: float = LEVEL
) -> Ends:
    """K1: means of values on [0, 1], from the mean and its squared standard error over prompts.

    Wilson's interval with an effective n in place of n and a t quantile in place of z (after Dean
    and Pagano 2015). What was seen of the variance counts as C - 1 of C parts, the binomial one as
    the last; the effective n lies between one and eight per prompt.
    """
    binomial = mean * (1.0 - mean)
    t = t_quantile(prompts - 1.0, level)
    if prompts < 2:
        whole = np.ones(mean.shape)
        return Ends(mean, 0 * whole, whole, np.nan * whole, np.nan * whole, 0 * whole)
    variance = square * (prompts - 1) / prompts + binomial / prompts**2
    with np.errstate(divide="ignore", invalid="ignore"):
        items = np.where(binomial > 0, binomial / variance, prompts)
    items = np.clip(items, prompts, _MOST_ITEMS * prompts)
    middle = (mean + t**2 / (2 * items)) / (1 + t**2 / items)
    half = t / (1 + t**2 / items) * np.sqrt(binomial / items + t**2 / (4 * items**2))
    p = np.full(mean.shape, np.nan)
    if null is not None:
        p = t_p((mean - null) / np.sqrt(null * (1 - null) / items), prompts - 1)
    df = np.full(mean.shape, prompts - 1.0)
    low, high = np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)
    return Ends(mean, low, high, p, np.sqrt(square), df)


def rare_ends(counts: Floats, sizes: Floats, level: float = LEVEL) -> Ends:
    """K2: shares of something rare or nearly universal, from how many of each prompt's items are
    counted, (B, C), of how many, (B, C).

    Clopper and Pearson's interval with the effective n of Korn and Graubard (1998) for clusters.
    """
    prompts = counts.shape[1]
    n = sizes.sum(axis=1)
    share = counts.sum(axis=1) / n
    if prompts < 2:
        nothing = np.full(share.shape, np.nan)
        return Ends(share, 0 * share, 0 * share + 1, nothing, nothing, 0 * share)
    squares = ((counts - share[:, None] * sizes) ** 2).sum(axis=1)
    variance = prompts / (prompts - 1) * squares / n**2
    binomial = share * (1 - share)
    fewer = (t_quantile(n - 1, level) / t_quantile(prompts - 1.0, level)) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        items = np.where(variance > 0, np.minimum(n, binomial / variance), n) * fewer
    items = np.where(binomial > 0, items, prompts)
    x, tail = share * items, (1 - level) / 2
    missing = np.maximum(items - x, 0.0)
    low = np.where(share > 0, special.betaincinv(np.maximum(x, 1e-300), missing + 1, tail), 0.0)
    high = np.where(
        share < 1, special.betaincinv(x + 1, np.maximum(missing, 1e-300), 1 - tail), 1.0
    )
    df = np.full(share.shape, prompts - 1.0)
    return Ends(share, low, high, np.full(share.shape, np.nan), np.sqrt(variance), df)


def mean_ends(values: Floats, null: float | None = 0.0, level: float = LEVEL) -> Ends:
    """K3: means of unbounded values and of paired differences, by Student's t over prompts. NaN
    ends where all values of a sample are equal, or there is one."""
    mean, square = spread_of(values)
    square = np.where(find_varying(values), square, np.nan)
    return t_ends(mean, np.sqrt(square), values.shape[1] - 1.0, null, level)


def t_ends(
    mean: Floats, se: Floats, df: Floats | float, null: float | None, level: float = LEVEL
) -> Ends:
    """mean -+ t se, NaN where the standard error is 0 or missing."""
    se = np.where(se > 0, se, np.nan)
    half = t_quantile(df, level) * se
    p = np.full(mean.shape, np.nan) if null is None else t_p((mean - null) / se, df)
    degrees = np.broadcast_to(np.asarray(df, dtype=np.float64), mean.shape)
    return Ends(mean, mean - half, mean + half, p, se, degrees)


def discordant_ends(more: Floats, less: Floats, prompts: int, level: float = LEVEL) -> Ends:
    """K4: paired differences of 0/1 values, from how many prompts turned from 0 to 1 and from 1 to
    0, each (B,), by Bonett and Price (2012): Wald's interval with one more prompt of either kind.

    `mean` is the difference of the shares as they are.
    """
    one, other = (more + 1) / (prompts + 2), (less + 1) / (prompts + 2)
    middle = one - other
    se = np.sqrt((one + other - middle**2) / (prompts + 2))
    half = special.ndtri((1 + level) / 2) * se
    p = np.asarray(2 * special.ndtr(-np.abs(middle) / se))
    low, high = np.maximum(middle - half, -1.0), np.minimum(middle + half, 1.0)
    return Ends((more - less) / prompts, low, high, p, se, np.full(se.shape, np.inf))


def skewed_ends(values: Floats, level: float = LEVEL, null: float | None = None) -> Ends:
    """K5: means of skewed values, by Hall's transformation of Student's t (1992), which takes its
    skewness out; p is against `null`. Values that are never negative have no negative low end. NaN
    ends where all values of a sample are equal."""
    count = values.shape[1]
    mean, square = spread_of(values)
    se = np.sqrt(np.where(find_varying(values), square, np.nan))
    deviations = values - mean[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        skewness = (deviations**3).mean(axis=1) / (deviations**2).mean(axis=1) ** 1.5
    t = t_quantile(count - 1.0, level)
    low = mean - _invert_transform(t, skewness, count) * se
    high = mean - _invert_transform(-t, skewness, count) * se
    low = np.where(values.min(axis=1) >= 0, np.maximum(low, 0.0), low)
    p = np.full(mean.shape, np.nan)
    if null is not None:
        p = t_p(_transform((mean - null) / se, skewness, count), count - 1.0)
    return Ends(mean, low, high, p, se, np.full(mean.shape, count - 1.0))


def _transform(t: Floats, skewness: Floats, count: int) -> Floats:
    """Hall's transform of t: t + a t^2 + a^2 t^3 / 3 + g / (6 sqrt n) with a = g / (3 sqrt n)."""
    a = skewness / (3 * np.sqrt(count))
    transformed: Floats = t + a * t**2 + a**2 * t**3 / 3 + a / 2
    return transformed


def _invert_transform(transformed: Floats, skewness: Floats, count: int) -> Floats:
    """The t of which Hall's transform is given."""
    a = skewness / (3 * np.sqrt(count))
    rest = transformed - a / 2
    small = np.abs(a) < 1e-8
    safe = np.where(small, 1.0, a)
    found: Floats = np.where(small, rest, (np.cbrt(1 + 3 * safe * rest) - 1) / safe)
    return found


def jackknife_square(left_out: Floats) -> Floats:
    """The squared standard error of a figure, (B,), from its values without each of G prompts or
    blocks of prompts, (B, G) (Efron and Tibshirani 1993, chapter 11)."""
    groups = left_out.shape[1]
    away = left_out - left_out.mean(axis=1, keepdims=True)
    found: Floats = (groups - 1) / groups * (away**2).sum(axis=1)
    return found
