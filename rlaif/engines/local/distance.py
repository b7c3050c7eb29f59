"""Out-of-distribution statistics of a reward model: how far an answer lies from its training
answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from rlaif.core.errors import EngineError, explain_library

REGION = "reward_region.safetensors"
MOST = 4096
"""Answers that a region is made of."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Region:
    """Out-of-distribution statistics of a reward model's training features, saved with it, so that
    each reward reports its Mahalanobis distance: their mean (H,) and inverse covariance (H, H)."""

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
    it can be inverted with fewer answers than features. Raises ValueError for fewer than two.

    At most `MOST` rows are looked at, taken evenly. Shrinking pulls all variances to their mean, so
    features are first brought to one size: those of hidden states differ by powers of ten.
    """
    from sklearn.covariance import LedoitWolf

    if len(features) < 2:
        raise ValueError(f"a region needs two answers or more, got {len(features)}")
    rows = features[:: -(-len(features) // MOST)]
    spread = rows.std(axis=0)
    size = np.where(spread > 0, spread, 1.0)
    found = LedoitWolf().fit(rows / size)
    return Region(found.location_ * size, found.precision_ / np.outer(size, size))


def save_region(region: Region, folder: Path) -> None:
    """Write the statistics beside a checkpoint, in fp32."""
    tensors = {"mean": region.mean, "precision": region.precision}
    save_file({n: v.astype(np.float32) for n, v in tensors.items()}, folder / REGION)


def load_region(folder: Path) -> Region | None:
    """The statistics saved beside a checkpoint, None if there are none. Raises EngineError when the
    file is damaged."""
    path = folder / REGION
    if not path.exists():
        return None
    with explain_library(f"{path}: this region cannot be read", EngineError):
        found = {name: v.astype(np.float64) for name, v in load_file(path).items()}
        return Region(**found)


def nearest(query: Floats, known: Floats, count: int) -> list[tuple[int, float]]:
    """The `count` rows of `known` (n, H) most like or unlike `query` (H,): place and cosine, the
    largest absolute cosine first."""
    sizes = np.linalg.norm(known, axis=1) * np.linalg.norm(query)
    cosine = known @ query / np.maximum(sizes, 1e-12)
    order = np.argsort(-np.abs(cosine), kind="stable")[:count]
    return [(int(i), float(cosine[i])) for i in order]
