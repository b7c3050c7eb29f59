"""Near-duplicate texts by MinHash and banding (Broder, 1997; Leskovec et al., Mining of Massive
Datasets, section 3.4), in numpy. Memory holds neither texts nor signatures: these are 256 bytes a
text in a temporary file, and one band of them at a time is sorted.

The same n-grams of words find contamination (arXiv 2411.15124, section 3): an evaluation's item is
contaminated where n-grams of one training text hold at least half of its words.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from tempfile import TemporaryFile
from typing import IO

import numpy as np
from numpy.typing import NDArray

from rlaif.constitution import textstats as ts

PERMUTATIONS = 128
FOUND = 0.99
"""The least probability that two texts as similar as the threshold are compared at all."""

_BATCH = 1 << 14
"""About as many n-grams are hashed at once: few enough for a processor's cache."""
_SEED = 20_061
_ROW_BYTES = 2 * PERMUTATIONS
_READ = 1 << 13
"""Signatures that are read at once."""
_NOBODY = np.uint32(0xFFFFFFFF)

Signatures = NDArray[np.uint16]


def near_duplicates(
    texts: Iterable[str], threshold: float = 0.8, shingle: int = 3
) -> dict[int, int]:
    """Map each near-duplicate's index to the index of the earlier text that it duplicates.

    Two texts resemble each other when the Jaccard similarity of their n-grams of `shingle` words
    is estimated at `threshold` (in (0, 1]) or more; the standard error at similarity s is
    sqrt(s(1 - s) / 128). The first text of its kind is kept, so the order of `texts` decides which.
    """
    with TemporaryFile() as file:
        stored = _Stored(file)
        for part in minhash_signatures(texts, shingle):
            stored.add(part)
        return _are_alike(stored, threshold)


def _are_alike(stored: _Stored, threshold: float) -> dict[int, int]:
    shared = _shared_buckets(stored, rows_per_band(threshold))
    # The first text that is kept in each bucket, and the later ones of the few that have several.
    first = np.full(shared.buckets, _NOBODY, np.uint32)
    later: dict[int, list[int]] = defaultdict(list)
    found: dict[int, int] = {}
    for place, mine in shared.by_place():
        holders = first[mine]
        taken = holders != _NOBODY
        others = set(holders[taken].tolist())
        for bucket in mine[taken].tolist():
            others.update(later.get(bucket, ()))
        if others:
            ordered = sorted(others)
            looked_at = stored.at([place, *ordered])
            alike = (looked_at[1:] == looked_at[0]).mean(axis=1)
            best = int(alike.argmax())
            if alike[best] >= threshold:
                found[place] = ordered[best]
                continue
        first[mine[~taken]] = place
        for bucket in mine[taken].tolist():
            later[bucket].append(place)
    return found


class _Stored:
    """Signatures in a file, so that memory is free of them."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._count = 0

    def add(self, part: Signatures) -> None:
        self._file.write(part.tobytes())
        self._count += len(part)

    def parts(self) -> Iterator[Signatures]:
        """Yield all signatures in chunks."""
        self._file.seek(0)
        while data := self._file.read(_READ * _ROW_BYTES):
            yield np.frombuffer(data, np.uint16).reshape(-1, PERMUTATIONS)

    def at(self, places: Sequence[int]) -> Signatures:
        """Shape (places, 128): those of some texts. The file is mapped for this call alone, as a
        map that stays keeps in memory what was ever looked at."""
        every = np.memmap(self._file, np.uint16, "r", shape=(self._count, PERMUTATIONS))
        return np.asarray(every[places])


def minhash_signatures(texts: Iterable[str], shingle: int) -> Iterator[Signatures]:
    """In parts of shape (some texts, 128): the low 16 bits of the least hash of each text's n-grams
    under each of 128 permutations. The share of equal entries estimates the Jaccard similarity (the
    two bytes add 2^-16 to it; Li and König, 2010)."""
    rng = np.random.default_rng(_SEED)
    odd = rng.integers(0, 1 << 63, PERMUTATIONS, np.uint64) * np.uint64(2) + np.uint64(1)
    added = rng.integers(0, 1 << 63, PERMUTATIONS, np.uint64)
    batch, size = list[Hashes](), 0
    for text in texts:
        grams = ngram_hashes(word_hashes(text), shingle)
        batch.append(grams)
        size += len(grams)
        if size >= _BATCH:
            yield _least_hashes(batch, odd, added)
            batch, size = [], 0
    if batch:
        yield _least_hashes(batch, odd, added)


def _least_hashes(batch: list[Hashes], odd: Hashes, added: Hashes) -> Signatures:
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
    rows = range(1, PERMUTATIONS + 1)
    likely = [r for r in rows if 1 - (1 - threshold**r) ** (PERMUTATIONS // r) >= FOUND]
    return max(likely, default=1)


@dataclass(frozen=True, slots=True)
class _Shared:
    """Texts that share a bucket with another: `place` and `bucket` (N,) uint32, by place."""

    place: NDArray[np.uint32]
    bucket: NDArray[np.uint32]
    buckets: int

    def by_place(self) -> Iterator[tuple[int, NDArray[np.uint32]]]:
        """Each such text, in order, and its buckets."""
        starts = np.flatnonzero(np.diff(self.place, prepend=_NOBODY))
        for start, stop in pairwise([*starts.tolist(), len(self.place)]):
            yield int(self.place[start]), self.bucket[start:stop]


def _shared_buckets(stored: _Stored, rows: int) -> _Shared:
    places, numbers = [np.zeros(0, np.uint32)], [np.zeros(0, np.uint32)]
    count = 0
    for band in range(PERMUTATIONS // rows):
        own = slice(band * rows, (band + 1) * rows)
        keys = [combine_counts(list(part[:, own].T.astype(np.uint64))) for part in stored.parts()]
        if not keys:
            break
        joined = np.concatenate(keys)
        order = np.argsort(joined, kind="stable")
        joined = joined[order]
        again = np.concatenate([[False], joined[1:] == joined[:-1], [False]])
        # Equal to the one before it or to the one after it; the first of each run begins a bucket.
        shared = again[:-1] | again[1:]
        begins = (shared & ~again[:-1])[shared]
        places.append(order[shared].astype(np.uint32))
        numbers.append((count + np.cumsum(begins) - 1).astype(np.uint32))
        count += int(begins.sum())
    place, number = np.concatenate(places), np.concatenate(numbers)
    order = np.argsort(place, kind="stable")
    return _Shared(place[order], number[order], count)


Hashes = NDArray[np.uint64]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


class _WordHashes(dict[str, int]):
    """The hash of each word, case folded. To look one up is several times as fast as a call that is
    cached; when it is full it begins anew."""

    def __missing__(self, word: str) -> int:
        if len(self) == _MOST_WORDS:
            self.clear()
        data = word.casefold().encode("utf-8", "surrogatepass")
        found = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
        self[word] = found
        return found


_MOST_WORDS = 1 << 16
_HASHES = _WordHashes()


def word_hashes(text: str) -> Hashes:
    """One 64-bit hash per word of `text`, case folded, in order. A text without any word counts as
    one word, itself."""
    found = ts.words(text) or [text.strip()]
    return np.fromiter(map(_HASHES.__getitem__, found), np.uint64, len(found))


def ngram_hashes(words: Hashes, n: int) -> Hashes:
    """The hash of every `n` words in a row; of a text of fewer words, one hash of them all."""
    n = min(n, len(words))
    count = len(words) - n + 1
    return combine_counts([words[place : place + count] for place in range(n)])


def combine_counts(columns: Sequence[Hashes]) -> Hashes:
    """One hash for each row of these columns, which depends on their order."""
    mixed = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        mixed = (mixed + column) * _STEP
        mixed ^= mixed >> np.uint64(32)
    mixed *= _MIX
    return mixed ^ (mixed >> np.uint64(29))


@dataclass(frozen=True)
class EvalItems:
    """The items of evaluations, to look training texts up in.

    `hashes` are those of all n-grams, sorted; `items` and `starts` say of which item and word
    each one is. Items shorter than `n` words are in `whole`, by the hash of all their words.
    """

    n: int
    lengths: NDArray[np.int64]
    hashes: Hashes
    items: NDArray[np.int64]
    starts: NDArray[np.int64]
    whole: dict[int, int]

    def matched(self, text: str, share: float) -> int | None:
        """The item of which `text` holds the most, by the share of the item's words that lie in
        n-grams of the text, where that is `share` (in (0, 1]) or more; None where there is none.

        An item of fewer than `n` words matches a text of the same words alone.
        """
        words = word_hashes(text)
        same = self.whole.get(_of_all(words))
        if same is not None:
            return same
        grams = np.unique(ngram_hashes(words, self.n))
        low = np.searchsorted(self.hashes, grams, "left")
        high = np.searchsorted(self.hashes, grams, "right")
        hits = [np.arange(a, b) for a, b in zip(low, high, strict=True) if a < b]
        if not hits or len(words) < self.n:
            return None
        found = np.concatenate(hits)
        covered = {
            int(item): self._covered_share(int(item), self.starts[found[self.items[found] == item]])
            for item in np.unique(self.items[found])
        }
        best = max(covered, key=lambda item: (covered[item], -item))
        return best if covered[best] >= share else None

    def _covered_share(self, item: int, starts: NDArray[np.int64]) -> float:
        marked = np.zeros(self.lengths[item], bool)
        for offset in range(self.n):
            marked[starts + offset] = True
        return float(marked.mean())


def eval_items(texts: Sequence[str], n: int = 8) -> EvalItems:
    """The items with these texts."""
    words = [word_hashes(text) for text in texts]
    grams = [ngram_hashes(found, n) if len(found) >= n else found[:0] for found in words]
    hashes = np.concatenate([np.zeros(0, np.uint64), *grams])
    order = np.argsort(hashes, kind="stable")
    counts = [len(found) for found in grams]
    starts = [np.arange(count) for count in counts]
    return EvalItems(
        n,
        np.array([len(found) for found in words]),
        hashes[order],
        np.repeat(np.arange(len(texts)), counts)[order],
        np.concatenate([np.zeros(0, np.int64), *starts])[order],
        {_of_all(found): i for i, found in enumerate(words) if len(found) < n},
    )


def _of_all(words: Hashes) -> int:
    return int(combine_counts([words[i : i + 1] for i in range(len(words))])[0])
