"""Rules that compare an answer with its prompt's `reference`.

Each has a function that says whether a reference can be read; where it cannot, or where there is
none, the rule does not apply.
"""

from __future__ import annotations

import functools
import unicodedata
from collections import deque
from fractions import Fraction
from typing import Any, Literal

import regex
from pydantic import Field, field_validator, model_validator

from rlaif.constitution import textstats as ts
from rlaif.constitution.final_answers import boxed, last_line, marked, read_json, same_json
from rlaif.constitution.numerals import Decimal, Percent, read_numbers
from rlaif.constitution.params import NoParams, Params
from rlaif.core.errors import ConfigError
from rlaif.core.records import Prompt


class ExactParams(Params):
    """`part` of the answer that is compared: `whole`, `last_line`, or `final`, which is a box, or
    what a marker such as "The answer is" or "####" precedes, or the last line. What is ignored:
    `ignore_case`, `ignore_punctuation`, `ignore_articles` (a, an, the)."""

    part: Literal["whole", "last_line", "final"] = "whole"
    ignore_case: bool = False
    ignore_punctuation: bool = False
    ignore_articles: bool = False


class NumericParams(Params):
    """`part`: `final` (a box, else after a marker such as "The answer is" or "####", else the last
    number), `last`, or `only` (the answer holds one number). Equal within `tolerance` or within
    `relative` times the reference. `decimal`: the decimal mark. `percent`: 50% is 0.5
    (`hundredths`) or 50 (`ignore`)."""

    part: Literal["final", "last", "only"] = "final"
    tolerance: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    relative: float = Field(default=1e-6, ge=0, lt=1)
    decimal: Decimal = "."
    percent: Percent = "hundredths"


class ChoiceParams(Params):
    """`letters` of the choices, 2 to 26 different ones."""

    letters: str = "ABCDEFGHIJ"

    @field_validator("letters")
    @classmethod
    def _check_letters(cls, letters: str) -> str:
        if not regex.fullmatch(r"[A-Z]{2,26}", letters) or len(set(letters)) < len(letters):
            raise ValueError("expected 2 to 26 different capital letters, such as ABCD")
        return letters


class ReferencePatternParams(Params):
    """Without `pattern` the reference is the pattern, found anywhere in the answer or, with
    `whole`, matching all of it. With `pattern`, which has one group, what the group holds in its
    `last` (or `first`) match is compared with the reference, blanks around it aside."""

    pattern: str | None = None
    match: Literal["last", "first"] = "last"
    whole: bool = False
    ignore_case: bool = False

    @model_validator(mode="after")
    def _check_pattern(self) -> ReferencePatternParams:
        if self.pattern is not None:
            groups = ts.compile_pattern(self.pattern, self.ignore_case).groups
            if groups != 1:
                raise ValueError(
                    f"pattern: it must have exactly one group, and has {groups}; write (?:...) for "
                    "the others"
                )
        elif "match" in self.model_fields_set:
            raise ValueError("match: it has no effect without `pattern`")
        if self.pattern is not None and self.whole:
            raise ValueError("whole: it has no effect with `pattern`; write \\A and \\Z in it")
        return self


def exact_match(prompt: Prompt, text: str, p: ExactParams) -> float | None:
    """1 where the answer is the reference, else 0. Runs of blanks count as one, and Unicode's
    composed and decomposed forms are the same."""
    wanted = _normalise(prompt.reference or "", p)
    if not wanted:
        return None
    part = text
    if p.part == "last_line":
        part = last_line(text)
    elif p.part == "final":
        found = boxed(text)
        found = marked(text) if found is None else found
        # A sentence's full stop is no part of what it says.
        part = last_line(text) if found is None else found
        part = part.strip().strip("*_`").removesuffix(".").strip("*_`")
    return float(_normalise(part, p) == wanted)


def exact_reference(reference: str, p: ExactParams) -> bool:
    """Whether something is left of the reference once what is ignored is gone."""
    return bool(_normalise(reference, p))


_ARTICLE = regex.compile(r"\b(?:a|an|the)\b", regex.IGNORECASE)


def _normalise(text: str, p: ExactParams) -> str:
    text = unicodedata.normalize("NFC", text)
    if p.ignore_case:
        text = unicodedata.normalize("NFC", text.casefold())
    if p.ignore_punctuation:
        text = regex.sub(r"\p{P}+", " ", text)
    if p.ignore_articles:
        text = _ARTICLE.sub(" ", text)
    return " ".join(text.split())


def numeric_match(prompt: Prompt, text: str, p: NumericParams) -> float | None:
    """1 where the answer's number equals the reference's, else 0; 0 where it has none."""
    wanted = _read_number(prompt.reference or "", p, "final")
    if wanted is None:
        return None
    found = _read_number(text, p, p.part)
    if found is None:
        return 0.0
    # As written, and not the binary number next to it.
    within = max(Fraction(str(p.tolerance)), Fraction(str(p.relative)) * abs(wanted))
    return float(abs(found - wanted) <= within)


def numeric_reference(reference: str, p: NumericParams) -> bool:
    """Whether the reference has a number."""
    return _read_number(reference, p, "final") is not None


def _read_number(text: str, p: NumericParams, part: str) -> Fraction | None:
    read = functools.partial(read_numbers, decimal=p.decimal, percent=p.percent)
    if part == "only":
        found = read(text)
        return found[0] if len(found) == 1 else None
    if part == "final":
        inside = boxed(text)
        if inside is not None:
            return next(iter(read(inside.rpartition("=")[2])), None)
        said = marked(text)
        if said is not None and (found := read(said.rpartition("=")[2])):
            return found[0]
    return next(reversed(read(text)), None)


def choice_match(prompt: Prompt, text: str, p: ChoiceParams) -> float | None:
    """1 where the answer chooses the reference's letter, else 0; 0 where it chooses none or
    several. Read in this order: a box; the last marker ("The answer is B", "Answer: (B)"); a letter
    that is the whole answer or begins it ("B", "(B)", "B. Rome"); the same on the last line;
    letters in brackets, or else bare capitals, if all are the same. Without a box or a marker no
    line may begin with another letter. Neither the article "A" nor the pronoun "I" is one."""
    wanted = read_choice(prompt.reference or "", p.letters)
    return None if wanted is None else float(read_choice(text, p.letters) == wanted)


def choice_reference(reference: str, p: ChoiceParams) -> bool:
    """Whether the reference is one of the letters."""
    return read_choice(reference, p.letters) is not None


_WRAPPED = regex.compile(
    r"[\s*_`\"'“”$]*+(?:\\text(?:bf)?\s?\{[\s*_`\"'“”$]*+)?"
    r"(?:(?:option|choice)\b\s?)?(?P<open>[(\[])?[*_`]*+(?P<letter>\p{L})[*_`]*+(?P<close>[)\]}])?"
    r"[*_`\"'“”$]*+(?P<rest>.*)",
    regex.IGNORECASE | regex.DOTALL,
)
_BRACKETED = regex.compile(r"[(\[][*_`]*+(\p{Lu})[*_`]*+[)\]]")
_BARE = regex.compile(r"(?<![\p{L}\p{N}'’.-])(\p{Lu})(?![\p{L}\p{N}'’-])")
_LISTED = regex.compile(r"^[ \t*_`\-]*+[(\[]?(\p{L})[*_`]*+[).:\]](?!\p{L})", regex.MULTILINE)
_MORE = regex.compile(
    r"\s*+(?:[(\[]\s*+\p{L}\s*+[)\]]|(?:\bor\b|\band\b|[/&,])\s*+[(\[]?\s*+\p{L}(?![\p{L}\p{N}'’]))",
    regex.IGNORECASE,
)
_NEXT_WORD = regex.compile(r"\s+(?!(?:or|and)\b)\p{Ll}")
_NOT = regex.compile(r"\bnot\b|n['’]t\b", regex.IGNORECASE)
_CLAUSE = regex.compile(
    r"\s*+(?:$|[.,;:!)\]}\n–—-]|(?:because|since|as|for|due|based|given|which|is|was|with|and)\b)"
)


def read_choice(text: str, letters: str) -> str | None:
    """The letter of `letters` that an answer chooses, as `choice_match` says; None for none."""
    for part in (boxed(text), marked(text)):
        if part is None:
            continue
        letter = _leading_letter(part, letters)
        if letter is not None:
            return letter
        named = _named_letters(part, letters)
        if named:
            # Once a result is marked, what stands elsewhere is not it.
            return named.pop() if len(named) == 1 and not _NOT.search(part) else None
    listed = {letter.upper() for letter in _LISTED.findall(text)} & set(letters)
    leading = _leading_letter(text, letters, alone=True)
    if leading is None:
        leading = _leading_letter(last_line(text), letters, alone=True)
    found = (_named_letters(text, letters) if leading is None else {leading}) | listed
    return found.pop() if len(found) == 1 else None


def _named_letters(text: str, letters: str) -> set[str]:
    """The letters in brackets, or where none is, the bare capitals that are no words."""
    found = {letter for letter in _BRACKETED.findall(text) if letter in letters}
    if found:
        return found
    bare = (match for match in _BARE.finditer(text) if match[1] in letters)
    # The article and the pronoun.
    return {m[1] for m in bare if m[1] not in "AI" or not _NEXT_WORD.match(text, m.end())}


def _leading_letter(text: str, letters: str, alone: bool = False) -> str | None:
    """The letter with which `text` begins. With `alone` it has to be marked off: "B", "(B) ...",
    "B. ...", "B: ..."; without, a clause may follow it: "B because ..."."""
    match = _WRAPPED.match(text)
    if match is None or match["letter"].upper() not in letters:
        return None
    rest = match["rest"]
    if regex.match(r"[\p{L}\p{N}'’]", rest) or _MORE.match(rest):
        return None
    marked_off = (
        match["close"] is not None
        or not rest.strip()
        or regex.match(r"[.):\]](?!\p{L})", rest) is not None
    )
    if not marked_off and not alone:
        # "a dog" has the article, and "A dog" may.
        may_be_word = match["letter"].islower() or match["letter"] in "AI"
        marked_off = not may_be_word or _CLAUSE.match(rest) is not None
    return match["letter"].upper() if marked_off else None


def pattern_match(prompt: Prompt, text: str, p: ReferencePatternParams) -> float | None:
    """1 where the reference is found as a pattern, or is what `pattern` captures, else 0."""
    reference = (prompt.reference or "").strip()
    if not pattern_reference(reference, p):
        return None
    if p.pattern is None:
        return float(_find(reference, text, p, prompt) is not None)
    match = _find(p.pattern, text, p, prompt)
    if match is None or match[1] is None:
        return 0.0
    found = str(match[1]).strip()
    if p.ignore_case:
        return float(found.casefold() == reference.casefold())
    return float(found == reference)


def pattern_reference(reference: str, p: ReferencePatternParams) -> bool:
    """Whether the reference can be compared, or is a regular expression if it is the pattern."""
    reference = reference.strip()
    if not reference or p.pattern is not None:
        return bool(reference)
    try:
        ts.compile_pattern(reference, p.ignore_case)
    except ValueError:
        return False
    return True


def _find(
    pattern: str, text: str, p: ReferencePatternParams, prompt: Prompt
) -> regex.Match[str] | None:
    """The match that counts. Raises ConfigError where the search takes too long."""
    compiled = ts.compile_pattern(pattern, p.ignore_case)
    try:
        if p.whole:
            return compiled.fullmatch(text.strip(), timeout=ts.PATTERN_SECONDS)
        if p.pattern is None or p.match == "first":
            return compiled.search(text, timeout=ts.PATTERN_SECONDS)
        last = deque(compiled.finditer(text, timeout=ts.PATTERN_SECONDS), maxlen=1)
        return last.pop() if last else None
    except TimeoutError:
        where = f"the reference of prompt {prompt.prompt_id}" if p.pattern is None else "the check"
        raise ConfigError(
            f"pattern {pattern!r} of {where} took more than {ts.PATTERN_SECONDS:g} s on a text of "
            f"{len(text)} characters; rewrite it without nested repetition such as (a+)+"
        ) from None


def json_match(prompt: Prompt, text: str, p: NoParams) -> float | None:
    """1 where the answer, or its last code fence, is the reference's JSON value, else 0. The order
    of keys is no matter, 1 equals 1.0, and true does not; a key given twice is no JSON."""
    if not json_reference(prompt.reference or "", p):
        return None
    try:
        return float(same_json(read_json(text), _reference_value(prompt.reference or "")))
    except (ValueError, RecursionError):
        return 0.0


def json_reference(reference: str, p: NoParams) -> bool:
    """Whether the reference is JSON."""
    try:
        _reference_value(reference)
    except ValueError:
        return False
    return True


@functools.lru_cache(maxsize=256)
def _reference_value(reference: str) -> Any:
    return read_json(reference)
