"""The tables that lay the arms of an experiment beside one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from rlaif.compare.bootstrap import IntervalJson, direction, show_interval
from rlaif.report.rows import Cell, Row, Table, kind_of, merge, row_place, tone_of


@dataclass(frozen=True, slots=True)
class LabelRow:
    """How far the labels of two arms agree; None where a figure has no meaning."""

    first: str
    second: str
    agreement: IntervalJson | None
    kappa: IntervalJson | None
    words: str


def label_rows(comparisons: Sequence[dict[str, Any]]) -> list[LabelRow]:
    """A row for every two arms, of the last round. Over several seeds a figure is the mean with the
    lowest and highest seed."""
    last = _last(comparisons)
    rows = []
    for first, second in _twos(last):
        name = f"{first}/{second}"
        figures = [row["labels"][name] for row in last]
        agreement, kappa = (
            merge([f[key] for f in figures if key in f]) for key in ("agreement", "kappa")
        )
        rows.append(LabelRow(first, second, agreement, kappa, _words(figures)))
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


def _words(figures: Sequence[dict[str, IntervalJson]]) -> str:
    sides = {direction(figure.get("kappa")) for figure in figures}
    if len(sides) != 1 or sides == {0}:
        return "not distinguishable from chance"
    return "agree beyond chance" if sides == {1} else "disagree beyond chance"


def difference_tables(comparisons: Sequence[dict[str, Any]]) -> list[Table]:
    """What one arm's policy has over another's after the last round: all others against the first
    arm, then the rest of the twos. A win rate is read against 0.5, everything else against 0."""
    last = _last(comparisons)
    twos = _twos(last)
    with_first = [two for two in twos if two[0] == twos[0][0]]
    others = [two for two in twos if two not in with_first]
    tables = [("Against the first arm", with_first), ("The other arms against one another", others)]
    return [Table(title, *_differences(last, chosen)) for title, chosen in tables if chosen]


def _differences(
    last: Sequence[dict[str, Any]], twos: Sequence[tuple[str, str]]
) -> tuple[list[str], list[Row]]:
    names = ["/".join(two) for two in twos]
    metrics = {metric for row in last for deltas in row["deltas"].values() for metric in deltas}
    rows = [
        Row(
            metric,
            kind_of(metric),
            [_cell(metric, [row["deltas"].get(name, {}).get(metric) for row in last])
             for name in names],
        )
        for metric in metrics
    ]  # fmt: skip
    return [f"{second} less {first}" for first, second in twos], sorted(rows, key=row_place)


def _twos(last: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Every two arms, in the order of the experiment."""
    return list(combinations(last[0]["arms"], 2)) if last else []


def _cell(metric: str, given: Sequence[IntervalJson | None]) -> Cell:
    values = [value for value in given if value is not None]
    par = 0.5 if metric.startswith("win_rate/") else 0.0
    return Cell(merge(values), None, tone_of(metric, {direction(v, par) for v in values}))


def _last(comparisons: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    number = max((row["round"] for row in comparisons), default=0)
    return [row for row in comparisons if row["round"] == number]
