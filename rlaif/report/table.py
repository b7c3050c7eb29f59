"""The headline table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from rlaif.compare.intervals import show_interval
from rlaif.report.merged import Page, claim_words
from rlaif.report.rows import (
    Cell,
    arms_of,
    latest_rounds,
    metric_rows,
    round_numbers,
    seeds_of,
    side_by_side,
)
from rlaif.report.view import RoundRow

_STYLES = {"": "", "good": "green", "bad": "red", "moved": "cyan"}


def summary_table(rounds: Sequence[RoundRow], page: Page) -> Table:
    """Metric rows by rounds, or by arms after their last round; a cell is `mean [low, high]` over
    its change from M0.

    Colour marks a claimed change of a primary metric and an asterisk an exploratory one; what is
    claimed how, and the alarms of the last round, stand beneath. `rounds` are those of each seed.
    """
    seeds = seeds_of(rounds)
    ends = "95% interval over prompts"
    if len(seeds) > 1:
        ends += f" and {len(seeds)} seeds"
    table = Table(
        title=f"mean [{ends}]; below it, the change from M0",
        title_justify="left",
        caption=_caption(rounds, page),
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
        table.add_row(Text(row.name), *(_cell_text(cell) for cell in row.cells))
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


def _caption(rounds: Sequence[RoundRow], page: Page) -> Text:
    text = Text("".join(f"{line}\n" for line in claim_words(page)))
    if any(standing == "exploratory" for standing in page.claims.standing.values()):
        text.append("* stands out among the other figures (exploratory)\n")
    return text.append_text(_alarm_text(rounds))


def _alarm_text(rounds: Sequence[RoundRow]) -> Text:
    seeds = seeds_of(rounds)
    lines = Text()
    arms = arms_of(rounds)
    for row in latest_rounds(rounds):
        where = [row["arm"]] if len(arms) > 1 else []
        where += [f"seed {row['seed']}"] if len(seeds) > 1 else []
        prefix = f"{', '.join(where)}: " if where else ""
        for alarm in row["metrics"].get("alarms", []):
            style = "bold red" if alarm["severity"] == "alarm" else "yellow"
            lines.append(f"{alarm['severity']}  ", style=style)
            lines.append(f"{prefix}{alarm['message']}\n")
    if not lines.plain:
        lines.append("No alarm fired." if rounds else "No round was evaluated.")
    return lines
