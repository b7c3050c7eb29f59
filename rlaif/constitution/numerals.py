"""Numbers as people and models write them: 1,234.5, −3/4, 1½, 50 %, 1.5 × 10³, \\frac{3}{4}.

Values are exact fractions. The time is linear in the length of the text, and a number with more
than `MOST_DIGITS` digits, or a larger exponent, is passed over.
"""

from __future__ import annotations

import unicodedata
from fractions import Fraction
from typing import Literal

import regex

Decimal = Literal[".", ","]
Percent = Literal["hundredths", "ignore"]

MOST_DIGITS = 400

_FRACTION = regex.compile(
    r"\\[dt]?frac\s*(?:\{\s*(-?[\d.,]+)\s*\}|(\d))\s*(?:\{\s*([\d.,]+)\s*\}|(\d))"
)
_LATEX = {"{,}": ",", r"\,": "", r"\!": "", r"\%": "%", r"\$": "$"}
_TIMES = regex.compile(r"\\(?:times|cdot)(?![a-zA-Z])")
_RAISED = regex.compile(r"(?<=[\d\)])[⁺⁻⁰¹²³⁴-⁹]+")
_RAISED_DIGITS = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
_VULGAR = regex.compile(r"(\d?)([\u00bc-\u00be\u2150-\u215e\u2189])")
_FOREIGN_DIGIT = regex.compile(r"[\d--[0-9]]", regex.VERSION1)
# Before NFKC, which makes every space a plain one, and a plain one separates two numbers.
_JOINT = regex.compile(r"(?<=\d)(?:[\u00a0\u2009\u202f'’](?=\d{3}(?!\d))|_(?=\d))")
_NUMBER = regex.compile(
    r"""
    (?P<minus>(?<![\w)\]}%])-(?:[$€£¥]\s?)?|(?<==\s?)-\s)?
    (?<![\w.])
    (?:(?P<whole>\d{1,9}+)\x20(?=\d{1,9}\s?/\s?\d))?
    (?P<digits>\d[\d.,]*+|\.\d[\d,]*+)
    (?:
        [eE](?P<exponent>[-+]?\d{1,9}+)(?!\w)
      | \s?[×x*]\s?10\s?(?:\^|\*\*)\s?[({]?\s?(?P<tens>[-+]?\d{1,9}+)\s?[)}]?
      | \s?(?:\^|\*\*)\s?[({]?\s?(?P<power>[-+]?\d{1,9}+)\s?[)}]?
      | \s?/\s?(?P<below>\d[\d.,]*+)
    )?
    (?P<percent>\s?%|\s?per\s?cent\b)?
    """,
    regex.VERBOSE | regex.IGNORECASE,
)
_GROUPS = {
    ".": regex.compile(r"\d{1,3}(?:,\d{2,3})*,\d{3}(?:\.\d+)?"),
    ",": regex.compile(r"\d{1,3}(?:\.\d{2,3})*\.\d{3}(?:,\d+)?"),
}


def read_numbers(
    text: str, decimal: Decimal = ".", percent: Percent = "hundredths"
) -> list[Fraction]:
    """The numbers in `text`, in order.

    `decimal` is the decimal mark; the other mark groups digits ("1,234"), or separates numbers
    where the groups are none ("3,14" with the mark "."). Digits within a word ("H2O") are none.
    With `percent` "hundredths" 50% is 0.5, with "ignore" it is 50.
    """
    found: list[Fraction] = []
    for match in _NUMBER.finditer(_plain_notation(text)):
        values = _values_of(match["digits"], decimal)
        if not values:
            continue
        # Only the last of several, "1, 2, 3/4", has what follows, and only the first the sign.
        last = _with_rest(values[-1], match, decimal)
        values = [*values[:-1], *([] if last is None else [last])]
        if values and match["percent"] and percent == "hundredths":
            values[-1] /= 100
        if values and match["minus"]:
            values[0] = -values[0]
        found += values
    return found


def _plain_notation(text: str) -> str:
    text = _FRACTION.sub(_flat_fraction, text)
    for written, plain in _LATEX.items():
        text = text.replace(written, plain)
    text = _TIMES.sub("×", text)
    text = _RAISED.sub(lambda m: "^" + m[0].translate(_RAISED_DIGITS), text)
    text = _VULGAR.sub(_plain_fraction, text)
    text = unicodedata.normalize("NFKC", _JOINT.sub("", text))
    # Digits of a later Unicode than Python's have no value here.
    text = _FOREIGN_DIGIT.sub(lambda m: m[0] if m[0].isdecimal() else "_", text)
    return text.translate({0x2212: "-", 0x2012: "-", 0x2013: "-", 0x066B: ".", 0x066C: ","})


def _flat_fraction(match: regex.Match[str]) -> str:
    before = match.string[match.start() - 1 : match.start()]
    space = " " if before.isdigit() else ""
    return f"{space}{match[1] or match[2]}/{match[3] or match[4]}"


def _plain_fraction(match: regex.Match[str]) -> str:
    # "⅓" is compatible with "1⁄3", whose slash is one of its own.
    parts = unicodedata.normalize("NFKC", match[2]).replace("\u2044", "/")
    parts = parts if not parts.endswith("/") else f"{parts}1"
    return f"{match[1]} {parts}" if match[1] else parts


def _values_of(token: str, decimal: Decimal) -> list[Fraction]:
    """The numbers that a run of digits and marks stands for."""
    other = "," if decimal == "." else "."
    token = token.rstrip(".,")
    if _GROUPS[decimal].fullmatch(token):
        token = token.replace(other, "")
    parts = [token.replace(decimal, ".")] if other not in token else token.split(other)
    parts = [part.replace(decimal, ".") for part in parts if part]
    if any(part.count(".") > 1 for part in parts):
        # A version or a date.
        return []
    return [Fraction(part) for part in parts if len(part) <= MOST_DIGITS and part != "."]


def _with_rest(value: Fraction, match: regex.Match[str], decimal: Decimal) -> Fraction | None:
    """The number with its exponent, power or denominator; None where that gives none."""
    if match["below"] is not None:
        below = _values_of(match["below"], decimal)
        if len(below) != 1 or not below[0]:
            return None
        value /= below[0]
        return value if match["whole"] is None else value + int(match["whole"])
    tens = match["exponent"] or match["tens"]
    if tens is not None:
        return value * Fraction(10) ** int(tens) if abs(int(tens)) <= MOST_DIGITS else None
    if match["power"] is not None:
        power = int(match["power"])
        digits = len(str(value.numerator)) + len(str(value.denominator))
        if abs(power) * digits > MOST_DIGITS or (not value and power < 0):
            return None
        return value**power
    return value
