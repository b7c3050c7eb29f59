"""`rlaif judge-bench`: how good a judge is, before it is trusted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlaif.cli.data import labelled_pairs
from rlaif.cli.options import (
    COLUMNS,
    CONSTITUTION,
    FROM,
    JSON,
    MODEL,
    ON_ERROR,
    QUIET,
    SEED,
    progress_of,
)

if TYPE_CHECKING:
    from rlaif.data.readers import OnError


@click.command("judge-bench")
@click.argument("pairs", type=click.Path(path_type=Path))
@click.option(
    "--judge",
    "judges",
    multiple=True,
    metavar="SPEC",
    help="A kind (pairwise, rating, longer ...), a YAML file of judges, or the folder of a reward "
    "model; repeatable.",
)
@FROM
@COLUMNS
@ON_ERROR
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="NAME",
    help="Plant this attack in the answer that a judge found worse; `all`; repeatable.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), help="Use this many pairs, drawn by their ids."
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Judge every pair this often: the judge's agreement with itself.",
)
@click.option("--author", help="Whose answers are the judges' own [default: their model's name].")
@click.option(
    "--baselines/--no-baselines",
    default=True,
    show_default=True,
    help="Measure judges that understand nothing beside the others.",
)
@click.option(
    "--resamples",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Bootstrap samples of the prompts.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for judgements and report [default: runs/judge-bench/NAME].",
)
@CONSTITUTION
@MODEL
@SEED
@QUIET
@JSON
def judge_bench(
    pairs: Path,
    judges: tuple[str, ...],
    from_: str | None,
    columns: Path | None,
    on_error: OnError,
    attacks: tuple[str, ...],
    limit: int | None,
    repeats: int,
    author: str | None,
    baselines: bool,
    resamples: int,
    out: Path | None,
    constitution: str | None,
    model: str,
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure judges on PAIRS that somebody labelled: agreement, biases, calibration, attacks.

    Every figure has a 95% interval over prompts. Judgements are kept in --out: what was judged once
    is not judged again.
    """
    from rlaif.bench.run import BenchRequest, run_bench
    from rlaif.files import named_model
    from rlaif.report.bench import bench_page, bench_tables

    labelled = labelled_pairs(pairs, from_, columns, on_error)
    name = pairs.name.removesuffix(".gz").rsplit(".", 1)[0]
    folder = out or Path("runs") / "judge-bench" / name
    request = BenchRequest(
        name,
        judges,
        folder,
        named_model(model).spec,
        constitution,
        baselines,
        attacks,
        limit,
        repeats,
        author,
        seed,
        resamples,
    )
    result = run_bench(request, labelled, progress_of(quiet))
    page = bench_page(result, folder / "report.html")
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    for table in bench_tables(result):
        console.print(table)
    click.echo(f"Report: {page}")
