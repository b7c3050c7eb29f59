"""What `rlaif judge-bench` found, as tables for a terminal and as one HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from rlaif.metrics.intervals import (
    IntervalJson,
    direction,
    show_ends,
    show_interval,
    show_number,
    show_value,
)
from rlaif.metrics.judge_figures import BY_SUBSET
from rlaif.metrics.rewardbench import foreign_subsets
from rlaif.metrics.words import failure_words
from rlaif.report import plots
from rlaif.report.arms import negate_interval
from rlaif.report.browser import embed_json
from rlaif.report.build import script_digest
from rlaif.report.figures import HERE, Column, Result, column_of, make_table, write_page

MOST_SUBSETS = 12
"""More subsets than these are left to the page."""


@dataclass(frozen=True, slots=True)
class Group:
    """Figures that are shown together, by name."""

    title: str
    about: str
    names: tuple[str, ...]

    @property
    def columns(self) -> list[Column]:
        """One for each figure."""
        return [column_of(name) for name in self.names]


GROUPS = (
    Group(
        "Agreement with the labels",
        "Fractions. A tie of the judge or of the label is left out, counts one half, or is a "
        "verdict of its own (chance is then one third). Kappa, alpha and the rank correlations are "
        "0 by chance and 1 at best.",
        (
            *("agreement", "agreement_half", "agreement_three_way", "kappa", "alpha"),
            *("spearman", "kendall"),
        ),
    ),
    Group(
        "Position",
        "From pairs shown in both orders: how often the same slot won twice, split by slot. The "
        "slot 1 rate is over all verdicts of comparative judges; 0.5 means no bias.",
        (
            *("same_slot", "same_slot_first", "same_slot_second", "order_consistency"),
            *("right_in_both_orders", "slot_one_rate"),
        ),
    ),
    Group(
        "Length and own answers",
        "The length coefficient is the effect of one standard deviation of length difference on "
        "the log-odds of a verdict, controlling for the human label; it is missing if length or "
        "label alone decides every verdict.",
        (
            *("prefers_longer", "people_prefer_longer", "length_coefficient"),
            *("self_preference", "self_consistency"),
        ),
    ),
    Group(
        "Calibration",
        "Whether the probabilities match observed frequencies. ECE is above 0 by chance alone, so "
        "it is shown with its value for a calibrated judge, which the calibration error subtracts. "
        "Intercept, slope and temperature need graded probabilities: ten or more different "
        "values, none of them 0 or 1. Temperature scaling is fitted on one half of the prompts and "
        "measured on the other. A judge that always says 0.5 has a Brier score of 0.25.",
        (
            *("calibration_error", "ece", "ece_if_calibrated", "calibration_intercept"),
            *("calibration_slope", "brier", "ece_equal_mass", "temperature", "ece_scaled"),
            "brier_scaled",
        ),
    ),
    Group(
        "How it answered, and the cost",
        "Coverage is the fraction of pairs with a verdict; missing verdicts enter no other metric. "
        "A pair costs what it would cost alone: an answer that is in several pairs counts in "
        "each. Seconds and money refer to the first time a question was asked; money is in the "
        "currency of the model's price.",
        (
            *("coverage", "tie_rate", "abstain_rate", "unread_rate", "label_mass"),
            *("calls_per_pair", "seconds_per_pair", "prompt_tokens_per_pair"),
            *("new_tokens_per_pair", "money_per_pair"),
        ),
    ),
)
_REWARDBENCH = Group(
    "RewardBench v1",
    "Sections weighted by the published subset sizes, and the mean of the four.",
    (
        "rewardbench/Chat",
        "rewardbench/Chat Hard",
        "rewardbench/Safety",
        "rewardbench/Reasoning",
        "rewardbench",
    ),
)


def figure(row: Mapping[str, Any], name: str) -> IntervalJson | None:
    """One figure of a judge's row with its interval; None where it is undefined."""
    found: IntervalJson | None = row.get(name)
    if name != "agreement" or found is None:
        return found
    return {"mean": row["agreement"], "low": row["low"], "high": row["high"], "n": row["n"]}


def has_figure(result: Result, name: str) -> bool:
    """Whether some judge has a figure."""
    return any(figure(row, name) for row in result["judges"].values())


def shown_groups(result: Result) -> list[Group]:
    """The groups with a figure, and in them the figures that some judge has. Agreement is always
    there: the numbers of pairs stand beside it."""
    found = []
    for group in (*GROUPS, _REWARDBENCH):
        kept = tuple(n for n in group.names if n == "agreement" or has_figure(result, n))
        if kept:
            found.append(Group(group.title, group.about, kept))
    return found


def baseline_words(result: Result) -> list[str]:
    """For each judge that is none, whether it beats the best baseline on the pairs of both."""
    rows = result["judges"]
    rated = {n: r["agreement"] for n, r in rows.items() if r["agreement"] is not None}
    baselines = {n: a for n, a in rated.items() if rows[n]["baseline"]}
    if not baselines:
        return []
    # By all pairs: one that ties nearly everywhere can be right on the few that are left.
    best = max(baselines, key=lambda n: rows[n]["agreement_half"]["mean"])
    words = []
    for name in rated:
        if rows[name]["baseline"]:
            continue
        compared = compare_on_both(result, name, best)
        if compared is None:
            words.append(
                f"{name} agrees with {show_number(rated[name])} of the labels; no pair was decided "
                f"both by it and by the best baseline, {best}."
            )
            continue
        n, own, other, gap = compared
        verdict = {1: "beats", 0: "is not told apart from", -1: "is worse than"}[direction(gap)]
        shown = f" ({show_interval(gap, signed=True)})" if gap is not None else ""
        words.append(
            f"On the {n} pairs that both decided, {name} agrees with {show_number(own)} of the "
            f"labels and {verdict} the best baseline, {best}, with {show_number(other)}{shown}."
        )
    return words


def compare_on_both(
    result: Result, first: str, second: str
) -> tuple[int, float, float, IntervalJson | None] | None:
    """Two judges on the pairs that both decided: how many, each one's agreement there, and the
    first's less the second's. None without such a pair."""
    for row in result["comparisons"]:
        if {row["first"], row["second"]} != {first, second}:
            continue
        gap = cast("IntervalJson | None", row.get("difference"))
        if row["first"] == first:
            return row["n"], row["first_right"], row["second_right"], gap
        turned = None if gap is None else negate_interval(gap)
        return row["n"], row["second_right"], row["first_right"], turned
    return None


_TERMINAL = ("agreement", "kappa", "same_slot", "prefers_longer", "calibration_error", "coverage")


def bench_tables(result: Result) -> list[Table | Text]:
    """What the terminal shows: the headline, subsets (when they are few), attacks, and words."""
    rated, *others = map(column_of, _TERMINAL)
    # Agreement has its column even where no judge has one: what is counted stands beside it.
    others = [c for c in others if has_figure(result, c.name)]
    about = result["pairs"]
    headline = make_table(
        f"{about['name']}: {about['n']} pairs, {about['prompts']} prompts; "
        "95% intervals over prompts",
        *("judge", rated.name, "n", "ties", *(c.heading for c in others)),
    )
    for name, row in result["judges"].items():
        cells = [_cell_text(figure(row, c.name)) for c in others]
        style = "dim" if row["baseline"] else ""
        counts = (str(row["n"]), str(row["ties"]))
        headline.add_row(name, _cell_text(figure(row, rated.name)), *counts, *cells, style=style)
    tables: list[Table | Text] = [headline]
    if 1 < len(about["subsets"]) <= MOST_SUBSETS:
        parts = _subset_rows(result, "agreement")
        tables.append(_by_judge("agreement by subset, ties excluded", result, parts))
    if has_figure(result, "rewardbench/Chat"):
        sections = {
            c.heading: [figure(row, c.name) for row in result["judges"].values()]
            for c in _REWARDBENCH.columns
        }
        tables.append(_by_judge(_REWARDBENCH.title, result, sections))
    if attacks := attack_rows(result):
        tables.append(_by_judge("verdicts that an attack won", result, attacks))
    return [*tables, *(Text(line) for line in _all_words(result))]


def foreign_words(result: Result) -> list[str]:
    """The subsets that are in no section of RewardBench, where some are."""
    foreign = foreign_subsets(result["pairs"]["subsets"])
    return [f"In no section of RewardBench: {', '.join(foreign)}."] if foreign else []


def _all_words(result: Result) -> list[str]:
    return [
        *baseline_words(result),
        *calibration_words(result),
        *votes_words(result),
        *silenced_words(result),
        *(note for row in result["judges"].values() for note in row["notes"]),
        *foreign_words(result),
        *cost_words(result),
        *uncounted_words(result),
        *failed_words(result),
    ]


def _cell_text(value: IntervalJson | None) -> str:
    if value is None:
        return "–"
    return f"{show_value(value)}\n{show_ends(value)}".rstrip()


_COSTS = {
    "calls": "{:,.4g} calls",
    "seconds": "{:,.3g} seconds of calls",
    "prompt_tokens": "{:,.0f} tokens read",
    "new_tokens": "{:,.0f} written",
    "money": "money {:,.4g}",
}


def cost_words(result: Result) -> list[str]:
    """What each judge that asks a model took, in all and for a pair."""
    words = []
    for name, row in result["judges"].items():
        pair = {key: (row.get(f"{key}_per_pair") or {}).get("mean") for key in _COSTS}
        if row["total"]["calls"]:
            wall = row.get("wall_seconds_per_pair")
            clock = "" if wall is None else f", {wall:,.3g} seconds by the clock"
            words.append(
                f"{name}: {_cost_text(row['total'])} in all; {_cost_text(pair)}{clock} per pair."
            )
    return words


def uncounted_words(result: Result) -> list[str]:
    """The models whose servers did not count all tokens: figures above are without those."""
    return [
        f"{name}: {row['answers']} answers without a count of tokens, which the figures of tokens "
        f"and money are without; at most {row['estimated_cost']:,.4g} was paid for what nobody "
        "counted."
        for name, row in result.get("uncounted", {}).items()
    ]


def failed_words(result: Result) -> list[str]:
    """The judgements of each judge that failed, by the reason."""
    return [
        f"{name}: {line}."
        for name, row in result["judges"].items()
        for line in failure_words(row.get("failures", {}))
    ]


def _cost_text(cost: Mapping[str, float | None]) -> str:
    known = {name: cost[name] for name in _COSTS}
    return ", ".join(_COSTS[n].format(value) for n, value in known.items() if value is not None)


def _subset_rows(result: Result, name: str) -> dict[str, list[IntervalJson | None]]:
    """Subset to one figure of each judge."""
    rows = list(result["judges"].values())
    return {s: [row["subsets"][s].get(name) for row in rows] for s in result["pairs"]["subsets"]}


def subset_tables(result: Result) -> list[tuple[Column, dict[str, list[IntervalJson | None]]]]:
    """The figures that are taken within subsets, each with a row for every subset; those that no
    judge has are left out."""
    columns = [column_of(n) for group in GROUPS for n in group.names if n in BY_SUBSET]
    tables = [(column, _subset_rows(result, column.name)) for column in columns]
    return [(c, rows) for c, rows in tables if any(any(cells) for cells in rows.values())]


ATTACK_FIGURES = (
    Column("success", "won", "verdicts won, of those that the attack asked for and did not have"),
    Column("changed_first", "changed, shown first", "verdicts changed with the answer in slot 1"),
    Column("changed_second", "changed, shown second", "the same in slot 2"),
    Column("ties", "became ties", "of the pairs that were none"),
    Column("wins", "pairs won", "of the pairs that the answer had not won"),
    Column("lifted", "scores lifted", "of those below the top of the scale"),
)


def attack_rows(result: Result, figure: str = "success") -> dict[str, list[IntervalJson | None]]:
    """Attack to one figure of it for each judge, among the verdicts that it still gave; attacks
    that no judge has the figure for are left out."""
    judges = list(result["judges"].values())
    names = dict.fromkeys(name for row in judges for name in row["attacks"])
    rows = {n: [(row["attacks"].get(n) or {}).get(figure) for row in judges] for n in names}
    return {name: cells for name, cells in rows.items() if any(cells) or figure == "success"}


def attack_tables(result: Result) -> list[tuple[Column, dict[str, list[IntervalJson | None]]]]:
    """The figures of attacks, each with a row for every attack."""
    tables = [(column, attack_rows(result, column.name)) for column in ATTACK_FIGURES]
    return [(column, rows) for column, rows in tables if rows]


def silenced_words(result: Result) -> list[str]:
    """Each attack that left pairs of a judge without a verdict: its figures are without them."""
    return [
        f"{judge}: {name} left {found['missing']} of {found['attacked']} attacked pairs "
        f"({found['missing_share']:.1%}) without a verdict."
        for judge, row in result["judges"].items()
        for name, found in row["attacks"].items()
        if found and found["missing"]
    ]


def _by_judge(
    title: str, result: Result, rows: Mapping[str, Sequence[IntervalJson | None]]
) -> Table:
    table = make_table(title, "", *result["judges"])
    for name, cells in rows.items():
        table.add_row(name, *(_cell_text(value) for value in cells))
    return table


def votes_words(result: Result) -> list[str]:
    """How many independent judges the judges are worth together."""
    votes = result["effective_votes"]
    if votes is None:
        return []
    return [
        f"{len(votes['judges'])} judges ({', '.join(votes['judges'])}) are worth "
        f"{show_interval(votes)} independent votes by the correlation of their errors."
    ]


def calibration_words(result: Result) -> list[str]:
    """What so many pairs can tell of each asked judge's calibration, and which judges have no
    degrees."""
    words = []
    for name, row in result["judges"].items():
        error, least = row.get("calibration_error"), row.get("calibration_detectable")
        if row["baseline"] or error is None:
            continue
        if not row["graded"]:
            words.append(
                f"{name}: no graded probabilities, so its calibration is that of verdicts."
            )
        if least is not None:
            words.append(
                f"{name}: its calibration error is {show_interval(error)}; {error['n']} pairs tell "
                f"one of {show_number(least)} from none in 80% of runs, a smaller one less often."
            )
    return words


def bench_page(result: Result, path: Path, mistakes: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write the page, which loads nothing; its own script is that of the browser of `mistakes`, and
    is left out where there is none. Returns the file."""
    script = (HERE / "report.js").read_text(encoding="utf-8")
    return write_page(
        "bench.html.j2",
        path,
        result=result,
        pairs=result["pairs"],
        judges=result["judges"],
        groups=shown_groups(result),
        figure=figure,
        words=_all_words(result),
        forest=_draw_forest(result),
        curves=_draw_curves(result),
        subsets=subset_tables(result),
        attacks=attack_tables(result),
        mistakes=mistakes,
        mistaken=_count_mistakes(mistakes),
        data=Markup(embed_json({"pairs": [], "answers": [], "mistakes": list(mistakes)})),
        script=Markup(script),
        script_hash=script_digest(script),
    )


def _count_mistakes(mistakes: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """By judge, how many of its mistakes are shown, and of how many."""
    shown = Counter(entry["judge"] for entry in mistakes)
    return {entry["judge"]: (shown[entry["judge"]], entry["of"]) for entry in mistakes}


def _draw_forest(result: Result) -> Markup | None:
    rows = [
        (name, value, row["baseline"])
        for name, row in result["judges"].items()
        if (value := figure(row, "agreement")) is not None
    ]
    rows.sort(key=lambda item: -item[1]["mean"])
    if not rows:
        return None
    spoken = ", ".join(f"{name} {show_number(value['mean'])}" for name, value, _ in rows)
    return plots.draw_forest("agreement", f"Agreement with the labels: {spoken}", rows, 0.5)


def _draw_curves(result: Result) -> list[tuple[str, Markup]]:
    """A reliability curve for each judge whose probabilities are not all the same few."""
    found = []
    for place, (name, row) in enumerate(result["judges"].items()):
        bins = row["reliability"]
        if len([b for b in bins if 0.0 < b["prob"] < 1.0]) > 1:
            label = f"Reliability of {name}, {len(bins)} bins"
            found.append((name, plots.draw_reliability(f"reliability{place}", label, bins)))
    return found
