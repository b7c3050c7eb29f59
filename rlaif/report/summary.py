"""The opening paragraph: what changed from the initial model to the last round, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rlaif.metrics.diagnostics import change_sides
from rlaif.metrics.figure_rules import rule_of
from rlaif.metrics.intervals import MIN_PROMPTS, direction, prompts_of, show_interval, show_number
from rlaif.metrics.words import ceiling_words, movement_words
from rlaif.report.merged import Page
from rlaif.report.rows import AGAINST_PAR, Row, metric_rows
from rlaif.report.view import RoundRow

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


def summary(latest: RoundRow, last: Sequence[RoundRow], page: Page) -> list[tuple[str, list[str]]]:
    """(heading, sentences) for the top of the report, of one arm: its last round over all seeds,
    and each seed's own, whose sentences about the judge follow."""
    rows = metric_rows([{**latest, "round": 0}])
    found = []
    for heading, prefixes in _SECTIONS:
        chosen = [row for row in rows if row.name.startswith(prefixes) and row.name.count("/") < 2]
        if heading == "Length":
            chosen = chosen[-1:]
        sentences = [_sentence(row, latest, page) for row in chosen]
        if sentences:
            found.append((heading, sentences))
    for heading, key in _SAID:
        words = _words(last, key)
        if words:
            found.append((heading, words))
    return found


def _sentence(row: Row, latest: RoundRow, page: Page) -> str:
    cell = row.cells[0]
    value = cell.value
    if value is None:
        return f"{row.name}: not measured."
    if row.name.startswith(AGAINST_PAR):
        side = direction(value, 0.5)
        return f"{row.name}: {show_interval(value)}{_reading(row.name, side, latest, page, True)}."
    if cell.delta is None:
        return f"{row.name}: {show_interval(value)}; no comparison with M0."
    start, end = change_sides(cell.delta, value["mean"])
    moved = _reading(row.name, direction(cell.delta), latest, page, False)
    on_unit = rule_of(row.name).of in ("share", "rare")
    stuck = ceiling_words(cell.delta, row.kind.better) if on_unit else None
    few = prompts_of(cell.delta) < MIN_PROMPTS or "note" in cell.delta
    return (
        f"{row.name}: {show_number(start)} to {show_number(end)}, "
        f"{show_interval(cell.delta, signed=True)}"
        f"{'; ' + (stuck or movement_words(cell.delta)) if stuck or few else moved}."
    )


def _reading(name: str, side: int, latest: RoundRow, page: Page, par: bool) -> str:
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


def _words(last: Sequence[RoundRow], key: Literal["made_of", "words"]) -> list[str]:
    many = len(last) > 1
    return [
        f"Seed {row['seed']}: {text}" if many else text
        for row in last
        for text in row["metrics"].get(key, [])
    ]
