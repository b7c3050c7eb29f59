"""Reading a judge's answer by a pattern of one's own, as a list, or by parts. Each reader gives a
value, or None where there is none to read, which is missing data: never a default.

Words and numbers are matched whole: "know" is not "no", "10" is not "1". The forms in which the
shipped templates ask for a verdict are read in `scores`, `choices` and `jsontext`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from rlaif.judges.forms import Candidate, Form, Grammar, Read, candidates, settled
from rlaif.judges.jsontext import Found
from rlaif.judges.quotes import quoted
from rlaif.judges.scores import USUAL, Score, in_range, number, score_grammar

# "Text 2", "### Answer 2:", "Output for Text 1 -", "**Response 3** Rating".
_HEAD = re.compile(
    r"^\W*(?:output\s+for\s+)?(?:text|answer|response|output)\W{0,3}(?P<number>\d{1,3})"
    r"[*_`#)\]]*\s*(?:[:,]|-|\u2013|$|(?=rating))",
    re.IGNORECASE | re.MULTILINE,
)
_NOT = ("N/A", "not applicable")

# "- [essential] The answer ...", "2. The answer ...", "* **(Pitfall)**: The answer ...".
_ITEM = re.compile(
    r"^\s*(?:[-*\u2022]|\d{1,2}[.)])\s*[*_`]*(?:[\[(](?P<kind>[A-Za-z]+)[\])][*_`]*\s*:?\s*)?"
    r"(?P<item>.+)$",
    re.MULTILINE,
)


@lru_cache(maxsize=64)
def _compile_pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.MULTILINE)


def patterned_score(
    text: str, low: float, high: float, pattern: str, cut: bool = False
) -> float | None:
    """The number, on [low, high], in the first group of the matches of `pattern`; see
    `forms.settled` for several."""

    def read_value(match: re.Match[str]) -> float | None:
        start, end = match.span(1)
        # The group took a part of a longer number, such as the 10 of 10.5.
        if re.match(r"[.,]?\d", text[end:]) or re.search(r"\d[.,]?$", text[:start]):
            return None
        try:
            return in_range(number(match.group(1).strip()), low, high)
        except ValueError:
            return None

    return settled(
        [_make_candidate(text, m, read_value(m), cut) for m in _find_matches(text, pattern)], text
    )


def patterned_word(
    text: str, pattern: str, values: Mapping[str, float | None], cut: bool = False
) -> Score | None:
    """What the whole word matched by the first group of `pattern` is worth; see `forms.settled` for
    several matches.

    Case does not matter. "abstain" where that word is worth None; None where nothing matches or the
    word is not among `values`.
    """
    worth = {word.strip().casefold(): value for word, value in values.items()}
    found = [m for m in _find_matches(text, pattern) if _is_whole_word(text, *m.span(1))]
    return settled(
        [_make_candidate(text, m, worth_of(m.group(1), worth), cut) for m in found], text
    )


def _find_matches(text: str, pattern: str) -> Iterator[re.Match[str]]:
    known = quoted(text)
    for match in _compile_pattern(pattern).finditer(text):
        if match.group(1) is not None and match.start() not in known:
            yield match


def _make_candidate(text: str, match: re.Match[str], value: Any, cut: bool) -> Candidate[Any]:
    # At the very end a word or number may be the beginning of a longer one.
    ends = cut and match.end(1) == len(text)
    return Candidate(None if ends else value, match.start(), match.end(), True)


def worth_of(word: str, worth: Mapping[str, float | None]) -> Score | None:
    """What `word` is worth in a casefolded table: "abstain" for None, None for a word not in it."""
    word = word.strip().casefold()
    value = worth.get(word)
    return "abstain" if value is None and word in worth else value


def _is_whole_word(text: str, start: int, end: int) -> bool:
    word = text[start:end]
    # A hyphen or an apostrophe joins words: "no" does not stand in "no-one".
    cut_before = word[:1].isalnum() and re.search(r"\w[-'\u2019]?$", text[:start])
    cut_after = word[-1:].isalnum() and re.match(r"[-'\u2019]?\w", text[end:])
    return not cut_before and not cut_after


TextRating = float | Literal["not applicable", "abstain"]


def text_ratings(
    text: str,
    count: int,
    low: float,
    high: float,
    words: Sequence[str] = (),
    form: Form = USUAL,
    cut: bool = False,
) -> dict[int, TextRating]:
    """Ratings of several texts in one answer: the number of a text, from 1 to `count`, to its
    rating on [low, high], to "not applicable" ("N/A"), or to "abstain" for one of `words`.

    Each stands, in the form that was asked for, in the part that a line such as "Text 2" or
    "### Answer 2:" opens. A text whose parts differ has the last rating where nothing follows it;
    one without a rating is absent.
    """
    known = quoted(text)
    heads = [head for head in _HEAD.finditer(text) if head.start() not in known]
    parts: dict[int, list[tuple[str, bool]]] = {}
    for index, head in enumerate(heads):
        last = index + 1 == len(heads)
        end = len(text) if last else heads[index + 1].start()
        if 1 <= int(head["number"]) <= count:
            # The last part alone can have been cut.
            parts.setdefault(int(head["number"]), []).append((text[head.end() : end], cut and last))
    found = {n: _settle_rating(own, low, high, words, form) for n, own in parts.items()}
    return {number: rating for number, rating in found.items() if rating is not None}


def _settle_rating(
    parts: Sequence[tuple[str, bool]], low: float, high: float, words: Sequence[str], form: Form
) -> TextRating | None:
    grammar = rating_grammar(low, high, words)
    every: list[Candidate[TextRating]] = []
    for part, cut in parts:
        # The form that was asked for goes first: the usual ones count where nothing stands in it.
        every += candidates(part, form, grammar, None, cut) or candidates(
            part, USUAL, grammar, None, cut
        )
    return settled(every, parts[-1][0])


def rating_grammar(low: float, high: float, words: Sequence[str]) -> Grammar[TextRating]:
    """What stands where a text's rating should: see `text_ratings`."""
    plain = score_grammar(low, high, words)
    apart = _compile_pattern(rf"(?:{'|'.join(map(re.escape, _NOT))})(?!\w)")

    def read_rating(text: str, place: int) -> Read[TextRating] | None:
        found = apart.match(text, place)
        if found is not None:
            return Read("not applicable", found.end())
        return plain(text, place)  # type: ignore[return-value]

    return read_rating


def whole_lines(text: str, cut: bool) -> str:
    """A text without its last line, where a limit `cut` it there."""
    return text.rpartition("\n")[0] if cut else text


def list_items(text: str) -> list[tuple[str | None, str]]:
    """(kind, item) of the lines of a list: "- [essential] The answer ..." or "2. The answer ...".

    The kind is in lower case, None where a line has none. Lines that are no list items, and items
    that came before, are passed over.
    """
    found: dict[str, tuple[str | None, str]] = {}
    for match in _ITEM.finditer(text):
        item = match["item"].strip().strip("*_").strip()
        kind = match["kind"].casefold() if match["kind"] else None
        if item:
            found.setdefault(item.casefold(), (kind, item))
    return list(found.values())


def valid_member(found: Found, schema: dict[str, Any], field: str) -> Any:
    """`field` of an object that is whole, has it once and satisfies `schema`; else None."""
    if not found.whole or found.twice or field not in found.members:
        return None
    if not _make_validator(json.dumps(schema, sort_keys=True)).is_valid(found.members):
        return None
    return found.members[field]


@lru_cache(maxsize=32)
def _make_validator(schema: str) -> Any:
    from jsonschema.validators import validator_for
    from referencing import Registry

    loaded = json.loads(schema)  # The cache's key is the text: a dict has no hash.
    # An empty registry: a schema never makes this process fetch a URL.
    return validator_for(loaded)(loaded, registry=Registry())


def schema_fault(schema: dict[str, Any]) -> str | None:
    """What is wrong with a JSON schema, or None."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        return str(error.message)
    return None


def expected_level(levels: Mapping[int, float]) -> float | None:
    """The mean level, sum of i p(i) over sum of p(i); None where the probabilities sum to 0."""
    total = math.fsum(levels.values())
    if not total > 0:
        return None
    return math.fsum(level * p for level, p in levels.items()) / total
