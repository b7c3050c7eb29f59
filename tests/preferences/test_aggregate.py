"""Judgements to scores: order, duplicates, missing values and slots."""

from __future__ import annotations

import math
import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from rlaif.core.labelled import given_pair
from rlaif.core.records import Judgement, Status
from rlaif.data.readers.base import make_pair, user
from rlaif.metrics.verdicts import make_verdict
from rlaif.preferences.aggregate import (
    answer_probability,
    candidate_scores,
    combine,
    compared_scores,
    pair_probability,
    principle_values,
    raw_value,
)
from rlaif.preferences.labels import annotator_verdicts

unit = st.floats(0, 1)


def point(
    subject: str,
    score: float | None,
    principle: str | None = None,
    status: Status = "ok",
    sample: int = 0,
) -> Judgement:
    name = f"{subject}-{principle}-{sample}"
    return Judgement(
        judgement_id=name,
        call_id=name,
        prompt_id="p",
        subject_kind="completion",
        shown=[subject],
        subject=subject,
        judge="j",
        annotator_id="m",
        annotator_kind="ai",
        principle=principle,
        status=status,
        score=score,
        sample_index=sample,
    )


def pair(
    first: str,
    second: str,
    prob: float | None,
    principle: str | None = None,
    status: Status = "ok",
    sample: int = 0,
) -> Judgement:
    name = f"{first}-{second}-{principle}-{sample}"
    return Judgement(
        judgement_id=name,
        call_id=name,
        prompt_id="p",
        subject_kind="completion",
        shown=[first, second],
        subject=first,
        judge="j",
        annotator_id="m",
        annotator_kind="ai",
        principle=principle,
        status=status,
        prob_first=prob,
        sample_index=sample,
    )


def test_samples_are_averaged_and_unparsed_ones_ignored() -> None:
    got = candidate_scores(
        [
            point("a", 0.2),
            point("a", 0.4, sample=1),
            point("a", None, status="unparsed", sample=2),
        ]
    )
    assert got == {"a": pytest.approx(0.3)}


@pytest.mark.parametrize("status", ["unparsed", "failed", "abstain", "both_bad"])
def test_a_candidate_without_a_value_is_missing_never_zero(status: Status) -> None:
    assert candidate_scores([point("a", None, status=status), point("b", 0.0)]) == {
        "a": None,
        "b": 0.0,
    }


def test_principles_are_weighted() -> None:
    got = candidate_scores([point("a", 1.0, "x"), point("a", 0.0, "y")], {"x": 3.0, "y": 1.0})
    assert got == {"a": pytest.approx(0.75)}


def test_candidates_are_compared_on_the_principles_that_apply_to_all_of_them() -> None:
    rows = [
        point("long", 0.6, "plain"),
        point("short", None, "plain", "not_applicable"),
        point("long", 0.8, "brief"),
        point("short", 0.75, "brief"),
    ]
    # On its own the short answer scores higher, since it escapes a principle.
    assert candidate_scores(rows) == {"long": pytest.approx(0.7), "short": 0.75}
    assert compared_scores(rows) == {"long": 0.8, "short": 0.75}
    assert compared_scores(rows, {"plain": 0.0}) == {"long": 0.8, "short": 0.75}
    assert answer_probability(rows, "long", "short") == pytest.approx(0.525)
    # One that is missing anyhow has no say.
    lost = [*rows, point("lost", None, "brief", "unparsed"), point("lost", 0.1, "other")]
    assert compared_scores(lost) == {"long": 0.8, "short": 0.75, "lost": None}
    nothing_shared = [point("a", 1.0, "x"), point("a", None, "y", "not_applicable")]
    nothing_shared += [point("b", None, "x", "not_applicable"), point("b", 0.5, "y")]
    assert compared_scores(nothing_shared) == {"a": None, "b": None}


def test_what_is_left_to_compare_counts_by_its_weights() -> None:
    rows = [
        point(name, score, principle)
        for name, scores in (("long", (0.8, 0.4)), ("short", (0.6, 0.2)))
        for principle, score in zip(("brief", "kind"), scores, strict=True)
    ]
    rows += [point("long", 0.1, "plain"), point("short", None, "plain", "not_applicable")]
    weights = {"brief": 3.0, "kind": 1.0}
    assert compared_scores(rows, weights) == pytest.approx({"long": 0.7, "short": 0.5})
    rows += [point("lost", 0.3, "brief"), point("lost", None, "kind", "failed")]
    assert compared_scores(rows, weights)["lost"] is None
    assert compared_scores(rows, weights, renormalise=True)["lost"] == 0.3


def test_an_answer_that_scores_nothing_has_a_say_in_what_is_compared() -> None:
    rows = [point("bad", 0.0, "x"), point("bad", None, "y", "not_applicable")]
    rows += [point("good", 0.5, "x"), point("good", 1.0, "y")]
    assert compared_scores(rows) == {"bad": 0.0, "good": 0.5}


def test_a_principle_applies_to_an_answer_of_which_one_pair_shows_it() -> None:
    rows = [pair("a", "b", None, "y", "unparsed"), pair("a", "c", None, "y", "not_applicable")]
    rows += [point(name, 0.4, "x") for name in "abc"]
    assert candidate_scores(rows) == {"a": None, "b": None, "c": 0.4}


def test_the_values_of_principles_are_those_that_are_there() -> None:
    rows = [point("a", 0.0, "x"), point("a", None, "y", "failed"), point("b", 0.5, "y")]
    half = [pair("a", "b", 0.75, "z"), pair("b", "a", None, "z", "unparsed")]
    assert principle_values(rows + half) == {
        "a": {"x": 0.0, "z": 0.75},
        "b": {"y": 0.5, "z": 0.25},
    }


def test_a_blank_answer_fails_what_it_would_escape() -> None:
    rows = [
        point("blank", None, "plain", "not_applicable"),
        point("said", 0.4, "plain"),
        point("blank", 1.0, "brief"),
        point("said", 0.6, "brief"),
    ]
    assert compared_scores(rows) == {"blank": 1.0, "said": 0.6}
    assert compared_scores(rows, blank={"blank"}) == {"blank": 0.5, "said": 0.5}
    # What applies to nobody applies to a blank answer no more.
    none = [point("blank", None, "plain", "not_applicable"), rows[2], rows[3]]
    none.append(point("said", None, "plain", "not_applicable"))
    assert compared_scores(none, blank={"blank"}) == {"blank": 1.0, "said": 0.6}


@given(st.lists(st.tuples(unit, st.booleans(), st.booleans()), min_size=2, max_size=5))
def test_compared_scores_are_the_others_where_everything_applies(
    given: list[tuple[float, bool, bool]],
) -> None:
    rows = [point(f"c{i}", score, "a") for i, (score, _, _) in enumerate(given)]
    for i, (score, applies, known) in enumerate(given):
        if applies:
            rows.append(point(f"c{i}", score if known else None, "b", "ok" if known else "failed"))
        else:
            rows.append(point(f"c{i}", None, "b", "not_applicable"))
    found = compared_scores(rows)
    if all(applies for _, applies, _ in given):
        assert found == candidate_scores(rows)
    elif any(not applies for _, applies, _ in given):
        only = candidate_scores([row for row in rows if row.principle == "a"])
        assert all(score in (None, pytest.approx(only[c])) for c, score in found.items())


def test_a_principle_of_no_weight_does_not_count_even_when_missing() -> None:
    rows = [point("a", 1.0, "x"), point("a", None, "y", "unparsed")]
    assert candidate_scores(rows, {"x": 1.0, "y": 0.0}) == {"a": 1.0}


def test_a_principle_that_does_not_apply_drops_out() -> None:
    rows = [point("a", 0.4, "x"), point("a", None, "y", "not_applicable")]
    assert candidate_scores(rows) == {"a": 0.4}
    assert candidate_scores(rows[1:]) == {"a": None}


def test_a_missing_principle_drops_the_candidate_unless_renormalised() -> None:
    rows = [point("a", 0.4, "x"), point("a", None, "y", "failed")]
    assert candidate_scores(rows) == {"a": None}
    assert candidate_scores(rows, renormalise=True) == {"a": 0.4}


def test_judgements_of_two_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="group"):
        candidate_scores([point("a", 0.4), replace(point("b", 0.4), prompt_id="q")])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), unit), max_size=12))
def test_the_order_of_judgements_changes_nothing(rows: list[tuple[str, str, float]]) -> None:
    judgements = [point(c, s, p, sample=i) for i, (c, p, s) in enumerate(rows)]
    shuffled = judgements[:]
    random.Random(1).shuffle(shuffled)
    assert candidate_scores(judgements, {"x": 0.3}) == candidate_scores(shuffled, {"x": 0.3})


@given(unit, unit)
def test_swapping_the_names_swaps_the_scores(forward: float, backward: float) -> None:
    one = candidate_scores([pair("a", "b", forward), pair("b", "a", backward)])
    two = candidate_scores([pair("b", "a", forward), pair("a", "b", backward)])
    assert one["a"] == pytest.approx(two["b"])
    assert one["a"] is not None and one["b"] == 1 - one["a"]
    assert one["a"] == pytest.approx((forward + 1 - backward) / 2)


@given(unit, st.integers(2, 5))
def test_a_judge_that_prefers_a_slot_gives_every_candidate_half(prob: float, count: int) -> None:
    names = "abcde"[:count]
    rows = [pair(x, y, prob) for a, b in combinations(names, 2) for x, y in ((a, b), (b, a))]
    got = candidate_scores(rows)
    assert set(got) == set(names)
    assert all(value == pytest.approx(0.5) for value in got.values())


def test_win_rates_are_over_the_opponents_seen() -> None:
    rows = [pair("a", "b", 1.0), pair("a", "c", 0.5), pair("b", "c", 0.0)]
    assert candidate_scores(rows) == {"a": 0.75, "b": 0.0, "c": 0.75}


def test_a_pair_answered_in_one_of_two_orders_is_missing() -> None:
    rows = [pair("a", "b", 0.9), pair("b", "a", None, status="unparsed")]
    assert candidate_scores(rows) == {"a": None, "b": None}
    assert candidate_scores(rows, renormalise=True) == {"a": 0.9, "b": pytest.approx(0.1)}
    assert candidate_scores(rows[:1]) == {"a": 0.9, "b": pytest.approx(0.1)}


def test_more_samples_of_one_order_do_not_outweigh_the_other_order() -> None:
    rows = [pair("a", "b", 1.0, sample=i) for i in range(3)] + [pair("b", "a", 1.0)]
    assert pair_probability(rows, "a") == 0.5


def test_ties_count_as_half() -> None:
    assert candidate_scores([pair("a", "b", 0.5, status="tie")]) == {"a": 0.5, "b": 0.5}


@given(st.lists(st.tuples(unit, unit), min_size=1, max_size=4), st.integers(2, 4))
def test_repeating_a_judges_samples_leaves_its_share(
    scores: list[tuple[float, float]], times: int
) -> None:
    def panel(copies: int) -> float | None:
        mine = [
            point("a", one, sample=i * 10 + k)
            for i, (one, _) in enumerate(scores)
            for k in range(copies)
        ]
        other = [point("a", two, sample=i) for i, (_, two) in enumerate(scores)]
        by_judge = {"mine": candidate_scores(mine), "other": candidate_scores(other)}
        return combine(by_judge, {"mine": 1.0, "other": 2.0})["a"]

    assert panel(times) == pytest.approx(panel(1))


@given(unit, unit, st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_duplicate_judge_that_shares_the_weight_changes_nothing(
    mine: float, other: float, weight: float, rest: float
) -> None:
    alone = combine({"m": {"a": mine}, "o": {"a": other}}, {"m": weight, "o": rest})
    twice = combine(
        {"m": {"a": mine}, "m2": {"a": mine}, "o": {"a": other}},
        {"m": weight / 2, "m2": weight / 2, "o": rest},
    )
    assert twice["a"] == pytest.approx(alone["a"])


@given(unit, st.dictionaries(st.text("abc", min_size=1), st.floats(0.1, 10), min_size=1))
def test_identical_judges_are_one_judge(score: float, weights: dict[str, float]) -> None:
    scores = {name: {"x": score} for name in weights}
    assert combine(scores, weights) == {"x": score}


@given(st.dictionaries(st.text("abc", min_size=1), unit, min_size=1), st.randoms())
def test_permuting_the_judges_changes_nothing(
    scores: dict[str, float], shuffle: random.Random
) -> None:
    names = list(scores)
    weights = {name: len(name) for name in names}
    one = combine({n: {"x": scores[n]} for n in names}, weights)
    shuffle.shuffle(names)
    assert combine({n: {"x": scores[n]} for n in names}, weights) == one
    assert one["x"] is not None and 0 <= one["x"] <= 1


@given(unit, unit, st.floats(0.1, 10))
def test_rescaling_all_weights_changes_nothing(one: float, two: float, factor: float) -> None:
    scores = {"j": {"a": one}, "k": {"a": two}}
    rescaled = combine(scores, {"j": factor, "k": 2 * factor})
    assert rescaled["a"] == pytest.approx(combine(scores, {"j": 1.0, "k": 2.0})["a"])


def test_combine_drops_what_is_missing() -> None:
    scores: dict[str, dict[str, float | None]] = {"j": {"a": 0.2, "b": None}, "k": {"b": 0.6}}
    assert combine(scores) == {"a": None, "b": None}
    assert combine(scores, missing="renormalise") == {"a": 0.2, "b": 0.6}
    assert combine(scores, {"j": 1.0}) == {"a": 0.2, "b": None}
    assert combine(scores, {"j": 1.0, "k": 0.0}) == {"a": 0.2, "b": None}
    assert combine(scores, {"j": 1.0, "unseen": 1.0}) == {"a": None, "b": None}
    assert combine({}) == {}


def by_score(first: float | None, second: float | None) -> list[Judgement]:
    return [
        point(name, score, status="ok" if score is not None else "unparsed")
        for name, score in (("a", first), ("b", second))
    ]


def by_reward(first: float, second: float) -> list[Judgement]:
    return [
        replace(point(name, 1 / (1 + math.exp(-reward))), distribution={"reward": reward})
        for name, reward in (("a", first), ("b", second))
    ]


@given(st.lists(st.integers(1, 5), min_size=4, max_size=4))
def test_a_larger_gap_of_ratings_never_has_a_smaller_probability(ratings: list[int]) -> None:
    a, b, c, d = ((rating - 1) / 4 for rating in ratings)
    one = answer_probability(by_score(a, b), "a", "b")
    two = answer_probability(by_score(c, d), "a", "b")
    assert one is not None and two is not None
    assert one == 0.5 + (a - b) / 2
    assert (one <= two) == (a - b <= c - d)


@pytest.mark.parametrize(("first", "second"), [(1.5, 0.25), (-3.0, 2.0), (60.0, 58.0), (2.0, 2.0)])
def test_rewards_have_the_bradley_terry_probability(first: float, second: float) -> None:
    prob = answer_probability(by_reward(first, second), "a", "b")
    assert prob == pytest.approx(1 / (1 + math.exp(second - first)))


def test_a_reward_without_a_verdict_is_none() -> None:
    failed = replace(point("a", None, status="failed", sample=1), distribution={"reward": 90.0})
    prob = answer_probability([*by_reward(1.5, 0.25), failed], "a", "b")
    assert prob == pytest.approx(1 / (1 + math.exp(-1.25)))
    assert raw_value(failed) is None


def test_scores_that_hardly_differ_are_no_tie_and_a_missing_one_has_no_verdict() -> None:
    close = answer_probability(by_score(1e-18, 0.0), "a", "b")
    assert close is not None and close > 0.5
    assert answer_probability(by_score(0.3, 0.3), "a", "b") == 0.5
    assert answer_probability(by_score(0.3, None), "a", "b") is None
    assert answer_probability([], "a", "b") is None


@pytest.mark.parametrize("made", [by_score(0.75, 0.5), by_reward(0.9, 2.0)])
def test_a_benchmark_and_a_label_step_read_the_same_judgements_alike(made: list[Judgement]) -> None:
    pair = make_pair("f:1", user("Why?"), ("one", "two"), 1.0)
    names = {"a": pair.first.completion_id, "b": pair.second.completion_id}
    judgements = [
        replace(
            j, prompt_id=pair.prompt.prompt_id, shown=[names[j.subject]], subject=names[j.subject]
        )
        for j in made
    ]
    measured = make_verdict(pair, judgements).prob
    given = given_pair(pair)
    label = annotator_verdicts([given], {"j": judgements}, {})[given.pair_id]
    assert measured is not None
    assert label == pytest.approx(measured if given.first == names["a"] else 1 - measured)
