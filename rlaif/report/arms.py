"""The tables that lay the arms of an experiment beside one another.

`answer_sentences` is the answer of an experiment with arms: is AI feedback as good as people's?
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from rlaif.config.arms import HUMAN, RANDOM
from rlaif.metrics.claims import answer_sentence
from rlaif.metrics.figure_rules import without_set
from rlaif.metrics.intervals import IntervalJson, direction, show_interval
from rlaif.report.rows import Cell, Row, Table, kind_of, row_place, tone_of
from rlaif.report.view import ArmRow


@dataclass(frozen=True, slots=True)
class LabelRow:
    """How far the labels of two arms agree; None where a figure has no meaning."""

    first: str
    second: str
    agreement: IntervalJson | None
    kappa: IntervalJson | None
    words: str


def label_rows(comparisons: Sequence[dict[str, Any]]) -> list[LabelRow]:
    """A row for every two arms, of comparisons that are merged over seeds."""
    rows = []
    for row in comparisons:
        for first, second in combinations(row["arms"], 2):
            figures = row["labels"].get(f"{first}/{second}")
            if not figures:
                # These arms trained on no labelled pairs.
                continue
            agreement, kappa = (figures.get(key) for key in ("agreement", "kappa"))
            rows.append(
                LabelRow(first, second, agreement, kappa, _describe_agreement(agreement, kappa))
            )
    return rows


def label_sentences(comparisons: Sequence[dict[str, Any]]) -> list[str]:
    """The rows of `label_rows` as sentences."""
    return [
        f"Labels of {row.first} and {row.second}: same choice on {show_interval(row.agreement)}"
        f" of {row.agreement['n']} pairs"
        + (f", kappa {show_interval(row.kappa)}" if row.kappa else "")
        + f"; {row.words}."
        for row in label_rows(comparisons)
        if row.agreement is not None
    ]


def _describe_agreement(agreement: IntervalJson | None, kappa: IntervalJson | None) -> str:
    # Of labels that are all the same no kappa varies, so it has no interval.
    if kappa is not None and kappa["mean"] == 1 and direction(agreement, 0.5) > 0:
        return "agree on every pair"
    side = direction(kappa)
    if side == 0:
        return "not distinguishable from chance"
    return "agree beyond chance" if side > 0 else "disagree beyond chance"


def difference_tables(comparisons: Sequence[dict[str, Any]]) -> list[Table]:
    """What one arm's policy has over another's after the last round: all others against the first
    arm, then the rest of the twos. A win rate is read against 0.5, everything else against 0."""
    if not comparisons:
        return []
    row = comparisons[-1]
    twos = list(combinations(row["arms"], 2))
    with_first = [two for two in twos if two[0] == twos[0][0]]
    others = [two for two in twos if two not in with_first]
    tables = [("Against the first arm", with_first), ("The other arms against one another", others)]
    return [Table(title, *_tabulate_differences(row, chosen)) for title, chosen in tables if chosen]


def _tabulate_differences(
    row: dict[str, Any], twos: Sequence[tuple[str, str]]
) -> tuple[list[str], list[Row]]:
    names = ["/".join(two) for two in twos]
    metrics = {metric for deltas in row["deltas"].values() for metric in deltas}
    rows = [
        Row(metric, kind_of(metric), [_make_cell(metric, row, name) for name in names])
        for metric in metrics
    ]
    return [f"{second} less {first}" for first, second in twos], sorted(rows, key=row_place)


def _make_cell(metric: str, row: dict[str, Any], two: str) -> Cell:
    value = row["deltas"].get(two, {}).get(metric)
    standing = row.get("standing", {}).get(two, {}).get(metric, "none")
    par = 0.5 if without_set(metric).startswith("win_rate/") else 0.0
    tone = tone_of(metric, direction(value, par)) if standing == "claimed" else ""
    return Cell(value, None, tone, standing == "exploratory")


OF_A_JUDGE = ("score/", "win_rate/", "win_rate_vs_initial/", "reward_accuracy/", "label_mass/")
"""Metrics that a judge makes."""


def answer_sentences(
    comparisons: Sequence[dict[str, Any]], arms: Mapping[str, ArmRow], margin: float
) -> list[str]:
    """A sentence for each arm of AI labels, each arm of people's, and each neutral measure: a judge
    that labelled neither arm, and the people's labels of held-out pairs. `comparisons` are merged
    over seeds. Nothing where there is no arm of people's labels and one of AI's. Arms in which both
    label are neither, and that is said."""
    found = []
    for row in comparisons[-1:]:
        for human, ai in _pair_arms(arms):
            deltas = _answer_differences(row, human, ai)
            labellers = [*arms[human]["judges"], *arms[ai]["judges"]]
            scores = [n for n in deltas if n.startswith("score/") and n.count("/") == 1]
            neutral = [name for name in scores if name.partition("/")[2] not in labellers]
            people = [name for name in (f"reward_accuracy/{HUMAN}",) if name in deltas]
            found += [
                answer_sentence(f"arm {human}", f"Arm {ai}", name, deltas[name], margin)
                for name in [*neutral, *people]
            ]
            if not neutral:
                own = ", ".join(labellers) or "none"
                found.append(
                    f"No neutral judge evaluates arm {ai} against arm {human} (who labelled: "
                    f"{own}). Add one under `judges`, of other weights or of rules."
                )
    if found:
        found += [
            f"Arm {name} ({arm['labels']}) is neither an arm of people's labels nor one of AI's: "
            "it is compared with the others under Arms."
            for name, arm in arms.items()
            if _is_mixed(arm)
        ]
    return found


def _pair_arms(arms: Mapping[str, ArmRow]) -> Iterator[tuple[str, str]]:
    """Arms of people's labels with arms of AI's that have as many and differ in nothing else; none
    with labels turned round, or by both."""
    kept = {n: arm for n, arm in arms.items() if not arm["flip"] and not _is_mixed(arm)}
    for human in (name for name, arm in kept.items() if arm["labels"] == HUMAN):
        for ai, arm in kept.items():
            alike = all(arm.get(key) == kept[human].get(key) for key in ("labels_used", "set"))
            if alike and arm["labels"] not in (HUMAN, RANDOM):
                yield human, ai


def _is_mixed(arm: ArmRow) -> bool:
    return len(arm.get("labellers", ())) > 1


def _answer_differences(row: dict[str, Any], human: str, ai: str) -> dict[str, IntervalJson]:
    """The AI arm's figures less the people's arm's."""
    if f"{human}/{ai}" in row["deltas"]:
        return dict(row["deltas"][f"{human}/{ai}"])
    turned = row["deltas"].get(f"{ai}/{human}", {})
    return {n: negate_interval(i) for n, i in turned.items() if not n.startswith("win_rate/")}


def negate_interval(interval: IntervalJson) -> IntervalJson:
    """The interval of the difference the other way round."""
    low, high = interval["low"], interval["high"]
    return {
        **interval,
        "mean": -interval["mean"],
        "low": None if high is None else -high,
        "high": None if low is None else -low,
    }


def mark_judges(arms: Mapping[str, ArmRow]) -> dict[str, str]:
    """By judge, the arms that it labelled, in words: its evaluation is not neutral there."""
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
