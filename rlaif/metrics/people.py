"""How far people agree with one another, and with a judge, from their votes. Pure functions.

Every figure of the items is Hájek-weighted (`active_choice`): where items were drawn with unequal
probabilities it is a figure of all items. Intervals are over prompts.

The human ceiling is how often a random person agrees with another on the same item. A judge that
agrees with a random person as often is as good as one more person.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from math import fsum

import numpy as np

from rlaif.data.votes import Vote, VoteItem
from rlaif.metrics.active_choice import hajek_weights, weigh_figure
from rlaif.metrics.agreement import (
    Distance,
    cohen_kappa,
    fleiss_kappa,
    interval,
    krippendorff_alpha,
    nominal,
)
from rlaif.metrics.dawid_skene import fit_dawid_skene
from rlaif.metrics.intervals import Interval
from rlaif.metrics.pooled import figure_intervals
from rlaif.metrics.weighted import Figure, Floats, Ints, mean_of

CLASSES = ("a", "b", "tie", "both_bad")
"""What can be said of a pair, in the order of their codes."""
FEWEST_VOTES = 20
"""With fewer votes nothing is said of how good a person is, and with fewer items in common nothing
of how far two people agree."""
FEWEST_PEOPLE = 3
"""Of two people who differ, nothing but a third tells which one errs."""
CREDIT = np.asarray([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.5, 0.5, 0.5]])
"""How far two verdicts of a, b and tie agree: a tie on either side counts one half, as in
judge-bench's `agreement_half`, so that a judge that never says so is at no disadvantage."""


@dataclass(frozen=True, slots=True)
class VoteTable:
    """Votes by column: the codes of person and item, and what was given (the code of a class, or a
    number on a scale), each (n,). `names` are the people's; `items` and their `prompts` are ids;
    `own`, (items,), are the items' Hájek weights. `scaled`: the numbers are those of a scale."""

    person: Ints
    item: Ints
    given: Floats
    names: tuple[str, ...]
    items: tuple[str, ...]
    prompts: tuple[str, ...]
    own: Floats
    scaled: bool = False

    def counts(self) -> Floats:
        """How many people gave each class to each item, (items, classes)."""
        total = np.zeros((len(self.items), len(CLASSES)))
        np.add.at(total, (self.item, self.given.astype(np.int64)), 1.0)
        return total

    def stacked(self) -> Floats:
        """The votes of each item below one another, (most votes of an item, items), NaN where there
        are no more: what does not ask whose they are."""
        order = np.argsort(self.item, kind="stable")
        item = self.item[order]
        starts = np.searchsorted(item, np.arange(len(self.items)))
        row = np.arange(item.size) - starts[item]
        found = np.full((row.max(initial=-1) + 1, len(self.items)), np.nan)
        found[row, item] = self.given[order]
        return found


def vote_table(
    votes: Iterable[Vote], items: Mapping[str, VoteItem], principle: str | None = None
) -> VoteTable:
    """The votes that say something, on the whole or on one principle; a skipped item, and a
    principle that was left open, is missing. Their order does not matter."""
    rows = sorted(
        (vote.item_id, vote.annotator, value, vote.kind)
        for vote in votes
        if (value := vote_value(vote, principle)) is not None and vote.item_id in items
    )
    known = sorted({row[0] for row in rows})
    names = sorted({row[1] for row in rows})
    return VoteTable(
        person=_codes_of((row[1] for row in rows), names),
        item=_codes_of((row[0] for row in rows), known),
        given=np.asarray([row[2] for row in rows], dtype=np.float64),
        names=tuple(names),
        items=tuple(known),
        prompts=tuple(items[name].prompt_id for name in known),
        own=hajek_weights(np.asarray([items[name].probability for name in known])),
        scaled=any(row[3] == "rating" for row in rows),
    )


def _codes_of(values: Iterable[str], known: Sequence[str]) -> Ints:
    codes = {name: code for code, name in enumerate(known)}
    return np.asarray([codes[value] for value in values], dtype=np.int64)


def vote_value(vote: Vote, principle: str | None = None) -> float | None:
    """The code of what was said of a pair, or the level of a rating; None where nothing was."""
    if principle is not None:
        said: str | None = vote.principles.get(principle)
        if vote.kind == "rating":
            return None if said is None or not _is_number(said) else float(said)
    elif vote.kind == "rating":
        return vote.rating
    else:
        said = vote.verdict
    return float(CLASSES.index(said)) if said in CLASSES else None


def _is_number(text: str) -> bool:
    return text.lstrip("-").replace(".", "", 1).isdigit()


def agreement_intervals(table: VoteTable) -> dict[str, Interval]:
    """`people_agreement`: the probability that two random people who saw an item said the same;
    `alpha`: Krippendorff's, by categories or, on a scale, by squared distances; `fleiss_kappa`.
    What is undefined is absent, all of it where no item has two votes."""
    votes = table.stacked()
    shared = np.flatnonzero((~np.isnan(votes)).sum(axis=0) >= 2)
    distance: Distance = interval if table.scaled else nominal
    figures = {
        "people_agreement": mean_of(_same_share(votes)),
        "alpha": Figure(krippendorff_alpha(votes, distance), shared.size, shared),
        "fleiss_kappa": Figure(fleiss_kappa(votes), shared.size, shared),
    }
    weighted = {name: weigh_figure(figure, table.own) for name, figure in figures.items()}
    return figure_intervals(weighted, table.prompts) if shared.size else {}


def _same_share(votes: Floats) -> Floats:
    """The share of each item's pairs of votes that are equal, (items,), NaN with fewer than two."""
    size = (~np.isnan(votes)).sum(axis=0)
    same = np.zeros(votes.shape[1])
    for one, other in combinations(votes, 2):
        same += one == other
    pairs = size * (size - 1) / 2
    return np.where(size >= 2, same / np.maximum(pairs, 1.0), np.nan)


@dataclass(frozen=True, slots=True)
class TwoPeople:
    """Cohen's kappa of two people on the items that both voted on, at least `FEWEST_VOTES`."""

    first: str
    second: str
    kappa: Interval


def kappas_by_two(table: VoteTable) -> list[TwoPeople]:
    """Every two people with enough items in common, in order of name."""
    said: dict[int, dict[int, float]] = {}
    columns = zip(table.person.tolist(), table.item.tolist(), table.given.tolist(), strict=True)
    for person, item, given in columns:
        said.setdefault(person, {})[item] = given
    found = []
    for one, other in combinations(range(len(table.names)), 2):
        common = sorted(said[one].keys() & said[other].keys())
        if len(common) < FEWEST_VOTES:
            continue
        ours, theirs = (np.asarray([said[who][item] for item in common]) for who in (one, other))
        figure = weigh_figure(Figure(cohen_kappa(ours, theirs), len(common)), table.own[common])
        kappa = figure_intervals({"kappa": figure}, [table.prompts[item] for item in common])
        if "kappa" in kappa:
            found.append(TwoPeople(table.names[one], table.names[other], kappa["kappa"]))
    return found


@dataclass(frozen=True, slots=True)
class Annotator:
    """One person. `skipped` of `votes` say nothing. `seconds` is the median time of a vote.

    `agreement`: how often another person who saw the item said the same. `accuracy`: the expected
    share of right votes by the model of Dawid and Skene, whose interval takes the fitted classes as
    known; on items with two votes or more, and None with fewer than `FEWEST_VOTES` of these or with
    fewer than `FEWEST_PEOPLE` people. `left`: how often the chosen answer stood first, 0.5 without
    a bias. `gold`: how often the answer to a gold question was right.
    """

    name: str
    votes: int
    skipped: int
    seconds: float
    agreement: Interval | None
    accuracy: Interval | None
    left: Interval | None
    gold: Interval | None


def annotator_quality(votes: Sequence[Vote], items: Mapping[str, VoteItem]) -> list[Annotator]:
    """Everybody who voted, in order of name."""
    table = vote_table(votes, items)
    counted = _shared_values(table)
    found = []
    ordered = sorted(votes, key=lambda vote: (vote.annotator, vote.item_id))
    for name, group in groupby(ordered, lambda vote: vote.annotator):
        own = list(group)
        prompts = [items[v.item_id].prompt_id if v.item_id in items else v.item_id for v in own]
        values = {
            "left_rate": [_chose_left(vote) for vote in own],
            "gold_accuracy": [_gold_right(vote, items.get(vote.item_id)) for vote in own],
        }
        figures = {key: mean_of(np.asarray(column)) for key, column in values.items()}
        known = figure_intervals(figures, prompts) | counted.get(name, {})
        found.append(
            Annotator(
                name,
                len(own),
                sum(vote.verdict == "skip" for vote in own),
                float(np.median([vote.seconds for vote in own])),
                known.get("people_agreement"),
                known.get("annotator_accuracy"),
                known.get("left_rate"),
                known.get("gold_accuracy"),
            )
        )
    return found


def _shared_values(table: VoteTable) -> dict[str, dict[str, Interval]]:
    """By person, agreement with others and the model's accuracy, on items with two votes."""
    if table.scaled:
        return {}
    counts = table.counts()
    size = counts.sum(axis=1)[table.item]
    rows = np.flatnonzero(size >= 2)
    if not rows.size:
        return {}
    given = table.given[rows].astype(np.int64)
    item = np.unique(table.item[rows], return_inverse=True)[1].astype(np.int64)
    people, person = np.unique(table.person[rows], return_inverse=True)
    same = (counts[table.item[rows], given] - 1.0) / (size[rows] - 1.0)
    fitted = fit_dawid_skene(person.astype(np.int64), item, given, len(CLASSES))
    right = fitted.classes[item, given]
    found = {}
    for code, who in enumerate(people.tolist()):
        mine = person == code
        figures = {"people_agreement": mean_of(same[mine])}
        if mine.sum() >= FEWEST_VOTES and people.size >= FEWEST_PEOPLE:
            figures["annotator_accuracy"] = mean_of(right[mine])
        prompts = [table.prompts[table.item[row]] for row in rows[mine]]
        found[table.names[who]] = figure_intervals(figures, prompts)
    return found


def _chose_left(vote: Vote) -> float:
    """1 where the answer that stood first was chosen, NaN where none was."""
    if vote.kind != "pair" or vote.verdict not in ("a", "b"):
        return np.nan
    return float((vote.verdict == "a") == (vote.slot_of_a == 0))


def _gold_right(vote: Vote, item: VoteItem | None) -> float:
    """1 where a gold question was answered right, NaN where none was asked or answered."""
    if not vote.gold or item is None or item.gold is None or vote.verdict == "skip":
        return np.nan
    if vote.kind == "rating":
        return float(vote.rating is not None and f"{vote.rating:g}" == item.gold)
    return float(vote.verdict == item.gold)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A judge beside the human ceiling, on the same items: `people`, how often a random person
    agrees with another; `judged`, how often the judge agrees with a random person; and
    `difference`, the judge's less the people's, paired by item."""

    judge: str
    people: Interval
    judged: Interval
    difference: Interval


def human_ceiling(votes: Iterable[Vote], items: Mapping[str, VoteItem]) -> list[Ceiling]:
    """Every judge whose verdict on the pairs was known, in order of id, on the pairs with two votes
    or more of a, b or tie. Gold questions and votes that were given with the judge's verdict in
    sight do not count."""
    blind = (v for v in votes if v.kind == "pair" and not v.gold and not v.prelabel_shown)
    table = vote_table(blind, items)
    counts = table.counts()[:, :3]
    codes = judge_codes([items[name] for name in table.items])
    found = (
        measure_ceiling(judge, counts, codes[judge], table.prompts, table.own)
        for judge in sorted(codes)
    )
    return [ceiling for ceiling in found if ceiling is not None]


def measure_ceiling(
    judge: str, counts: Floats, codes: Ints, prompts: Sequence[str], own: Floats | None = None
) -> Ceiling | None:
    """A judge beside the human ceiling on the pairs that it decided and two people or more did;
    None without such a pair.

    counts: how many people said a, b and tie of each pair, (pairs, 3); codes: what the judge said,
    (pairs,), 0, 1, 2, or -1 where it said nothing; own: the pairs' Hájek weights, (pairs,).
    """
    size = counts.sum(axis=1)
    agreed = np.einsum("ik,kl,il->i", counts, CREDIT, counts) - counts @ np.diag(CREDIT)
    shared = (size >= 2) & (codes >= 0)
    people = np.where(shared, agreed / np.where(shared, size * (size - 1.0), 1.0), np.nan)
    judged = np.where(shared, (counts * CREDIT[codes]).sum(axis=1) / np.maximum(size, 1), np.nan)
    figures = {
        "people_agreement": mean_of(people),
        "judge_agreement": mean_of(judged),
        "ceiling_gap": mean_of(judged - people),
    }
    if not shared.any():
        return None
    if own is not None:
        figures = {name: weigh_figure(figure, own) for name, figure in figures.items()}
    ends = figure_intervals(figures, prompts)
    return Ceiling(judge, *(ends[name] for name in figures))


def verdict_code(prob: float) -> int:
    """The code in `CLASSES` of a probability that answer a is better: one half is a tie."""
    return 2 if prob == 0.5 else int(prob < 0.5)


def judge_codes(items: Sequence[VoteItem]) -> dict[str, Ints]:
    """By judge, the code of what it said of each pair, (items,), and -1 where it said nothing. Of
    several verdicts of a judge the mean counts."""
    said: dict[str, dict[int, list[float]]] = {}
    for place, item in enumerate(items):
        for one in item.judges:
            if one.prob_a is not None:
                said.setdefault(one.judge, {}).setdefault(place, []).append(one.prob_a)
    found = {}
    for judge, by_place in said.items():
        codes = np.full(len(items), -1, dtype=np.int64)
        for place, probs in by_place.items():
            codes[place] = verdict_code(fsum(probs) / len(probs))
        found[judge] = codes
    return found
