"""Which items people are asked about, where they cannot be asked about all, and what their votes
on the drawn ones say of all.

Items are drawn without replacement, each on its own with probability min(1, c(0.1 + u)), where u
on [0, 1] is how uncertain the judges are of it: Poisson sampling with probability proportional to
size. The floor of 0.1 keeps every item's probability positive, which unbiased estimates need
(Horvitz and Thompson 1952).

The estimator of Hájek (1971) weights each drawn item by the inverse of its probability and divides
by the sum of these weights: a mean over all items, whichever were the likelier to be drawn. Its
bias is of the order of 1 / n.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlaif.core.records import content_hash
from rlaif.metrics.intervals import Interval
from rlaif.metrics.pooled import figure_intervals
from rlaif.metrics.weighted import Figure, Floats, share_of

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
    chances: NDArray[np.float64] = np.minimum(1.0, scales[np.argmax(fitting)] * sizes)
    return chances


def is_drawn(item_id: str, probability: float, seed: int) -> bool:
    """Whether an item is drawn: its own uniform number, made from the seed and its id, is below its
    probability, whatever other items there are."""
    return int(content_hash("drawn", seed, item_id, length=13), 16) / 16**13 < probability


def hajek_weights(probabilities: Floats) -> Floats:
    """1 / probability of each drawn item, scaled to a mean of 1; shape (n,).

    Raises ValueError for a probability outside (0, 1].
    """
    if probabilities.size and not ((probabilities > 0.0) & (probabilities <= 1.0)).all():
        raise ValueError("inclusion probabilities above 0 and up to 1 were expected")
    inverse: Floats = 1.0 / probabilities
    mean = float(inverse.mean()) if inverse.size else 1.0
    scaled: Floats = inverse / mean
    return scaled


def weigh_figure(figure: Figure, own: Floats) -> Figure:
    """The figure with each item counted as often as `own`, (n,), says: a figure of all items from
    one of the drawn ones, where `own` are their Hájek weights."""
    parts = figure.parts and (figure.parts[0] * own, figure.parts[1] * own)
    return Figure(lambda weights: figure.of(weights * own), figure.n, figure.rows, parts)


def hajek_interval(
    values: Floats, probabilities: Floats, prompts: Sequence[str]
) -> Interval | None:
    """The mean (or rate) over all items, from `values`, (n,), of those drawn; NaN is a missing one.

    The interval is the jackknife's over prompts (K6), each left out with all of its items. It makes
    no use of the share of the items that was drawn, so it is too wide where that is large. None
    without a value.
    """
    known = ~np.isnan(values)
    weights = hajek_weights(probabilities[known])
    figure = share_of(values[known] * weights, weights)
    named = [prompt for prompt, some in zip(prompts, known.tolist(), strict=True) if some]
    return figure_intervals({"hajek": figure}, named).get("hajek") if named else None
