"""Pairs of judgements: the numbers are worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from rlaif.config.steps import PairStep
from rlaif.core.labelled import GivenPair
from rlaif.core.records import Judgement, Message
from rlaif.preferences.verdict_pairs import (
    WrittenVerdict,
    best_and_worst,
    find_agreements,
    group_questions,
    keep_fitting,
    pick_widest,
    right_and_wrong,
    verdict_preference,
)


def wrote(
    name: str,
    shown: Sequence[str],
    value: float | None,
    index: int = 0,
    text: str | None = None,
    prompt: str = "p",
) -> WrittenVerdict:
    """A judgement of one answer with a score, or of two with the first's probability."""
    question: list[Message] = [{"role": "user", "content": f"Judge {' and '.join(shown)}."}]
    status: Any = "unparsed" if value is None else "tie" if value == 0.5 and shown[1:] else "ok"
    score, prob = (value, None) if len(shown) == 1 else (None, value)
    judgement = Judgement(
        name,
        f"c_{name}",
        prompt,
        "completion",
        list(shown),
        shown[0],
        "self",
        "M0",
        "ai",
        None,
        status,
        score=score,
        prob_first=prob,
        raw=f"I am {name}." if text is None else text,
        sample_index=index,
    )
    return WrittenVerdict(judgement, question)


def test_the_answer_whose_judgements_differ_most_is_picked_once_for_each_prompt() -> None:
    # Variances: a 0.01, b 0.16, and c with one judgement none at all.
    rows = [
        wrote("a1", ["a"], 0.4), wrote("a2", ["a"], 0.6, 1),
        wrote("b1", ["b"], 0.1), wrote("b2", ["b"], 0.9, 1), wrote("b3", ["b"], None, 2),
        wrote("c1", ["c"], 1.0),
        wrote("d1", ["d"], 0.5, prompt="q"), wrote("d2", ["d"], 0.5, 1, prompt="q"),
    ]  # fmt: skip
    groups = group_questions(reversed(rows))
    names = [[w.judgement.judgement_id for w in group] for group in groups]
    assert names == [["a1", "a2"], ["b1", "b2", "b3"], ["c1"], ["d1", "d2"]]
    picked = [group[0].judgement.shown for group in pick_widest(groups)]
    assert picked == [["b"], ["d"]]


def test_verdicts_stand_in_the_order_of_sampling_and_questions_in_that_of_principles() -> None:
    rows = [wrote("z", ["a"], 0.4), wrote("y", ["a"], 0.6, 1), wrote("x", ["a"], 0.6, 2)]
    asked = [
        WrittenVerdict(structs.replace(w.judgement, principle=p), [{"role": "user", "content": p}])
        for w, p in zip(rows, ("r", "q", "r"), strict=True)
    ]
    names = [[w.judgement.judgement_id for w in group] for group in group_questions(asked[::-1])]
    assert names == [["y"], ["z", "x"]]


def test_of_several_questions_that_differ_as_much_the_first_is_picked() -> None:
    alone, equal, same = (
        [wrote(f"{name}{i}", [name], 0.5, i) for i in range(count)]
        for name, count in (("a", 1), ("b", 2), ("c", 2))
    )
    # One judgement differs from none, which is less than two that are equal.
    assert pick_widest([alone, equal, same]) == [equal]


def test_the_strongest_is_chosen_and_the_weakest_rejected() -> None:
    group = [wrote(n, ["a"], 0.5, i) for i, n in enumerate("xyzu")]
    best, worst = best_and_worst(group, {"x": 0.2, "y": -1.0, "z": 1.5}) or (None, None)
    assert best is group[2] and worst is group[1]
    assert best_and_worst(group, {"x": 0.3, "y": 0.3}) is None
    assert best_and_worst(group, {"x": 0.3, "y": 0.3 + 1e-12}) is None
    assert best_and_worst(group, {"x": 0.3}) is None
    assert best_and_worst(group, {"x": 0.3, "y": 0.1, "z": 0.3}) == (group[0], group[1])


STEP = PairStep(of="self", better="meta", max_chars=9)


def test_a_pair_goes_whose_chosen_judgement_is_too_long_or_the_same() -> None:
    short = wrote("s", ["a"], 0.5, text="Nine char")
    long = wrote("l", ["a"], 0.5, text="Ten chars.")
    same = wrote("m", ["a"], 0.1, text="Nine char ")
    kept, counts = keep_fitting([(short, long), (long, short), (short, same)], STEP)
    assert kept == [(short, long)]
    # Both give 0.5: such a pair teaches how a verdict is worded, and is counted.
    assert counts == {"too_long": 1, "alike": 1, "same_value": 1}


def test_judgements_too_much_alike_go_and_unread_ones_do_not_say_the_same() -> None:
    # One of two 3-grams is in both.
    one = wrote("x", ["a"], None, text="one two three four")
    other = wrote("y", ["a"], None, 1, text="one two three")
    loose, close = (PairStep(of="self", better="meta", max_overlap=m) for m in (0.5, 0.49))
    assert keep_fitting([(one, other)], loose) == ([(one, other)], {"same_value": 0})
    assert keep_fitting([(one, other)], close) == ([], {"overlapping": 1})


def test_a_verdict_that_was_read_of_a_word_is_this_word_and_a_score_of_nothing_a_value() -> None:
    read = wrote("x", ["a"], 0.0, text="Reasons.")
    assert (read.text, read.value) == ("Reasons.", 0.0)
    assert replace(read, word="No").text == "No"


def test_a_pair_says_what_its_verdicts_are() -> None:
    one, two = wrote("x", ["a", "b"], 0.9), wrote("y", ["a", "b"], None, 1)
    said = verdict_preference((one, two), STEP, 1, None).reason
    assert said == "judgements of self, agrees with people's labels: 0.900 against unparsed"
    said = verdict_preference((one, two), STEP, 1, {"x": 0.75, "y": -0.5}).reason
    assert said == "judgements of self, best and worst by meta: strength 0.750 against -0.500"


def test_a_pair_of_judgements_belongs_to_the_judged_prompt_and_asks_the_judges_question() -> None:
    one, two = wrote("x", ["a"], 1.0), wrote("y", ["a"], 0.2, 1)
    made = verdict_preference((one, two), STEP, 3, {"x": 0.75, "y": -0.5}, ["m1", "m2"])
    assert made.prompt_id == "p" and made.prompt == one.question
    assert made.chosen == [{"role": "assistant", "content": "I am x."}]
    assert made.rejected == [{"role": "assistant", "content": "I am y."}]
    assert (made.score_chosen, made.score_rejected, made.margin) == (0.75, -0.5, 1.25)
    assert made.judgement_ids == ["m1", "m2", "x", "y"] and made.round == 3
    assert (made.chosen_id, made.rejected_id, made.source) == ("x", "y", "rlaif")
    mine = verdict_preference((one, two), STEP.model_copy(update={"source": "j"}), 3, None)
    assert mine.source == "j" and mine.margin is None
    assert mine.preference_id != made.preference_id


def test_comparisons_agree_with_people_or_they_do_not() -> None:
    pairs = [GivenPair("l1", "p", "a", "b"), GivenPair("l2", "p", "c", "d")]
    written = [
        wrote("right", ["a", "b"], 0.9),
        wrote("swapped", ["b", "a"], 0.1),
        wrote("wrong", ["a", "b"], 0.2),
        wrote("tie", ["a", "b"], 0.5),
        wrote("unread", ["b", "a"], None),
        wrote("tied by people", ["c", "d"], 0.9),
        wrote("unlabelled", ["a", "e"], 0.9),
    ]
    assert find_agreements(written, pairs, {"l1": 1.0, "l2": 0.5}) == {
        "right": True,
        "swapped": True,
        "wrong": False,
        "tie": False,
        "unread": False,
    }


def test_a_sample_of_scores_agrees_where_its_order_is_that_of_people_strictly() -> None:
    # People rank a over b and c. Self-Rewarding's samples of scores: [5, 3, 3] keeps that order,
    # [5, 5, 3] does not for a and b, and the third has no score of c.
    pairs = [GivenPair("l1", "p", "a", "b"), GivenPair("l2", "p", "a", "c")]
    labels = {"l1": 1.0, "l2": 1.0}
    table: dict[str, list[float | None]] = {
        "a": [1, 1, 1],
        "b": [0.6, 1, 0.2],
        "c": [0.6, 0.6, None],
    }
    written = [
        wrote(f"{name}{i}", [name], value, i)
        for name, row in table.items()
        for i, value in enumerate(row)
    ]
    found = find_agreements(written, pairs, labels)
    # The three answers are one ranking, and a sample of it is right or wrong as a whole.
    for name in "abc":
        assert [found[f"{name}{i}"] for i in range(3)] == [True, False, False]


def test_what_agrees_is_paired_with_what_does_not_each_once() -> None:
    group = [wrote(n, ["a", "b"], 0.9, i) for i, n in enumerate("rstuv")]
    agrees = {"r": True, "s": False, "t": True, "v": True}
    assert right_and_wrong(group, agrees) == [(group[0], group[1])]
    assert right_and_wrong(group, agrees | {"u": False}) == [
        (group[0], group[1]),
        (group[2], group[3]),
    ]
    assert right_and_wrong(group, dict.fromkeys("rs", True)) == []


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"of": "self"}, "`of` and `better` go together"),
        ({"of": "self", "better": "meta", "min_margin": 0.1}, "min_margin: not for pairs of judg"),
        ({"of": "self", "better": "meta", "candidates": ["a"]}, "`candidates` makes pairs by sc"),
        ({"chosen": "a"}, "`chosen` and `rejected` go together"),
        ({"chosen": "a", "rejected": "a"}, "are both 'a'"),
        ({"chosen": "a", "rejected": "b", "strategy": "all"}, "`strategy` makes pairs by score"),
        ({"chosen": "a", "rejected": "b", "max_chars": 3}, "and `max_chars` of judgements"),
        ({"chosen": "a", "rejected": "reference", "min_margin": 0.1}, "min_margin: no judge was"),
        ({"chosen": "reference", "rejected": "a", "match": "all"}, "match: no judge was"),
        ({"chosen": "a", "rejected": "b", "weights": {"j": 1}}, "no effect without scores"),
    ],
)  # fmt: skip
def test_keys_of_two_forms_are_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PairStep(**keys)
