"""How far answers lie from those that a reward model has learned from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Region:
    """Where training answers lie: the mean (H,) and inverse covariance (H, H) of their features."""

    mean: Floats
    precision: Floats

    def distance(self, features: Floats) -> Floats:
        """(n,) Mahalanobis distances of `features` (n, H), divided by the root of H: about 1 for an
        answer like those of the training (Lee et al. 2018, 1807.03888)."""
        gap = features - self.mean
        squares = np.einsum("nh,hk,nk->n", gap, self.precision, gap)
        found: Floats = np.sqrt(np.maximum(squares, 0.0) / features.shape[1])
        return found


def fit_region(features: Floats) -> Region:
    """The region of `features` (n, H), its covariance shrunk as Ledoit and Wolf (2004) do, so that
    it can be inverted with fewer answers than features. Raises ValueError for fewer than two."""
    from sklearn.covariance import LedoitWolf

    if len(features) < 2:
        raise ValueError(f"a region needs two answers or more, got {len(features)}")
    found = LedoitWolf().fit(features)
    return Region(found.location_, found.precision_)


def nearest(query: Floats, known: Floats, count: int) -> list[tuple[int, float]]:
    """The `count` rows of `known` (n, H) most like or unlike `query` (H,): place and cosine, the
    largest absolute cosine first."""
    sizes = np.linalg.norm(known, axis=1) * np.linalg.norm(query)
    cosine = known @ query / np.maximum(sizes, 1e-12)
    order = np.argsort(-np.abs(cosine), kind="stable")[:count]
    return [(int(i), float(cosine[i])) for i in order]
