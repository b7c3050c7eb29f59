"""Checks that a program can decide: what a principle's `check` may name.

Each rule is a pure function of the prompt, the completion's text and its typed parameters (but
`code_tests` runs what the text holds; see `code_rule`). It gives a score in [0, 1], higher is
better, or None where it does not apply. A blank completion scores 0.0 under every rule, and one
that is too short for a rule to measure scores 0.0 under that rule, so that saying less is never a
way to win. A check is identified by its name and parameters. `package.module:name` is a rule of the
user's own (`own_rules`).
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import regex
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from rlaif.constitution import textstats as ts
from rlaif.constitution.code_rule import CodeParams, code_reference, code_tests
from rlaif.constitution.own_rules import code_of, own_rule
from rlaif.constitution.params import NoParams, Params
from rlaif.constitution.reference_rules import (
    ChoiceParams,
    ExactParams,
    NumericParams,
    ReferencePatternParams,
    choice_match,
    choice_reference,
    exact_match,
    exact_reference,
    json_match,
    json_reference,
    numeric_match,
    numeric_reference,
    pattern_match,
    pattern_reference,
)
from rlaif.core.errors import RlaifError
from rlaif.core.records import Prompt, canonical_json
from rlaif.core.yamlio import suggest

_CODES = "ar bg cs da de el en es fa fi fr he hi hu id it ja ko nl no pl pt ro ru sv th tr uk vi zh"
LANGUAGES: tuple[str, ...] = tuple(_CODES.split())
"""The languages (ISO 639-1) told apart. A short list is more reliable than every one known."""

MIN_LANGUAGE_WORDS = 5
MIN_LANGUAGE_PROBABILITY = 0.5
READING_SLOPE = 30.0


class Limits(Params):
    """A count's range: `min` at least 1, `max` at least `min`, `softness` in (0, 10]."""

    min: int = Field(ge=1)
    max: int = Field(ge=1, le=1_000_000)
    softness: float = Field(default=1.0, gt=0, le=10)

    @model_validator(mode="after")
    def _check_order(self) -> Limits:
        _refuse_reversed(self.min, self.max)
        return self


class NgramParams(Params):
    """`n` words (1 to 20); `allow` is the share of repeats without penalty, in [0, 1)."""

    n: int = Field(default=3, ge=1, le=20)
    allow: float = Field(default=0.0, ge=0, lt=1)


class DistinctParams(Params):
    """`n` words (1 to 20)."""

    n: int = Field(default=2, ge=1, le=20)


class LanguageParams(Params):
    """`code`: an ISO 639-1 code of `LANGUAGES`, or "prompt" for the language of the question."""

    code: str

    @field_validator("code")
    @classmethod
    def _check_language(cls, code: str) -> str:
        known = [*LANGUAGES, "prompt"]
        if code not in known:
            raise ValueError(f"unknown language {code!r}{suggest(code, known)}")
        return code


class ListParams(Params):
    """`min_items` at least 2; `max_items` at least that, or none for no upper limit."""

    min_items: int = Field(default=2, ge=2)
    max_items: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _check_order(self) -> ListParams:
        if self.max_items is not None:
            _refuse_reversed(self.min_items, self.max_items, "min_items", "max_items")
        return self


class JsonParams(Params):
    """`type` of the value (any, object or array); `keys` that an object must have."""

    type: Literal["any", "object", "array"] = "any"
    keys: list[str] = Field(default=[])


class HeadingParams(Params):
    """`min` headings, at least 1."""

    min: int = Field(default=1, ge=1, le=1000)


class PatternParams(Params):
    """`pattern`: a regular expression of 1 to 500 characters, found anywhere in the text."""

    pattern: str
    ignore_case: bool = False

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str) -> str:
        ts.compile_pattern(pattern)
        return pattern


class ReadingParams(Params):
    """Flesch reading ease from `min` to `max`: 0 is very hard, 60 plain, 100 very easy."""

    min: float = Field(default=50.0, ge=-100, le=121)
    max: float = Field(default=121.0, ge=-100, le=121)

    @model_validator(mode="after")
    def _check_order(self) -> ReadingParams:
        _refuse_reversed(self.min, self.max)
        return self


class TermParams(Params):
    """`min`: the share of key terms, in (0, 1], that already earns the full score."""

    min: float = Field(default=0.5, gt=0, le=1)


class BoilerplateParams(Params):
    """`allow`: stock phrases without penalty, 0 or more."""

    allow: int = Field(default=0, ge=0, le=100)


def _refuse_reversed(low: float, high: float, first: str = "min", second: str = "max") -> None:
    if low > high:
        raise ValueError(f"{first} ({low}) must not be above {second} ({high})")


def _score_count(count: int, p: Limits) -> float:
    """1 from min to max; falls linearly to 0 at a count of 0 and at max * (1 + softness)."""
    if count < p.min:
        return count / p.min
    if count <= p.max:
        return 1.0
    return max(0.0, 1.0 - (count - p.max) / (p.max * p.softness))


def word_limits(prompt: Prompt, text: str, p: Limits) -> float | None:
    """1 from `min` to `max` words; below, words/min; above, to 0 at max * (1 + softness) words."""
    return _score_count(len(ts.words(text)), p)


def sentence_limits(prompt: Prompt, text: str, p: Limits) -> float | None:
    """Like word_limits, in sentences; each list item counts as one."""
    return _score_count(len(ts.sentences(text)), p)


def finished_sentence(prompt: Prompt, text: str, p: NoParams) -> float | None:
    """1 when the text ends like a finished text, 0 when it looks cut off."""
    return float(ts.is_finished(text))


def no_repeated_ngrams(prompt: Prompt, text: str, p: NgramParams) -> float | None:
    """1 up to a share `allow` of repeated n-grams of words, then linearly to 0 at a share of 1.

    A text too short to repeat scores 1: combine with word_limits.
    """
    excess = ts.repetition(text, p.n) - p.allow
    return 1.0 if excess <= 0 else 1.0 - excess / (1.0 - p.allow)


def distinct_words(prompt: Prompt, text: str, p: DistinctParams) -> float | None:
    """Different n-grams over all n-grams; 0 with fewer than `n` words."""
    return ts.distinct_n(text, p.n) or 0.0


class _Identifier:
    """The language model, loaded on first use (about 0.3 s)."""

    @functools.cached_property
    def model(self) -> Any:
        try:
            langid = importlib.import_module("py3langid.langid")
        except ImportError:
            raise RlaifError(
                "the rule 'language' needs py3langid; install it: pip install py3langid"
            ) from None
        # An own instance: the module's shared one would be restricted for everybody.
        model = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
        model.set_languages(list(LANGUAGES))
        return model


_IDENTIFIER = _Identifier()


def _identify_language(text: str) -> str | None:
    """The language of the prose in `text`; None when too short or uncertain to say."""
    prose = ts.without_code(text)
    if len(ts.words(prose)) < MIN_LANGUAGE_WORDS:
        return None
    code, probability = _IDENTIFIER.model.classify(prose)
    return str(code) if probability >= MIN_LANGUAGE_PROBABILITY else None


def language(prompt: Prompt, text: str, p: LanguageParams) -> float | None:
    """1 in the wanted language, 0 in another and for a text of fewer than five words.

    None when the text is too mixed to tell (a probability below 0.5) or next to all code, and when
    the question's language is wanted and cannot be told.
    """
    wanted = _identify_language(prompt.question) if p.code == "prompt" else p.code
    if wanted is None:
        return None
    if len(ts.words(text)) < MIN_LANGUAGE_WORDS:
        return 0.0
    found = _identify_language(text)
    return None if found is None else float(found == wanted)


def is_list(prompt: Prompt, text: str, p: ListParams) -> float | None:
    """1 with `min_items` to `max_items` list items; below, items/min; above, to 0 at twice max."""
    count = len(ts.list_items(text))
    if p.max_items is not None and count > p.max_items:
        return max(0.0, 1.0 - (count - p.max_items) / p.max_items)
    return min(1.0, count / p.min_items)


_FENCED = regex.compile(r"\A```\w*\s*\n(.*)\n\s*```\Z", regex.DOTALL)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def is_json(prompt: Prompt, text: str, p: JsonParams) -> float | None:
    """1 for a JSON value of the wanted type, alone or in one code fence; else 0.

    With `keys`, the share of them that the object has. An empty object or list scores 0.
    """
    bare = text.strip()
    fenced = _FENCED.match(bare)
    try:
        value = json.loads(fenced[1] if fenced else bare, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return 0.0
    if p.type == "array" and not isinstance(value, list):
        return 0.0
    if (p.type == "object" or p.keys) and not isinstance(value, dict):
        return 0.0
    if p.keys:
        return sum(key in value for key in p.keys) / len(p.keys)
    return 0.0 if value in ({}, [], "") else 1.0


def has_headings(prompt: Prompt, text: str, p: HeadingParams) -> float | None:
    """Markdown headings over `min`, at most 1."""
    return min(1.0, len(ts.headings(text)) / p.min)


def required_pattern(prompt: Prompt, text: str, p: PatternParams) -> float | None:
    """1 when the pattern is found, else 0."""
    return float(ts.matches(p.pattern, text, p.ignore_case))


def forbidden_pattern(prompt: Prompt, text: str, p: PatternParams) -> float | None:
    """0 when the pattern is found, else 1."""
    return float(not ts.matches(p.pattern, text, p.ignore_case))


def reading_ease(prompt: Prompt, text: str, p: ReadingParams) -> float | None:
    """1 with a Flesch reading ease from `min` to `max`, falling to 0 at 30 points outside.

    English only; 0 for fewer than ten words, None for other scripts and for what is next to all
    code.
    """
    ease = ts.flesch_ease(text)
    if ease is None:
        short = len(ts.words(text)) < ts.MIN_READING_WORDS
        return 0.0 if short and not ts.is_foreign(text) else None
    # The formula goes past 121 for absurdly short words; no `max` can be set there.
    outside = max(p.min - ease, min(ease, 121.0) - p.max, 0.0)
    return max(0.0, 1.0 - outside / READING_SLOPE)


def answers_terms(prompt: Prompt, text: str, p: TermParams) -> float | None:
    """Share of the question's key terms that the text uses, over `min`, at most 1 (English).

    None when the question has no key terms.
    """
    share = ts.term_overlap(prompt.question, text)
    return None if share is None else min(1.0, share / p.min)


def no_refusal(prompt: Prompt, text: str, p: NoParams) -> float | None:
    """0 when the text opens by declining to answer (English), else 1."""
    return float(not ts.is_refusal(text))


def no_boilerplate(prompt: Prompt, text: str, p: BoilerplateParams) -> float | None:
    """1 up to `allow` stock phrases; each further one halves the score (English)."""
    return float(0.5 ** max(0, len(ts.stock_phrases(text)) - p.allow))


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule's function and the model of its parameters."""

    # Any: each function takes exactly its own row's parameter model.
    score: Callable[[Prompt, str, Any], float | None]
    params: type[BaseModel]
    least_words: Callable[[Any], int] = lambda p: 1
    """How many words a text must have to be measured."""
    reference: Callable[[str, Any], bool] | None = None
    """Of a rule that compares with the prompt's reference: whether a reference can be read."""


RULES: dict[str, Rule] = {
    "answers_terms": Rule(answers_terms, TermParams),
    "choice_match": Rule(choice_match, ChoiceParams, reference=choice_reference),
    "code_tests": Rule(code_tests, CodeParams, reference=code_reference),
    "distinct_words": Rule(distinct_words, DistinctParams, lambda p: p.n),
    "exact_match": Rule(exact_match, ExactParams, reference=exact_reference),
    "finished_sentence": Rule(finished_sentence, NoParams),
    "forbidden_pattern": Rule(forbidden_pattern, PatternParams),
    "has_headings": Rule(has_headings, HeadingParams),
    "is_json": Rule(is_json, JsonParams),
    "is_list": Rule(is_list, ListParams),
    "json_match": Rule(json_match, NoParams, reference=json_reference),
    "language": Rule(language, LanguageParams, lambda p: MIN_LANGUAGE_WORDS),
    "no_boilerplate": Rule(no_boilerplate, BoilerplateParams),
    "no_refusal": Rule(no_refusal, NoParams),
    "no_repeated_ngrams": Rule(no_repeated_ngrams, NgramParams),
    "numeric_match": Rule(numeric_match, NumericParams, reference=numeric_reference),
    "pattern_match": Rule(pattern_match, ReferencePatternParams, reference=pattern_reference),
    "reading_ease": Rule(reading_ease, ReadingParams, lambda p: ts.MIN_READING_WORDS),
    "required_pattern": Rule(required_pattern, PatternParams),
    "sentence_limits": Rule(sentence_limits, Limits),
    "word_limits": Rule(word_limits, Limits),
}


def _find_rule(name: str) -> Rule:
    if ":" in name:
        return Rule(*own_rule(name))
    if name not in RULES:
        raise ValueError(f"unknown rule {name!r}{suggest(name, list(RULES))}")
    return RULES[name]


def _resolve_params(name: str, params: Mapping[str, Any]) -> BaseModel:
    model = _find_rule(name).params
    try:
        return model.model_validate(dict(params))
    except ValidationError as error:
        faults = "; ".join(_describe_fault(dict(fault), model) for fault in error.errors())
        raise ValueError(f"rule {name!r}: {faults}") from None


def _describe_fault(fault: dict[str, Any], model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        hint = suggest(key, list(model.model_fields)) or "; this rule takes no parameters"
        return f"unknown parameter {key!r}{hint}"
    if fault["type"] == "missing":
        return f"parameter {key!r} is missing; it must be given"
    reason = str(fault["msg"]).removeprefix("Value error, ")
    return f"{key}: {reason}" if key else reason


@functools.lru_cache(maxsize=1024)
def _resolve_cached(name: str, params_json: str) -> BaseModel:
    return _resolve_params(name, json.loads(params_json))


def validate_check(name: str, params: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the nearest known name, when the rule or a parameter is wrong."""
    _resolve_params(name, params)


def resolved_params(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with every default filled in: with the name, the identity of a check. That of
    a rule of one's own has the hash of its code too, under ":code"."""
    own = code_of([name]) if ":" in name else []
    code = {":code": own[0]} if own else {}
    return _resolve_params(name, params).model_dump(mode="json") | code


def apply_check(name: str, params: Mapping[str, Any], prompt: Prompt, text: str) -> float | None:
    """The rule's score of `text` as an answer to `prompt`, in [0, 1]; None: it does not apply.

    A blank text (`textstats.is_blank`) scores 0.0 under every rule, except where a reference that
    is as blank, such as "[]", may be what it is compared with.
    """
    resolved = _resolve_cached(name, canonical_json(dict(params)))
    rule = _find_rule(name)
    wanted = (prompt.reference or "").strip()
    compared = rule.reference is not None and bool(wanted) and ts.is_blank(wanted)
    if ts.is_blank(text) and not (compared and text.strip()):
        return 0.0
    return rule.score(prompt, text, resolved)


def reads_reference(name: str, params: Mapping[str, Any], prompt: Prompt) -> bool | None:
    """Whether a rule that compares with references can read the prompt's; None of other rules."""
    readable = _find_rule(name).reference
    if readable is None:
        return None
    return readable(prompt.reference or "", _resolve_cached(name, canonical_json(dict(params))))


def is_too_short(name: str, params: Mapping[str, Any], text: str) -> bool:
    """Whether `text` says something, in fewer words than the rule can measure."""
    least = _find_rule(name).least_words(_resolve_cached(name, canonical_json(dict(params))))
    return least > 1 and not ts.is_blank(text) and len(ts.words(text)) < least
