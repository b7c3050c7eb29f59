"""`rlaif judge-bench` and `rlaif reward-bench`: how good a judge is, before it is trusted."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.data import labelled_pairs
from rlaif.cli.options import (
    COLUMNS,
    CONFIG,
    CONSTITUTION,
    FROM,
    JSON,
    MODEL,
    ON_ERROR,
    OUT,
    QUIET,
    RESAMPLES,
    SEED,
    SPLIT,
    progress_of,
)

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

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
@SPLIT
@CONFIG
@ON_ERROR
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="NAME",
    help="Plant this attack (or `all`) in the answer a judge found worse; repeatable.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), help="Use only this many pairs, selected by id."
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Judge every pair this many times to measure self-agreement.",
)
@click.option("--author", help="Author of the judges' own answers [default: their model's name].")
@click.option(
    "--baselines/--no-baselines",
    default=True,
    show_default=True,
    help="Also measure trivial baseline judges.",
)
@RESAMPLES
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
    split: str,
    config: str | None,
    on_error: OnError,
    attacks: tuple[str, ...],
    limit: int | None,
    repeats: int,
    author: str | None,
    baselines: bool,
    out: Path | None,
    constitution: str | None,
    model: str,
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure judges on labelled PAIRS.

    PAIRS is a file, or the id of a dataset on the hub (OWNER/NAME). Reports agreement, biases,
    calibration, attacks and cost, next to trivial baselines. Every metric has a 95% interval over
    prompts. Judgements are kept in --out, so that nothing is judged twice.
    """
    from rlaif.analysis.bench.mistakes import FILE
    from rlaif.analysis.bench.run import BenchRequest, run_bench
    from rlaif.pipeline.single_step import named_model
    from rlaif.report.bench import bench_page, bench_tables

    labelled = labelled_pairs(pairs, from_, columns, on_error, split, config)
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
    )
    result = run_bench(request, labelled, progress_of(quiet))
    wrong = [json.loads(line) for line in (folder / FILE).read_text("utf-8").split("\n") if line]
    page = bench_page(result, folder / "report.html", wrong)
    _say(result, bench_tables(result), page, as_json)


def _say(result: dict[str, Any], tables: Sequence[Table | Text], page: Path, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    for table in tables:
        console.print(table)
    click.echo(f"Report: {page}")


@click.command("reward-bench")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("pairs", type=click.Path(path_type=Path))
@FROM
@COLUMNS
@ON_ERROR
@click.option(
    "--train",
    type=click.Path(path_type=Path),
    help="The training pairs of MODEL: learning curve, suspect labels, nearest pairs.",
)
@click.option(
    "--scored",
    type=click.Path(path_type=Path),
    help="Output of `rlaif score` with several answers per prompt, for best-of-n; needs --gold.",
)
@click.option(
    "--gold", type=click.Path(path_type=Path), help="A trusted judge's judgements of them."
)
@RESAMPLES
@OUT
@SEED
@QUIET
@JSON
def reward_bench(
    model: Path,
    pairs: Path,
    from_: str | None,
    columns: Path | None,
    on_error: OnError,
    train: Path | None,
    scored: Path | None,
    gold: Path | None,
    out: Path,
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure the reward model MODEL on labelled PAIRS.

    Reports accuracy by subset, annotator and margin, calibration, length effects, and the worst
    mistakes with their causes. MODEL is a folder. If PAIRS is a folder of preferences, the report
    also says whether the model is stale on the newest round.

    Every metric has a 95% interval over prompts. Results are kept in --out and reused.
    """
    from rlaif.analysis.bench.reward import RewardBench, labelled, run_reward_bench
    from rlaif.core.records import Judgement, from_json
    from rlaif.pipeline.single_step import Records
    from rlaif.pipeline.steps.load import load_preferences
    from rlaif.report.reward import reward_page, reward_tables

    if (scored is None) != (gold is None):
        raise click.UsageError("--scored and --gold go together: two judges of the same answers")
    judged = [
        [] if p is None else [from_json(Judgement, r) for r in Records(p).read("judgements")]
        for p in (scored, gold)
    ]
    request = RewardBench(
        pairs.name.removesuffix(".gz").rsplit(".", 1)[0],
        model,
        out,
        [] if train is None else load_preferences(train),
        judged[0],
        judged[1],
        seed,
    )
    if pairs.is_dir():
        given = [labelled(p) for p in load_preferences(pairs) if p.paired]
    else:
        given = labelled_pairs(pairs, from_, columns, on_error)
    result = run_reward_bench(request, given, progress_of(quiet))
    _say(result, reward_tables(result), reward_page(result, out / "report.html"), as_json)
