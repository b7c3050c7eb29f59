"""`rlaif judge-bench` and `rlaif reward-bench`: how good a judge is, before it is trusted."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.options import (
    ALLOW_CODE,
    CONSTITUTION,
    COUNT,
    FILE,
    JSON,
    MODEL,
    OUT,
    QUIET,
    RESAMPLES,
    SEED,
    ReadOptions,
    progress_of,
    read_hub_options,
    read_options,
)

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


@click.command("judge-bench")
@click.argument("pairs", type=FILE)
@click.option(
    "--judge",
    "judges",
    multiple=True,
    metavar="SPEC",
    help="A kind (pairwise, rating, longer ...), a YAML file of judges, or the folder of a reward "
    "model; repeatable.",
)
@read_hub_options
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="NAME",
    help="Insert this attack (or `all`) into the answer a judge found worse; repeatable.",
)
@click.option("--limit", type=COUNT, help="Use only this many pairs, selected by id.")
@click.option(
    "--repeats",
    type=COUNT,
    default=1,
    help="Judge every pair this many times to measure self-agreement.",
)
@click.option("--author", help="Author of the judges' own answers [default: their model's name].")
@click.option(
    "--baselines/--no-baselines", default=True, help="Also measure trivial baseline judges."
)
@RESAMPLES
@click.option(
    "--out", type=FILE, help="Folder for judgements and report [default: runs/judge-bench/NAME]."
)
@CONSTITUTION
@MODEL
@ALLOW_CODE
@SEED
@QUIET
@JSON
def judge_bench(
    pairs: Path,
    reading: ReadOptions,
    out: Path | None,
    model: str,
    quiet: bool,
    as_json: bool,
    **measured: Any,
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

    labelled = reading.load_pairs(pairs)
    name = _stem_of(pairs)
    folder = out or Path("runs") / "judge-bench" / name
    spec = named_model(model).spec
    # Every other option has the name of what it sets in the request.
    request = BenchRequest(name=name, out=folder, model=spec, **measured)
    result = run_bench(request, labelled, progress_of(quiet))
    wrong = [json.loads(line) for line in (folder / FILE).read_text("utf-8").split("\n") if line]
    page = bench_page(result, folder / "report.html", wrong)
    _echo_result(result, bench_tables(result), page, as_json)


def _stem_of(pairs: Path) -> str:
    return pairs.name.removesuffix(".gz").rsplit(".", 1)[0]


def _echo_result(
    result: dict[str, Any], tables: Sequence[Table | Text], page: Path, as_json: bool
) -> None:
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    for table in tables:
        console.print(table)
    click.echo(f"Report: {page}")


@click.command("reward-bench")
@click.argument("model", type=FILE)
@click.argument("pairs", type=FILE)
@read_options
@click.option(
    "--train",
    type=FILE,
    help="The training pairs of MODEL: learning curve, suspect labels, nearest pairs.",
)
@click.option(
    "--scored",
    type=FILE,
    help="Output of `rlaif score` with several answers per prompt, for best-of-n; needs --gold.",
)
@click.option("--gold", type=FILE, help="A trusted judge's judgements of the same answers.")
@RESAMPLES
@OUT
@SEED
@QUIET
@JSON
def reward_bench(
    model: Path,
    pairs: Path,
    reading: ReadOptions,
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
    from rlaif.analysis.bench.reward import RewardRequest, labelled, run_reward_bench
    from rlaif.core.records import Judgement, from_json
    from rlaif.pipeline.single_step import Records
    from rlaif.pipeline.steps.load import load_preferences
    from rlaif.report.reward import reward_page, reward_tables

    if (scored is None) != (gold is None):
        raise click.UsageError("--scored and --gold go together: two judges of the same answers")

    def read_judgements(path: Path | None) -> list[Judgement]:
        rows = [] if path is None else Records(path).read("judgements")
        return [from_json(Judgement, row) for row in rows]

    request = RewardRequest(
        name=_stem_of(pairs),
        model=model,
        out=out,
        train=[] if train is None else load_preferences(train),
        scored=read_judgements(scored),
        gold=read_judgements(gold),
        seed=seed,
    )
    if pairs.is_dir():
        given = [labelled(p) for p in load_preferences(pairs) if p.paired]
    else:
        given = reading.load_pairs(pairs)
    result = run_reward_bench(request, given, progress_of(quiet))
    _echo_result(result, reward_tables(result), reward_page(result, out / "report.html"), as_json)
