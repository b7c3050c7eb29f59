"""Which texts hold what an evaluation asks, by their n-grams of words (arXiv 2411.15124, section 3:
an item is contaminated where n-grams of one training text hold at least half of its words)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlaif.data.shingles import Hashes, combined, ngram_hashes, word_hashes


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
            int(item): self._covered(int(item), self.starts[found[self.items[found] == item]])
            for item in np.unique(self.items[found])
        }
        best = max(covered, key=lambda item: (covered[item], -item))
        return best if covered[best] >= share else None

    def _covered(self, item: int, starts: NDArray[np.int64]) -> float:
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
    return int(combined([words[i : i + 1] for i in range(len(words))])[0])
