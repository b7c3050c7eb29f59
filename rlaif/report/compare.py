"""What `rlaif compare` found, as tables for a terminal and as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from rlaif.core.store import write_atomic
from rlaif.metrics.intervals import IntervalJson, show_ends, show_interval, show_number, show_value
from rlaif.report import plots
from rlaif.report.build import Figure, draw_label_curves
from rlaif.report.figures import Result, column_of, make_table, render_page
from rlaif.report.labels import Curves

FIGURES = ("agreement", "agreement_half", "agreement_three_way", "kappa", "alpha")
MOST_ROWS = 12
"""More rows than these are left to the page."""
MOST_NAMED = 5
"""Rows that were left out and are named on the page."""
HEADINGS = {
    "labels": "Does AI feedback agree with people as people agree with one another?",
    "stand-in": "May it stand in for a person?",
    "cause": "What is its disagreement with people associated with?",
    "policies": "Is one policy as good as the other?",
    "arms": "Is a policy trained on AI labels as good as one trained on people's?",
}
"""By the question of an answer, how a person asks it, in the order in which they are shown."""
NO_PEOPLE = (
    "No source is people's: give a file of labels by people, or judgements of annotator kind human,"
    " to learn whether AI feedback is as good as theirs."
)


def render_comparison(result: Result, home: str | None = None) -> str:
    """The page, which loads nothing and runs no script, with a link to `home` where there is one. A
    function of its arguments alone."""
    return render_page(
        "compare.html.j2",
        home=home,
        result=result,
        questions=group_answers(result),
        notes=list_notes(result),
        columns=[column_of(name) for name in FIGURES],
        beside=_list_ceilings(result),
        ceilings=_draw_ceilings(result),
        explained=_draw_parts(result),
        asked=[row for row in result["contests"] if row["asked"]],
        others=[row for row in result["contests"] if not row["asked"]],
        runs=[(run, _draw_labels(place, run)) for place, run in enumerate(result["runs"])],
    )


def write_comparison(result: Result, path: Path) -> Path:
    """Write the page; text that is not UTF-8 is replaced. Returns the file. Raises StoreError where
    it cannot be written."""
    write_atomic(path, render_comparison(result).encode("utf-8", "replace").decode())
    return path


def group_answers(result: Result) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Each question that has answers, and these."""
    return [
        (heading, own)
        for question, heading in HEADINGS.items()
        if (own := [row for row in result["answers"] if row["question"] == question])
    ]


def list_notes(result: Result) -> list[str]:
    """What the reader has to know of all answers."""
    notes = []
    if not any(row["kind"] == "human" for row in result["sources"]):
        notes.append(NO_PEOPLE)
    decided = [row for row in result["answers"] if row["question"] in ("labels", "policies")]
    if len(decided) > 1:
        notes.append(
            f"These are {len(decided)} answers about differences. Each alone is wrong in at most "
            "5% of cases; that all are right is less certain."
        )
    if result["same_text"]:
        notes.append(
            f"{result['same_text']} pairs are left out: both of their answers are the same text."
        )
    if result["skipped"]:
        notes.append(f"Left out: {'; '.join(result['skipped'][:MOST_NAMED])}.")
    return notes


def comparison_tables(result: Result) -> list[Table | Text]:
    """What the terminal shows: the answers, then the tables that they rest on."""
    shown: list[Table | Text] = []
    for heading, rows in group_answers(result):
        shown.append(Text(heading, style="bold"))
        shown += [Text(f"  {row['sentence']}") for row in rows]
    shown += [Text(line) for line in list_notes(result)]
    shown.append(_source_table(result))
    for rows, make in (
        (_list_ceilings(result), _people_table),
        (result["agreement"], _agreement_table),
        (result["contests"], _contest_table),
    ):
        if rows:
            shown.append(make(rows[:MOST_ROWS]))
        if len(rows) > MOST_ROWS:
            shown.append(Text(f"{len(rows) - MOST_ROWS} more rows are on the page (--out)."))
    for run in result["runs"]:
        shown += _run_tables(run)
    return shown


def _source_table(result: Result) -> Table:
    title = f"{result['pairs']} pairs of {result['prompts']} prompts"
    table = make_table(title, "source", "kind", "decided", "of", "ties", "people", "votes")
    for row in result["sources"]:
        people = (str(row["people"]), str(row["votes"])) if row["kind"] == "human" else ("", "")
        counts = (str(row[key]) for key in ("decided", "asked", "ties"))
        table.add_row(row["name"], row["kind"], *counts, *people)
    return table


def _people_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = make_table(
        "Agreement with a person on the same pair, ties half; 95% intervals over prompts",
        *("source", "people", "pairs", "source with a person", "two people", "difference"),
    )
    for row in rows:
        cells = [_cell(row["figures"][name]) for name in ("judge", "person")]
        difference = _cell(row["figures"]["difference"], signed=True)
        table.add_row(row["judge"], row["people_of"], str(row["pairs"]), *cells, difference)
    return table


def _agreement_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = [column_of(name) for name in FIGURES]
    table = make_table(
        "Agreement on the pairs that both decided; 95% intervals over prompts",
        *("sources", "pairs", "of", *(column.heading for column in columns)),
    )
    for row in rows:
        cells = [_cell(row["figures"].get(column.name)) for column in columns]
        sources = f"{row['first']}\n{row['second']}"
        table.add_row(sources, str(row["pairs"]), str(row["of"]), *cells)
    return table


def _contest_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = make_table(
        "Second model minus first; 95% intervals over prompts",
        *("models", "by", "against", "prompts", "win rate", "prompts won", "at equal length"),
        "lengths",
    )
    for row in rows:
        cells = [_cell(row["difference"], signed=True), _cell(row["won"]), _cell(row["equal"])]
        lengths = "\n".join("–" if x is None else f"{x:.0f}" for x in row["lengths"])
        against = row["opponent"] or "each other"
        models = f"{row['first']}\n{row['second']}"
        table.add_row(models, row["by"], against, str(row["prompts"]), *cells, lengths)
    return table


def _run_tables(run: Mapping[str, Any]) -> list[Table | Text]:
    found: list[Table | Text] = []
    for given in run["tables"]:
        table = make_table(f"{run['name']}: {given['title']}", "metric", *given["columns"])
        headline = [row for row in given["rows"] if is_headline(row[0])]
        for name, *values in headline:
            table.add_row(
                _with_role(run, name), *(_cell(v, signed=_is_signed(name)) for v in values)
            )
        if headline:
            found.append(table)
    if run["labels"]:
        table = make_table(f"{run['name']}: labels", "arm", "labels", "price", "cost")
        for row in run["labels"]:
            known = ("–" if row[k] is None else show_number(row[k]) for k in ("price", "cost"))
            table.add_row(row["arm"], f"{row['labels']:g}", *known)
        found.append(table)
    return found


def is_headline(name: str) -> bool:
    """Whether a metric says which policy is better."""
    starts = ("score/", "win_rate/", "win_rate_vs_initial/", "reward_accuracy/")
    return name.startswith(starts) and name.count("/") == 1


def _is_signed(name: str) -> bool:
    """Win rates are read against one half, and differences against 0."""
    return not name.startswith("win_rate/")


def _with_role(run: Mapping[str, Any], name: str) -> str:
    role = run["roles"].get(name.partition("/")[2])
    return name if role is None else f"{name}\n{role}"


def _cell(value: IntervalJson | None, signed: bool = False) -> str:
    if value is None:
        return "–"
    return f"{show_value(value, signed)}\n{show_ends(value, signed)}"


def _list_ceilings(result: Result) -> list[Mapping[str, Any]]:
    """The sources that are beside two people's votes on the same pairs."""
    return [row for row in result["beside"] if row["figures"] is not None]


def _draw_ceilings(result: Result) -> Markup | None:
    """Every source's agreement with a person beside two people's with one another."""
    rows: list[tuple[str, IntervalJson, bool]] = []
    for row in _list_ceilings(result):
        label, person = f"two people of {row['people_of']}", row["figures"]["person"]
        # Two sources may have decided different pairs, on which people agree differently.
        if (label, person) not in [(name, value) for name, value, _ in rows]:
            rows.append((label, person, True))
        rows.append((row["judge"], row["figures"]["judge"], False))
    if not rows:
        return None
    spoken = ", ".join(f"{name} {show_interval(value)}" for name, value, _ in rows)
    return plots.draw_forest("ceiling", f"Agreement with a person: {spoken}", rows, 0.5)


def _draw_parts(result: Result) -> list[tuple[Mapping[str, Any], Markup | None]]:
    """Each decomposition with a forest plot of its parts."""
    found: list[tuple[Mapping[str, Any], Markup | None]] = []
    for place, row in enumerate(result["disagreement"]):
        parts = row.get("parts") or {}
        drawn = [(name, value, False) for name, value in parts.items()]
        spoken = ", ".join(f"{name} {show_interval(value)}" for name, value, _ in drawn)
        label = f"Parts of the disagreement of {row['judge']}: {spoken}"
        svg = plots.draw_forest(f"parts{place}", label, drawn, 0.0) if drawn else None
        found.append((row, svg))
    return found


def _draw_labels(place: int, run: Mapping[str, Any]) -> list[Figure]:
    """Scores against the number of labels, where arms differ in it."""
    curves: Curves = {
        metric: {
            line: [(point["labels"], point) for point in points] for line, points in lines.items()
        }
        for metric, lines in run["curves"].items()
    }
    order = list(dict.fromkeys(row["line"] for row in run["labels"]))
    return draw_label_curves(curves, order, f"run{place}labels")
