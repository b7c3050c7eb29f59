"""Every rule against a table, its parameters, and what no rule may do."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.constitution import rules
from rlaif.constitution.rules import (
    RULES,
    apply_check,
    is_too_short,
    resolved_params,
    validate_check,
)
from rlaif.core.errors import RlaifError
from rlaif.core.records import Prompt, make_prompt

EGGS = make_prompt([{"role": "user", "content": "How do I boil eggs?"}])
VAGUE = make_prompt([{"role": "user", "content": "Why is that?"}])
GERMAN = make_prompt(
    [{"role": "user", "content": "Warum muss der Hefeteig an einem warmen Ort gehen?"}]
)

# One valid set of parameters per rule, used by the properties.
VALID: dict[str, dict[str, Any]] = {
    "answers_terms": {"min": 0.5},
    "choice_match": {"letters": "ABCD"},
    "code_tests": {"seconds": 1.0},
    "distinct_words": {"n": 2},
    "exact_match": {"part": "final"},
    "finished_sentence": {},
    "forbidden_pattern": {"pattern": r"\bkill\b"},
    "has_headings": {"min": 2},
    "is_json": {},
    "is_list": {"min_items": 2, "max_items": 5},
    "json_match": {},
    "language": {"code": "en"},
    "no_boilerplate": {},
    "no_refusal": {},
    "no_repeated_ngrams": {"n": 2, "allow": 0.1},
    "numeric_match": {"tolerance": 0.5},
    "pattern_match": {"pattern": "is (.*)"},
    "reading_ease": {"min": 50, "max": 90},
    "required_pattern": {"pattern": r"\S"},
    "sentence_limits": {"min": 1, "max": 3},
    "word_limits": {"min": 12, "max": 45},
}
# What the rules that compare with a reference compare with.
REFERENCES = {
    "choice_match": "B",
    "code_tests": "assert eggs()",
    "exact_match": "Boil them",
    "json_match": '{"a": 1}',
    "numeric_match": "9",
    "pattern_match": "9",
}

EASY = "The cat sat on the mat. It was a warm day and the sun was out."
# Ten words of one syllable: a reading ease of 206.835 - 10.15 - 84.6 = 112.085.
TEN = "The cat sat on the mat and saw a dog."
SPANISH = "La comida estaba muy buena y el vino también."
GERMAN_BESIDE_CODE = "Der Teig muss an einem warmen Ort gehen.\n```\n" + (
    "while the kettle is not boiling: wait for the water to boil and take out the eggs\n" * 5
)
SCORES: list[tuple[str, dict[str, Any], str, float | None]] = [
    ("word_limits", {"min": 4, "max": 8}, "one", 0.25),
    ("word_limits", {"min": 4, "max": 8}, "one two three four", 1.0),
    ("word_limits", {"min": 4, "max": 8}, "w " * 8, 1.0),
    ("word_limits", {"min": 4, "max": 8}, "w " * 12, 0.5),
    ("word_limits", {"min": 4, "max": 8}, "w " * 16, 0.0),
    ("word_limits", {"min": 4, "max": 8}, "w " * 99, 0.0),
    ("word_limits", {"min": 4, "max": 8, "softness": 0.5}, "w " * 10, 0.5),
    ("sentence_limits", {"min": 2, "max": 2}, "One.", 0.5),
    ("sentence_limits", {"min": 2, "max": 2}, "One. Two.", 1.0),
    ("sentence_limits", {"min": 2, "max": 2}, "One. Two. Three.", 0.5),
    ("finished_sentence", {}, "Boil them.", 1.0),
    ("finished_sentence", {}, "Boil them and", 0.0),
    ("no_repeated_ngrams", {"n": 1}, "a b c d", 1.0),
    ("no_repeated_ngrams", {"n": 1}, "a a b b", 0.5),
    ("no_repeated_ngrams", {"n": 1, "allow": 0.5}, "a a b b", 1.0),
    ("no_repeated_ngrams", {"n": 1, "allow": 0.5}, "a a a a", 0.5),
    ("distinct_words", {"n": 1}, "a a b b", 0.5),
    ("distinct_words", {"n": 3}, "a b", 0.0),
    ("language", {"code": "en"}, "Boil the eggs for nine minutes, then cool them.", 1.0),
    ("language", {"code": "de"}, "Boil the eggs for nine minutes, then cool them.", 0.0),
    ("language", {"code": "es"}, SPANISH, 1.0),
    ("language", {"code": "en"}, "Yes, sure.", 0.0),
    ("language", {"code": "en"}, "Boil the eggs in water.", 1.0),
    ("language", {"code": "de"}, GERMAN_BESIDE_CODE, 1.0),
    ("language", {"code": "en"}, "```\nboil the eggs for nine minutes\n```", None),
    ("is_list", {}, "- a\n- b", 1.0),
    ("is_list", {"min_items": 4}, "- a\n- b", 0.5),
    ("is_list", {"max_items": 2}, "- a\n- b\n- c", 0.5),
    ("is_list", {"min_items": 3, "max_items": 4}, "- a\n- b\n- c\n- d", 1.0),
    ("is_list", {"min_items": 3, "max_items": 4}, "- a\n- b\n- c\n- d\n- e\n- f", 0.5),
    ("is_list", {}, "No list here.", 0.0),
    ("is_json", {}, '{"a": 1}', 1.0),
    ("is_json", {}, '```json\n{"a": 1}\n```', 1.0),
    ("is_json", {}, '\n ```json\n{"a": 1}\n```\n', 1.0),
    ("is_json", {}, "0", 1.0),
    ("is_json", {"type": "object"}, "[1]", 0.0),
    ("is_json", {}, 'Here: {"a": 1}', 0.0),
    ("is_json", {}, "{}", 0.0),
    ("is_json", {}, '{"a": NaN}', 0.0),
    ("is_json", {}, "[" * 100_000 + "1", 0.0),
    ("is_json", {"type": "array"}, '{"a": 1}', 0.0),
    ("is_json", {"type": "array"}, "[1]", 1.0),
    ("is_json", {"keys": ["a", "b"]}, '{"a": 1}', 0.5),
    ("is_json", {"keys": ["a"]}, "[1]", 0.0),
    ("has_headings", {"min": 2}, "# One\ntext", 0.5),
    ("has_headings", {}, "# One\n## Two", 1.0),
    ("required_pattern", {"pattern": "nine"}, "nine minutes", 1.0),
    ("required_pattern", {"pattern": "nine"}, "Nine minutes", 0.0),
    ("required_pattern", {"pattern": "nine", "ignore_case": True}, "Nine minutes", 1.0),
    ("forbidden_pattern", {"pattern": "nine"}, "nine minutes", 0.0),
    ("forbidden_pattern", {"pattern": "nine"}, "ten minutes", 1.0),
    ("forbidden_pattern", {"pattern": "nine"}, "Nine minutes", 1.0),
    ("forbidden_pattern", {"pattern": "nine", "ignore_case": True}, "Nine minutes", 0.0),
    ("reading_ease", {"min": 60}, EASY, 1.0),
    ("reading_ease", {"min": 0, "max": 30}, EASY, 0.0),
    ("reading_ease", {"min": 118.085}, TEN, 0.8),
    ("reading_ease", {"min": 0, "max": 97.085}, TEN, 0.5),
    ("reading_ease", {}, "Go. " * 10, 1.0),
    ("reading_ease", {}, "Too short.", 0.0),
    ("reading_ease", {}, "Варите яйца девять минут.", None),
    ("reading_ease", {}, "```\none two three four five six seven eight nine ten\n```", None),
    ("answers_terms", {"min": 1.0}, "Take an egg.", 0.5),
    ("answers_terms", {"min": 0.5}, "Take an egg.", 1.0),
    ("answers_terms", {}, "Take an egg.", 1.0),
    ("answers_terms", {}, "I like trains.", 0.0),
    ("no_refusal", {}, "I'm sorry, but I can't help with that.", 0.0),
    ("no_refusal", {}, "Boil them.", 1.0),
    ("no_boilerplate", {}, "Boil them.", 1.0),
    ("no_boilerplate", {}, "Boil them. I hope this helps!", 0.5),
    ("no_boilerplate", {}, "Boil them. I hope this helps! Feel free to ask.", 0.25),
    ("no_boilerplate", {"allow": 1}, "Boil them. I hope this helps!", 1.0),
]


@pytest.mark.parametrize(("name", "params", "text", "expected"), SCORES)
def test_scores(name: str, params: dict[str, Any], text: str, expected: float | None) -> None:
    score = apply_check(name, params, EGGS, text)
    assert score == (None if expected is None else pytest.approx(expected))


def test_the_tables_cover_every_rule() -> None:
    # The tables of rules that compare are those of test_reference_rules.py and test_code_rule.py.
    assert set(VALID) == set(RULES) == {name for name, *_ in SCORES} | set(REFERENCES)
    assert set(REFERENCES) == {name for name, rule in RULES.items() if rule.reference is not None}
    assert all(rule.score.__doc__ and rule.params.__doc__ for rule in RULES.values())


def test_rules_that_look_at_the_prompt() -> None:
    assert apply_check("answers_terms", {}, VAGUE, "Because.") is None
    params = {"code": "prompt"}
    german = "Hefe arbeitet bei Wärme schneller, und der Teig geht besser auf."
    assert apply_check("language", params, GERMAN, german) == 1.0
    assert apply_check("language", params, GERMAN, "Yeast works faster when it is warm.") == 0.0
    assert apply_check("language", params, VAGUE, german) is None


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("blank", ["", "  \n", "\u200b", "...", "```\n```", "[]"])
@pytest.mark.parametrize("prompt", [EGGS, VAGUE])
def test_a_blank_answer_scores_zero(name: str, blank: str, prompt: Prompt) -> None:
    assert apply_check(name, VALID[name], prompt, blank) == 0.0
    compared = make_prompt(prompt.messages, reference=REFERENCES.get(name))
    assert apply_check(name, VALID[name], compared, blank) == 0.0


# What a text does that is run as code is for test_code_rule.py to say.
@pytest.mark.parametrize("name", sorted(set(RULES) - {"code_tests"}))
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=300))
def test_scores_stay_in_range(name: str, text: str) -> None:
    prompt = make_prompt(EGGS.messages, reference=REFERENCES.get(name))
    score = apply_check(name, VALID[name], prompt, text)
    assert score is None or 0.0 <= score <= 1.0
    empty = apply_check(name, VALID[name], prompt, "")
    assert empty is not None
    assert score is None or empty <= score


@given(
    count=st.integers(0, 300),
    low=st.integers(1, 50),
    extra=st.integers(0, 50),
    softness=st.floats(0.1, 3),
)
def test_word_limits_peak_inside(count: int, low: int, extra: int, softness: float) -> None:
    params = {"min": low, "max": low + extra, "softness": softness}
    score = apply_check("word_limits", params, EGGS, "word " * count)
    assert score is not None
    assert 0.0 <= score <= 1.0
    assert (score == 1.0) == (low <= count <= low + extra)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("word_limit", {}, "did you mean 'word_limits'"),
    ("word_limits", {"min": 5}, "'max' is missing"),
    ("word_limits", {"min": 0, "max": 5}, "min: Input should be greater than or equal to 1"),
    ("word_limits", {"min": 9, "max": 5}, r"min \(9\) must not be above max \(5\)"),
    ("word_limits", {"min": 1, "max": 5, "softnes": 1}, "did you mean 'softness'"),
    ("word_limits", {"min": "1", "max": 5}, "min: Input should be a valid integer"),
    ("word_limits", {"min": True, "max": 5}, "min: Input should be a valid integer"),
    ("word_limits", {"min": 1, "max": 5, "softness": 0}, "softness"),
    ("word_limits", {"min": 1, "max": 5, "softness": float("nan")}, "softness"),
    ("finished_sentence", {"min": 1}, "takes no parameters"),
    ("no_repeated_ngrams", {"allow": 1.0}, "allow"),
    ("language", {"code": "eng"}, "did you mean 'en'"),
    ("is_list", {"min_items": 5, "max_items": 3}, "min_items"),
    ("is_json", {"type": "list"}, "type"),
    ("required_pattern", {"pattern": "("}, "not a regular expression"),
    ("required_pattern", {"pattern": "a" * 501}, "1 to 500"),
    ("forbidden_pattern", {}, "'pattern' is missing"),
    ("reading_ease", {"min": 80, "max": 60}, "must not be above"),
    ("answers_terms", {"min": 0}, "min"),
]


@pytest.mark.parametrize(("name", "params", "message"), BAD)
def test_wrong_checks_are_refused(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_check(name, params)


@pytest.mark.parametrize("name", sorted(RULES))
def test_valid_checks_pass(name: str) -> None:
    validate_check(name, VALID[name])
    assert resolved_params(name, resolved_params(name, VALID[name])) == resolved_params(
        name, VALID[name]
    )


def test_defaults_are_filled_in() -> None:
    assert resolved_params("no_repeated_ngrams", {}) == {"n": 3, "allow": 0.0}
    assert resolved_params("distinct_words", {}) == {"n": 2}
    assert resolved_params("reading_ease", {}) == {"min": 50.0, "max": 121.0}


@pytest.mark.parametrize(
    ("name", "params", "least"),
    [
        ("distinct_words", {"n": 4}, 4),
        ("language", {"code": "en"}, 5),
        ("reading_ease", {}, 10),
        ("word_limits", {"min": 5, "max": 9}, 1),
    ],
)
def test_a_text_is_too_short_below_the_words_that_its_rule_measures(
    name: str, params: dict[str, Any], least: int
) -> None:
    assert not is_too_short(name, params, "word " * least)
    assert is_too_short(name, params, "word " * (least - 1)) is (least > 1)
    assert not is_too_short(name, params, "...")


@pytest.mark.parametrize(("probability", "score"), [(0.49, None), (0.5, 1.0)])
def test_an_uncertain_language_is_none(
    probability: float, score: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SimpleNamespace(classify=lambda text: ("en", probability))
    monkeypatch.setattr(rules, "_IDENTIFIER", SimpleNamespace(model=model))
    text = "Boil the eggs for nine minutes."
    assert apply_check("language", {"code": "en"}, EGGS, text) == score


def test_a_missing_language_model_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_module(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(rules, "_IDENTIFIER", rules._Identifier())
    monkeypatch.setattr(importlib, "import_module", no_module)
    with pytest.raises(RlaifError, match="pip install py3langid"):
        apply_check("language", {"code": "en"}, EGGS, "Boil the eggs for nine minutes.")


def test_the_language_model_is_loaded_only_when_used() -> None:
    assert "model" not in vars(rules._Identifier())
