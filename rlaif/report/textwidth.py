"""How wide a text is at most, without a font at hand: by the widths of a wide common sans-serif."""

from __future__ import annotations

import unicodedata

# Shares of the size of type, of DejaVu Sans, which is wider than most.
_WIDTHS = {
    0.341: " ,.'ijlI|",
    0.36: "/:;\\J-f",
    0.42: "()[]t!r",
    0.53: '"*_`sz?',
    0.63: "cLFkvxyPTYao",
    0.66: "eESbdghnpqu$0123456789{}K",
    0.76: "AVBRXZCUHN",
    0.87: "DG&OQw#+<=>^~M",
    1.0: "%mW@",
}
_BY_CHARACTER = {character: width for width, own in _WIDTHS.items() for character in own}
_BOLD = 1.2


def text_width(text: str, size: float, bold: bool = False) -> float:
    """The most that `text` takes at a `size` of type, in the unit of the size."""
    shares = (_BY_CHARACTER.get(c) or _width_of_other(c) for c in text)
    return sum(shares) * size * (_BOLD if bold else 1.0)


def _width_of_other(character: str) -> float:
    """Full-width characters and pictures take more than the size, combining ones nothing."""
    if unicodedata.combining(character):
        return 0.0
    wide = unicodedata.east_asian_width(character) in "WF" or ord(character) > 0xFFFF
    return 1.4 if wide else 0.9


def wrap_text(text: str, width: float, size: float, bold: bool = False) -> list[str]:
    """Lines of `text` that are no wider than `width`, at least one; words that are wider than a
    line are broken."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if text_width(longer, size, bold) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        line = ""
        for character in word:
            if line and text_width(line + character, size, bold) > width:
                lines.append(line)
                line = ""
            line += character
    return [*lines, line] if line or not lines else lines
