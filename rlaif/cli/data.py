"""Commands on data files: convert, winrate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlaif.cli.options import COLUMNS, CONFIG, FROM, JSON, ON_ERROR, SEED, SPLIT, column_map

if TYPE_CHECKING:
    from rlaif.compare.ranking import Rating
    from rlaif.compare.winrate import WinRate
    from rlaif.data.labelled import LabelledPair
    from rlaif.data.readers import OnError

SHOWN = 10
LOSSES = {
    "prompt": "turns of the prompt, or blanks around them",
    "answers": "blanks around answers",
    "order": "which answer came first",
    "label": "how sure the label is",
    "subset": "the subset",
    "authors": "who wrote the answers",
    "scores": "the scores of the answers",
    "margin": "by how much the better answer is better",
    "calls": "tool calls and reasoning of answers",
    "annotator": "who labelled",
    "annotator_kind": "whether a person or a model labelled",
}


def say_skipped(skipped: list[str]) -> None:
    """The rows that were left out, on stderr."""
    for message in skipped[:SHOWN]:
        click.echo(f"skipped: {message}", err=True)
    if len(skipped) > SHOWN:
        click.echo(f"skipped: {len(skipped) - SHOWN} more rows", err=True)


def labelled_pairs(
    path: Path,
    from_: str | None,
    columns: Path | None,
    on_error: OnError,
    split: str = "train",
    config: str | None = None,
) -> list[LabelledPair]:
    """The labelled pairs of a file or a dataset on the hub; rows that were left out are said."""
    from rlaif.data.readers import read_labelled
    from rlaif.data.rows import source_of

    source = source_of(str(path), split, config)
    reading = read_labelled(source, from_, column_map(columns), on_error)
    pairs = list(reading)
    say_skipped(reading.skipped)
    return pairs


@click.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@FROM
@click.option("--to", required=True, metavar="FORMAT", help="The format of OUT.")
@COLUMNS
@SPLIT
@CONFIG
@ON_ERROR
@JSON
def convert(
    source: Path,
    out: Path,
    from_: str | None,
    to: str,
    columns: Path | None,
    split: str,
    config: str | None,
    on_error: OnError,
    as_json: bool,
) -> None:
    """Write labelled pairs in another format.

    IN is a file, a folder of `datasets`, or the id of a dataset on the hub (OWNER/NAME). OUT ends
    in .jsonl, .jsonl.gz, .json or .parquet. What the format cannot hold is said: pairs that are
    skipped, and what is lost of the others.
    """
    from dataclasses import asdict

    from rlaif.data.convert import convert as converted
    from rlaif.data.rows import source_of

    read = source_of(str(source), split, config)
    done = converted(read, out, to, from_, column_map(columns), on_error)
    say_skipped(done.skipped)
    if as_json:
        click.echo(json.dumps(asdict(done), ensure_ascii=False))
        return
    click.echo(
        f"{done.written} pairs of {done.rows} rows ({done.format}) written to {out} ({to}), "
        f"{len(done.skipped)} skipped"
    )
    for name, count in sorted(done.lost.items()):
        click.echo(f"lost: {LOSSES[name]} ({count} pairs)")
    if done.dropped:
        click.echo(f"not carried over: {', '.join(done.dropped)}")


@click.command()
@click.argument("annotations", type=click.Path(path_type=Path))
@FROM
@COLUMNS
@ON_ERROR
@SEED
@JSON
def winrate(
    annotations: Path,
    from_: str | None,
    columns: Path | None,
    on_error: OnError,
    seed: int,
    as_json: bool,
) -> None:
    """Win rates and a ranking, as AlpacaEval counts them.

    Of the generators in ANNOTATIONS. LC-minimal is the length-controlled win rate by AlpacaEval's
    minimal formula: not the figure of its leaderboard.
    """
    from dataclasses import asdict

    from rlaif.compare.ranking import bradley_terry
    from rlaif.compare.winrate import single_baseline, win_rates
    from rlaif.data.battles import read_battles
    from rlaif.resources import find

    mapped = column_map(columns)
    battles, skipped = read_battles(find(str(annotations)), from_, mapped, on_error)
    say_skipped(skipped)
    baseline = single_baseline(battles)
    rates = win_rates(battles)
    ratings = bradley_terry(
        [
            (b.prompt_id, b.first, b.second, 1 - b.prob_second)
            for b in battles
            if b.prob_second is not None
        ],
        anchor=baseline,
        seed=seed,
    )
    if as_json:
        result = {
            "baseline": baseline,
            "generators": {w.generator: asdict(w) for w in rates},
            "ranking": [asdict(r) for r in ratings],
            "skipped": len(skipped),
        }
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    _print_rates(rates, ratings, baseline)


def _print_rates(rates: list[WinRate], ratings: list[Rating], baseline: str | None) -> None:
    from rich.console import Console
    from rich.table import Table

    strength = {r.player: r for r in ratings}
    against = f"against {baseline}" if baseline is not None else "against all others"
    table = Table(title=f"Win rate (%) {against}")
    for name in ("generator", "win rate", "LC-minimal", "n", "rating", "avg length", "longer", ""):
        table.add_column(name, justify="left" if name in ("generator", "") else "right")
    for w in rates:
        r = strength.get(w.generator)
        table.add_row(
            w.generator,
            _with_error(w.win_rate, w.standard_error),
            _with_error(w.lc_minimal, w.lc_minimal_standard_error),
            str(w.n_total),
            # A generator that met itself alone has no rating.
            "-" if r is None else f"{r.rating:.0f} [{r.low:.0f}, {r.high:.0f}]",
            f"{w.avg_length:.0f}",
            "" if w.longer is None else f"{100 * w.longer:.0f}%",
            f"{100 * w.constant:.0f}% of its outputs are one text" if w.is_constant else "",
        )
    Console(width=140).print(table)


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"
