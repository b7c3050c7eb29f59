"""Every figure of an arena in its own place: no two numbers of this one are the same."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from rich.console import Console

from rlaif.report.arena import terminal_tables, write_arena
from rlaif.report.arenas import make_arena_table, make_arena_tables
from rlaif.report.view import ArenaRow


def rated(player: str, rating: float, low: float | None, high: float | None) -> dict[str, Any]:
    return {"player": player, "rating": rating, "low": low, "high": high}


RESULT: dict[str, Any] = {
    "judge": "strict",
    "prompts": 40,
    "battles": 60,
    "judged": 58,
    "ties": 7,
    "slot_one": {"mean": 0.55, "low": 0.5, "high": 0.61, "n": 39},
    "unrated": ["silent"],
    "groups": [
        {
            "anchor": "old",
            "ratings": [
                rated("new", 1101.0, 1051.0, None) | {"is_anchor": False, "prompts": 31},
                rated("old", 1000.0, None, None) | {"is_anchor": True, "prompts": 32},
            ],
            "style": {
                "ratings": [rated("old", 1000.0, None, None), rated("new", 1072.0, 1022.0, 1122.0)],
                "effects": {"length": 13.0},
            },
            "elo": [rated("old", 963.0, 953.0, 973.0), rated("new", 1037.0, 1027.0, 1047.0)],
            "battles": {"new": 57, "old": 56},
        }
    ],
    "pairs": [
        {
            "first": "old",
            "second": "new",
            "share": {"mean": 0.3, "low": 0.2, "high": 0.45, "n": 38},
            "judged": 55,
        }
    ],
}
ROW: ArenaRow = {"seed": 3, "arms": ["a"], "round": 2, "id": "meet", "result": RESULT}


def test_each_rating_has_its_own_ends_and_each_model_its_own_battles() -> None:
    (table,) = make_arena_tables([ROW], by_arm=True)
    assert table.title == "meet, seed 3, round 2, arm a"
    assert make_arena_table(ROW).title == "meet, seed 3, round 2"
    found = {model.name: model for model in table.groups[0].models}
    new, old = found["new"], found["old"]
    assert (new.rating, new.rating_ends) == (1101, (1051, None))
    assert (new.style, new.style_ends) == (1072, (1022, 1122))
    assert (new.elo, new.elo_ends) == (1037, (1027, 1047))
    assert (new.battles, new.prompts, new.is_anchor) == (57, 31, False)
    assert (old.elo, old.elo_ends, old.battles, old.prompts) == (963, (953, 973), 56, 32)
    assert old.is_anchor


def test_a_row_of_the_matrix_has_what_its_model_won() -> None:
    table = make_arena_table(ROW)
    assert table.names == ["new", "old"]
    (new, (nothing, cell)), (old, (other, again)) = table.matrix
    assert (new, old, nothing, again) == ("new", "old", None, None)
    assert other == (RESULT["pairs"][0]["share"], 55)
    share, judged = cell or (None, 0)
    assert share is not None and judged == 55
    shown = [round(share[key] or 0, 6) for key in ("mean", "low", "high")]  # type: ignore[literal-required]
    assert shown == [0.7, 0.55, 0.8]


def test_terminal_and_page_show_every_figure_in_its_column(tmp_path: Path) -> None:
    arena = make_arena_table(ROW)
    console = Console(file=io.StringIO(), width=140)
    for one in terminal_tables(arena):
        console.print(one)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    (line,) = (line for line in lines if line.strip(" │").startswith("new"))
    cells = [cell.strip() for cell in re.split(r"\s{2,}|[│┃]", line) if cell.strip()]
    assert cells == ["new", "1101 [1051, ∞]", "1072 [1022, 1122]", "1037 [1027, 1047]", "57"]
    text = write_arena(arena, tmp_path / "arena.html").read_text("utf-8")
    rows = re.findall(r"<tr><th scope=\"row\"><code>new</code>(.*?)</tr>", text, re.DOTALL)
    ratings = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<td.*?</td>", rows[0], re.S)]
    assert ratings == ["1101[1051, ∞]", "1072[1022, 1122]", "1037[1027, 1047]", "57", "31"]
    assert "58 of 60 battles on 40 prompts" in text and "7 are ties" in text
    assert "Without a verdict: silent." in text and "length +13.0" in text
