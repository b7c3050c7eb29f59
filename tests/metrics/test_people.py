"""Agreement between people, the human ceiling and annotators' quality, by hand and by peers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import DawidSkene as CrowdKit
from statsmodels.stats.inter_rater import fleiss_kappa as statsmodels_fleiss

from rlaif.data.votes import ItemJudge, Vote, VoteItem
from rlaif.metrics.agreement import fleiss_kappa
from rlaif.metrics.dawid_skene import fit_dawid_skene
from rlaif.metrics.people import (
    agreement_intervals,
    annotator_quality,
    human_ceiling,
    kappas_by_two,
    vote_table,
    vote_value,
)
from tests.support.weights import plain

FLEISS = np.asarray(
    [
        *([0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]),
        *([7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]),
    ]
)
"""Ratings of ten subjects by 14 raters in five categories."""


def ratings_of(counts: np.ndarray) -> np.ndarray:
    return np.stack([np.repeat(np.arange(row.size), row) for row in counts]).T.astype(np.float64)


def pair(name: str, prob: float | None = None, **known: Any) -> VoteItem:
    judges = [] if prob is None else [ItemJudge(judge="j", annotator="model", prob_a=prob)]
    given: dict[str, Any] = {
        "item_id": name,
        "kind": "pair",
        "prompt_id": "p_" + name,
        "prompt": [{"role": "user", "content": "Why?"}],
        "a": [{"role": "assistant", "content": "So."}],
        "a_id": "x_a" + name,
        "b": [{"role": "assistant", "content": "Thus."}],
        "b_id": "x_b" + name,
        "judges": judges,
    }
    return VoteItem(**given | known)


def vote(item: str, who: str, verdict: Any, **known: Any) -> Vote:
    return Vote(
        vote_id=f"{item}-{who}",
        item_id=item,
        annotator=who,
        verdict=verdict,
        **{"kind": "pair", **known},
    )


def votes_of(said: dict[str, Sequence[str]]) -> list[Vote]:
    """By item, what the people ann, bob, … said; an empty text is nothing."""
    names = ("ann", "bob", "cat", "dan")
    return [
        vote(item, who, verdict)
        for item, row in said.items()
        for who, verdict in zip(names, row, strict=False)
        if verdict
    ]


def test_fleiss_kappa_of_the_textbook_table() -> None:
    found = plain(fleiss_kappa(ratings_of(FLEISS)), len(FLEISS))
    assert found == pytest.approx(0.20993070442195522, abs=1e-12)
    assert found == pytest.approx(statsmodels_fleiss(FLEISS), abs=1e-12)


def test_fleiss_kappa_where_people_are_missing() -> None:
    missing = np.nan
    ratings = np.asarray([[0, 0, 1, missing], [0, 1, 1, 0], [0, missing, 0, missing]])
    # Agreement 1, 0, 1/3; shares of 0 are 1, 1/2, 1/3 on the three units with two ratings.
    observed, zero = (1 + 0 + 1 / 3) / 3, (1 + 1 / 2 + 1 / 3) / 3
    expected = zero**2 + (1 - zero) ** 2
    by_hand = (observed - expected) / (1 - expected)
    assert plain(fleiss_kappa(ratings), 4) == pytest.approx(by_hand, abs=1e-12)


def test_agreement_of_two_random_people_by_hand() -> None:
    items = {name: pair(name) for name in "wxyz"}
    said = votes_of({"w": "aaa", "x": "aab", "y": ["a", "tie"], "z": ["b"]})
    said.append(vote("z", "bob", "skip"))
    found = agreement_intervals(vote_table(said, items))
    # All of three, one of three, none of one; z has one vote that says something.
    assert found["people_agreement"].mean == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found["people_agreement"].n == 3
    assert {"alpha", "fleiss_kappa"} <= found.keys()


def test_items_that_were_unlikely_to_be_drawn_count_more() -> None:
    items = {"x": pair("x", probability=0.25), "y": pair("y", probability=1.0)}
    found = agreement_intervals(vote_table(votes_of({"x": "aa", "y": "ab"}), items))
    assert found["people_agreement"].mean == pytest.approx(4 / 5)


def test_votes_on_a_principle_and_levels() -> None:
    given = vote("x", "ann", "a", principles={"honest": "b", "brief": "open"})
    assert vote_value(given) == 0.0
    assert vote_value(given, "honest") == 1.0
    assert vote_value(given, "brief") is None and vote_value(given, "absent") is None
    rated = vote("x", "ann", "rated", kind="rating", rating=3.0, principles={"honest": "-1"})
    assert (vote_value(rated), vote_value(rated, "honest")) == (3.0, -1.0)


def test_a_scale_is_compared_by_distance() -> None:
    items = {name: pair(name, kind="rating") for name in "wxyz"}
    levels = {"w": (1.0, 2.0), "x": (4.0, 5.0), "y": (2.0, 2.0), "z": (5.0, 4.0)}
    rated = [
        vote(name, who, "rated", kind="rating", rating=level)
        for name, row in levels.items()
        for who, level in zip(("ann", "bob"), row, strict=True)
    ]
    found = agreement_intervals(vote_table(rated, items))
    # D_o: each unit's two ordered pairs, distances 1, 1, 0, 1: 6 / 8. D_e over all 56 ordered
    # pairs of the values 1 2 4 5 2 2 5 4: 2 * 8 * sum of squares - 2 * sum^2 = 270, over 56.
    assert found["alpha"].mean == pytest.approx(1 - (6 / 8) / (270 / 56))


def test_the_ceiling_by_hand() -> None:
    items = {"w": pair("w", 0.9), "x": pair("x", 0.2), "y": pair("y", 0.5), "z": pair("z", 0.9)}
    said = votes_of({"w": "aab", "x": "bb", "y": ["a", "tie"], "z": ["a"]})
    (found,) = human_ceiling(said, items)
    # w: 1/3 of people's pairs agree and the judge with 2/3 of the people; x: all; y: a tie is a
    # half on either side; z has one vote.
    assert found.people.mean == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)
    assert found.judged.mean == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert found.difference.mean == pytest.approx(1 / 9)


def test_the_ceiling_leaves_out_gold_and_votes_that_saw_the_judge() -> None:
    items = {name: pair(name, 0.9) for name in "xyz"}
    said = [
        *votes_of({"x": "aa"}),
        *(vote("y", who, "b", gold=True) for who in ("ann", "bob")),
        *(vote("z", who, "b", prelabel_shown=True) for who in ("ann", "bob")),
    ]
    (found,) = human_ceiling(said, items)
    assert (found.people.n, found.judged.mean) == (1, 1.0)
    assert human_ceiling(votes_of({"x": "a"}), items) == []


def planted(right: Sequence[float], items: int, seed: int = 0) -> tuple[list[Vote], list[str]]:
    """Votes of people who are right with these probabilities, else give the other answer."""
    rng = random.Random(seed)
    truth = [rng.choice("ab") for _ in range(items)]
    other = {"a": "b", "b": "a"}
    made = []
    for who, chance in enumerate(right):
        for number, true in enumerate(truth):
            said = true if rng.random() < chance else other[true]
            made.append(vote(f"i{number:04d}", f"person{who}", said, slot_of_a=number % 2))
    return made, truth


def columns_of(votes: list[Vote]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = vote_table(votes, {v.item_id: pair(v.item_id) for v in votes})
    return table.person, table.item, table.given.astype(np.int64)


def test_dawid_skene_equals_crowd_kit() -> None:
    votes, _ = planted([0.95, 0.85, 0.8, 0.7], 60)
    person, item, given = columns_of(votes)
    ours = fit_dawid_skene(person, item, given, 2, prior=0.0)
    frame = pd.DataFrame({"task": item, "worker": person, "label": given})
    peer = CrowdKit(n_iter=40, tol=0.0).fit(frame)
    assert np.abs(ours.classes - peer.probas_[[0, 1]].to_numpy()).max() < 1e-3
    for who in range(4):
        errors = peer.errors_.loc[who].loc[[0, 1], [0, 1]].to_numpy()
        assert np.abs(ours.confusion[who].T - errors).max() < 1e-3


def test_the_model_finds_who_errs() -> None:
    right = [0.95, 0.9, 0.6, 0.5]
    votes, truth = planted(right, 600)
    fitted = fit_dawid_skene(*columns_of(votes), classes=4)
    found = ["ab"[code] for code in fitted.classes.argmax(axis=1)]
    majority = sum(a == b for a, b in zip(found, truth, strict=True)) / len(truth)
    assert majority > 0.94
    items = {v.item_id: pair(v.item_id) for v in votes}
    people = annotator_quality(votes, items)
    for person, chance in zip(people, right, strict=True):
        assert person.accuracy is not None
        assert person.accuracy.mean == pytest.approx(chance, abs=0.04)
    by_two = {(k.first, k.second): k.kappa.mean for k in kappas_by_two(vote_table(votes, items))}
    # Two who are right with p and q agree by chance alone beyond (2p - 1)(2q - 1).
    assert by_two["person0", "person1"] == pytest.approx(0.9 * 0.8, abs=0.08)
    assert by_two["person0", "person3"] == pytest.approx(0.0, abs=0.08)


def test_quality_is_hidden_below_twenty_votes() -> None:
    votes, _ = planted([0.9, 0.9, 0.9], 19)
    items = {v.item_id: pair(v.item_id) for v in votes}
    assert [person.accuracy for person in annotator_quality(votes, items)] == [None] * 3
    assert kappas_by_two(vote_table(votes, items)) == []
    votes, _ = planted([0.9, 0.9], 40)
    items = {v.item_id: pair(v.item_id) for v in votes}
    assert [person.accuracy for person in annotator_quality(votes, items)] == [None] * 2


def test_slots_and_gold_questions() -> None:
    items = {f"i{n}": pair(f"i{n}", gold="a" if n < 4 else None) for n in range(10)}
    said = [
        # Always what stands left, which is a in every other item.
        vote(name, "ann", "a" if n % 2 == 0 else "b", slot_of_a=n % 2, gold=n < 4)
        for n, name in enumerate(items)
    ]
    said[9] = vote("i9", "ann", "skip", slot_of_a=0)
    (ann,) = annotator_quality(said, items)
    assert ann.left is not None and (ann.left.mean, ann.left.n) == (1.0, 9)
    assert ann.left.low is not None and ann.left.low > 0.5
    assert ann.gold is not None and (ann.gold.mean, ann.gold.n) == (0.5, 4)
    assert (ann.votes, ann.skipped, ann.agreement) == (10, 1, None)


def test_the_order_of_votes_changes_nothing() -> None:
    votes, _ = planted([0.9, 0.7, 0.6], 30)
    items = {v.item_id: pair(v.item_id, 0.7) for v in votes}
    shuffled = random.Random(1).sample(votes, len(votes))
    for measure in (annotator_quality, human_ceiling):
        assert measure(votes, items) == measure(shuffled, items)
    one, other = (agreement_intervals(vote_table(v, items)) for v in (votes, shuffled))
    assert one == other and one
