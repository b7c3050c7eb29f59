"""Votes as judgements: what each verdict becomes, and that people count once."""

from __future__ import annotations

from typing import Any

import pytest

from rlaif.core.errors import ConfigError
from rlaif.core.labelled import given_pair
from rlaif.core.records import Judgement
from rlaif.data.readers.base import make_pair
from rlaif.preferences.labels import annotator_verdicts
from rlaif.preferences.votes import votes_to_judgements
from tests.support.voting import pair_of, vote_on

ITEM = pair_of(1)


def judged(*votes: Any, item: Any = ITEM, **known: Any) -> list[Judgement]:
    return votes_to_judgements(votes, {item.item_id: item}, "people", {}, **known)


@pytest.mark.parametrize(
    ("verdict", "status", "prob"),
    [
        ("a", "ok", 1.0),
        ("b", "ok", 0.0),
        ("tie", "tie", 0.5),
        ("both_bad", "both_bad", None),
        ("skip", "abstain", None),
    ],
)
def test_what_a_verdict_becomes(verdict: str, status: str, prob: float | None) -> None:
    (found,) = judged(vote_on(ITEM, "ann", verdict, comment="Hm."))
    assert (found.status, found.prob_first, found.score) == (status, prob, None)
    assert found.shown == ["c_1a", "c_1b"] and found.subject == "c_1a"
    assert (found.judge, found.annotator_id, found.annotator_kind) == ("people", "ann", "human")
    assert found.rationale == "Hm."


def test_answers_stand_in_order_of_id_and_not_of_slots() -> None:
    turned = pair_of(1, a_id="c_z", b_id="c_y")
    for slot in (0, 1):
        (found,) = judged(vote_on(turned, "ann", "a", slot_of_a=slot), item=turned)
        assert found.shown == ["c_y", "c_z"] and found.prob_first == 0.0


def test_everybody_counts_once_whichever_answer_stood_first() -> None:
    votes = [
        vote_on(ITEM, "ann", "a", slot_of_a=0),
        vote_on(ITEM, "bob", "a", slot_of_a=0),
        vote_on(ITEM, "cat", "b", slot_of_a=1),
        vote_on(ITEM, "dan", "skip", slot_of_a=1),
    ]
    made = judged(*votes, by_content=True)
    assert ITEM.b is not None
    pair = make_pair("here", ITEM.prompt, (ITEM.a[0], ITEM.b[0]), None)
    given = given_pair(pair)
    for_first = annotator_verdicts([given], {"people": made}, {})
    share = 2 / 3 if given.first == pair.first.completion_id else 1 / 3
    assert for_first[given.pair_id] == pytest.approx(share)
    assert judged(*votes) == judged(*votes[::-1])


def test_a_rating_is_a_score_by_the_ends_of_its_scale() -> None:
    item = pair_of(1, kind="rating", b=None, b_id=None)
    vote = vote_on(item, "ann", "rated", rating=4.0)
    scale = {1: "poor", 3: "fair", 5: "good"}
    (found,) = votes_to_judgements([vote], {item.item_id: item}, "people", scale)
    assert (found.score, found.raw_value, found.shown) == (0.75, 4.0, ["c_1a"])
    skipped = vote_on(item, "ann", "skip")
    (found,) = votes_to_judgements([skipped], {item.item_id: item}, "people", scale)
    assert (found.status, found.score) == ("abstain", None)


def test_a_vote_without_its_item_is_named() -> None:
    with pytest.raises(ConfigError, match="ann: the database has no item i0009"):
        judged(vote_on(pair_of(9), "ann", "a"))
