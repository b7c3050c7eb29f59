"""Rules that compare with the reference: tables of answers, and what no answer may do."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.constitution.lint import lint
from rlaif.constitution.model import Constitution
from rlaif.constitution.numerals import read_numbers
from rlaif.constitution.reference_rules import read_choice
from rlaif.constitution.rules import apply_check, reads_reference, validate_check
from rlaif.core.errors import ConfigError
from rlaif.core.records import Prompt, make_prompt

FENCED = '```json\n{"a": 1}\n```'
BOXED_TWICE = "First \\boxed{3}, no: \\boxed{\\frac{1}{2}}."
GOLDEN: list[tuple[str, dict[str, Any], str, str, float | None]] = [
    ("exact_match", {}, "Rome", "Rome", 1.0),
    ("exact_match", {}, "Rome", "  Rome \n", 1.0),
    ("exact_match", {}, "New York", "New\n  York", 1.0),
    ("exact_match", {}, "Rome", "rome", 0.0),
    ("exact_match", {}, "Rome", "Rome.", 0.0),
    ("exact_match", {}, "café", "cafe\u0301", 1.0),
    ("exact_match", {"ignore_case": True}, "ROME", "rome", 1.0),
    ("exact_match", {"ignore_case": True}, "straße", "STRASSE", 1.0),
    ("exact_match", {"ignore_punctuation": True}, "Rome", "“Rome!”", 1.0),
    ("exact_match", {"ignore_punctuation": True}, "?!", "!!", None),
    ("exact_match", {"ignore_articles": True}, "the cat", "A cat", 1.0),
    ("exact_match", {"ignore_articles": True}, "the", "a", None),
    ("exact_match", {}, "Rome", "I think that\nRome", 0.0),
    ("exact_match", {"part": "last_line"}, "Rome", "I think that\nRome\n\n", 1.0),
    ("exact_match", {"part": "last_line"}, "Rome", "Rome\nis it.", 0.0),
    ("exact_match", {"part": "final"}, "Rome", "Well. The answer is Rome.", 1.0),
    ("exact_match", {"part": "final"}, "Rome", "So **Answer:** **Rome**\nGood luck.", 1.0),
    ("exact_match", {"part": "final"}, "Rome", "The answer to the question is: Rome", 1.0),
    ("exact_match", {"part": "final"}, "Rome", "#### Rome", 1.0),
    ("exact_match", {"part": "final"}, "a{b}c", "Thus $\\boxed{a{b}c}$.", 1.0),
    ("exact_match", {"part": "final"}, "Rome", "The answer is Rome. The answer is Paris.", 0.0),
    ("exact_match", {"part": "final"}, "Rome", "\\boxed{Rome}. The answer is Paris.", 1.0),
    ("exact_match", {"part": "final"}, "Rome", "The answer is **Rome.**", 1.0),
    ("exact_match", {"part": "final"}, "Rome", "The answer is **Rome**.", 1.0),
    ("exact_match", {}, "[]", "[]", 1.0),
    ("exact_match", {}, "[]", "()", 0.0),
    ("exact_match", {}, "[]", "  ", 0.0),
    ("numeric_match", {}, "42", "It is 42.", 1.0),
    ("numeric_match", {}, "42", "42 or 43", 0.0),
    ("numeric_match", {}, "42", "None of them.", 0.0),
    ("numeric_match", {}, "He has 3 + 4 apples.\n#### 7", "There are 7", 1.0),
    ("numeric_match", {}, "1234.5", "$1,234.50", 1.0),
    ("numeric_match", {}, "1234567", "1\u202f234\u202f567 people", 1.0),
    ("numeric_match", {}, "1000", "1'000", 1.0),
    ("numeric_match", {}, "1000", "1e3", 1.0),
    ("numeric_match", {}, "1500", "about 1.5 × 10³", 1.0),
    ("numeric_match", {}, "1024", "2^10", 1.0),
    ("numeric_match", {}, "-5", "x = \u22125", 1.0),
    ("numeric_match", {}, "-5", "-$5", 1.0),
    ("numeric_match", {}, "5", "10-5", 1.0),
    ("numeric_match", {}, "-5", "10-5", 0.0),
    ("numeric_match", {}, "5", "- 5 eggs", 1.0),
    ("numeric_match", {}, "0.75", "\\frac{3}{4}", 1.0),
    ("numeric_match", {}, "-0.75", "$-\\frac34$", 1.0),
    ("numeric_match", {}, "1.5", "1½", 1.0),
    ("numeric_match", {}, "1.5", "1 1/2 cups", 1.0),
    ("numeric_match", {}, "1/3", "0.3333333", 1.0),
    ("numeric_match", {}, "1/3", "0.333", 0.0),
    ("numeric_match", {"tolerance": 0.01}, "1/3", "0.333", 1.0),
    ("numeric_match", {"relative": 0.0}, "0.1", "0.1", 1.0),
    ("numeric_match", {"relative": 0.0}, "100000000", "100000001", 0.0),
    ("numeric_match", {"relative": 0.01}, "100", "101", 1.0),
    ("numeric_match", {"relative": 0.01}, "100", "101.1", 0.0),
    ("numeric_match", {"relative": 0.01}, "-100", "-101", 1.0),
    ("numeric_match", {"tolerance": 1.0, "relative": 0.01}, "100", "101", 1.0),
    ("numeric_match", {"tolerance": 1.0, "relative": 0.01}, "100", "102", 0.0),
    ("numeric_match", {}, "5", "\\boxed{2 + 3 = 5}", 1.0),
    ("numeric_match", {}, "12", "\\boxed{12 eggs in 3 rows}", 1.0),
    ("numeric_match", {}, "5", "It is 5, or \\boxed{none}", 0.0),
    ("numeric_match", {"part": "only"}, "He has 3 + 4 apples.\n#### 7", "7 apples", 1.0),
    ("numeric_match", {}, "42", "The answer is:\n42\nThat is 6 x 7.", 1.0),
    ("numeric_match", {}, "0.5", "50%", 1.0),
    ("numeric_match", {}, "50 percent", "0.5", 1.0),
    ("numeric_match", {}, "50", "50%", 0.0),
    ("numeric_match", {"percent": "ignore"}, "50", "50%", 1.0),
    ("numeric_match", {}, "3.14", "3,14", 0.0),
    ("numeric_match", {"decimal": ","}, "3,14", "Es sind 3,14.", 1.0),
    ("numeric_match", {"decimal": ","}, "1234,5", "1.234,5", 1.0),
    ("numeric_match", {"decimal": ","}, "1,2", "3/2,5", 1.0),
    ("numeric_match", {"decimal": ","}, "1,3", "3/2,5", 0.0),
    ("numeric_match", {}, "0.5", BOXED_TWICE, 1.0),
    ("numeric_match", {}, "3", BOXED_TWICE, 0.0),
    ("numeric_match", {}, "7", "The answer is 3 + 4 = 7, not 8.", 1.0),
    ("numeric_match", {}, "42", "The answer is 42, as 6 x 7 shows.", 1.0),
    ("numeric_match", {"part": "last"}, "42", "The answer is 42, as 6 x 7 shows.", 0.0),
    ("numeric_match", {"part": "only"}, "42", "42 eggs", 1.0),
    ("numeric_match", {"part": "only"}, "42", "1 2 3 42", 0.0),
    ("numeric_match", {}, "5", "1e999999999", 0.0),
    ("numeric_match", {}, "5", "9" * 100_000, 0.0),
    ("numeric_match", {}, "2", "H2", 0.0),
    ("numeric_match", {}, "4", "4/0", 0.0),
    ("numeric_match", {}, "blue", "5", None),
    ("numeric_match", {}, "42", "４２", 1.0),
    ("choice_match", {}, "B", "B", 1.0),
    ("choice_match", {}, "(b)", "**B.** Rome", 1.0),
    ("choice_match", {}, "B. Rome", "The answer is (B).", 1.0),
    ("choice_match", {"letters": "ABC"}, "D", "D", None),
    ("choice_match", {}, "Rome", "B", None),
    ("choice_match", {}, "A", "A dog is what I see.", 0.0),
    ("choice_match", {}, "B", "I weigh them. A dog barks, so B", 1.0),
    ("pattern_match", {}, r"\b\d{4}\b", "In 1984, it was.", 1.0),
    ("pattern_match", {}, r"\b\d{4}\b", "In 84, it was.", 0.0),
    ("pattern_match", {"whole": True}, r"\d{4}", "1984", 1.0),
    ("pattern_match", {"whole": True}, r"\d{4}", "In 1984", 0.0),
    ("pattern_match", {"whole": True}, r"\d{4}", " 1984\n", 1.0),
    ("pattern_match", {"pattern": "is (.*)"}, "Rome", "is rome", 0.0),
    ("pattern_match", {"pattern": "is (.*)"}, " Rome\n", "is Rome", 1.0),
    ("pattern_match", {"ignore_case": True}, "rome", "ROME", 1.0),
    ("pattern_match", {}, "(", "(", None),
    ("pattern_match", {"pattern": r"Total: (\d+)"}, "12", "Total: 3. Total: 12.", 1.0),
    ("pattern_match", {"pattern": r"Total: (\d+)"}, "3", "Total: 3. Total: 12.", 0.0),
    ("pattern_match", {"pattern": r"Total: (\d+)", "match": "first"}, "3", "Total: 3, Total: 1", 1),
    ("pattern_match", {"pattern": r"Total: (\d+)"}, "12", "Sum: 12", 0.0),
    ("pattern_match", {"pattern": "x(y)?"}, "y", "x", 0.0),
    ("pattern_match", {"pattern": "is (.*)", "ignore_case": True}, "Rome", "IS rome ", 1.0),
    ("pattern_match", {"pattern": "is (.*)"}, "(", "is (", 1.0),
    ("json_match", {}, '{"a": 1, "b": [1, 2]}', '{"b": [1.0, 2], "a": 1}', 1.0),
    ("json_match", {}, '{"a": 1}', FENCED, 1.0),
    ("json_match", {}, '{"a": 1}', f"Here you are:\n\n{FENCED}\n\nGood luck.", 1.0),
    ("json_match", {}, '{"a": 1}', f"{FENCED}\n\n```\n[]\n```", 0.0),
    ("json_match", {}, '{"a": 1}', 'Here: {"a": 1}', 0.0),
    ("json_match", {}, "[1, 2]", "[2, 1]", 0.0),
    ("json_match", {}, "[1]", "[true]", 0.0),
    ("json_match", {}, "[1]", '["1"]', 0.0),
    ("json_match", {}, "[null]", "[0]", 0.0),
    ("json_match", {}, '{"a": null}', "{}", 0.0),
    ("json_match", {}, '{"a": 1}', '{"a": 2, "a": 1}', 0.0),
    ("json_match", {}, "[0.1]", "[0.1000000000000000055]", 0.0),
    ("json_match", {}, "[1e400]", "[1e500]", 0.0),
    ("json_match", {}, "[1e2]", "[100]", 1.0),
    ("json_match", {}, "[1]", "[1e99999999999999999999]", 0.0),
    ("json_match", {}, "[1]", "[NaN]", 0.0),
    ("json_match", {}, "[1]", "[" * 100_000, 0.0),
    ("json_match", {}, "[]", "```json\n[]\n```", 1.0),
    ("json_match", {}, "{}", "[]", 0.0),
    ("json_match", {}, "{}", "", 0.0),
    ("json_match", {}, "not JSON", "{}", 0.0),
    ("json_match", {}, "not JSON", "[1]", None),
]
CHOICES: list[tuple[str, str | None]] = [
    *((text, "B") for text in ("b", "(B)", "B.", "B)", "[B]", "**B**", "“B”", "`B`", "Option B")),
    *((text, "B") for text in ("B: Rome", "B) rome it is", "(B) Paris, since (A) is a river")),
    *((text, "B") for text in ("\\boxed{B}", "\\boxed{\\text{B}}", "\\boxed{(B)}", "#### B")),
    ("\\boxed{A} or rather \\boxed{B}", "B"),
    ("The answer is B because of the river", "B"),
    ("the correct answer is: **(b)**", "B"),
    ("Answer:\nB", "B"),
    ("The best choice is B, since (A) fails.", "B"),
    ("It is not A. The answer is B.", "B"),
    ("The answer is clear: (B)", "B"),
    ("The answer is A, as it is", "A"),
    ("The answer is A", "A"),
    ("The answer is a dog", None),
    ("The answer is A dog", None),
    ("The answer is not B", None),
    ("The answer is A or B", None),
    ("The answer is (A) / (B)", None),
    ("I believe that\nB", "B"),
    ("I choose option B.", "B"),
    ("B is right", "B"),
    ("A good answer", None),
    ("I see.", None),
    ("Bob", None),
    ("U.S.A.", None),
    ("Vitamin-C", None),
    ("(A) (B) (C) (D)", None),
    ("(A), (B)", None),
    ("A. Rome\nB. Paris", None),
    ("(A)\n(B)", None),
    ("(B), yes, (B)", "B"),
    ("E", None),
    ("5", None),
]


def prompt_with(reference: str | None) -> Prompt:
    return make_prompt([{"role": "user", "content": "What is it?"}], reference=reference)


@pytest.mark.parametrize(("name", "params", "reference", "text", "expected"), GOLDEN)
def test_scores(
    name: str, params: dict[str, Any], reference: str, text: str, expected: float | None
) -> None:
    prompt = prompt_with(reference)
    assert apply_check(name, params, prompt, text) == expected
    if expected is None:
        assert reads_reference(name, params, prompt) is False
    elif expected:
        assert reads_reference(name, params, prompt) is True


@pytest.mark.parametrize(("text", "expected"), CHOICES)
def test_choices(text: str, expected: str | None) -> None:
    assert read_choice(text, "ABCD") == expected
    assert read_choice(f"  {text}\n", "ABCD") == expected


@pytest.mark.parametrize("name", sorted({name for name, *_ in GOLDEN}))
@pytest.mark.parametrize("reference", [None, "", "  \n"])
def test_without_a_reference_a_rule_does_not_apply(name: str, reference: str | None) -> None:
    assert apply_check(name, {}, prompt_with(reference), "B") is None
    assert reads_reference(name, {}, prompt_with(reference)) is False


def test_other_rules_read_no_reference() -> None:
    assert reads_reference("no_refusal", {}, prompt_with("B")) is None


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("exact_match", {"part": "first"}, "part"),
    ("exact_match", {"ignore_cas": True}, "did you mean"),
    ("numeric_match", {"tolerance": -1.0}, "tolerance"),
    ("numeric_match", {"relative": 1.0}, "relative"),
    ("choice_match", {"letters": "abc"}, "different capital letters"),
    ("choice_match", {"letters": "AAB"}, "different capital letters"),
    ("pattern_match", {"pattern": "("}, "not a regular expression"),
    ("pattern_match", {"pattern": "no group"}, "exactly one group, and has 0"),
    ("pattern_match", {"pattern": "(a)(b)"}, "exactly one group, and has 2"),
    ("pattern_match", {"pattern": "(a)", "whole": True}, "no effect with `pattern`"),
    ("pattern_match", {"match": "first"}, "no effect without `pattern`"),
    ("json_match", {"keys": ["a"]}, "takes no parameters"),
    ("code_tests", {"memory_mb": 1}, "memory_mb"),
    ("code_tests", {"tests": ""}, "tests"),
]


@pytest.mark.parametrize(("name", "params", "message"), BAD)
def test_wrong_parameters_are_refused(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_check(name, params)


@pytest.mark.parametrize(
    ("params", "reference", "whose"),
    [({}, "(a+)+$", "the reference of prompt"), ({"pattern": "((?:a+)+)$"}, "x", "the check")],
)
def test_a_pattern_that_backtracks_ends_with_its_name(
    params: dict[str, Any], reference: str, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlaif.constitution.textstats.PATTERN_SECONDS", 0.05)
    text = "a" * 40_000 + "!"
    with pytest.raises(ConfigError, match=f"of {whose}.* took more than 0.05 s"):
        apply_check("pattern_match", params, prompt_with(reference), text)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        # The sign is the first one's, and what follows the last one's.
        ("-1,2", ["-1", "2"]),
        ("1,2%", ["1", "0.02"]),
        ("2\\frac{1}{2}", ["2.5"]),
        ("1.5 \\times 10^{3}", ["1500"]),
        ("1.5 \\cdot 10^3", ["1500"]),
        ("10⁻²", ["0.01"]),
        ("1\\,000 and 2{,}000", ["1000", "2000"]),
        ("٣٫٥ and ١٬٢٣٤", ["3.5", "1234"]),
        ("version 1.2.3", []),
        ("0^-1", []),
        ("1/2,5", []),
    ],
)
def test_numbers_as_they_are_written(text: str, numbers: list[str]) -> None:
    assert read_numbers(text) == [Fraction(n) for n in numbers]


def test_a_digit_that_python_may_not_know_yet_breaks_nothing() -> None:
    # One of Unicode 16.
    assert read_numbers("\U0001ccf0 of 5")[-1:] == [5]
    assert apply_check("numeric_match", {}, prompt_with("5"), "\U0001ccf0") == 0.0


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "${:,}", "x={:,}.", "** {:_} **"]))
def test_a_written_number_is_read(number: int, form: str) -> None:
    assert read_numbers(form.format(number)) == [number]


@given(st.fractions(min_value=-1000, max_value=1000, max_denominator=99))
def test_a_written_fraction_is_read(number: Fraction) -> None:
    sign = "-" if number < 0 else ""
    top, bottom = abs(number.numerator), number.denominator
    for text in (f"{sign}{top}/{bottom}", f"{sign}\\frac{{{top}}}{{{bottom}}}"):
        assert read_numbers(text) == [number]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(JSON, JSON)
def test_json_is_the_same_only_as_itself(one: Any, other: Any) -> None:
    prompt = prompt_with(json.dumps(one, sort_keys=True))
    assert apply_check("json_match", {}, prompt, "Here:\n```\n" + json.dumps(one) + "\n```") == 1.0
    # `True == 1` in Python.
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    text = "Here:\n```\n" + json.dumps(other) + "\n```"
    assert apply_check("json_match", {}, prompt, text) == float(same)


@given(st.text(alphabet="aAbBcCdD.()[]*\\{} \nboxed answer is:or1/,-", max_size=60))
def test_no_text_breaks_a_rule(text: str) -> None:
    for name, reference in (("choice_match", "B"), ("numeric_match", "1"), ("exact_match", "B")):
        params = {} if name == "choice_match" else {"part": "final"}
        assert apply_check(name, params, prompt_with(reference), text) in (0.0, 1.0)


def test_lint_counts_prompts_whose_reference_cannot_be_read() -> None:
    principle = {"id": "sum", "check": {"rule": "numeric_match"}}
    constitution = Constitution.model_validate({"name": "c", "principles": [principle]})
    prompts = [prompt_with("4"), prompt_with("four"), prompt_with(None)]
    said = [f.message for f in lint(constitution, prompts=prompts) if f.level == "warning"]
    assert len(said) == 1 and "2 of the 3 prompts" in said[0]
    assert not [f for f in lint(constitution, prompts=prompts[:1]) if f.level == "warning"]


def test_lint_runs_no_code_and_says_what_code_needs() -> None:
    principle = {"id": "runs", "check": {"rule": "code_tests"}}
    constitution = Constitution.model_validate({"name": "c", "principles": [principle]})
    found = lint(constitution, prompts=[prompt_with("assert f()")])
    assert any("allow_code: true" in f.message and f.level == "note" for f in found)
    assert not [f for f in found if f.level == "warning"]
