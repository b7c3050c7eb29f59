"""The headline table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from rich.table import Table
from rich.text import Text

from rlaif.metrics.intervals import show_interval
from rlaif.report.answers import mark_of
from rlaif.report.merged import Page, claim_words
from rlaif.report.rows import (
    Cell,
    alarm_items,
    arms_of,
    metric_rows,
    round_numbers,
    seeds_of,
    side_by_side,
)
from rlaif.report.view import RoundRow

_STYLES = {"": "", "good": "green", "bad": "red", "moved": "cyan"}


def summary_table(
    rounds: Sequence[RoundRow], page: Page, marked: Mapping[str, str] = MappingProxyType({})
) -> Table:
    """Metric rows by rounds, or by arms after their last round; a cell is `mean [low, high]` over
    its change from M0.

    Colour marks a claimed change of a primary metric and an asterisk an exploratory one; what is
    claimed how, and the alarms of the last round, stand beneath. `rounds` are those of each seed;
    `marked` judges (`answers.marks`) labelled an arm, and are no neutral ones.
    """
    seeds = seeds_of(rounds)
    ends = "95% interval over prompts"
    if len(seeds) > 1:
        ends += f" and {len(seeds)} seeds"
    table = Table(
        title=f"mean [{ends}]; below it, the change from M0",
        title_justify="left",
        caption=_caption(rounds, page, marked),
        caption_justify="left",
        min_width=60,
    )
    table.add_column("metric", no_wrap=True)
    headings, columns = side_by_side(page.rounds)
    if len(arms_of(rounds)) < 2:
        headings = [f"round {number}" for number in round_numbers(rounds)]
    for heading in headings:
        table.add_column(heading, justify="right")
    group = None
    for row in metric_rows(columns):
        if group is not None and row.kind.group != group:
            table.add_section()
        group = row.kind.group
        name = f"{row.name} †" if mark_of(row.name, marked) else row.name
        table.add_row(Text(name), *(_cell_text(cell) for cell in row.cells))
    return table


def _cell_text(cell: Cell) -> Text:
    if cell.value is None:
        return Text("-", style="dim")
    style = _STYLES[cell.tone]
    mark = " *" if cell.exploratory else ""
    if cell.delta is None:
        return Text(show_interval(cell.value) + mark, style=style)
    text = Text(show_interval(cell.value) + "\n")
    text.append(show_interval(cell.delta, signed=True) + mark, style=style or "dim")
    return text


def _caption(rounds: Sequence[RoundRow], page: Page, marked: Mapping[str, str]) -> Text:
    text = Text("".join(f"{line}\n" for line in claim_words(page)))
    for judge, words in marked.items():
        text.append(f"† the judge {judge!r} {words}: it is not neutral there\n")
    if any(standing == "exploratory" for standing in page.claims.standing.values()):
        text.append("* stands out among the other figures (exploratory)\n")
    return text.append_text(_alarm_text(rounds))


def _alarm_text(rounds: Sequence[RoundRow]) -> Text:
    lines = Text()
    for item in alarm_items(rounds, latest=True):
        style = "bold red" if item["severity"] == "alarm" else "yellow"
        lines.append(f"{item['severity']}  ", style=style)
        where = f"{item['where']}: " if item["where"] else ""
        lines.append(f"{where}{item['message']}\n")
    if not lines.plain:
        lines.append("No alarm fired." if rounds else "No round was evaluated.")
    return lines
