"""Figures of labelled pairs: sizes, lengths, labels, what two files have in common."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlaif import textstats as ts
from rlaif.data.labelled import LabelledPair
from rlaif.data.labels import given_pair


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


def describe(pairs: Sequence[LabelledPair]) -> Description:
    """The figures of some pairs."""
    won = [p if p.label > 0.5 else p.swap() for p in pairs if p.label not in (None, 0.5)]
    words = [(len(ts.words(p.first.text)), len(ts.words(p.second.text))) for p in won]
    seen = Counter(given_pair(p).pair_id for p in pairs)
    differing = [one > two for one, two in words if one != two]
    firsts = [p.label > 0.5 for p in pairs if p.label not in (None, 0.5)]
    found = Description(
        pairs=len(pairs),
        prompts=len({p.prompt.prompt_id for p in pairs}),
        ties=sum(p.label == 0.5 for p in pairs),
        unlabelled=sum(p.label is None for p in pairs),
        repeated=sum(seen.values()) - len(seen),
        same=sum(p.first.text == p.second.text for p in pairs),
        first_better=_share(firsts),
        chosen_words=_spread([one for one, _ in words]),
        rejected_words=_spread([two for _, two in words]),
        longer_chosen=_share(differing),
        gap=_spread([p.scores[0] - p.scores[1] for p in won if p.scores is not None]),
        subsets=_counts(p.subset for p in pairs),
        authors=_counts(name for p in pairs for name in p.authors or ()),
        annotators=_counts(p.annotator or f"not named ({p.annotator_kind})" for p in pairs),
        warnings=[],
    )
    found.warnings.extend(_warnings(found))
    return found


def _warnings(found: Description) -> list[str]:
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
    one, two = _labels(first), _labels(second)
    both = sorted(one.keys() & two.keys())
    same = sum(one[name] == two[name] for name in both)
    turned = sum(_turned(one[name], two[name]) for name in both)
    return Difference(
        len(both),
        len(one) - len(both),
        len(two) - len(both),
        same,
        turned,
        len(both) - same - turned,
    )


def _labels(pairs: Iterable[LabelledPair]) -> dict[str, float | None]:
    """P(the answer of the smaller id is better), by pair."""
    found: dict[str, float | None] = {}
    for pair in pairs:
        given = given_pair(pair)
        label = pair.label
        if label is not None and pair.first.completion_id != given.first:
            label = 1.0 - label
        found.setdefault(given.pair_id, label)
    return found


def _turned(one: float | None, two: float | None) -> bool:
    return one is not None and two is not None and (one - 0.5) * (two - 0.5) < 0


def _spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    ordered = sorted(values)
    last = len(ordered) - 1
    return Spread(
        statistics.fmean(ordered),
        statistics.median(ordered),
        ordered[round(0.05 * last)],
        ordered[round(0.95 * last)],
    )


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def _counts(names: Iterable[str | None]) -> dict[str, int]:
    found = Counter(name for name in names if name is not None)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))
