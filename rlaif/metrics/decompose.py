"""What a change of a judge's score is made of: its principles, and answers that the token limit
cut. Pure functions.

A score is a weighted mean over principles, so each principle's share of it is a number, and the
changes of these shares add up to the change of the score.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any, NotRequired, TypedDict

from rlaif.core.groups import group_by
from rlaif.core.records import Judgement
from rlaif.metrics.intervals import show_number
from rlaif.metrics.metrics import Values, per_prompt
from rlaif.preferences.aggregate import principle_values, principle_weight

WHOLE = "overall"
"""What a judgement without a principle is about."""
LEAST_EXPLAINED = 0.5
"""A share of a change that is large enough to explain it."""
LEAST_SHOWN = 0.0005
"""Parts below are shown as 0.000, and so not at all."""


class CutPart(TypedDict):
    """How much of a change lies on the prompts whose answer was cut off at the token limit before
    and not after, or after and not before: `prompts` of them, and `part` of the change. `before`
    and `after` are shares of answers that were cut, on [0, 1]."""

    prompts: int
    part: float
    before: float
    after: float


class Decomposition(TypedDict):
    """A change of a judge's mean score over `prompts`, and its `parts` by principle, which add up
    to it."""

    change: float
    prompts: int
    parts: dict[str, float]
    cut: NotRequired[CutPart]


def score_parts(
    judgements: Iterable[Judgement], weights: Mapping[str, float], subjects: set[str]
) -> dict[str, Values]:
    """By principle, what it adds to the score of each prompt: the weighted share of its value, the
    mean over the prompt's answers. Over the principles these are the values of `score/JUDGE`."""
    mine = (j for j in judgements if j.subject in subjects)
    shares: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for prompt_id, rows in group_by(mine, lambda j: j.prompt_id).items():
        asked = {j.principle for j in rows}
        for values in principle_values(rows).values():
            kept = {p: (v, principle_weight(p, weights)) for p, v in values.items()}
            total = math.fsum(weight for _, weight in kept.values())
            if total > 0:
                # A principle that dropped out for an answer adds 0 there, so that the parts add up.
                for principle in asked:
                    value, weight = kept.get(principle, (0.0, 0.0))
                    shares[principle or WHOLE].append((prompt_id, value * (weight / total)))
    return {principle: per_prompt(rows) for principle, rows in sorted(shares.items())}


def decompose_change(
    new: Mapping[str, Values], old: Mapping[str, Values], cut_new: Values, cut_old: Values
) -> Decomposition | None:
    """What the change from `old` to `new` is made of, both from `score_parts`; None where they have
    no prompt in common. `cut_*` are the shares of each prompt's answers that were cut."""
    prompts = sorted(_collect_prompts(new) & _collect_prompts(old))
    if not prompts:
        return None
    parts = {
        principle: fmean(_part_at(new, principle, p) - _part_at(old, principle, p) for p in prompts)
        for principle in sorted(new.keys() | old.keys())
    }
    changes = {
        p: math.fsum(_part_at(new, name, p) - _part_at(old, name, p) for name in parts)
        for p in prompts
    }
    found: Decomposition = {
        "change": fmean(changes.values()),
        "prompts": len(prompts),
        "parts": parts,
    }
    known = [p for p in prompts if p in cut_new and p in cut_old]
    if known:
        moved = [p for p in known if cut_new[p] != cut_old[p]]
        found["cut"] = {
            "prompts": len(moved),
            # Over all prompts, as the change is, so that it is a part of it.
            "part": math.fsum(changes[p] for p in moved) / len(prompts),
            "before": fmean(cut_old[p] for p in known),
            "after": fmean(cut_new[p] for p in known),
        }
    return found


def _collect_prompts(parts: Mapping[str, Values]) -> set[str]:
    return set[str]().union(*parts.values())


def _part_at(parts: Mapping[str, Values], principle: str, prompt_id: str) -> float:
    """A principle that is asked of no answer to a prompt adds nothing there."""
    return parts.get(principle, {}).get(prompt_id, 0.0)


def change_sentences(found: Mapping[str, Any]) -> list[str]:
    """What the change of each judge's score is made of, in words; `found` has a `Decomposition` by
    judge. Nothing of a score that has one principle or has not moved, but for the token limit."""
    lines = []
    for judge, made in sorted(found.items()):
        if abs(made["change"]) < LEAST_SHOWN:
            continue
        total = f"score/{judge} {show_number(made['change'], signed=True)}"
        parts = _sort_largest(made["parts"])
        if len(parts) > 1:
            shown = ", ".join(f"{name} {show_number(part, signed=True)}" for name, part in parts)
            lines.append(f"{total} = {shown} ({made['prompts']} prompts).")
        if (cut := made.get("cut")) is not None and _explains_change(cut["part"], made["change"]):
            lines.append(_cut_sentence(total, cut, made["prompts"]))
    return lines


def _sort_largest(parts: Mapping[str, float]) -> list[tuple[str, float]]:
    """The parts that can be seen, the largest first."""
    seen = [(name, part) for name, part in parts.items() if abs(part) >= LEAST_SHOWN]
    return sorted(seen, key=lambda item: (-abs(item[1]), item[0]))


def _explains_change(part: float, change: float) -> bool:
    return part * change > 0 and abs(part) >= LEAST_EXPLAINED * abs(change)


def _cut_sentence(total: str, cut: CutPart, prompts: int) -> str:
    part = show_number(cut["part"], signed=True)
    return (
        f"{total}: {part} of it comes from {cut['prompts']} of {prompts} prompts on which the "
        "token limit cut off the answer of one model and not of the other "
        f"({cut['before']:.0%} of the answers were cut before, {cut['after']:.0%} are now). "
        "Raise `max_new_tokens` or ask for shorter answers to see what else has changed."
    )
