"""Messy answers of the kind small judges write, and what must be read in them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.judges.jsontext import json_objects, the_object
from rlaif.judges.parsing import (
    expected_level,
    patterned_score,
    patterned_word,
    schema_fault,
    valid_member,
)
from rlaif.judges.questions import label_share
from rlaif.judges.scores import score_reading

SCORES = [
    ("Score: 3", 3.0),
    ("Score: 3/5", 3.0),
    ("score: 3.5", 3.5),
    ("SCORE = 2", 2.0),
    ("Score: **4**", 4.0),
    ("**Score:** 4", 4.0),
    ("**Score: 4/5**", 4.0),
    ("**Score**: **4** / 5", 4.0),
    ("Score: `4`", 4.0),
    ("Total score is 4 out of 5", 4.0),
    ("I would give it a score of 4.", 4.0),
    ("Final rating (1-5): 2", 2.0),
    ("Score for this answer: 2", 2.0),
    ("Rating - 2", 2.0),
    ("Score: [[5]]", 5.0),
    ("Score: <3>", 3.0),
    ("Score:\n\n4", 4.0),
    ("Score: 4\n\nThe answer is good.", 4.0),
    ("Score: 4. It loses one point for 2 typos.", 4.0),
    ("Score: 3 points", 3.0),
    ("Score: 3,5", 3.5),
    ("Score: 0", 0.0),
    ("Score: 4.0/5.0", 4.0),
    ("Feedback: fine. [RESULT] 4", 4.0),
    ("4", 4.0),
    (" **4**.\n", 4.0),
    ("4/5", 4.0),
    ("I give this 4 out of 5.", 4.0),
    ("Score: 2\nOn reflection, score: 4", 4.0),
    ("A score of 5 needs care. Score: 1", 1.0),
    ("Score: 2, since 3/5 of it is about 3/4 cup.", 2.0),
    ("I give 2 out of 5, for the 3/4 cup.", 2.0),
    ("Score: 1-5? I say score: 3", 3.0),
    ("Score: 1 + 1 + 1 = 3", 3.0),
    ("Score: **1** + 1 + 0 = **2/5**\nThat is all.", 2.0),
    ("Score: 1 (relevance) + 1 (clarity) = 2", 2.0),
    ("Score: 4, since 2 + 3 = 5", 4.0),
    ("Score: 4+", 4.0),
]

NOT_SCORES = [
    "",
    "The answer is good.",
    "Score: N/A",
    "Score: good",
    "Score: N",
    "Score:",
    "Score: 10",
    "Score: 3\nNo: score: 10",
    "1111111111",
    "Score: 1111111111",
    "Score: 6",
    "Score: -1",
    "-1",
    "Score: 3/10",
    "3/10",
    "Score: 80%",
    "Score: 4%",
    "Score: 1 + 1 + 1",
    "Score: 1 + 1 + 1 = three",
    "Score: 4 + 4 = 8",
    "Score: 4th",
    "Score: 1-5",
    "Score: 1 to 5",
    "Score 1: the worst",
    "Score: 1,000",
    "The score is 1000000000000000000000000/5",
    "3/4 of it is true",
    "The scoreboard says 3",
    "underscore 3",
    "There are 3 typos.",
    "It was founded on 4/5/1999",
]


@pytest.mark.parametrize(("text", "expected"), SCORES)
def test_a_score_reads(text: str, expected: float) -> None:
    assert score_reading(0, 5).read(text) == expected


@pytest.mark.parametrize("text", NOT_SCORES)
def test_a_score_gives_none(text: str) -> None:
    assert score_reading(0, 5).read(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("verdict=7", 7.0),
        ("Verdict=2 then verdict=9", 9.0),
        ("verdict=1 verdict=10", None),
        ("verdict=11", None),
        ("nothing", None),
    ],
)
def test_a_given_pattern_reads_whole_numbers(text: str, expected: float | None) -> None:
    assert patterned_score(text, 1, 9, r"verdict=(\d)") == expected


def test_a_given_pattern_may_reach_a_two_digit_number_or_a_word() -> None:
    assert patterned_score("verdict=10", 1, 10, r"verdict=(\d+)") == 10.0
    assert patterned_score("verdict=ten", 1, 10, r"verdict=(\w+)") is None


@given(st.text(max_size=60), st.integers(0, 3), st.integers(4, 12))
def test_a_score_is_in_range_or_none(text: str, low: int, high: int) -> None:
    value = score_reading(low, high).read("Score: " + text)
    assert value is None or low <= value <= high


@given(st.integers(-200, 200))
def test_a_written_number_is_read_as_itself_or_not_at_all(number: int) -> None:
    expected = float(number) if 1 <= number <= 9 else None
    assert score_reading(1, 9).read(f"Score: {number}") == expected


def test_a_long_answer_is_read_quickly() -> None:
    assert score_reading(1, 5).read("score " * 20_000 + "\nScore: 3") == 3.0
    assert score_reading(1, 5).read("score for " * 5_000) is None


YES_NO = {"yes": 1.0, "no": 0.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", 1.0),
        ("yes.", 1.0),
        ("**NO**", 0.0),
        ("No, wait: yes!", 1.0),
        ("I do not know", None),
        ("None of it", None),
        ("nothing, not now, know, another", None),
        ("no-one can say", None),
        ("yes'm", None),
        ("Yesterday", None),
        ("Yes. I know nothing more.", 1.0),
        ("", None),
    ],
)
def test_a_pattern_takes_whole_words(text: str, expected: float | None) -> None:
    assert patterned_word(text, "(yes|no)", YES_NO) == expected


def test_a_pattern_of_an_unlisted_word_is_none() -> None:
    assert patterned_word("verdict: yes. verdict: maybe", r"verdict: (\w+)", YES_NO) is None


def test_a_pattern_of_symbols() -> None:
    assert patterned_word("it is [[B]]", r"(\[\[[AB]\]\])", {"[[a]]": 1.0, "[[b]]": 0.0}) == 0.0


SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["score"],
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"score": 3}', 3),
        ('```json\n{"score": 4, "why": "short {and} sweet"}\n```', 4),
        ('Here it is: {"score": 2} Hope that helps {:-)', 2),
        ('Such as {"score": 5}. Mine: {"score": 1}', None),
        ('{"score": 5} and then {"score": 9}', None),
        ('{"score": "3"}', None),
        ('{"score": 3', None),
        ('{"score": NaN}', None),
        ('{"mark": 3}', None),
        ('{"inner": {"score": 3}}', None),
        ("{" * 5000, None),
        ('{"a":' * 5000, None),
        ("{'score': 3}", None),
        ("", None),
    ],
)
def test_json_value(text: str, expected: int | None) -> None:
    found = the_object(json_objects(text), "score")
    assert (found and valid_member(found, SCHEMA, "score")) == expected


def test_schema_fault() -> None:
    assert schema_fault(SCHEMA) is None
    assert "nonsense" in (schema_fault({"type": "nonsense"}) or "")


def test_label_share() -> None:
    assert label_share(0.0, 0.0) is None
    assert label_share(0.3, 0.1) == pytest.approx(0.75)
    assert label_share(0.03, 0.01) == pytest.approx(0.75)


def test_expected_level() -> None:
    uniform = dict.fromkeys(range(1, 6), 0.1)
    assert expected_level(uniform) == pytest.approx(3.0)
    assert expected_level({1: 0.0, 2: 0.4}) == 2.0
    assert expected_level({1: 0.0, 2: 0.0}) is None
    assert expected_level({1: math.nan, 2: 0.5}) is None
