"""`rlaif compare`: was the AI feedback as good as people's?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from rlaif.cli.options import (
    FILE,
    JSON,
    SEED,
    Finite,
    ReadOptions,
    column_map,
    echo_skipped,
    read_options,
)


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--out", type=FILE, help="Write the page to this file.")
@click.option(
    "--margin",
    type=Finite(min=0, min_open=True),
    default=0.05,
    help="The largest difference, in agreement or win rate, that does not matter.",
)
@click.option(
    "--epsilon",
    type=Finite(0, 1),
    default=0.1,
    help="How much worse than a person a judge may be, in the alternative annotator test: 0.2 "
    "where people are experts, 0.15 skilled, 0.1 crowd workers.",
)
@click.option(
    "--between",
    type=str,
    nargs=2,
    multiple=True,
    metavar="FIRST SECOND",
    help="Two models to compare head to head; repeatable.",
)
@read_options
@SEED
@JSON
def compare(
    sources: tuple[str, ...],
    out: Path | None,
    margin: float,
    epsilon: float,
    between: tuple[tuple[str, str], ...],
    reading: ReadOptions,
    seed: int,
    as_json: bool,
) -> None:
    """Compare AI feedback with human feedback.

    Each SOURCE is a run's folder, the folder of a step, or a file: labelled pairs, judgements,
    preferences, completions or models' answers. NAME=SOURCE gives it a name.

    Reports how far any two sources agree on the same pairs, whether judges agree with people as
    people agree with one another, what their disagreement is associated with, how policies compare,
    and what labels cost. Pairs are equal if their prompt and both answers are. Every figure has
    a 95% interval over prompts.
    """
    from rlaif.analysis.comparison.compute import Choices, compare_inputs
    from rlaif.analysis.comparison.gather import Reading
    from rlaif.report.compare import comparison_tables, write_comparison

    read = Reading(reading.from_, column_map(reading.columns), reading.on_error)
    result = compare_inputs(sources, Choices(margin, epsilon, between, seed, read))
    echo_skipped(result["skipped"])
    if out is not None:
        write_comparison(result, out)
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    for shown in comparison_tables(result):
        console.print(shown)
    if out is not None:
        click.echo(f"Page: {out}")
