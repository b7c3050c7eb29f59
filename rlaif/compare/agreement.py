"""How far two annotators agree, and whether two judges err together. Pure functions on arrays.

Sources: Cohen 1960 (kappa), Krippendorff 2011 (alpha), Kendall 1945 (tau-b), McNemar 1947 in its
exact form; effective votes after juries of language models, 2404.18796, and the design effect of
Kish 1965.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Distance = Callable[[Floats, Floats], Floats]


def cohen_kappa(first: Floats, second: Floats) -> float | None:
    """(p_o - p_e) / (1 - p_e) of two codings of the same items, each shape (n,), in [-1, 1].

    None without items, and where chance alone would agree always (p_e = 1).
    """
    if first.size == 0:
        return None
    levels, codes = np.unique(np.concatenate([first, second]), return_inverse=True)
    size = levels.size
    table = np.bincount(codes[: first.size] * size + codes[first.size :], minlength=size * size)
    share = table.reshape(size, size) / first.size
    expected = float(share.sum(axis=1) @ share.sum(axis=0))
    if expected >= 1.0:
        return None
    return (float(np.trace(share)) - expected) / (1.0 - expected)


def nominal(left: Floats, right: Floats) -> Floats:
    """Krippendorff's distance of categories: 0 or 1."""
    different: Floats = (left != right).astype(np.float64)
    return different


def interval(left: Floats, right: Floats) -> Floats:
    """Krippendorff's distance of numbers: the squared difference."""
    difference: Floats = left - right
    return difference**2


def krippendorff_alpha(ratings: Floats, distance: Distance = nominal) -> float | None:
    """1 - D_o / D_e of `ratings`, shape (annotators, units), NaN where one is missing; at most 1.

    From the coincidence matrix: each unit gives its ordered pairs of values with weight
    1 / (m - 1), and units with fewer than two values give none. None without such a unit, and where
    all values are equal, so that no disagreement could be expected.
    """
    kept = ratings[:, (~np.isnan(ratings)).sum(axis=0) >= 2]
    levels = np.unique(kept[~np.isnan(kept)])
    if levels.size < 2:
        return None
    counts = np.stack([(kept == level).sum(axis=0) for level in levels]).astype(np.float64)
    weights = 1.0 / (counts.sum(axis=0) - 1.0)
    coincidence = (counts * weights) @ counts.T - np.diag((counts * weights).sum(axis=1))
    totals = coincidence.sum(axis=1)
    far = distance(levels[:, None], levels[None, :])
    observed = float((coincidence * far).sum())
    expected = float(totals @ far @ totals) / (float(totals.sum()) - 1.0)
    return 1.0 - observed / expected


def pearson(x: Floats, y: Floats) -> float | None:
    """The linear correlation of two arrays of shape (n,); None where either does not vary."""
    if x.size < 2:
        return None
    a, b = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0.0 else None


def spearman(x: Floats, y: Floats) -> float | None:
    """The correlation of the ranks, ties sharing their mean rank; None where either is constant."""
    return pearson(_mean_ranks(x), _mean_ranks(y))


def _mean_ranks(values: Floats) -> Floats:
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2.0)[codes]


def kendall(x: Floats, y: Floats) -> float | None:
    """Kendall's tau-b in O(n log n); None where either does not vary."""
    n = x.size
    _, a, ties_x = np.unique(x, return_inverse=True, return_counts=True)
    _, b, ties_y = np.unique(y, return_inverse=True, return_counts=True)
    pairs = n * (n - 1) // 2
    free_x, free_y = pairs - _within(ties_x), pairs - _within(ties_y)
    if not free_x or not free_y:
        return None
    # By x and then by y, so that pairs tied in x are never out of order in y.
    both = np.sort(a.astype(np.int64) * n + b)
    ties = np.diff(np.flatnonzero(np.diff(both, prepend=-1, append=-1)))
    discordant = _inversions(both % n)
    concordant = free_x + free_y - pairs + _within(ties) - discordant
    return float((concordant - discordant) / math.sqrt(free_x) / math.sqrt(free_y))


def _within(sizes: Ints) -> int:
    """How many pairs lie within groups of these sizes."""
    return int((sizes * (sizes - 1) // 2).sum())


def _inversions(values: Ints) -> int:
    """How many pairs i < j have values[i] > values[j], by merging blocks of doubled width."""
    total, width, size = 0, 1, values.size
    span = int(values.max()) + 1
    place = np.arange(size)
    while width < size:
        block = place // (2 * width)
        keys = block * span + values
        left, right = keys[place // width % 2 == 0], keys[place // width % 2 == 1]
        ends = np.searchsorted(left, (right // span + 1) * span)
        total += int((ends - np.searchsorted(left, right, side="right")).sum())
        values = np.sort(keys) - block * span
        width *= 2
    return total


def sign_test(first: int, second: int) -> float:
    """Two-sided exact probability that counts this uneven come of a fair coin, in (0, 1]."""
    total, low = first + second, min(first, second)
    tail, term = 0, 1
    for k in range(low + 1):
        tail += term
        term = term * (total - k) // (k + 1)
    return min(1.0, float(2 * tail / 2**total))


def mcnemar(first_right: Floats, second_right: Floats) -> tuple[int, int, float]:
    """Of two judges' correctness (0 or 1, shape (n,)) on the same pairs: where the first alone is
    right, where the second alone is, and the exact two-sided probability under no difference."""
    alone = int(((first_right == 1) & (second_right == 0)).sum())
    other = int(((first_right == 0) & (second_right == 1)).sum())
    return alone, other, sign_test(alone, other)


def effective_votes(count: int, correlations: Sequence[float]) -> float | None:
    """k / (1 + (k - 1) r) for `count` judges whose errors correlate at `correlations` (pairwise, r
    their mean): k where errors are independent, 1 where all err alike. A negative r counts as 0,
    so that judges are never worth more than their number. None without correlations."""
    if count < 2 or not correlations:
        return None
    mean = max(0.0, math.fsum(correlations) / len(correlations))
    return count / (1.0 + (count - 1) * mean)
