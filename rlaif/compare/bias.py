"""What moves a judge besides quality: slots, length, its own answers. Pure functions on arrays.

NaN is missing throughout. Sources: position bias as the rate at which the same slot wins in both
orders, 2309.00267; length bias as a logistic regression that controls for the human label, after
2404.04475.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlaif.compare.logistic import fit_logistic

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Slots:
    """Pairs that were decided in both orders: in how many the first slot won twice, in how many the
    second, and in how many the same answer won."""

    first: int
    second: int
    consistent: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.first + self.second + self.consistent


def slots(prob_first: Floats, prob_second: Floats) -> Slots:
    """Of P(the answer wins) when it was shown first and when it was shown second, each (n,)."""
    known = decided(prob_first) & decided(prob_second)
    as_first, as_second = prob_first[known] > 0.5, prob_second[known] > 0.5
    return Slots(
        int((as_first & ~as_second).sum()),
        int((~as_first & as_second).sum()),
        int((as_first == as_second).sum()),
    )


def decided(prob: Floats) -> Mask:
    """Where there is a value and it is no tie."""
    known: Mask = ~np.isnan(prob) & (prob != 0.5)
    return known


def prefers_longer(prob: Floats, longer_by: Floats) -> tuple[float, int] | None:
    """The share of verdicts for the longer answer, and of how many; equal lengths are left out."""
    kept = decided(prob) & (longer_by != 0)
    if not kept.any():
        return None
    picked = (prob[kept] > 0.5) == (longer_by[kept] > 0)
    return float(picked.mean()), int(kept.sum())


def length_coefficient(prob: Floats, label: Floats, longer_by: Floats) -> tuple[float, int] | None:
    """How much one standard deviation of length difference adds to the log-odds of a verdict for
    that answer, the human label held fixed; and from how many pairs.

    Features: 1, longer_by / sd, and the label as -1 or 1. None where the regression has no maximum,
    as for a judge that always follows length or always follows people.
    """
    kept = decided(prob) & decided(label)
    lengths = longer_by[kept]
    spread = float(lengths.std()) if lengths.size else 0.0
    if spread == 0.0:
        return None
    human = np.where(label[kept] > 0.5, 1.0, -1.0)
    features = np.stack([np.ones_like(lengths), lengths / spread, human], axis=1)
    beta = fit_logistic(features, (prob[kept] > 0.5).astype(np.float64))
    return None if beta is None else (float(beta[1]), int(kept.sum()))


def self_preference(prob: Floats, label: Floats, own: Floats) -> tuple[float, int] | None:
    """P(picks own | people pick own) - P(picks other | people pick other), in [-1, 1]; and of how
    many pairs.

    `own` is 1 where the first answer is the judge's own and the second is not, -1 the other way
    round, else 0. None where either condition never holds.
    """
    kept = decided(prob) & decided(label) & (own != 0)
    mine = own[kept] > 0
    judged, said = (prob[kept] > 0.5) == mine, (label[kept] > 0.5) == mine
    if not said.any() or said.all():
        return None
    return float(judged[said].mean() - (~judged[~said]).mean()), int(kept.sum())
