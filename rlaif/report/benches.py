"""What the `bench` steps of a run measured, as tables of its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.metrics.figure_rules import rule_of
from rlaif.metrics.intervals import IntervalJson
from rlaif.report.view import BenchRow

COLUMNS = (
    *("agreement", "right_in_both_orders", "order_consistency", "slot_one_rate"),
    *("prefers_longer", "tie_rate", "coverage"),
)
"""The figures that the page shows; the step's folder has all."""


@dataclass(frozen=True, slots=True)
class BenchTable:
    """One bench: a row for each judge and model, a cell for each figure that some row has."""

    title: str
    about: str
    headings: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, str, int, Sequence[IntervalJson | None]]]
    differences: Sequence[tuple[str, IntervalJson, float]]


def make_bench_tables(benches: Sequence[BenchRow], by_arm: bool) -> list[BenchTable]:
    """A table of each bench, in the order of the run."""
    return [_make_table(bench, by_arm) for bench in benches]


def _make_table(bench: BenchRow, by_arm: bool) -> BenchTable:
    result, models = bench["result"], bench["models"]
    judges = result["judges"]
    arms = f", arm {' '.join(bench['arms'])}" if by_arm else ""
    names = [name for name in COLUMNS if any(_read_figure(row, name) for row in judges.values())]
    pairs = result["pairs"]
    return BenchTable(
        title=f"{bench['id']}, seed {bench['seed']}, round {bench['round']}{arms}",
        about=f"{pairs['n']} labelled pairs of {pairs['prompts']} held-out prompts.",
        headings=[(rule_of(name).heading or name, rule_of(name).about) for name in names],
        rows=[
            (
                row["judge"],
                models.get(place, "a program"),
                row["n"],
                [_read_figure(row, n) for n in names],
            )
            for place, row in judges.items()
        ],
        differences=[
            (
                f"{_name_place(one['first'], bench)} less {_name_place(one['second'], bench)}",
                one["difference"],
                one["mcnemar_p"],
            )
            for one in result["comparisons"]
        ],
    )


def _read_figure(row: dict[str, object], name: str) -> IntervalJson | None:
    found = row.get(name)
    if name == "agreement" and found is not None:
        found = {"mean": row["agreement"], "low": row["low"], "high": row["high"], "n": row["n"]}
    return found  # type: ignore[return-value]


def _name_place(place: str, bench: BenchRow) -> str:
    """A judge with its model, as a sentence names it."""
    model = bench["models"].get(place)
    judge = place.partition("/")[0]
    return judge if model is None else f"{judge} by {model}"
