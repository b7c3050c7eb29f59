"""The labels of the arms: how many, what they cost, and what each number of them achieves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlaif.metrics.intervals import IntervalJson, show_number
from rlaif.report.rows import Row, named_rows
from rlaif.report.view import LabellingRow, RoundRow

Point = tuple[float, IntervalJson]
Curves = dict[str, dict[str, list[Point]]]
"""Metric to line to (number of labels, interval), by number."""

SHOWN = ("score/", "reward_accuracy/", "win_rate_vs_initial/", "check/")
"""Metrics that stand beside the cost."""


class CostTable(NamedTuple):
    """A row for each arm: its labels and what they cost, and beside them its metrics."""

    metrics: list[Row]
    rows: list[tuple[LabellingRow, list[IntervalJson | None]]]
    notes: list[str]


def find_curves(latest: Sequence[RoundRow], rows: Sequence[LabellingRow]) -> Curves:
    """Every metric of the arms' last rounds against the number of labels that they were trained
    on. Empty where no arms differ in that number alone. `latest` are merged over seeds."""
    last = _last_metrics(latest)
    lines: dict[str, list[LabellingRow]] = {}
    for row in rows:
        lines.setdefault(row["line"], []).append(row)
    if all(len({row["labels"] for row in line}) < 2 for line in lines.values()):
        return {}
    curves: Curves = {}
    for metric in sorted({name for metrics in last.values() for name in metrics}):
        for line, own in lines.items():
            points = [
                (row["labels"], value)
                for row in sorted(own, key=lambda row: row["labels"])
                if (value := last.get(row["arm"], {}).get(metric)) is not None
            ]
            if points:
                curves.setdefault(metric, {})[line] = points
    return curves


def curves_json(curves: Curves) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The curves for programs: an interval with its `labels` for each point."""
    return {
        metric: {
            line: [{"labels": count, **interval} for count, interval in points]
            for line, points in lines.items()
        }
        for metric, lines in curves.items()
    }


def cost_table(latest: Sequence[RoundRow], rows: Sequence[LabellingRow]) -> CostTable | None:
    """Each arm's labels, their cost and its metrics; None without labels."""
    if not rows:
        return None
    last = _last_metrics(latest)
    names = {name for row in rows for name in last.get(row["arm"], {}) if name.startswith(SHOWN)}
    metrics = named_rows(name for name in names if name.count("/") == 1)
    shown = [
        (row, [last.get(row["arm"], {}).get(metric.name) for metric in metrics]) for row in rows
    ]
    return CostTable(metrics, shown, list(dict.fromkeys(n for row in rows for n in row["notes"])))


def _last_metrics(latest: Sequence[RoundRow]) -> dict[str, Mapping[str, IntervalJson]]:
    return {row["arm"]: row["metrics"]["metrics"] for row in latest if row["round"] > 0}


def cost_sentences(rows: Sequence[LabellingRow]) -> list[str]:
    """What labels cost, of the arms in which it is known to be more than nothing."""
    return [
        f"Labels of arm {row['arm']}: {row['labels']:g} at {show_number(row['price'])} each, "
        f"{show_number(row['cost'])} in all."
        for row in rows
        if row["price"] and row["cost"] is not None
    ]
