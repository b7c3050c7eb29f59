"""Which items people are asked about, where they cannot be asked about all.

Items are drawn without replacement, each on its own with probability min(1, c(0.1 + u)), where u
on [0, 1] is how uncertain the judges are of it: Poisson sampling with probability proportional to
size. The floor of 0.1 keeps every item's probability positive, which unbiased estimates need
(Horvitz and Thompson 1952).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlaif.core.records import content_hash

FLOOR = 0.1
"""What is added to every uncertainty."""


def item_uncertainty(verdicts: Sequence[tuple[str, float]]) -> float | None:
    """How uncertain judges are of a pair, on [0, 1], from (judge, probability that answer a is
    better) of each; a judge's several verdicts are averaged first.

    The larger of the mean of 1 - |2p - 1| over the judges (1 where all say 0.5) and their
    disagreement, the largest p less the smallest. None without a verdict.
    """
    if not verdicts:
        return None
    by_judge: dict[str, list[float]] = {}
    for judge, probability in verdicts:
        by_judge.setdefault(judge, []).append(probability)
    means = [sum(values) / len(values) for _, values in sorted(by_judge.items())]
    doubt = sum(1.0 - abs(2.0 * p - 1.0) for p in means) / len(means)
    return max(doubt, max(means) - min(means))


def inclusion_probabilities(u: Sequence[float], budget: float) -> NDArray[np.float64]:
    """min(1, c(0.1 + u)) for each item, c solved so that they add up to `budget`, the expected
    count of drawn items; 1 for all where the budget is at least their number.

    u: uncertainties on [0, 1], [n]. Raises ValueError for others, and for a budget of 0 or less.
    """
    sizes = np.asarray(u, dtype=np.float64) + FLOOR
    if not (np.isfinite(sizes).all() and (sizes >= FLOOR).all() and (sizes <= 1 + FLOOR).all()):
        raise ValueError("uncertainties must be from 0 to 1")
    if not budget > 0:
        raise ValueError(f"the budget is {budget}; more than 0 was expected")
    if budget >= len(sizes):
        return np.ones(len(sizes))
    # The k largest are drawn surely, the rest share what is left in proportion: the smallest k
    # for which nobody's share is above 1.
    ranked = np.sort(sizes)[::-1]
    rest = np.cumsum(ranked[::-1])[::-1]
    sure = np.arange(len(ranked))
    scales = (budget - sure) / rest
    fitting = (scales * ranked <= 1.0) & (scales > 0)
    return np.minimum(1.0, scales[np.argmax(fitting)] * sizes)


def is_drawn(item_id: str, probability: float, seed: int) -> bool:
    """Whether an item is drawn: its own uniform number, made from the seed and its id, is below its
    probability, whatever other items there are."""
    return int(content_hash("drawn", seed, item_id, length=13), 16) / 16**13 < probability
