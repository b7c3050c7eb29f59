"""Near-duplicate texts by MinHash and banding (Broder, 1997; Leskovec et al., Mining of Massive
Datasets, section 3.4), in numpy. A text costs 2 bytes a permutation, and its words are forgotten.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from rlaif.data.shingles import Hashes, combined, ngram_hashes, word_hashes

PERMUTATIONS = 128
FOUND = 0.99
"""The least probability that two texts as similar as the threshold are compared at all."""

_BATCH = 1 << 16
_SEED = 20_061

Signatures = NDArray[np.uint16]


def near_duplicates(
    texts: Iterable[str], threshold: float = 0.8, shingle: int = 3
) -> dict[int, int]:
    """The place of every text that resembles an earlier one that is kept, to the place of that one.

    Two texts resemble each other when the Jaccard similarity of their n-grams of `shingle` words
    is estimated at `threshold` (in (0, 1]) or more; the standard error at similarity s is
    sqrt(s(1 - s) / 128). The first text of its kind is kept, so the order of `texts` decides which.
    """
    signatures = minhash(texts, shingle)
    buckets = _buckets(signatures, rows_per_band(threshold))
    kept: dict[int, list[int]] = defaultdict(list)
    found: dict[int, int] = {}
    for place in np.flatnonzero((buckets >= 0).any(axis=1)).tolist():
        mine = [bucket for bucket in buckets[place].tolist() if bucket >= 0]
        others = sorted({other for bucket in mine for other in kept[bucket]})
        if others:
            alike = (signatures[others] == signatures[place]).mean(axis=1)
            best = int(alike.argmax())
            if alike[best] >= threshold:
                found[place] = others[best]
                continue
        for bucket in mine:
            kept[bucket].append(place)
    return found


def minhash(texts: Iterable[str], shingle: int) -> Signatures:
    """Shape (texts, 128): the low 16 bits of the least hash of each text's n-grams under each of
    128 permutations. The share of equal entries estimates the Jaccard similarity (the two bytes
    add 2^-16 to it; Li and König, 2010)."""
    rng = np.random.default_rng(_SEED)
    odd = rng.integers(0, 1 << 63, PERMUTATIONS, np.uint64) * np.uint64(2) + np.uint64(1)
    added = rng.integers(0, 1 << 63, PERMUTATIONS, np.uint64)
    parts, batch, size = [], list[Hashes](), 0
    for text in texts:
        grams = ngram_hashes(word_hashes(text), shingle)
        batch.append(grams)
        size += len(grams)
        if size >= _BATCH:
            parts.append(_least(batch, odd, added))
            batch, size = [], 0
    if batch:
        parts.append(_least(batch, odd, added))
    return np.concatenate(parts) if parts else np.zeros((0, PERMUTATIONS), np.uint16)


def _least(batch: list[Hashes], odd: Hashes, added: Hashes) -> Signatures:
    joined = np.concatenate(batch)
    starts = np.cumsum([0, *(len(grams) for grams in batch[:-1])])
    found = np.empty((len(batch), len(odd)), np.uint16)
    for column, (factor, term) in enumerate(zip(odd, added, strict=True)):
        # Multiply-shift: the high half of an odd multiple is a hash of its own.
        hashed = ((joined * factor + term) >> np.uint64(32)).astype(np.uint32)
        found[:, column] = np.minimum.reduceat(hashed, starts).astype(np.uint16)
    return found


def rows_per_band(threshold: float) -> int:
    """The most rows in a band with which texts at the threshold share a band with probability
    `FOUND`: 1 - (1 - s^r)^(128 / r)."""
    return max(
        (
            rows
            for rows in range(1, PERMUTATIONS + 1)
            if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= FOUND
        ),
        default=1,
    )


def _buckets(signatures: Signatures, rows: int) -> NDArray[np.int32]:
    """Shape (texts, bands): the number of the bucket that a text shares with others, or -1."""
    bands = PERMUTATIONS // rows
    found = np.full((len(signatures), bands), -1, np.int32)
    first = 0
    for band in range(bands):
        within = signatures[:, band * rows : (band + 1) * rows].astype(np.uint64)
        keys = combined(list(within.T))
        _, bucket, count = np.unique(keys, return_inverse=True, return_counts=True)
        shared = count[bucket] > 1
        found[shared, band] = first + bucket[shared]
        first += len(count)
    return found
