"""What moves a judge besides quality: slots, length, its own answers. Pure functions on arrays.

NaN is missing throughout. Sources: position bias as the rate at which the same slot wins in both
orders, 2309.00267; length bias as a logistic regression that controls for the human label, after
2404.04475.
"""

from __future__ import annotations

import numpy as np

from rlaif.metrics.logistic import fit_logistic
from rlaif.metrics.weighted import Figure, Floats, Mask, among, mean_of, ratio


def decided(prob: Floats) -> Mask:
    """Where there is a value and it is no tie."""
    known: Mask = ~np.isnan(prob) & (prob != 0.5)
    return known


def same_slot(prob_first: Floats, prob_second: Floats) -> Floats:
    """1 where the first slot won in both orders, -1 where the second did, 0 where the same answer
    won twice; NaN where an order is undecided. Shape (n,).

    Of P(the answer wins) when it was shown first and when it was shown second, each (n,).
    """
    known = decided(prob_first) & decided(prob_second)
    won = (prob_first > 0.5).astype(np.float64) - (prob_second > 0.5)
    return np.where(known, won, np.nan)


def picks_longer(prob: Floats, longer_by: Floats) -> Floats:
    """1 where a verdict is for the longer answer, else 0; NaN for equal lengths and without a
    verdict. Shape (n,)."""
    kept = decided(prob) & (longer_by != 0)
    return np.where(kept, (prob > 0.5) == (longer_by > 0), np.nan)


def length_coefficient(prob: Floats, label: Floats, longer_by: Floats) -> Figure:
    """How much one standard deviation of length difference adds to the log-odds of a verdict for
    that answer, the human label held fixed.

    Features: 1, longer_by / sd, and the label as -1 or 1. Undefined where the regression has no
    maximum, as for a judge that always follows length or always follows people.
    """
    kept = decided(prob) & decided(label)
    lengths, outcome = longer_by[kept], (prob[kept] > 0.5).astype(np.float64)
    scale = (float(lengths.std()) if lengths.size else 0.0) or 1.0
    human = np.where(label[kept] > 0.5, 1.0, -1.0)
    features = np.stack([np.ones_like(lengths), lengths / scale, human], axis=1)
    powers = np.stack([features[:, 1], features[:, 1] ** 2], axis=1)

    def of(weights: Floats) -> Floats:
        mean, square = ratio(weights @ powers, weights.sum(axis=1, keepdims=True)).T
        slope = fit_logistic(features, outcome, weights)[:, 1]
        by_sd: Floats = slope * np.sqrt(np.maximum(square - mean**2, 0.0))
        return by_sd

    return among(kept, of)


def self_preference(prob: Floats, label: Floats, own: Floats) -> Figure:
    """P(picks own | people pick own) - P(picks other | people pick other), in [-1, 1].

    `own` is 1 where the first answer is the judge's own and the second is not, -1 the other way
    round, else 0. Undefined where either condition never holds.
    """
    kept = decided(prob) & decided(label) & (own != 0)
    mine = own > 0
    judged, said = (prob > 0.5) == mine, (label > 0.5) == mine
    where_own = mean_of(np.where(kept & said, judged, np.nan))
    where_other = mean_of(np.where(kept & ~said, ~judged, np.nan))
    return Figure(lambda weights: where_own.of(weights) - where_other.of(weights), int(kept.sum()))
