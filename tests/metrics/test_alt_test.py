"""The alternative annotator test: golden values, invariances, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from rlaif.metrics.alt_test import VotedItem, p_below, run_alt_test
from rlaif.metrics.claims import benjamini_yekutieli

GOLDEN = np.asarray([1.0] * 10 + [-1.0] * 10 + [0.0] * 30)


def items_of(votes: np.ndarray, judge: np.ndarray) -> list[VotedItem]:
    """`votes` are (items, people) of 0 and 1, `judge` (items,)."""
    return [
        VotedItem(f"p{n:03d}", float(j), {f"person{k}": float(v) for k, v in enumerate(row)})
        for n, (row, j) in enumerate(zip(votes, judge, strict=True))
    ]


@pytest.mark.parametrize(("epsilon", "p"), [(0.1, 0.136893), (0.15, 0.051631), (0.2, 0.015771)])
def test_p_of_ten_wins_ten_losses_and_thirty_ties(epsilon: float, p: float) -> None:
    """By hand: mean 0, sd sqrt(20/49), t = -epsilon sqrt(50) / sd with 49 df."""
    assert p_below(GOLDEN, epsilon) == pytest.approx(p, abs=5e-7)


def test_equal_differences_are_below_epsilon_or_not() -> None:
    zeros = np.zeros(40)
    assert (p_below(zeros, 0.1), p_below(zeros, 0.0), p_below(zeros + 1, 0.1)) == (0.0, 1.0, 1.0)


def test_three_people_of_the_golden_differences_pass_at_a_fifth_alone() -> None:
    """Benjamini-Yekutieli thresholds of three are .0090909, .0181818 and .0272727: p = .015771 of
    all three passes by the last, p = .136893 does not."""
    for epsilon, outdone in ((0.2, True), (0.1, False)):
        p = dict.fromkeys("abc", p_below(GOLDEN, epsilon))
        assert [value <= 0.05 for value in benjamini_yekutieli(p).values()] == [outdone] * 3


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.0001, 1.0), min_size=1, max_size=8))
def test_yekutieli_is_statsmodels(p: list[float]) -> None:
    found = benjamini_yekutieli({str(place): value for place, value in enumerate(p)})
    expected = multipletests(p, method="fdr_by")[1]
    # It caps each adjusted p at 1, and so do we.
    assert [found[str(place)] for place in range(len(p))] == pytest.approx(list(expected))


def test_a_copy_of_one_person_ties_with_them_and_a_majority_outdoes_all() -> None:
    rng = np.random.default_rng(0)
    votes = (rng.random((60, 3)) < 0.5).astype(float)
    copy = run_alt_test(items_of(votes, votes[:, 1]), 0.2)
    assert copy.people[1].judge_at_least == copy.people[1].person_at_least == 1.0
    assert copy.people[1].p == 0.0
    majority = run_alt_test(items_of(votes, (votes.sum(axis=1) > 1.5).astype(float)), 0.2)
    assert majority.advantage == 1.0
    assert (majority.winning_rate, majority.passed) == (1.0, True)


def test_scores_by_hand() -> None:
    """Six items; on each the others of person0 say 1, 1. The judge says 1 on four and 0 on two, and
    person0 1 on three and 0 on three, of which the judge differs on one."""
    votes = np.asarray([[1, 1, 1]] * 3 + [[0, 1, 1]] * 3)
    judge = np.asarray([1, 1, 1, 1, 0, 0])
    row = run_alt_test(items_of(votes, judge), 0.1).people[0]
    # The judge is ahead on the fourth item, and level on the others.
    assert (row.judge_at_least, row.person_at_least) == (1.0, pytest.approx(5 / 6))
    assert row.test == "signed rank"


def test_items_of_one_prompt_are_one() -> None:
    rng = np.random.default_rng(1)
    votes = (rng.random((40, 3)) < 0.6).astype(float)
    judge = (rng.random(40) < 0.6).astype(float)
    once = items_of(votes, judge)
    twice = run_alt_test([*once, *once], 0.1)
    assert twice == run_alt_test(once, 0.1)


def test_names_of_people_and_order_of_items_change_nothing() -> None:
    rng = np.random.default_rng(2)
    votes = (rng.random((50, 4)) < 0.7).astype(float)
    given_items = items_of(votes, (rng.random(50) < 0.7).astype(float))
    plain = run_alt_test(given_items, 0.15)
    renamed = [
        VotedItem(i.prompt_id, i.judge, {f"z{9 - int(n[-1])}": v for n, v in i.votes.items()})
        for i in reversed(given_items)
    ]
    other = run_alt_test(renamed, 0.15)
    assert (plain.winning_rate, plain.passed) == (other.winning_rate, other.passed)
    assert plain.advantage == pytest.approx(other.advantage)
    assert sorted(r.p for r in plain.people) == pytest.approx(sorted(r.p for r in other.people))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * 4), min_size=6, max_size=20))
def test_turning_every_answer_round_changes_nothing(rows: list[tuple[float, ...]]) -> None:
    votes, judge = np.asarray(rows)[:, :3], np.asarray(rows)[:, 3]
    assert run_alt_test(items_of(votes, judge), 0.1) == run_alt_test(
        items_of(1 - votes, 1 - judge), 0.1
    )


def test_too_few_people_or_items_are_refused_with_the_reason() -> None:
    votes = np.ones((40, 2))
    two = run_alt_test(items_of(votes, votes[:, 0]), 0.1)
    assert two.passed is None
    assert two.refusal == ("2 people voted on pairs that another one voted on; the test needs 3")
    few = run_alt_test(items_of(np.ones((5, 3)), np.ones(5)), 0.1)
    assert few.skipped == {"person0": 5, "person1": 5, "person2": 5}
    assert few.refusal is not None and few.refusal.startswith("0 of 3 people share 6 prompts")
    alone = [VotedItem(f"p{n}", 1.0, {f"person{n}": 1.0}) for n in range(40)]
    none = run_alt_test(alone, 0.1)
    assert none.refusal == "no pair has the votes of two people and a verdict of the judge"


def test_a_person_with_few_items_is_skipped_and_named() -> None:
    votes = (np.random.default_rng(3).random((40, 3)) < 0.8).astype(float)
    rows = items_of(votes, np.ones(40))
    rows[:4] = [VotedItem(i.prompt_id, 1.0, {**i.votes, "guest": 1.0}) for i in rows[:4]]
    found = run_alt_test(rows, 0.1)
    assert found.skipped == {"guest": 4}
    assert [row.person for row in found.people] == ["person0", "person1", "person2"]
