"""What is doubtful in a constitution that loads: findings with a level, a line and a remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import regex

from rlaif import textstats
from rlaif.constitution import Constitution, Place, Principle
from rlaif.records import Prompt

Level = Literal["error", "warning", "note"]

MIN_TEXT_WORDS = 5
SAME_TEXT = 0.9

_COMPARES = regex.compile(
    r"\b(?:choose|prefer|pick|select|rank|which|whichever|rather than|instead of|more|less|fewer"
    r"|least|most|better|best|worse|\w+er than)\b"
    r"|\b(?:answer|response|reply|completion|assistant|text|it)\b(?: \w+){0,3} \w+s?\b|\?\s*$",
    regex.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One doubt. `principle` and `line` are None where it is about the whole file."""

    level: Level
    line: int | None
    principle: str | None
    message: str
    path: Path | None = None


def lint(
    constitution: Constitution,
    places: Mapping[str, Place] | None = None,
    prompts: Sequence[Prompt] = (),
) -> list[Finding]:
    """Doubts about a constitution, in the order of its principles, those about all of it last.

    `places` (of `load_with_places`) gives the lines. With `prompts`, a principle that applies to
    none of them is reported. An error makes the constitution useless, a warning is most likely a
    mistake, a note is worth knowing.
    """
    places = places or {}
    found: list[Finding] = []
    for principle in constitution.principles:
        place = places.get(principle.id)
        for level, message in _doubts(principle, prompts):
            path, line = (place.path, place.line) if place else (None, None)
            found.append(Finding(level, line, principle.id, message, path))
    found += _same_texts(constitution, places)
    if not any(p.weight for p in constitution.principles):
        message = "every weight is 0, so nothing can be judged; give some principle a weight"
        found.append(Finding("error", None, None, message))
    return found


def _doubts(principle: Principle, prompts: Sequence[Prompt]) -> Iterator[tuple[Level, str]]:
    yield from _about_text(principle)
    if principle.weight == 0:
        yield "warning", "weight 0: it is judged and then not counted; remove it or give a weight"
    if principle.scale is not None:
        yield from _about_scale(principle.scale)
    if principle.applies_when is not None:
        yield from _about_condition(principle, prompts)


def _about_text(principle: Principle) -> Iterator[tuple[Level, str]]:
    text = principle.text
    if not text:
        yield "note", "no text: only its check is run, and judges that read text pass it over"
        return
    if len(textstats.words(text)) < MIN_TEXT_WORDS:
        yield "warning", f"text under {MIN_TEXT_WORDS} words; say what makes one answer better"
    elif not _COMPARES.search(text):
        message = "text neither compares nor can be tested; write 'Choose the response that ...',"
        yield "warning", f"{message} 'The answer ...' or a yes/no question"
    missing = [name for name in ("critique", "revision") if not getattr(principle, name)]
    if missing and principle.check is None:
        yield "note", f"no {' and no '.join(missing)}: a revise step cannot use this principle"


def _about_scale(scale: Mapping[int, str]) -> Iterator[tuple[Level, str]]:
    if len(scale) < 2:
        yield "warning", "a scale needs at least 2 levels to tell answers apart"
    elif sorted(scale) != list(range(min(scale), max(scale) + 1)):
        yield "warning", f"scale levels {sorted(scale)} have gaps; describe every level"
    if len({text.casefold() for text in scale.values()}) < len(scale):
        yield "warning", "two levels of the scale have the same description"


def _about_condition(
    principle: Principle, prompts: Sequence[Prompt]
) -> Iterator[tuple[Level, str]]:
    pattern = principle.applies_when.pattern if principle.applies_when else None
    if pattern is not None and _unreachable(pattern):
        yield (
            "warning",
            f"applies_when.pattern {pattern!r} can never match: text after $ or before ^",
        )
    elif pattern is not None and textstats.matches(pattern, ""):
        yield "warning", f"applies_when.pattern {pattern!r} matches every prompt; remove it"
    elif prompts and not any(principle.applies(prompt) for prompt in prompts):
        yield "warning", f"applies to none of the {len(prompts)} prompts; see applies_when"


def _unreachable(pattern: str) -> bool:
    """Whether plain characters stand before an unescaped ^ or after an unescaped $."""
    if regex.match(r"\(\?\w*m", pattern):
        return False
    bare = regex.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", pattern)
    return regex.search(r"\$\w|\w\^", bare) is not None


def _same_texts(constitution: Constitution, places: Mapping[str, Place]) -> list[Finding]:
    found = []
    texts = {p.id: [w.casefold() for w in textstats.words(p.text)] for p in constitution.principles}
    for first, second in combinations([name for name, text in texts.items() if text], 2):
        likeness = difflib.SequenceMatcher(None, texts[first], texts[second], False).ratio()
        if likeness >= SAME_TEXT:
            how = "the same" if likeness == 1 else "nearly the same"
            message = f"text is {how} as that of {first!r}, which counts it twice; merge them"
            place = places.get(second)
            path, line = (place.path, place.line) if place else (None, None)
            found.append(Finding("warning", line, second, message, path))
    return found
