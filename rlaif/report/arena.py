"""One arena as a page of its own and as tables for a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from rlaif.report.arenas import ArenaTable, Ends
from rlaif.report.figures import make_table, write_page


def show_rating(rating: float, ends: Ends, is_anchor: bool = False) -> str:
    """A rating with its interval, such as 1012 [980, 1044]."""
    if is_anchor:
        return f"{rating:.0f} (anchor)"
    low, high = ends
    left = "-∞" if low is None else f"{low:.0f}"
    right = "∞" if high is None else f"{high:.0f}"
    return f"{rating:.0f} [{left}, {right}]"


def terminal_tables(arena: ArenaTable) -> list[Table]:
    """The ratings of each group, for a terminal."""
    found = []
    for group in arena.groups:
        table = make_table(
            f"Ratings by judge {arena.judge}: {arena.judged} of {arena.battles} battles on "
            f"{arena.prompts} prompts",
            "model",
            *("Bradley–Terry", "at equal style", "Elo", "battles"),
        )
        for model in group.models:
            table.add_row(
                model.name,
                show_rating(model.rating, model.rating_ends, model.is_anchor),
                show_rating(model.style, model.style_ends, model.is_anchor),
                show_rating(model.elo, model.elo_ends),
                str(model.battles),
            )
        found.append(table)
    return found


def write_arena(arena: ArenaTable, path: Path) -> Path:
    """Write the page of one arena, which loads nothing. Returns the file."""
    return write_page("arena.html.j2", path, arena=arena)
