"""Texts as the hashes of their n-grams of words: what near-duplicates and overlaps are found by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlaif.constitution import textstats as ts

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
    return combined([words[place : place + count] for place in range(n)])


def combined(columns: Sequence[Hashes]) -> Hashes:
    """One hash for each row of these columns, which depends on their order."""
    mixed = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        mixed = (mixed + column) * _STEP
        mixed ^= mixed >> np.uint64(32)
    mixed *= _MIX
    return mixed ^ (mixed >> np.uint64(29))
