"""`rlaif winrate`: win rates and a ranking, of a file of comparisons or of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.options import FILE, JSON, SHOWN, ReadOptions, column_map, echo_skipped, read_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlaif.metrics.ranking import Rating
    from rlaif.metrics.winrate import Battle, Standing, WinRate

MANIFEST = "manifest.json"


@click.command()
@click.argument("source", metavar="SOURCE", type=FILE)
@read_options
@JSON
def winrate(source: Path, reading: ReadOptions, as_json: bool) -> None:
    """Compute AlpacaEval's win rates and a ranking.

    SOURCE is a file of comparisons, or a run folder, whose models are then compared on the held-out
    prompts. Every metric has a 95% interval over prompts. LC-minimal, computed from 200 battles on,
    is the length-controlled win rate by AlpacaEval's minimal formula (not the leaderboard's);
    with fewer battles, LC (small n) is used instead.
    """
    from rlaif.core.resources import find
    from rlaif.metrics.battles import read_battles

    if (source / MANIFEST).is_file():
        if reading.from_ or reading.columns:
            raise click.UsageError("--from and --columns are for files; SOURCE is a run's folder")
        _of_run(source, as_json)
        return
    columns = column_map(reading.columns)
    battles, skipped = read_battles(find(str(source)), reading.from_, columns, reading.on_error)
    echo_skipped(skipped)
    result, found = _measure_battles(battles)
    if as_json:
        click.echo(json.dumps(result | {"skipped": len(skipped)}, ensure_ascii=False))
    else:
        print_standings(found)


def _of_run(folder: Path, as_json: bool) -> None:
    from rlaif.pipeline.contests import run_battles
    from rlaif.pipeline.runs import load_run

    run = load_run(folder)
    judged = {judge: _measure_battles(battles) for judge, battles in run_battles(run).items()}
    if as_json:
        judges = {judge: result for judge, (result, _) in judged.items()}
        click.echo(json.dumps({"run": run.manifest["name"], "judges": judges}, ensure_ascii=False))
        return
    for judge, (_, found) in judged.items():
        print_standings(found, f" by judge {judge}")


def _measure_battles(battles: Sequence[Battle]) -> tuple[dict[str, Any], list[Standing]]:
    """The figures as JSON, and as they are. Says what rows are the same battle, and who has no
    verdict. Raises RlaifError where nobody has one."""
    from dataclasses import asdict

    from rlaif.core.errors import RlaifError
    from rlaif.metrics.winrate import compute_standings, find_repeats, single_baseline

    found = compute_standings(battles)
    if not found:
        raise RlaifError("no comparison has a verdict: there is nothing to count")
    same = find_repeats(battles)
    for group in same[:SHOWN]:
        places, first = ", ".join(b.place for b in group), group[0]
        click.echo(f"one battle of {first.first} and {first.second}: {places}", err=True)
    if same:
        rows, more = sum(map(len, same)), f" ({len(same) - SHOWN} more)" * (len(same) > SHOWN)
        click.echo(
            f"{rows} rows are {len(same)} battles{more}: prompt, generators and outputs are the "
            "same. Rows of one battle are no more evidence than one.",
            err=True,
        )
    counted = {name for s in found for name in _names_in(s)}
    unjudged = sorted({name for b in battles for name in (b.first, b.second)} - counted)
    if unjudged:
        click.echo(f"without any verdict: {', '.join(unjudged)}", err=True)
    result = {
        "baseline": single_baseline(battles),
        "generators": {w.generator: asdict(w) for s in found for w in s.win_rates},
        "ranking": [asdict(r) for s in found for r in s.ratings],
        "groups": [{"baseline": s.baseline, "generators": _names_in(s)} for s in found],
        "repeated": [[b.place for b in group] for group in same],
        "unjudged": unjudged,
    }
    return result, found


def _names_in(standing: Standing) -> list[str]:
    rated = [r.player for r in standing.ratings]
    return list(dict.fromkeys([*rated, *(w.generator for w in standing.win_rates)]))


def print_standings(found: Sequence[Standing], by: str = "") -> None:
    """A table for each group of generators that met."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=160, highlight=False)
    if len(found) > 1:
        console.print(
            f"{len(found)} groups of generators never met: nothing says how they compare, and each "
            "has a ranking of its own."
        )
    for standing in found:
        against = "all others" if standing.baseline is None else standing.baseline
        table = Table(title=f"Win rate (%) against {against}{by}")
        rates = standing.win_rates
        minimal = any(w.lc_minimal is not None for w in rates)
        small = any(w.lc_small_n is not None for w in rates)
        columns = ["win rate", *["LC-minimal"] * minimal, *["LC (small n)"] * small]
        table.add_column("generator", overflow="fold")
        for name in (*columns, "won-tied-lost", "rating", "avg length", "longer"):
            table.add_column(name, justify="right")
        table.add_column("")
        strength = {r.player: r for r in standing.ratings}
        for w in rates:
            controlled = [*[w.lc_minimal] * minimal, *[w.lc_small_n] * small]
            table.add_row(
                w.generator,
                _with_ends(w.win_rate, w.low, w.high),
                *(_with_ends(rate, w.lc_low, w.lc_high) for rate in controlled),
                f"{w.n_wins}-{w.n_draws}-{w.n_wins_base}",
                _show_rating(strength.get(w.generator)),
                f"{w.avg_length:.0f}",
                "" if w.longer is None else f"{100 * w.longer:.0f}%",
                "; ".join(_notes_on(w)),
            )
        console.print(table)


def _with_ends(value: float | None, low: float | None, high: float | None) -> str:
    return "-" if value is None else f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _show_rating(rating: Rating | None) -> str:
    # A generator that met itself alone has none.
    if rating is None:
        return "-"
    low = "-∞" if rating.low is None else f"{rating.low:.0f}"
    high = "∞" if rating.high is None else f"{rating.high:.0f}"
    return f"{rating.rating:.0f}" + (" (anchor)" if rating.is_anchor else f" [{low}, {high}]")


def _notes_on(rate: WinRate) -> list[str]:
    notes = [rate.lc_note] if rate.lc_note else []
    if rate.n_prompts < rate.n_total:
        notes.append(f"{rate.n_total} rows of {rate.n_prompts} prompts")
    if rate.n_missing:
        notes.append(f"{rate.n_missing} without a verdict")
    if rate.is_constant:
        notes.append(f"{100 * rate.constant:.0f}% of its outputs are one text")
    return notes
