"""Figures of weighted items, so that a figure is measured on many parts of them at once.

`weights`, shape (B, n), says how often each of n items counts in each of B samples: a row of ones
is the items themselves. A figure of them has shape (B,) and is NaN where it is undefined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Measure = Callable[[Floats], Floats]
"""From weights (B, n) to a figure (B,)."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of weighted items. `of` computes it from the weights of all items, of which `n`, at
    the indices `rows` (None: all), have what it needs. A ratio of sums has its `parts`, the
    summands of numerator and denominator, each (n,)."""

    of: Measure
    n: int
    rows: Ints | None = None
    parts: tuple[Floats, Floats] | None = None


def ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole, NaN where the whole is 0."""
    found: Floats = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    np.divide(part, whole, out=found, where=whole != 0)
    return found


def ratio_of(part: Floats, whole: Floats) -> Measure:
    """The sum of `part` over the sum of `whole`, each (n,)."""
    columns = np.stack([part, whole], axis=1)

    def divide_sums(weights: Floats) -> Floats:
        sums = weights @ columns
        return ratio(sums[:, 0], sums[:, 1])

    return divide_sums


def mean_of(values: Floats) -> Figure:
    """The mean of `values` (n,), without those that are NaN."""
    known = ~np.isnan(values)
    return share_of(np.where(known, values, 0.0), known.astype(np.float64))


def share_of(part: Floats, whole: Floats) -> Figure:
    """The sum of `part` over the sum of `whole`, each (n,); `whole` counts what it is a share
    of."""
    return Figure(ratio_of(part, whole), int(whole.sum()), np.flatnonzero(whole), (part, whole))


def measure_among(kept: Mask, measure: Measure) -> Figure:
    """The figure that `measure` makes of the kept items alone."""
    rows = np.flatnonzero(kept)
    return Figure(lambda weights: measure(weights[:, rows]), rows.size, rows)


def compute_defined(figures: Mapping[str, Figure], size: int) -> dict[str, float]:
    """The figures of the `size` items, each counted once; undefined figures are left out."""
    ones = np.ones((1, size))
    found = {name: float(figure.of(ones)[0]) for name, figure in figures.items() if figure.n}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def sums_by(codes: Ints) -> Callable[[Floats], Floats]:
    """From weights (B, n) to their sums by code, (B, m), for codes that cover 0 to m - 1."""
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))

    def sum_groups(weights: Floats) -> Floats:
        found: Floats = np.add.reduceat(weights[:, order], starts, axis=1)
        return found

    return sum_groups
