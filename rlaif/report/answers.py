"""The answer of an experiment with arms: is AI feedback as good as people's?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlaif.config.arms import HUMAN, RANDOM
from rlaif.metrics.equivalence import answer_sentence
from rlaif.metrics.intervals import IntervalJson
from rlaif.report.view import ArmRow

OF_A_JUDGE = ("score/", "win_rate/", "win_rate_vs_initial/", "reward_accuracy/", "label_mass/")
"""Metrics that a judge makes."""


def answers(
    comparisons: Sequence[dict[str, Any]], arms: Mapping[str, ArmRow], margin: float
) -> list[str]:
    """A sentence for each arm of AI labels, each arm of people's, and each neutral measure: a judge
    that labelled neither arm, and the people's labels of held-out pairs. `comparisons` are merged
    over seeds. Nothing where there is no arm of people's labels and one of AI's."""
    found = []
    for row in comparisons[-1:]:
        for human, ai in _twos(arms):
            found += _of_two(row, human, ai, arms, margin)
    return found


def _twos(arms: Mapping[str, ArmRow]) -> Iterator[tuple[str, str]]:
    """Arms of people's labels with arms of AI's, none with labels turned round."""
    kept = {name: arm["labels"] for name, arm in arms.items() if not arm["flip"]}
    for human in (name for name, labels in kept.items() if labels == HUMAN):
        for ai in (name for name, labels in kept.items() if labels not in (HUMAN, RANDOM)):
            yield human, ai


def _of_two(
    row: dict[str, Any], human: str, ai: str, arms: Mapping[str, ArmRow], margin: float
) -> list[str]:
    deltas = _differences(row, human, ai)
    labellers = [*arms[human]["judges"], *arms[ai]["judges"]]
    scores = [name for name in deltas if name.startswith("score/") and name.count("/") == 1]
    neutral = [name for name in scores if name.partition("/")[2] not in labellers]
    people = f"reward_accuracy/{HUMAN}"
    said = [
        answer_sentence(f"arm {human}", f"Arm {ai}", name, deltas[name], margin)
        for name in [*neutral, *([people] if people in deltas else [])]
    ]
    if not neutral:
        own = ", ".join(labellers) or "none"
        said.append(
            f"No neutral judge evaluates arm {ai} against arm {human} (who labelled: {own}). Add "
            "one under `judges`, of other weights or of rules."
        )
    return said


def _differences(row: dict[str, Any], human: str, ai: str) -> dict[str, IntervalJson]:
    """The AI arm's figures less the people's arm's."""
    if f"{human}/{ai}" in row["deltas"]:
        return dict(row["deltas"][f"{human}/{ai}"])
    turned = row["deltas"].get(f"{ai}/{human}", {})
    return {n: negated(i) for n, i in turned.items() if not n.startswith("win_rate/")}


def negated(interval: IntervalJson) -> IntervalJson:
    """The interval of the difference the other way round."""
    low, high = interval["low"], interval["high"]
    return {
        **interval,
        "mean": -interval["mean"],
        "low": None if high is None else -high,
        "high": None if low is None else -low,
    }


def marks(arms: Mapping[str, ArmRow]) -> dict[str, str]:
    """By judge, which arms it labelled, in words: where it evaluates, it is no neutral judge."""
    labelled: dict[str, list[str]] = {}
    for name, arm in arms.items():
        for judge in arm["judges"]:
            labelled.setdefault(judge, []).append(name)
    return {
        judge: f"labelled arm{'s' * (len(names) > 1)} {', '.join(names)}"
        for judge, names in labelled.items()
    }


def mark_of(metric: str, marked: Mapping[str, str]) -> str:
    """The mark of the judge that makes a metric; empty for any other."""
    if not metric.startswith(OF_A_JUDGE):
        return ""
    return marked.get(metric.split("/")[1], "")
