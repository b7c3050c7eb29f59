"""The headline table as data: metrics by group, one cell per round, over one seed or several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlaif.metrics.figure_rules import RULES, FigureRule, find_key, without_set
from rlaif.metrics.intervals import IntervalJson, direction, show_number
from rlaif.report.view import RoundResult, RoundRow

Tone = Literal["", "good", "bad", "moved"]


OTHER = FigureRule("none")
GROUPS: tuple[str, ...] = (
    "Checks never trained on",
    "Given pairs, held out",
    "Judged scores",
    "Text",
    "Distance from M0",
    "Judge health",
    "Pairs and samples",
    "Other",
)
_PLACES = {key: place for place, key in enumerate(RULES)}

AGAINST_PAR = ("win_rate_vs_initial/", "reward_accuracy/")
"""Metrics that are themselves comparisons: they are read against 0.5, not against M0's."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One metric in one round; `delta` is against the initial model. The tone is that of a claim
    (see `claims`); an exploratory change has none."""

    value: IntervalJson | None
    delta: IntervalJson | None
    tone: Tone = ""
    exploratory: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One metric over the rounds."""

    name: str
    kind: FigureRule
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class Table:
    """Metrics under their columns' headings."""

    title: str
    headings: list[str]
    rows: list[Row]


def kind_of(name: str) -> FigureRule:
    """How the metric called `name` is grouped, read and coloured."""
    return RULES.get(find_key(name) or "", OTHER)


def seeds_of(rounds: Sequence[RoundRow]) -> list[int]:
    """The seeds present, in order."""
    return sorted({row["seed"] for row in rounds})


def round_numbers(rounds: Sequence[RoundRow]) -> list[int]:
    """The round numbers present, in order."""
    return sorted({row["round"] for row in rounds})


def name_model(row: RoundRow) -> str:
    """What the model of a row is called."""
    return row.get("label") or f"M{row['round']}"


def name_rounds(rounds: Sequence[RoundRow]) -> list[str]:
    """The models' names by round, in order."""
    return [name for _, name in sorted({row["round"]: name_model(row) for row in rounds}.items())]


def describe_round(row: RoundRow) -> str:
    """`round 2`, or the model's name where it says more."""
    name = name_model(row)
    return f"round {row['round']}" if name == f"M{row['round']}" else name


def arms_of(rounds: Sequence[RoundRow]) -> list[str]:
    """The arms present, in the order of the experiment; one arm where there are none."""
    return list(dict.fromkeys(row["arm"] for row in rounds))


def latest_rounds(rounds: Sequence[RoundRow]) -> list[RoundRow]:
    """The last round of each arm and seed, by arm and then seed."""
    last: dict[tuple[str, int], RoundRow] = {}
    for row in sorted(rounds, key=lambda r: r["round"]):
        last[row["arm"], row["seed"]] = row
    arms = arms_of(rounds)
    return [last[key] for key in sorted(last, key=lambda key: (arms.index(key[0]), key[1]))]


def side_by_side(rounds: Sequence[RoundRow]) -> tuple[list[str], list[RoundRow]]:
    """Headings and rounds of a table with a column for M0 and one for the last round of each arm,
    or for each round where there is one arm. Columns stand in `round`."""
    arms = arms_of(rounds)
    if len(arms) < 2:
        return name_rounds(rounds), list(rounds)
    first = [row for row in rounds if row["arm"] == arms[0] and row["round"] == 0]
    last = [row for row in latest_rounds(rounds) if row["round"] > 0]
    shown = {arm: place for place, arm in enumerate(arms_of(last), 1)}
    columns: list[RoundRow] = [{**row, "round": shown[row["arm"]]} for row in last]
    return ["M0", *shown], [*first, *columns]


def metric_rows(rounds: Sequence[RoundRow]) -> list[Row]:
    """A row per metric that any round measured, ordered by group; a cell for each of the rounds,
    which are merged over seeds."""
    names = {name for row in rounds for name in row["metrics"]["metrics"]}
    numbers = round_numbers(rounds)
    by_number = {row["round"]: row["metrics"] for row in rounds}
    rows = [
        Row(name, kind_of(name), [_make_cell(name, by_number[n]) for n in numbers])
        for name in names
    ]
    return sorted(rows, key=row_place)


def named_rows(names: Iterable[str]) -> list[Row]:
    """Rows without cells, ordered by group."""
    return sorted((Row(name, kind_of(name), []) for name in names), key=row_place)


def row_place(row: Row) -> tuple[int, int, str]:
    """Where a row stands in a table: by group, kind and name."""
    place = _PLACES.get(find_key(row.name) or "", len(RULES))
    return GROUPS.index(row.kind.group), place, row.name


def _make_cell(name: str, metrics: RoundResult) -> Cell:
    value = metrics["metrics"].get(name)
    change = metrics["deltas"].get("initial", {}).get(name)
    standing = metrics.get("standing", {}).get(name, "none")
    par = without_set(name).startswith(AGAINST_PAR)
    side = direction(value, 0.5) if par else direction(change)
    tone = tone_of(name, side) if standing == "claimed" else ""
    return Cell(value, change, tone, standing == "exploratory")


def tone_of(name: str, side: int) -> Tone:
    """The colour of a claimed change of metric `name` to one `side`."""
    better = kind_of(name).better
    if side == 0:
        return ""
    if better == 0:
        return "moved"
    return "good" if side == better else "bad"


def alarm_items(rounds: Sequence[RoundRow], latest: bool) -> list[dict[str, Any]]:
    """Alarms of the last round of each arm and seed, or of all earlier ones, alarms before notices.

    One alarm is one item: the same in several arms and seeds has its message with the least and the
    largest value, `where` says in words which arms and seeds it concerns (empty where there is one
    of each), and `values` are the values by arm and seed.
    """
    last = latest_rounds(rounds)
    chosen = last if latest else [row for row in rounds if row not in last]
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(chosen, key=lambda row: (row["round"], row["seed"])):
        # Every arm begins with the same M0.
        if row["round"] == 0 and row["arm"] != rounds[0]["arm"]:
            continue
        for alarm in row["metrics"].get("alarms", []):
            key = (row["round"], alarm["name"], alarm["metric"])
            item = found.setdefault(
                key,
                {
                    **alarm,
                    "round": row["round"],
                    "at": describe_round(row),
                    "arms": [],
                    "seeds": [],
                    "values": [],
                },
            )
            for name in ("arm", "seed"):
                if row[name] not in item[f"{name}s"]:
                    item[f"{name}s"].append(row[name])
            item["values"].append(alarm["value"])
    arms, seeds = arms_of(rounds), seeds_of(rounds)
    for item in found.values():
        where = [f"arm{'s' * (len(item['arms']) > 1)} {', '.join(item['arms'])}"] * (len(arms) > 1)
        numbers = ", ".join(str(seed) for seed in item["seeds"])
        where += [f"seed{'s' * (len(item['seeds']) > 1)} {numbers}"] * (len(seeds) > 1)
        item["where"] = ", ".join(where)
        if len(item["values"]) > 1:
            shown = [show_number(value) for value in (min(item["values"]), max(item["values"]))]
            item["where"] += f" ({item['metric']} {' to '.join(dict.fromkeys(shown))})"
    return sorted(found.values(), key=lambda item: str(item["severity"]))
