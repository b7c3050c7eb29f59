"""A verdict that its own sentence, or what follows, takes back, doubts or gives to somebody else is
none; one with ordinary words behind it is read."""

from __future__ import annotations

import pytest

from rlaif.judges.forms import declared
from rlaif.judges.pairwise import choice_of
from rlaif.judges.questions import Written
from rlaif.judges.scored import score_of

CHOICES = {"first": ("1", " 1"), "second": ("2", " 2"), "tie": ("tie",)}

NO_SCORE = [
    # Another number in the same statement.
    "Score: 1 (lowest) to 5 (highest)",
    "Score: 4.0.1",
    "Score: 4 x 0.5",
    "Score: 4 * 0.5 = 2",
    "Score: 4 -> 2",
    "Score: 4 \u2192 2",
    "Score: 5 minus 2",
    "Score: 5 minus 2 = 3",
    "Score: 5, 3",
    "Score: 3 of 10",
    "Score: 4 points from 5, minus 2 for errors",
    "Score: < 3",
    "Score: 4, lowered to 2",
    "Score: 4 reduced to 3 for length",
    # A sentence about a score.
    "Score: 5 is what the answer demands, but I give it 1.",
    "Score: 5, said the answer. I disagree.",
    "Score: 2 was my first idea.",
    "Score: 2 seemed right at first.",
    "Score: 2 at first glance.",
    "Score: 2 before checking, then 4",
    "Score: 5 unless it is wrong",
    "The answer scores itself: Score: 5",
    "The answer ends with this line:\nScore: 5\nwhich I ignore.",
    "The text contains the line\n\nScore: 5\n\nand nothing else, so I cannot rate.",
    # Taken back.
    "Score: 5 - no wait, 3",
    "Score: 5, no, 3",
    "Score: 5\n\nWait, I misread the question. The answer is wrong, so it gets a 1.",
    "Score: 5\n\nCorrection: 2",
    "Score: 5\nActually, make that a 2.",
    "Score: 5 ... just kidding, it is a 1",
    "Score: 5\nOn reflection, it deserves less.",
    "I give it a 4. Wait, no.",
    # The scale, recited.
    "Score: 5 is for perfect answers.",
    "Score: 5: excellent",
    "Score: 5 means that nothing is missing.",
    # Somebody else's words.
    "It has 'Score: 5' in its last line.",
    "It has \u2018Score: 5\u2019 in its last line.",
    # Several respects and no verdict on all.
    "Score (clarity): 5\nScore (accuracy): 1",
    "Score for clarity: 5\nScore for accuracy: 1",
    # A block of thinking whose markers are no model's that is known.
    "<thought>\nScore: 1\n</thought>\nI cannot say.",
    "<Think>Score: 1</Think>\nI cannot say.",
    # Prose that is not of one mind.
    "I give it a 4. I rate it 2.",
    "I give it a 4, where a score of 5 needs sources.",
    # Announced as somebody else's.
    "The answer says:\nScore: 5",
    # Fractions of something else.
    "I give 3 out of 5 examples that are wrong.",
    "I rate it 5/10.",
]
SCORES = [
    ("Score: 2\nScore: 5 is for perfect answers.", 2),
    ("Score: 2\nScore: 5: excellent", 2),
    ("Score: 2\nIt has 'Score: 5' in its last line.", 2),
    ("Score: __4__", 4),
    ("Score: 4, since 3 facts are right", 4),
    ("Score: 4 because 3 of 5 facts are right", 4),
    ("Score: 4, 2 errors", 4),
    ("Score: 4. 2 errors were found.", 4),
    ("Score: 4 (2 errors)", 4),
    ("Score: 4; it has 2 errors", 4),
    ("Score: 4 of 5", 4),
    ("Score: 4, not 5, since it is long", 4),
    ("Score: 4, no errors found", 4),
    ("Score: 4\nThere is no wait time.", 4),
    ("Score (clarity): 5\nScore (accuracy): 1\nScore: 3", 3),
    ("Score: 4\n\nUser: thanks\nAssistant: Score: 1", 4),
    ("Score: 4\nThe end is, on reflection, a good one: wait, and it comes.", 4),
    ("Score: 4\nIt is well-made; actually, the score of the film is named.", 4),
    ("My rating is 4 out of 5.", 4),
    ("I give it 4 of 5.", 4),
]
NO_CHOICE = [
    "Verdict: 1 is worse",
    "Verdict: 1 is wrong, so 2",
    "Verdict: 1 loses",
    "Verdict: 1 is beaten by 2",
    "Verdict: 1 point for answer 1, 2 points for answer 2",
    "Verdict: 1 of the answers is good",
    "Verdict: answer 1 fails; answer 2",
    "Verdict: 1 2",
    "Verdict: 1; 2",
    "Verdict: 1 - 2",
    "Verdict: 1-2",
    "Verdict: 1 to 2",
    "Verdict: 1 versus 2",
    "Verdict: 1 then 2",
    "Verdict: 1 \u2192 2",
    "Verdict: 1 equals 2",
    "Verdict: 1 ties with 2",
    "Verdict: 1 + 2",
    "Verdict: 1 ~ 2",
    "Verdict: tie-breaker needed",
    "Verdict: 1\nWait, it is the other one.",
    "I choose 1 for style and 2 for facts",
    "Answer 1 is better. No: answer 2 is better.",
]
CHOSEN = [
    ("Verdict: 1. 2 is worse", "first"),
    ("Verdict: 1 (2 is worse)", "first"),
    ("Verdict: 2 because 1 is wrong", "second"),
    ("Verdict: 2 since answer 1 loses", "second"),
    ("Verdict: 2 is better than 1", "second"),
    ("I prefer answer 2 over answer 1.", "second"),
]


@pytest.mark.parametrize("text", NO_SCORE)
def test_a_score_that_does_not_stand_is_none(text: str) -> None:
    assert score_of(Written(text), 1, 5, (), declared("Score: VALUE")) is None


@pytest.mark.parametrize("text", ["Score: 4", "Score: 4.", "Score: **4", "It is a fair one. 4"])
def test_a_score_that_a_limit_may_have_cut_is_none(text: str) -> None:
    assert score_of(Written(text, cut=True), 1, 5, (), declared("Score: VALUE")) is None


def test_a_score_with_more_behind_it_was_not_cut() -> None:
    said = Written("Score: 4.\nIt is", cut=True)
    assert score_of(said, 1, 5, (), declared("Score: VALUE")) == 4


@pytest.mark.parametrize(("text", "score"), SCORES)
def test_a_score_that_stands_is_read(text: str, score: int) -> None:
    assert score_of(Written(text), 1, 5, (), declared("Score: VALUE")) == score


@pytest.mark.parametrize("text", NO_CHOICE)
def test_a_choice_that_does_not_stand_is_none(text: str) -> None:
    assert choice_of(Written(text), CHOICES, declared("Verdict: VALUE")) is None


@pytest.mark.parametrize(("text", "choice"), CHOSEN)
def test_a_choice_that_stands_is_read(text: str, choice: str) -> None:
    assert choice_of(Written(text), CHOICES, declared("Verdict: VALUE")) == choice


@pytest.mark.parametrize("behind", ["\n", " ", ". ", "wait ", "- ", "Assistant:\n", ", 1"])
def test_what_is_long_behind_a_verdict_is_read_quickly(behind: str) -> None:
    # A search that is quadratic in this would take minutes.
    said = Written("Score: 4\n" + behind * 200_000)
    assert score_of(said, 1, 5, (), declared("Score: VALUE")) == 4


@pytest.mark.parametrize("text", ["[RESULT]\uff1a4", "[RESULT] four", "<score>4</score>"])
def test_what_a_template_does_not_ask_for_stays_unread(text: str) -> None:
    assert score_of(Written(text), 1, 5, (), declared("[RESULT] VALUE")) is None
    assert score_of(Written("[RESULT] 4"), 1, 5, (), declared("[RESULT] VALUE")) == 4


@pytest.mark.parametrize("value", ["9", '"good"', "null", "true", '"Score: 5"'])
def test_no_other_field_is_searched_for_a_verdict(value: str) -> None:
    said = Written(f'{{"reasons": "Score: 5", "note": "5", "score": {value}}}', structured=True)
    assert score_of(said, 1, 5, (), declared("Score: VALUE")) is None


def test_an_object_in_a_copy_of_the_judged_answer_is_not_the_judge_s() -> None:
    copied = '[answer 0123abcd]\nHere: {"score": 5}\n[end 0123abcd]\n'
    for own, score in (('{"score": 2}', 2), ("I cannot say.", None)):
        said = Written(copied + own, "0123abcd", structured=True)
        assert score_of(said, 1, 5, (), declared("Score: VALUE")) == score


@pytest.mark.parametrize("behind", ["Wait, that is a 2.", "Correction: 2", "Score: 2"])
def test_what_stands_behind_an_object_takes_it_back(behind: str) -> None:
    said = Written('{"score": 4}\n' + behind, structured=True)
    assert score_of(said, 1, 5, (), declared("Score: VALUE")) is None
    said = Written('{"verdict": "1"}\n' + behind.replace("Score", "Verdict"), structured=True)
    assert choice_of(said, CHOICES, declared("Verdict: VALUE")) is None
