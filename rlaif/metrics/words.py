"""Plain sentences: on a judge that is the policy itself, whether its feedback is noise, and why
calls failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlaif.metrics.diagnostics import RoundMetrics, both_means, find_delta
from rlaif.metrics.intervals import (
    MIN_PROMPTS,
    IntervalJson,
    direction,
    prompts_of,
    show_interval,
    show_number,
)

LOW_LABEL_MASS = 0.5
LOW_SPREAD = 0.02
CEILING = 0.02
"""Closer than this to the end of its scale a figure has no room in which a change could be seen."""


def self_judge_words(
    judge: str, rounds: Sequence[RoundMetrics], frozen: str = "initial model"
) -> list[str]:
    """What the latest of `rounds` (0..r, round 0 the initial model) says about `judge`.

    Reads label_mass/, score/, drift/, samples/spread/ and judge_corr/ of the judge; what was not
    measured is passed over. `score/` is by the `frozen` model, `drift/` is what the moved
    policy adds to it on fixed texts, `judge_corr/` is the within-prompt rank correlation with the
    round's rules judge.
    """
    if not rounds:
        return []
    metrics = rounds[-1]["metrics"]
    mass, drift = metrics.get(f"label_mass/{judge}"), metrics.get(f"drift/{judge}")
    spread, corr = metrics.get(f"samples/spread/{judge}"), metrics.get(f"judge_corr/{judge}")
    words = [
        *_mass_words(judge, mass),
        *_score_words(judge, rounds, frozen),
        *_drift_words(judge, drift),
        *_spread_words(judge, spread),
        *_corr_words(judge, corr),
    ]
    if not words:
        return [f"Nothing was measured about judge {judge!r} in this round."]
    return words + _describe_doubts(judge, mass, spread, corr)


def ceiling_words(change: IntervalJson, better: int) -> str | None:
    """That a figure on [0, 1] cannot move, where it was at the end of its scale from the start and
    no change is seen; `better` is the end that is good, +1 or -1. None where it can move."""
    old = change.get("old")
    if old is None or better == 0 or direction(change) != 0:
        return None
    room = 1.0 - old if better > 0 else old
    if not 0.0 <= room <= CEILING:
        return None
    end = 1 if better > 0 else 0
    if room < 5e-4:
        return f"it cannot move: it was {end} at the start, the end of its scale"
    return (
        f"it cannot move: it was {show_number(old)} at the start, {show_number(room)} from the end "
        f"of its scale, {end}"
    )


def movement_words(change: IntervalJson) -> str:
    """What may be concluded from a difference and its interval."""
    prompts = prompts_of(change)
    if prompts < MIN_PROMPTS:
        word = "prompt" if prompts == 1 else "prompts"
        return f"{prompts} {word} are too few to tell a change from noise"
    if "note" in change:
        return change["note"]
    side = direction(change)
    if side == 0:
        return "the interval includes zero, so this is not evidence of any change"
    return f"the whole interval lies {'above' if side > 0 else 'below'} zero"


def _mass_words(judge: str, mass: IntervalJson | None) -> list[str]:
    if mass is None:
        return []
    part = f"{mass['mean']:.0%} of its probability on the allowed labels"
    if mass["mean"] >= LOW_LABEL_MASS:
        return [f"Judge {judge!r} put {part}, so its scores are answers to the question."]
    return [
        f"Judge {judge!r} put only {part}, so its scores are based on a small part of its "
        "distribution."
    ]


def _score_words(judge: str, rounds: Sequence[RoundMetrics], frozen: str) -> list[str]:
    name = f"score/{judge}"
    score, change = rounds[-1]["metrics"].get(name), find_delta(rounds, name, "initial")
    if score is None:
        return []
    sides = both_means(rounds, name)
    if change is None or sides is None:
        return [f"The frozen {frozen} as judge {judge!r} gives {show_interval(score)}."]
    return [
        f"The frozen {frozen} as judge {judge!r} scored the answers {show_number(sides[0])} "
        f"at the start and {show_number(sides[1])} now, a change of "
        f"{show_interval(change, signed=True)}: "
        f"{ceiling_words(change, 1) or movement_words(change)}."
    ]


def _drift_words(judge: str, drift: IntervalJson | None) -> list[str]:
    if drift is None:
        return []
    side = direction(drift)
    how = {1: "the judge has grown more generous", -1: "the judge has grown stricter"}.get(
        side, movement_words(drift)
    )
    tail = ", which is no improvement of the answers" if side else ""
    return [
        f"On the same fixed texts the moved policy as judge {judge!r} gives "
        f"{show_interval(drift, signed=True)} relative to the frozen one: {how}{tail}."
    ]


def _spread_words(judge: str, spread: IntervalJson | None) -> list[str]:
    if spread is None:
        return []
    start = (
        f"Between answers to one prompt the scores of judge {judge!r} spread by "
        f"{show_number(spread['mean'])} (standard deviation)"
    )
    if spread["mean"] <= LOW_SPREAD:
        return [f"{start}: it hardly tells the answers apart."]
    return [f"{start}."]


def _corr_words(judge: str, corr: IntervalJson | None) -> list[str]:
    if corr is None:
        return []
    side = direction(corr)
    meaning = {
        1: "it tends to prefer the answers that the rules prefer",
        -1: "it tends to prefer the answers that the rules reject",
    }.get(side, movement_words(corr).replace("any change", "any agreement"))
    return [
        f"Within a prompt its ranking correlates with the rules judge at "
        f"{show_interval(corr, signed=True)}: {meaning}."
    ]


def _describe_doubts(
    judge: str, mass: IntervalJson | None, spread: IntervalJson | None, corr: IntervalJson | None
) -> list[str]:
    doubts = []
    if mass is not None and mass["mean"] < LOW_LABEL_MASS:
        doubts.append("it does not answer with the labels")
    if spread is not None and spread["mean"] <= LOW_SPREAD:
        doubts.append("it hardly tells answers apart")
    if corr is not None and direction(corr) <= 0:
        doubts.append("its ranking shows no agreement with the checks")
    if not doubts:
        return []
    return [
        f"Treat the feedback of judge {judge!r} as noise until shown otherwise: "
        f"{' and '.join(doubts)}."
    ]


def failure_words(reasons: Mapping[str, int]) -> list[str]:
    """One line for each reason, with its count."""
    return [f"{count} failed: {reason}" for reason, count in reasons.items()]
