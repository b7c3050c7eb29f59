"""The opening paragraph: what changed from the initial model to the last round, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rlaif.compare.bootstrap import IntervalJson, direction, show_interval, show_number
from rlaif.compare.words import movement_words
from rlaif.report.rows import AGAINST_PAR, Cell, Row, latest_rounds, metric_rows, seeds_of
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


def summary(rounds: Sequence[RoundRow]) -> list[tuple[str, list[str]]]:
    """(heading, sentences) for the top of the report, of one arm; empty when nothing was
    evaluated."""
    last = latest_rounds(rounds)
    if not last:
        return []
    # Seeds may have stopped at different rounds; each contributes its own last one.
    rows = metric_rows([{**row, "round": 0} for row in last])
    seeds = len(seeds_of(rounds))
    found = []
    for heading, prefixes in _SECTIONS:
        chosen = [row for row in rows if row.name.startswith(prefixes) and row.name.count("/") < 2]
        if heading == "Length":
            chosen = chosen[-1:]
        sentences = [_sentence(row, last, seeds) for row in chosen]
        if sentences:
            found.append((heading, sentences))
    for heading, key in _SAID:
        words = _words(last, key)
        if words:
            found.append((heading, words))
    return found


def _sentence(row: Row, last: Sequence[RoundRow], seeds: int) -> str:
    cell = row.cells[0]
    value = cell.value
    if value is None:
        return f"{row.name}: not measured."
    if row.name.startswith(AGAINST_PAR):
        return f"{row.name}: {show_interval(value)}, {_par_words(cell, seeds)}."
    if cell.delta is None:
        return f"{row.name}: {show_interval(value)}; no comparison with M0."
    start = value["mean"] - cell.delta["mean"]
    moved = _change_words(row.name, cell.delta, last, seeds)
    return (
        f"{row.name}: {show_number(start)} to {show_number(value['mean'])}, "
        f"{show_interval(cell.delta, signed=True)}; {moved}."
    )


def _par_words(cell: Cell, seeds: int) -> str:
    if not cell.tone:
        return "not distinguishable from par (0.5)"
    return f"{'better' if cell.tone == 'good' else 'worse'} than par{_everywhere(seeds)}"


def _change_words(name: str, change: IntervalJson, last: Sequence[RoundRow], seeds: int) -> str:
    if seeds < 2:
        return movement_words(change)
    clear = sum(
        direction(row["metrics"]["deltas"].get("initial", {}).get(name)) != 0 for row in last
    )
    return f"the interval excludes zero in {clear} of {seeds} seeds"


def _everywhere(seeds: int) -> str:
    return "" if seeds < 2 else f" in all {seeds} seeds"


def _words(last: Sequence[RoundRow], key: Literal["made_of", "words"]) -> list[str]:
    many = len(last) > 1
    return [
        f"Seed {row['seed']}: {text}" if many else text
        for row in last
        for text in row["metrics"].get(key, [])
    ]
