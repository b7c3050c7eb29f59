"""The headline table for a terminal, and the opening paragraph: what changed, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from rich.table import Table
from rich.text import Text

from rlaif.metrics.diagnostics import change_sides
from rlaif.metrics.figure_rules import rule_of, without_set
from rlaif.metrics.intervals import MIN_PROMPTS, direction, prompts_of, show_interval, show_number
from rlaif.metrics.words import ceiling_words, movement_words
from rlaif.report.arms import mark_of
from rlaif.report.merged import Page, claim_words
from rlaif.report.rows import (
    AGAINST_PAR,
    Cell,
    Row,
    alarm_items,
    arms_of,
    describe_round,
    metric_rows,
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
    `marked` judges (`arms.mark_judges`) labelled an arm, so they are not neutral.
    """
    seeds = seeds_of(rounds)
    ends = "95% interval over prompts"
    if len(seeds) > 1:
        ends += f" and {len(seeds)} seeds"
    table = Table(
        title=f"mean [{ends}]; below it, the change from M0",
        title_justify="left",
        caption=_make_caption(rounds, page, marked),
        caption_justify="left",
        min_width=60,
    )
    table.add_column("metric", no_wrap=True)
    headings, columns = side_by_side(page.rounds)
    if len(arms_of(rounds)) < 2:
        headings = list({row["round"]: describe_round(row) for row in rounds}.values())
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


def _make_caption(rounds: Sequence[RoundRow], page: Page, marked: Mapping[str, str]) -> Text:
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


_SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("What the judges say", ("score/", "win_rate_vs_initial/")),
    ("Given pairs that were held out", ("reward_accuracy/",)),
    ("Checks that nothing was trained on", ("check/",)),
    ("Length", ("length/words", "length/tokens")),
)
_SAID: tuple[tuple[str, Literal["made_of", "words"]], ...] = (
    ("What the changes of the scores are made of", "made_of"),
    ("The policy as its own judge", "words"),
)


def summarise_arm(
    latest: RoundRow, last: Sequence[RoundRow], page: Page
) -> list[tuple[str, list[str]]]:
    """(heading, sentences) for the top of the report, of one arm: its last round over all seeds,
    and each seed's own, whose sentences about the judge follow."""
    rows = metric_rows([latest])
    found = []
    for heading, prefixes in _SECTIONS:
        chosen = [row for row in rows if row.name.startswith(prefixes) and row.name.count("/") < 2]
        if heading == "Length":
            chosen = chosen[-1:]
        sentences = [_describe_row(row, latest, page) for row in chosen]
        if sentences:
            found.append((heading, sentences))
    for heading, key in _SAID:
        words = _list_sentences(last, key)
        if words:
            found.append((heading, words))
    return found


def _describe_row(row: Row, latest: RoundRow, page: Page) -> str:
    cell = row.cells[0]
    value = cell.value
    if value is None:
        return f"{row.name}: not measured."
    if without_set(row.name).startswith(AGAINST_PAR):
        side = direction(value, 0.5)
        standing = _describe_standing(row.name, side, latest, page, True)
        return f"{row.name}: {show_interval(value)}{standing}."
    if cell.delta is None:
        return f"{row.name}: {show_interval(value)}; no comparison with M0."
    start, end = change_sides(cell.delta, value["mean"])
    moved = _describe_standing(row.name, direction(cell.delta), latest, page, False)
    on_unit = rule_of(row.name).of in ("share", "rare")
    stuck = ceiling_words(cell.delta, row.kind.better) if on_unit else None
    few = prompts_of(cell.delta) < MIN_PROMPTS or "note" in cell.delta
    return (
        f"{row.name}: {show_number(start)} to {show_number(end)}, "
        f"{show_interval(cell.delta, signed=True)}"
        f"{'; ' + (stuck or movement_words(cell.delta)) if stuck or few else moved}."
    )


def _describe_standing(name: str, side: int, latest: RoundRow, page: Page, par: bool) -> str:
    """What the page may say of a figure beside its interval: a claim, that it is none, or where it
    is exploratory that it stands out. Else nothing: the interval is shown plain."""
    standing = latest["metrics"].get("standing", {}).get(name, "none")
    if standing == "claimed":
        words = ("above par", "below par") if par else ("it rose", "it fell")
        return f"; claimed: {words[0] if side > 0 else words[1]}"
    if standing == "exploratory":
        return "; it stands out among the other figures (exploratory)"
    adjusted = page.claims.adjusted.get(f"{latest['arm']}|{name}")
    if adjusted is None:
        return ""
    return f"; no change is claimed (p = {adjusted:.2g} by Holm)"


def _list_sentences(last: Sequence[RoundRow], key: Literal["made_of", "words"]) -> list[str]:
    many = len(last) > 1
    return [
        f"Seed {row['seed']}: {text}" if many else text
        for row in last
        for text in row["metrics"].get(key, [])
    ]
