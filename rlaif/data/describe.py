"""Figures of labelled pairs: sizes, lengths, labels, what two files have in common."""

from __future__ import annotations

import statistics
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlaif.constitution import textstats as ts
from rlaif.core.ids import IdSet
from rlaif.core.labelled import LabelledPair, given_pair


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, median and the 5th and 95th percentile of a list of numbers."""

    mean: float
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Description:
    """Figures of a file of labelled pairs.

    `chosen_words` and `rejected_words` are of pairs with a winner, `longer_chosen` the share of
    them in which the chosen answer has more words (equal lengths left out), `gap` their scores'
    difference. `repeated` counts pairs of which the file has the same two answers before, `same`
    those whose answers are the same text, `first_better` the share of winners that stand first.
    """

    pairs: int
    prompts: int
    ties: int
    unlabelled: int
    repeated: int
    same: int
    first_better: float | None
    chosen_words: Spread | None
    rejected_words: Spread | None
    longer_chosen: float | None
    gap: Spread | None
    subsets: dict[str, int]
    authors: dict[str, int]
    annotators: dict[str, int]
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """All figures, ready for JSON."""
        return asdict(self)


class Describer:
    """The figures of pairs that are added one by one. Held are numbers, 16 bytes for each pair; ids
    lie on disk."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._ids = IdSet()
        self._prompts = IdSet()
        self._words = (array("i"), array("i"))
        self._gaps = array("d")
        self._subsets: Counter[str] = Counter()
        self._authors: Counter[str] = Counter()
        self._annotators: Counter[str] = Counter()

    def add(self, pair: LabelledPair) -> None:
        """One more pair."""
        counts, label = self._counts, pair.label
        counts["pairs"] += 1
        counts["ties"] += label == 0.5
        counts["unlabelled"] += label is None
        counts["same"] += pair.first.text == pair.second.text
        self._ids.add(given_pair(pair).pair_id)
        self._prompts.add(pair.prompt.prompt_id)
        if pair.subset is not None:
            self._subsets[pair.subset] += 1
        self._authors.update(name for name in pair.authors or () if name is not None)
        self._annotators[pair.annotator or f"not named ({pair.annotator_kind})"] += 1
        if label is None or label == 0.5:
            return
        counts["first"] += label > 0.5
        won = pair if label > 0.5 else pair.swap()
        for kept, side in zip(self._words, (won.first, won.second), strict=True):
            kept.append(len(ts.words(side.text)))
        if won.scores is not None:
            self._gaps.append(won.scores[0] - won.scores[1])

    def found(self) -> Description:
        """The figures so far."""
        counts, (chosen, rejected) = self._counts, self._words
        longer = Counter(one > two for one, two in zip(chosen, rejected, strict=True) if one != two)
        found = Description(
            pairs=counts["pairs"],
            prompts=len(self._prompts),
            ties=counts["ties"],
            unlabelled=counts["unlabelled"],
            repeated=counts["pairs"] - len(self._ids),
            same=counts["same"],
            first_better=counts["first"] / len(chosen) if chosen else None,
            chosen_words=_spread_of(chosen),
            rejected_words=_spread_of(rejected),
            longer_chosen=longer[True] / longer.total() if longer else None,
            gap=_spread_of(self._gaps),
            subsets=_most_first(self._subsets),
            authors=_most_first(self._authors),
            annotators=_most_first(self._annotators),
            warnings=[],
        )
        found.warnings.extend(_find_warnings(found))
        return found


def describe_data(pairs: Iterable[LabelledPair]) -> Description:
    """The figures of some pairs."""
    describer = Describer()
    for pair in pairs:
        describer.add(pair)
    return describer.found()


def _find_warnings(found: Description) -> list[str]:
    decided = found.pairs - found.ties - found.unlabelled
    words = []
    if found.pairs and not decided:
        words.append("no pair has a winner: nothing can be learned from it")
    if decided > 1 and found.first_better in (0.0, 1.0):
        place = "first" if found.first_better else "second"
        words.append(
            f"the better answer is always the {place}: judge it in both orders, and train no "
            "classifier on the order"
        )
    if found.longer_chosen is not None and not 0.25 <= found.longer_chosen <= 0.75:
        words.append(
            f"in {100 * found.longer_chosen:.0f}% of the pairs of unequal length the chosen answer "
            "is the longer one: a model can learn length alone"
        )
    if found.same:
        words.append(f"{found.same} pairs have the same text on both sides")
    if found.repeated:
        words.append(f"{found.repeated} pairs repeat an earlier one")
    return words


@dataclass(frozen=True, slots=True)
class Difference:
    """Two files of pairs beside one another, by the texts and not by the order of the answers."""

    both: int
    only_first: int
    only_second: int
    same_label: int
    turned: int
    other_label: int


def compare_pairs(first: Iterable[LabelledPair], second: Iterable[LabelledPair]) -> Difference:
    """What two files have in common. Of a pair that a file repeats, its first label counts; turned
    labels name the other answer; other labels differ in a tie, a share or a missing one."""
    one, two = _labels_by_pair(first), _labels_by_pair(second)
    both = sorted(one.keys() & two.keys())
    same = sum(one[name] == two[name] for name in both)
    turned = sum(_is_turned(one[name], two[name]) for name in both)
    return Difference(
        len(both),
        len(one) - len(both),
        len(two) - len(both),
        same,
        turned,
        len(both) - same - turned,
    )


def _labels_by_pair(pairs: Iterable[LabelledPair]) -> dict[str, float | None]:
    """P(the answer of the smaller id is better), by pair."""
    found: dict[str, float | None] = {}
    for pair in pairs:
        given = given_pair(pair)
        label = pair.label
        if label is not None and pair.first.completion_id != given.first:
            label = 1.0 - label
        found.setdefault(given.pair_id, label)
    return found


def _is_turned(one: float | None, two: float | None) -> bool:
    return one is not None and two is not None and (one - 0.5) * (two - 0.5) < 0


def _spread_of(values: array[Any]) -> Spread | None:
    if not values:
        return None
    # Sorted in numbers of the machine: a list of Python's would take several times as much.
    ordered = np.sort(np.frombuffer(values, values.typecode))
    last = len(ordered) - 1
    # One number where they are odd, the mean of two where they are even.
    middle = ordered[last // 2 : last // 2 + 2 - len(ordered) % 2].tolist()
    return Spread(
        statistics.fmean(values),
        statistics.median(middle),
        ordered[round(0.05 * last)].item(),
        ordered[round(0.95 * last)].item(),
    )


def _most_first(found: Counter[str]) -> dict[str, int]:
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
