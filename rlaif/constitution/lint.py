"""What is doubtful in a constitution that loads: findings with a level, a line and a remedy.

`list_changes` compares two constitutions, principle by principle.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import regex

from rlaif.constitution import code_rule, textstats
from rlaif.constitution.model import (
    CHECKED_FIELDS,
    JUDGED_FIELDS,
    Constitution,
    Place,
    Principle,
    principle_hash,
)
from rlaif.constitution.rules import apply_check, reads_reference, resolved_params
from rlaif.core.records import Prompt

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
    revising: bool = False,
) -> list[Finding]:
    """Doubts about a constitution, in the order of its principles, those about all of it last.

    `places` (of `load_with_places`) gives the lines. With `prompts`, principles and checks that
    apply to none of them are reported. `revising` says that answers are to be criticised and
    revised by it, which needs both texts of every principle. An error makes the constitution
    useless, a warning is most likely a mistake, a note is worth knowing.
    """
    places = places or {}
    found: list[Finding] = []
    for principle in constitution.principles:
        place = places.get(principle.id)
        for level, message in _check_principle(principle, prompts, revising):
            path, line = (place.path, place.line) if place else (None, None)
            found.append(Finding(level, line, principle.id, message, path))
    found += _find_clashes(constitution, places)
    if not any(p.weight for p in constitution.principles):
        message = "every weight is 0, so nothing can be judged; give some principle a weight"
        found.append(Finding("error", None, None, message))
    return found


def _check_principle(
    principle: Principle, prompts: Sequence[Prompt], revising: bool
) -> Iterator[tuple[Level, str]]:
    yield from _about_text(principle)
    yield from _about_revising(principle, revising)
    if principle.weight == 0:
        yield "warning", "weight 0: it is judged and then not counted; remove it or give a weight"
    if principle.scale is not None:
        yield from _about_scale(principle.scale)
    if principle.applies_when is not None:
        yield from _about_condition(principle, prompts)
    if principle.check is not None and principle.check.rule == code_rule.RULE:
        yield (
            "note",
            f"check {code_rule.RULE} runs answers' code: experiments say `allow_code: true`",
        )
    if principle.check is not None and prompts:
        yield from _about_check(principle, prompts)


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


def _about_revising(principle: Principle, revising: bool) -> Iterator[tuple[Level, str]]:
    missing = [name for name in ("critique", "revision") if not getattr(principle, name)]
    message = f"no {' and no '.join(missing)}: answers cannot be revised by this principle"
    if missing and revising:
        yield "error", message
    elif missing and principle.text and principle.check is None:
        yield "note", message


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
    if pattern is not None and _is_unreachable(pattern):
        yield (
            "warning",
            f"applies_when.pattern {pattern!r} can never match: text after $ or before ^",
        )
    elif pattern is not None and textstats.matches(pattern, ""):
        yield "warning", f"applies_when.pattern {pattern!r} matches every prompt; remove it"
    elif prompts and not any(principle.applies(prompt) for prompt in prompts):
        yield "warning", f"applies to none of the {len(prompts)} prompts; see applies_when"


def _is_unreachable(pattern: str) -> bool:
    """Whether plain characters stand before an unescaped ^ or after an unescaped $."""
    if regex.match(r"\(\?\w*m", pattern):
        return False
    bare = regex.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", pattern)
    return regex.search(r"\$\w|\w\^", bare) is not None


def _about_check(principle: Principle, prompts: Sequence[Prompt]) -> Iterator[tuple[Level, str]]:
    check = principle.check
    reached = [prompt for prompt in prompts if principle.applies(prompt)]
    if check is None or not reached:
        return
    readable = [reads_reference(check.rule, check.params, prompt) for prompt in reached]
    if None not in readable:
        without = readable.count(False)
        if without:
            yield (
                "warning",
                f"check {check.rule} compares with a prompt's reference, and {without} of the "
                f"{len(reached)} prompts that it is for have none that it can read; there it never "
                "counts",
            )
        return
    if all(apply_check(check.rule, check.params, p, _SAMPLE_ANSWER) is None for p in reached):
        yield (
            "warning",
            f"check {check.rule} gives nothing on any of the {len(reached)} prompts that it is "
            "for, so it never counts",
        )


def _find_clashes(constitution: Constitution, places: Mapping[str, Place]) -> list[Finding]:
    """Two principles that say the same, or the opposite, reported at the later one."""
    found = []
    for first, second in combinations(constitution.principles, 2):
        message = _describe_clash(first, second)
        if message is not None:
            place = places.get(second.id)
            path, line = (place.path, place.line) if place else (None, None)
            found.append(Finding("warning", line, second.id, message, path))
    return found


def _describe_clash(first: Principle, second: Principle) -> str | None:
    if first.id.replace("-", "_") == second.id.replace("-", "_"):
        return f"id differs from {first.id!r} in - and _ alone; rename one of them"
    conditions = {p.applies_when for p in (first, second)}
    if len(conditions) == 2 and None not in conditions:
        return None
    one, other = ([w.casefold() for w in textstats.words(p.text)] for p in (first, second))
    if one and other:
        opposed = _describe_opposition(one, other)
        if opposed is not None:
            return (
                f"says the opposite of {first.id!r} ({opposed}); they cancel each other where both "
                "apply"
            )
        likeness = difflib.SequenceMatcher(None, one, other, False).ratio()
        if likeness >= SAME_TEXT:
            how = "the same" if likeness == 1 else "nearly the same"
            return f"text is {how} as that of {first.id!r}, which counts it twice; merge them"
    return _checks_clash(first, second)


def _describe_opposition(one: Sequence[str], other: Sequence[str]) -> str | None:
    """The words in which two otherwise equal texts contradict each other, or None."""
    bare, plain = ([w for w in text if w not in _NEGATIONS] for text in (one, other))
    negated = (len(one) - len(bare)) % 2 != (len(other) - len(plain)) % 2
    if bare == plain:
        return "one of them says not" if negated else None
    if len(bare) != len(plain):
        return None
    different = [(a, b) for a, b in zip(bare, plain, strict=True) if a != b]
    if len(different) == 1 and not negated and frozenset(different[0]) in _OPPOSITES:
        return f"{different[0][0]} against {different[0][1]}"
    return None


def _checks_clash(first: Principle, second: Principle) -> str | None:
    one, other = first.check, second.check
    if one is None or other is None:
        return None
    a, b = resolved_params(one.rule, one.params), resolved_params(other.rule, other.params)
    if one.rule == other.rule and a == b:
        return f"check is the same as that of {first.id!r}, which counts it twice; merge them"
    if {one.rule, other.rule} == {"required_pattern", "forbidden_pattern"} and a == b:
        return f"check forbids what that of {first.id!r} requires"
    limits = one.rule == other.rule and one.rule in ("word_limits", "sentence_limits")
    if limits and (a["min"] > b["max"] or b["min"] > a["max"]):
        return f"no answer can be within the limits of this check and of that of {first.id!r}"
    if one.rule == other.rule == "language" and a["code"] != b["code"]:
        return f"no answer can be in the language of this check and in that of {first.id!r}"
    return None


_NEGATIONS = frozenset({"not", "no", "never", "doesn't", "isn't", "without"})
_OPPOSITES = frozenset(
    frozenset(pair.split())
    for pair in (
        "shorter longer",
        "brief long",
        "short long",
        "less more",
        "fewer more",
        "least most",
        "fewest most",
        "better worse",
        "best worst",
        "higher lower",
        "simpler harder",
        "plainer fancier",
        "formal informal",
        "formal casual",
        "kinder ruder",
        "polite rude",
        "warmer cooler",
        "avoids uses",
        "avoids includes",
        "agrees disagrees",
        "refuses complies",
        "safer riskier",
    )
)
_SAMPLE_ANSWER = (
    "A good way to begin is to write down what you want to do and then to do the first small part "
    "of it today. After that, look at what went well and go on with the next part."
)


@dataclass(frozen=True, slots=True)
class Change:
    """One principle added or removed, or one field of it changed from `old` to `new`.

    `judged_again`: its stored judgements do not hold for the new constitution.
    """

    principle: str
    kind: Literal["added", "removed", "changed"]
    field: str | None = None
    old: Any = None
    new: Any = None
    judged_again: bool = False

    def __str__(self) -> str:
        if self.field is None:
            return f"{'+' if self.kind == 'added' else '-'} {self.principle}: {self.kind}"
        mark = " (judged again)" if self.judged_again else ""
        return f"~ {self.principle}.{self.field}: {self.old!r} -> {self.new!r}{mark}"


def list_changes(
    a: Constitution, b: Constitution, asked: Collection[str] = frozenset()
) -> list[Change]:
    """From `a` to `b`: first what was removed, then what was added, then field by field.

    A principle with a `check` is judged by that program, and its words can change nothing, unless
    it is in `asked`: the principles with a check that a model is asked about all the same.
    """
    before, after = ({p.id: p for p in c.principles} for c in (a, b))
    found = [Change(name, "removed") for name in before if name not in after]
    found += [Change(name, "added", judged_again=True) for name in after if name not in before]
    for name in (n for n in before if n in after):
        found += _compare_fields(before[name], after[name], name in asked)
    return found


def _compare_fields(a: Principle, b: Principle, asked: bool) -> list[Change]:
    old, new = a.model_dump(mode="json"), b.model_dump(mode="json")
    by_program = a.check is not None and b.check is not None and not asked
    fields = CHECKED_FIELDS if by_program else JUDGED_FIELDS
    again = principle_hash(a, fields) != principle_hash(b, fields)
    return [
        Change(a.id, "changed", key, old[key], new[key], again and key in fields)
        for key in old
        if old[key] != new[key]
    ]


def find_stale_principles(found: Sequence[Change]) -> set[str]:
    """The principles of the new constitution that have to be judged, by id."""
    return {change.principle for change in found if change.judged_again}
