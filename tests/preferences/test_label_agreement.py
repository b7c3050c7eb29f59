"""Which judgements agree with people's order of the answers."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.core.labelled import GivenPair
from rlaif.core.records import Judgement
from rlaif.preferences.agreement import AGAINST, EQUAL, NO_VERDICT, UNLABELLED, find_disagreeing

PAIRS = [GivenPair(f"l_{a}{b}", "p", a, b) for a, b in combinations("abc", 2)]
A_FIRST = {"l_ab": 1.0, "l_ac": 1.0, "l_bc": 1.0}
"""People rank a before b before c."""


def rated(answer: str, score: float | None, sample: int = 0, **keys: Any) -> Judgement:
    whole: dict[str, Any] = {
        "judgement_id": f"{answer}{sample}",
        "call_id": f"{answer}{sample}",
        "prompt_id": "p",
        "subject_kind": "completion",
        "shown": [answer],
        "subject": answer,
        "judge": "self",
        "annotator_id": "m",
        "annotator_kind": "ai",
        "principle": None,
        "status": "unparsed" if score is None else "ok",
        "score": score,
        "sample_index": sample,
    }
    return Judgement(**(whole | keys))


def compared(first: str, second: str, prob: float | None) -> Judgement:
    status = "unparsed" if prob is None else "tie" if prob == 0.5 else "ok"
    keys = {"shown": [first, second], "prob_first": prob, "status": status}
    return rated(first, None, judgement_id=f"{first}{second}", **keys)


def scored(*scores: float | None, sample: int = 0) -> list[Judgement]:
    return [rated(name, score, sample) for name, score in zip("abc", scores, strict=False)]


def test_equal_scores_agree_only_where_agreement_is_weak() -> None:
    judgements = scored(1.0, 0.6, 0.6)
    found = find_disagreeing(judgements, PAIRS, A_FIRST)
    assert found == {"a0": EQUAL, "b0": EQUAL, "c0": EQUAL}
    assert find_disagreeing(judgements, PAIRS, A_FIRST, strict=False) == {}
    assert find_disagreeing(scored(1.0, 0.8, 0.6), PAIRS, A_FIRST) == {}


def test_a_score_that_is_missing_or_wrong_takes_its_sample_of_the_ranking_with_it() -> None:
    judgements = [*scored(1.0, None, 0.6), *scored(0.4, 0.6, 0.2, sample=1), *scored(1, 0.5, 0)]
    judgements[6:] = [rated(j.subject, j.score, 2) for j in judgements[6:]]
    found = find_disagreeing(judgements, PAIRS, A_FIRST)
    assert found == dict.fromkeys(("a0", "b0", "c0"), NO_VERDICT) | dict.fromkeys(
        ("a1", "b1", "c1"), AGAINST
    )


def test_what_people_call_equal_imposes_no_order() -> None:
    tied = A_FIRST | {"l_bc": 0.5}
    assert find_disagreeing(scored(1.0, 0.6, 0.6), PAIRS, tied) == {}
    assert find_disagreeing(scored(1.0, 0.2, 0.6), PAIRS, tied) == {}
    # Without any order there is nothing to agree with.
    only = find_disagreeing(scored(1.0, 0.6), PAIRS[:1], {"l_ab": 0.5})
    assert only == {"a0": UNLABELLED, "b0": UNLABELLED}


def test_rankings_that_share_no_answer_stand_alone() -> None:
    pairs = [GivenPair("l_ab", "p", "a", "b"), GivenPair("l_cd", "p", "c", "d")]
    judgements = [*scored(0.2, 0.6), rated("c", 0.9), rated("d", 0.1)]
    found = find_disagreeing(judgements, pairs, {"l_ab": 1.0, "l_cd": 1.0})
    assert found == {"a0": AGAINST, "b0": AGAINST}


def test_numbers_are_compared_under_one_principle() -> None:
    judgements = [
        rated(name, score, principle=principle, judgement_id=f"{name}_{principle}")
        for principle, scores in (("x", (0.9, 0.1)), ("y", (0.2, 0.6)))
        for name, score in zip("ab", scores, strict=True)
    ]
    found = find_disagreeing(judgements, PAIRS[:1], {"l_ab": 0.75})
    assert found == {"a_y": AGAINST, "b_y": AGAINST}


def test_what_is_against_the_order_is_not_said_to_be_equal() -> None:
    found = find_disagreeing(scored(0.6, 0.6, 0.9), PAIRS, A_FIRST)
    assert found == dict.fromkeys(("a0", "b0", "c0"), AGAINST)


def test_pairs_that_share_an_answer_make_one_ranking_however_far_back_it_is() -> None:
    pairs = [GivenPair(f"l_{a}{b}", "p", a, b) for a, b in ("ab", "bc", "ad")]
    judgements = [*scored(0.9, 0.3, 0.5), rated("d", 0.1)]
    found = find_disagreeing(judgements, pairs, {p.pair_id: 1.0 for p in pairs})
    assert found == dict.fromkeys(("a0", "b0", "c0", "d0"), AGAINST)


def test_a_raw_value_of_nothing_is_a_number() -> None:
    judgements = [
        rated("a", 0.9, raw_value=0.0, judgement_id="a"),
        rated("b", 0.6, raw_value=0.5, judgement_id="b"),
    ]
    assert find_disagreeing(judgements, PAIRS[:1], {"l_ab": 0.0}) == {}


def test_the_judges_own_numbers_decide_where_a_sigmoid_has_made_scores_equal() -> None:
    saturated = [
        rated("a", 1.0, raw_value=80.0, judgement_id="a"),
        rated("b", 1.0, raw_value=60.0, judgement_id="b"),
    ]
    pairs = PAIRS[:1]
    assert find_disagreeing(saturated, pairs, {"l_ab": 1.0}) == {}
    assert set(find_disagreeing(saturated, pairs, {"l_ab": 0.0}).values()) == {AGAINST}


@pytest.mark.parametrize(
    ("first", "second", "prob", "fault"),
    [
        ("a", "b", 0.7, None),
        ("b", "a", 0.7, AGAINST),
        ("b", "a", 0.1, None),
        ("a", "b", 0.5, EQUAL),
        ("a", "b", None, NO_VERDICT),
        ("a", "x", 0.9, UNLABELLED),
    ],
)
def test_a_comparison_agrees_by_itself(
    first: str, second: str, prob: float | None, fault: str | None
) -> None:
    found = find_disagreeing([compared(first, second, prob)], PAIRS, A_FIRST)
    assert found == ({} if fault is None else {f"{first}{second}": fault})
    if fault == EQUAL:
        assert not find_disagreeing([compared(first, second, prob)], PAIRS, A_FIRST, strict=False)


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=3, max_size=3))
def test_labels_turned_round_refuse_what_they_kept(scores: list[float]) -> None:
    turned = {name: 1.0 - label for name, label in A_FIRST.items()}
    kept = 3 - len(find_disagreeing(scored(*scores), PAIRS, A_FIRST))
    kept_turned = 3 - len(find_disagreeing(scored(*scores), PAIRS, turned))
    assert kept == 3 * (scores[0] > scores[1] > scores[2])
    assert kept_turned == 3 * (scores[0] < scores[1] < scores[2])
