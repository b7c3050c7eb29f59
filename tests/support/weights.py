"""A statistic of the items themselves."""

from __future__ import annotations

import numpy as np

from rlaif.metrics.weighted import Measure


def plain(measure: Measure, size: int) -> float | None:
    """What `measure` says of `size` items that count once; None where it is undefined."""
    found = float(measure(np.ones((1, size)))[0])
    return None if np.isnan(found) else found
