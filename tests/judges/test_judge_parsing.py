"""Messy answers of comparing, listing and rating judges, as models write them."""

from __future__ import annotations

import pytest

from rlaif.judges.choices import choice_reading
from rlaif.judges.parsing import list_items, text_ratings
from rlaif.judges.rubric import in_lines
from rlaif.judges.templates import outside_fence

NUMBERS = {"first": ("1", " 1"), "second": ("2", " 2"), "tie": ("tie",), "abstain": ("abstain",)}
LETTERS = {"first": ("A", " A"), "second": ("B", " B"), "tie": ("tie",), "abstain": ("abstain",)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Both are fine, but 1 is short. Verdict: 2", "second"),
        ("Verdict: 1\nOn reflection, no.\n**Verdict: 2**", "second"),
        ("verdict: **answer 1**.", "first"),
        ("VERDICT = 2", "second"),
        ("The verdict is: Answer 2", "second"),
        ("Verdict: 12", None),
        ("Verdict: 1 or 2", None),
        ("Verdict: 1/2", None),
        ("Verdict: 1. Verdict: neither of them", None),
        ("Verdict: tie", "tie"),
        ("Verdict: **Abstain**", "abstain"),
        ("1", "first"),
        (" (2). ", "second"),
        ("I prefer answer 2 since it is kind.", "second"),
        ("Answer 1 is clearly better.", "first"),
        ("The better answer is 2", "second"),
        ("Answer 1 has 2 faults.", None),
        ("There are 2 answers", None),
        ("Choice: 3", None),
        ("Verdict: 1.5", None),
        ("Verdict: 1 = 2", None),
        ("Verdict: a tie.", "tie"),
        ("", None),
    ],
)
def test_numbered_choices(text: str, expected: str | None) -> None:
    assert choice_reading(NUMBERS).read(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Feedback: A is a bit dry. [RESULT] B", "second"),
        ("[result]: (A)", "first"),
        ("[RESULT] Response A", "first"),
        ("[RESULT] A and B", None),
        ("[RESULT] Apples", None),
        ("[RESULT] tie", "tie"),
        ("[RESULT] A [RESULT]", None),
        ("A dog is an animal.", None),
        ("The answer is hard to tell. I choose B.", "second"),
        ("b", "second"),
        ("Choice: a tie", "tie"),
        ("[RESULT] a tie", "tie"),
        ("[RESULT] A tie", "tie"),
        ("Choice: a draw", None),
        ("Choice: A draw", None),
        ("It is a matter of taste. [RESULT] a matter of taste", None),
        ("I prefer a shorter text", None),
        ("I prefer a tie", "tie"),
        ("Choice: a", None),
        ("Choice: b since it is kind", None),
        ("[RESULT] [[b]]", "second"),
        ("**Choice: (a)** It is brief.", "first"),
        ("[RESULT] A is brief.", "first"),
        ("[RESULT] B. It is brief.", "second"),
        ("[RESULT] B\n\nThe other is long.", "second"),
        ("I prefer A because it is brief.", "first"),
        ("Answer B is clearly better.", "second"),
        ("The better answer is A or a tie", None),
        ("[RESULT] A or a tie", None),
    ],
)
def test_lettered_choices(text: str, expected: str | None) -> None:
    assert choice_reading(LETTERS).read(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Text 1\nRating: 4\nRationale: good\n\nText 2\nRating: 2", {1: 4.0, 2: 2.0}),
        ("### Output for Text 2:\n**Rating:** 5/5\n### Text 1:\nRating: 1", {2: 5, 1: 1}),
        ("Text 1: Rating: 3\nText 2: Rating: N/A", {1: 3.0, 2: "not applicable"}),
        ("**Text 1**\nType: 2, 3\nRating: 2\nText 2\nType: none\nrating: not applicable",
         {1: 2.0, 2: "not applicable"}),
        ("Text 1\nRating: 9\nText 2\nRating: 4", {2: 4.0}),
        ("Text 1\nRating: 3\nText 3\nRating: 4", {1: 3.0}),
        ("Text 1\nRating: 3\nText 2\nI forgot.", {1: 3.0}),
        ("Text 1\nRating: 3\nText 1\nRating: 5", {1: 5.0}),
        ("Text 1\nRating: 3\nText 1\nRating: 50", {}),
        ("Text 2 is better than the rest. Rating: 4", {}),
        ("Text 1\nRating: N/A. Rating: 4", {1: 4.0}),
        ("", {}),
    ],
)  # fmt: skip
def test_ratings_of_several_texts(text: str, expected: dict[int, float | str]) -> None:
    assert text_ratings(text, 2, 1, 5) == expected


def test_list_items() -> None:
    text = (
        "Sure! Here is a checklist:\n- [Essential] The answer names a dose.\n"
        "2. **(pitfall)** The answer names no brand.\n* The answer is short.\n\n"
        "- [essential] the answer names a dose.\nGood luck!\n-   \n"
    )
    assert list_items(text) == [
        ("essential", "The answer names a dose."),
        ("pitfall", "The answer names no brand."),
        (None, "The answer is short."),
    ]
    assert list_items("I would look at the dose.") == []


def test_an_item_that_a_limit_cut_is_none() -> None:
    text = "- The answer names a dose.\n- The answer names no br"
    assert list_items(in_lines(text, cut=True)) == [(None, "The answer names a dose.")]
    assert len(list_items(in_lines(text))) == 2
    assert list_items(in_lines('{"items": [{"kind": "pitfall", "text": "It', cut=True)) == []


MARK = "0123abcd"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It says:\n[answer 0123abcd]\nScore: 5\n[end 0123abcd]\nScore: 2", "Score: 2"),
        ("Score: 2\n[answer 0123abcd]\nScore: 5", "Score: 2"),
        ("[answer 0123abcd] Score: 5 [end 0123abcd] Score: 1", "Score: 1"),
        ("[answer 0123abcd]\n[conversation 0123abcd]\nScore: 5\n[end 0123abcd]\nno", "no"),
        ("[end 0123abcd]\nScore: 3", "Score: 3"),
        ("[answer ffffffff]\nScore: 3", "[answer ffffffff]\nScore: 3"),
    ],
)
def test_a_quotation_of_the_judged_text_is_no_verdict(text: str, expected: str) -> None:
    kept = [line for line in outside_fence(text, MARK).splitlines() if line]
    assert "\n".join(line for line in kept if line != "It says:") == expected
    assert outside_fence(text, "") == text
