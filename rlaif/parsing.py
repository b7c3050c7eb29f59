"""Reading a judge's answer. Each parser gives a value, or None where there is none to read.

The last verdict counts: models think aloud and correct themselves. A last verdict that is out of
range or on another scale gives None, never an earlier one and never a default (a parse failure is
missing data). Words and numbers are matched whole: "know" is not "no", "10" is not "1".
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

_NUMBER = r"[-+\u2212]?\d++(?:[.,]\d++)?+"
_MARKUP = r"[*_`\"'\])}>]*+"
# "Score", "Final rating (1-5)", "Score for this answer" or "[RESULT]", then "is", ":" or "**".
_SCORED = (
    r"(?:(?<!\w)(?:score|rating|grade)(?!\w)|\[result\])"
    r"(?:[*_`\"']*\s*\([^)\n]{0,40}\))?"
    r"(?:\s+(?:for|given|assigned|awarded|to)\b[^\n\d:=]{0,60}?(?=[:=]|\bis\b))?"
    r"(?:\s|[*_`\"'\[(<{:=\u2013\u2014]|-(?!\d)|\bis\b|\bof\b|\bwould\b|\bbe\b)*+"
)
_VERDICT = re.compile(
    rf"{_SCORED}(?P<value>{_NUMBER})"
    r"(?!\w)(?!\s*(?:-|\u2013|to|or)\s*\d)(?!\s*:)"
    rf"(?P<percent>\s*%)?{_MARKUP}(?:\s*(?:/|out\s+of)\s*[*_`]*(?P<of>{_NUMBER}))?",
    re.IGNORECASE,
)
_FRACTION = re.compile(
    rf"(?<![\w.,/])(?P<value>{_NUMBER}){_MARKUP}"
    rf"\s*(?:/|out\s+of)\s*[*_`]*(?P<of>{_NUMBER})(?![\w/])",
    re.IGNORECASE,
)
_ADDED = re.compile(rf"{_MARKUP}\s*(?:\([^)\n]*\)\s*)?\+\s*[*_`]*\d")
# What may stand around an answer that is a verdict alone.
_BEFORE, _AFTERWARDS = r"[\s*_`\"'(\[<]*", r"[\s*_`\"')\]>.]*"
_ALONE = re.compile(rf"{_BEFORE}({_NUMBER}){_AFTERWARDS}")

_OPENING = re.compile(
    r"\[result\]|(?<!\w)(?:verdict|choice|winner|preference)[*_`\"']*\s*(?:[:=]|\bis\b)",
    re.IGNORECASE,
)
_LEAD = (
    r"(?:[\s*_`\"'(\[<:=\u2013\u2014-]"
    r"|(?:is|the|answer|response|assistant|option|better|number)\b)*"
)
# A letter is an answer in upper case, or where a bracket, quote or star closes it; "a" and "A tie"
# are articles otherwise. What stands after an answer, unlike after an article:
_AFTER = (
    "is|was|has|wins|over|because|since|as|for|due|by|with|and|or|vs|given|which|that|while|but|on"
)
_LETTER = rf"(?-i:{{upper}}(?!\w|\s+(?!(?:{_AFTER})\b)[a-z])|{{lower}}(?=[)\]}}}}>*_`\"'](?!\w)))"
_PROSE = (
    r"(?<!\w)(?:(?:better|best|preferred)\s+(?:answer|response|one|option)\s+is"
    r"|(?:choose|prefer|pick)){lead}({form})(?!\w)"
    r"|(?<!\w)(?:answer|response|option)[\s*(]*({form})[\s*)]*\s+is\s+(?:the\s+)?"
    r"(?:clearly\s+|much\s+)?(?:better|best|preferred)"
)

_HEAD = re.compile(
    r"^\W*(?:output\s+for\s+)?(?:text|answer|response|output)\W{0,3}(?P<number>\d{1,3})"
    r"[*_`#)\]]*\s*(?::|-|\u2013|$|(?=rating))",
    re.IGNORECASE | re.MULTILINE,
)
_NONE = re.compile(r"(?<!\w)rating\W*(?:n\s*/\s*a|not\s+applicable)(?!\w)", re.IGNORECASE)

_FENCED = re.compile(r"\A\s*```(?:json)?\s*(\{.*\})\s*```\s*\Z", re.DOTALL | re.IGNORECASE)

_ITEM = re.compile(
    r"^\s*(?:[-*\u2022]|\d{1,2}[.)])\s*[*_`]*(?:[\[(](?P<kind>[A-Za-z]+)[\])][*_`]*\s*:?\s*)?"
    r"(?P<item>.+)$",
    re.MULTILINE,
)


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.MULTILINE)


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0] if found else None


def _number(text: str) -> float | None:
    """A plain or decimal-comma number; None for digit groups such as 1,000."""
    whole, comma, decimals = text.replace("\u2212", "-").partition(",")
    if comma and len(decimals) > 2:
        return None
    value = float(f"{whole}.{decimals}" if comma else whole)
    return value if math.isfinite(value) else None


def in_range(value: float | None, low: float, high: float) -> float | None:
    """`value` where low <= value <= high, otherwise None."""
    return value if value is not None and low <= value <= high else None


def last_score(text: str, low: float, high: float, pattern: str | None = None) -> float | None:
    """The last score in `text`, on [low, high].

    Without `pattern`: a number after the word score, rating or grade, of a sum its total ("1 + 1 =
    2"); where there is none, a fraction of `high` ("4/5") or an answer that is only a number. With
    `pattern`: the first group of its last match.
    """
    if pattern is not None:
        return _last_patterned(text, low, high, pattern)
    alone = _ALONE.fullmatch(text)
    if alone:
        return in_range(_number(alone.group(1)), low, high)
    last = _last(_VERDICT, text)
    if last is None:
        # Other fractions are about other things ("3/4 cup"), unlike one after the word score.
        fractions = [m["value"] for m in _FRACTION.finditer(text) if _number(m["of"]) == high]
        return in_range(_number(fractions[-1]), low, high) if fractions else None
    rest = text[last.end("value") :].partition("\n")[0]
    if _ADDED.match(rest):
        _, equals, total = rest.rpartition("=")
        return last_score(f"Score: {total}", low, high) if equals else None
    if last["percent"] or (last["of"] is not None and _number(last["of"]) != high):
        return None
    return in_range(_number(last["value"]), low, high)


def _last_patterned(text: str, low: float, high: float, pattern: str) -> float | None:
    last = _last(_compiled(pattern), text)
    if last is None or last.group(1) is None:
        return None
    start, end = last.span(1)
    if re.match(r"[.,]?\d", text[end:]) or re.search(r"\d[.,]?$", text[:start]):
        return None
    try:
        return in_range(_number(last.group(1).strip()), low, high)
    except ValueError:
        return None


def score_or_abstention(
    text: str, low: float, high: float, words: Sequence[str]
) -> float | Literal["abstain"] | None:
    """`last_score`, or "abstain" where one of `words` stands in its place ("Score: N/A") and no
    score comes after it. Case does not matter."""
    every = "|".join(re.escape(word.strip()) for word in words)
    if not every:
        return last_score(text, low, high)
    if _compiled(rf"{_BEFORE}(?:{every}){_AFTERWARDS}").fullmatch(text):
        return "abstain"
    said = _last(_compiled(rf"{_SCORED}(?:{every})(?!\w)"), text)
    if said is None or _last(_VERDICT, text[said.end() :]) is not None:
        return last_score(text, low, high)
    return "abstain"


def last_choice(text: str, labels: Mapping[str, tuple[str, ...]]) -> str | None:
    """The label of the last verdict in `text`, or None.

    A verdict is one of a label's forms after "[RESULT]", "Verdict:", "Choice:" or "Winner:"; where
    none of these stands, after "better is", "choose" and the like, or before "is better"; or the
    whole text is one form. Forms are matched whole and in either case, but an article is no letter:
    "a tie" and "A tie" are a tie. A last verdict that names no label, or several, gives None.
    """
    words = {form.strip().casefold(): label for label, forms in labels.items() for form in forms}
    ranked = sorted(words, key=len, reverse=True)
    every = "|".join(map(re.escape, ranked))
    alone = _compiled(rf"{_BEFORE}({every}){_AFTERWARDS}").fullmatch(text)
    if alone:
        return words[alone.group(1).casefold()]
    form = "|".join(map(_form, ranked))
    opened = _last(_OPENING, text)
    if opened is not None:
        text = text[opened.end() :]
        said = _compiled(rf"{_LEAD}({form})(?!\w|[.,]\d)").match(text)
    else:
        said = _last(_compiled(_PROSE.format(lead=_LEAD, form=form)), text)
    also = _compiled(rf"\W*(?:or|and|/|vs|=|&)\W*(?:{form})(?!\w)")
    if said is None or also.match(text, said.end()):
        return None
    found = next(group for group in said.groups() if group).casefold()
    # "a tie" is looked up without its article.
    return words[found] if found in words else words[found.split(maxsplit=1)[1]]


def _form(word: str) -> str:
    """The pattern of one form of a label, within one that ignores case."""
    if len(word) == 1 and word.isalpha():
        return _LETTER.format(upper=re.escape(word.upper()), lower=re.escape(word))
    return rf"(?:an?\s+)?{re.escape(word)}" if word.isalpha() else re.escape(word)


def text_ratings(
    text: str, count: int, low: float, high: float, words: Sequence[str] = ()
) -> dict[int, float | Literal["not applicable", "abstain"]]:
    """Ratings of several texts in one answer: the number of a text, from 1 to `count`, to its
    rating on [low, high], to "not applicable" ("N/A"), or to "abstain" for one of `words`.

    Each is the last rating in the part that a line such as "Text 2" or "### Answer 2:" opens. The
    last part of a number counts; a text without a rating is absent.
    """
    heads = list(_HEAD.finditer(text))
    found: dict[int, float | Literal["not applicable", "abstain"]] = {}
    for index, head in enumerate(heads):
        end = heads[index + 1].start() if index + 1 < len(heads) else len(text)
        number, part = int(head["number"]), text[head.end() : end]
        if not 1 <= number <= count:
            continue
        rating, none = score_or_abstention(part, low, high, words), _last(_NONE, part)
        if rating is None and none is None and _last(_VERDICT, part) is None:
            continue
        found.pop(number, None)
        if none is not None and not isinstance(rating, float):
            found[number] = "not applicable"
        elif rating is not None:
            found[number] = rating
    return found


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


def last_match(
    text: str, pattern: str, values: Mapping[str, float | None]
) -> float | Literal["abstain"] | None:
    """What the last whole word matched by the first group of `pattern` is worth.

    Case does not matter. "abstain" where that word is worth None; None where nothing matches or the
    last match is not among `values`.
    """
    worth = {word.strip().casefold(): value for word, value in values.items()}
    last: str | None = None
    for match in _compiled(pattern).finditer(text):
        if match.group(1) is not None and _whole(text, *match.span(1)):
            last = match.group(1)
    return None if last is None else worth_of(last, worth)


def worth_of(word: str, worth: Mapping[str, float | None]) -> float | Literal["abstain"] | None:
    """What `word` is worth in a casefolded table: "abstain" for None, None for a word not in it."""
    word = word.strip().casefold()
    value = worth.get(word)
    return "abstain" if value is None and word in worth else value


def _whole(text: str, start: int, end: int) -> bool:
    word = text[start:end]
    cut_before = word[:1].isalnum() and re.search(r"\w[-'\u2019]?$", text[:start])
    cut_after = word[-1:].isalnum() and re.match(r"[-'\u2019]?\w", text[end:])
    return not cut_before and not cut_after


def json_value(text: str, schema: dict[str, Any], field: str) -> Any:
    """`field` of the last JSON object in `text` that has it, if that object satisfies `schema`.

    The object may stand in a code fence or amid prose. Numbers that JSON does not know (NaN) and
    objects that are cut off do not count.
    """
    last = None
    for found in _objects(text):
        if field in found:
            last = found
    if last is None or not _validator(json.dumps(schema, sort_keys=True)).is_valid(last):
        return None
    return last[field]


def json_object(text: str) -> dict[str, Any] | None:
    """An answer that is one JSON object and no more, in a code fence or not; otherwise None."""
    inside = _FENCED.sub(r"\1", text)
    try:
        value = json.loads(inside, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def in_words(text: str, field: str) -> str:
    """A JSON answer with reasons and a verdict in `field` as the words "field: verdict", which are
    empty where it has no verdict, or was cut off before one; any other answer as it is."""
    found = json_object(text)
    if found is not None and (field in found or "reasons" in found):
        value = found.get(field)
        return "" if value is None else f"{field}: {value}"
    if found is None and text.lstrip().startswith('{"reasons"'):
        _, named, rest = text.rpartition(f'"{field}"')
        return f"{field}{rest}" if named else ""
    return text


def _objects(text: str) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder(parse_constant=_refuse)
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            yield value
        start = text.find("{", end)


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


@lru_cache(maxsize=32)
def _validator(schema: str) -> Any:
    from jsonschema.validators import validator_for
    from referencing import Registry

    loaded = json.loads(schema)
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


def label_share(first: float, second: float) -> float | None:
    """first / (first + second) of two probabilities; None where both are 0."""
    total = first + second
    return first / total if total > 0 else None


def expected_level(levels: Mapping[int, float]) -> float | None:
    """The mean level, sum of i p(i) over sum of p(i); None where the probabilities sum to 0."""
    total = math.fsum(levels.values())
    if not total > 0:
        return None
    return math.fsum(level * p for level, p in levels.items()) / total
