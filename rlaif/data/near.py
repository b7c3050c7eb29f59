"""Near-duplicate texts by MinHash and banding (Broder, 1997; Leskovec et al., Mining of Massive
Datasets, section 3.4), in numpy. A text costs 2 bytes a permutation, and its words are forgotten.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from rlaif.data.shingles import Hashes, combined, ngram_hashes, word_hashes

PERMUTATIONS = 128
FOUND = 0.99
"""The least probability that two texts as similar as the threshold are compared at all."""

_BATCH = 1 << 14
"""About as many n-grams are hashed at once: few enough for a processor's cache."""
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
    kept: dict[int, list[int]] = defaultdict(list)
    found: dict[int, int] = {}
    for place, mine in _shared_buckets(signatures, rows_per_band(threshold)):
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
    # Grows in place, where parts that are joined in the end would be held twice.
    found = bytearray()
    batch, size = list[Hashes](), 0
    for text in texts:
        grams = ngram_hashes(word_hashes(text), shingle)
        batch.append(grams)
        size += len(grams)
        if size >= _BATCH:
            found += _least(batch, odd, added).tobytes()
            batch, size = [], 0
    if batch:
        found += _least(batch, odd, added).tobytes()
    return np.frombuffer(found, np.uint16).reshape(-1, PERMUTATIONS)


def _least(batch: list[Hashes], odd: Hashes, added: Hashes) -> Signatures:
    joined = np.concatenate(batch)
    starts = np.cumsum([0, *(len(grams) for grams in batch[:-1])])
    least = np.empty((len(odd), len(batch)), np.uint64)
    hashed = np.empty_like(joined)
    for row, (factor, term) in enumerate(zip(odd, added, strict=True)):
        np.multiply(joined, factor, out=hashed)
        np.add(hashed, term, out=hashed)
        np.minimum.reduceat(hashed, starts, out=least[row])
    # Multiply-shift: the high half of an odd multiple is a hash of its own. The least product has
    # the least high half.
    return (least >> np.uint64(32)).astype(np.uint16).T


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


def _shared_buckets(signatures: Signatures, rows: int) -> Iterator[tuple[int, list[int]]]:
    """The place of every text that shares a bucket with another one, in order, and the numbers of
    those buckets."""
    places, buckets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    first = 0
    for band in range(PERMUTATIONS // rows):
        within = signatures[:, band * rows : (band + 1) * rows].astype(np.uint64)
        _, bucket, count = np.unique(
            combined(list(within.T)), return_inverse=True, return_counts=True
        )
        shared = np.flatnonzero(count[bucket] > 1)
        places.append(shared)
        buckets.append(first + bucket[shared])
        first += len(count)
    place, number = np.concatenate(places), np.concatenate(buckets)
    order = np.argsort(place, kind="stable")
    pairs = zip(place[order].tolist(), number[order].tolist(), strict=True)
    for own, group in groupby(pairs, key=itemgetter(0)):
        yield own, [bucket for _, bucket in group]
