"""The tables that lay the arms of an experiment beside one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from rlaif.metrics.intervals import IntervalJson, direction, show_interval
from rlaif.report.rows import Cell, Row, Table, kind_of, row_place, tone_of


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
            figures = row["labels"][f"{first}/{second}"]
            agreement, kappa = (figures.get(key) for key in ("agreement", "kappa"))
            rows.append(LabelRow(first, second, agreement, kappa, _words(agreement, kappa)))
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


def _words(agreement: IntervalJson | None, kappa: IntervalJson | None) -> str:
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
    return [Table(title, *_differences(row, chosen)) for title, chosen in tables if chosen]


def _differences(
    row: dict[str, Any], twos: Sequence[tuple[str, str]]
) -> tuple[list[str], list[Row]]:
    names = ["/".join(two) for two in twos]
    metrics = {metric for deltas in row["deltas"].values() for metric in deltas}
    rows = [
        Row(metric, kind_of(metric), [_cell(metric, row, name) for name in names])
        for metric in metrics
    ]
    return [f"{second} less {first}" for first, second in twos], sorted(rows, key=row_place)


def _cell(metric: str, row: dict[str, Any], two: str) -> Cell:
    value = row["deltas"].get(two, {}).get(metric)
    standing = row.get("standing", {}).get(two, {}).get(metric, "none")
    par = 0.5 if metric.startswith("win_rate/") else 0.0
    tone = tone_of(metric, direction(value, par)) if standing == "claimed" else ""
    return Cell(value, None, tone, standing == "exploratory")
