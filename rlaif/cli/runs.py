"""Commands on a run folder: run, pull, status, report, export."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.options import (
    FILE,
    JSON,
    PROFILE,
    QUIET,
    SET,
    cluster_options,
    progress_of,
    run_folder,
)

if TYPE_CHECKING:
    from rlaif.pipeline.experiment import Executor, RunResult, StepProgress
    from rlaif.pipeline.runs import Run


@click.command()
@click.argument("experiment", type=FILE)
@click.option("--out", type=FILE, help="Run folder [default: runs/NAME, or runs/NAME-PROFILE].")
@PROFILE
@SET
@click.option(
    "--dry-run", is_flag=True, help="Print the plan and what would be reused; run nothing."
)
@click.option(
    "--strict",
    is_flag=True,
    help="Reject steps that nothing uses, arms that are identical and, with --device-memory, "
    "steps that need more.",
)
@click.option(
    "--flops",
    type=click.FloatRange(min=0, min_open=True),
    help="With --dry-run: FLOP/s that one device reaches, such as 4e14, for the time.",
)
@click.option(
    "--device-memory",
    type=click.FloatRange(min=0, min_open=True),
    help="With --dry-run: GiB of one device, such as 80; says which steps need more.",
)
@click.option("--no-report", is_flag=True, help="Do not write report.html at the end.")
@click.option(
    "--mirror",
    metavar="URL",
    help="Keep a copy of the run folder there, such as s3://BUCKET/NAME, and go on from it.",
)
@cluster_options
@QUIET
@JSON
def run(
    experiment: Path,
    out: Path | None,
    profile: str | None,
    settings: tuple[str, ...],
    dry_run: bool,
    strict: bool,
    flops: float | None,
    device_memory: float | None,
    no_report: bool,
    mirror: str | None,
    quiet: bool,
    as_json: bool,
    executor: str,
    **cluster: Any,
) -> None:
    """Run or resume EXPERIMENT.

    Finished steps are never run twice. The report is written at the end.
    """
    from rlaif.core.resources import find

    path = find(str(experiment))
    out = out or run_folder(path, profile)
    if dry_run:
        from rlaif.pipeline.forecast import dry_run_report

        if mirror is not None:
            raise click.UsageError("--mirror is not for --dry-run.")
        options = (as_json, profile, strict, flops, device_memory)
        click.echo(dry_run_report(path, out, settings, *options))
        return
    if flops is not None or device_memory is not None:
        raise click.UsageError("--flops and --device-memory are for --dry-run.")
    from rlaif.pipeline.experiment import run_experiment

    with _mirrored(mirror, out) as guard:
        progress = guard(progress_of(quiet))
        with _open_executor(executor, cluster) as elsewhere:
            result = run_experiment(path, out, settings, progress, _say, profile, strict, elsewhere)
        _show_result(result, no_report, as_json)


def _say(text: str) -> None:
    click.echo(text, err=True)


@contextmanager
def _mirrored(url: str | None, out: Path) -> Iterator[Callable[[StepProgress], StepProgress]]:
    """`mirrored` where there is a URL."""
    if url is None:
        yield lambda progress: progress
        return
    from rlaif.pipeline.mirror.session import mirrored

    with mirrored(url, out, _say) as guard:
        yield guard


def _show_result(result: RunResult, no_report: bool, as_json: bool) -> None:
    """Write the report of a run and print what it did."""
    from rlaif.pipeline.runs import load_run

    out = result.out
    if result.unsaid is not None:
        click.echo(f"No dataset was written (rlaif build {out}): {result.unsaid}", err=True)
    loaded = load_run(out)
    page = out / "report.html"
    if not no_report:
        from rlaif.report.build import build_report, is_report_of

        # A page of just this run is not made again: to read a large run takes minutes.
        if not is_report_of(page, loaded.key()):
            build_report(loaded.view(), page)
    if as_json:
        status = loaded.status() | {"ran": result.ran, "reused": result.reused, "out": str(out)}
        click.echo(json.dumps(status, ensure_ascii=False))
        return
    state = loaded.status()
    _print_rounds(loaded)
    _print_proxies(state)
    _print_remote(loaded)
    _print_notes(loaded)
    _print_failures(state["steps"])
    if result.ran:
        click.echo(f"Ran {result.ran} steps, reused {result.reused}. Run folder: {out}")
    else:
        click.echo(f"Nothing to do: all {result.reused} steps were finished. Run folder: {out}")
    if not no_report:
        click.echo(f"Report: {page}")


def _open_executor(
    name: str, options: Mapping[str, Any]
) -> AbstractContextManager[Executor | None]:
    """The machines that --executor names; None is this process."""
    given = {key: value for key, value in options.items() if value is not None}
    if name == "local":
        if given:
            option = next(iter(given)).replace("_", "-")
            raise click.UsageError(f"--{option} is for --executor ray.")
        return nullcontext()
    from rlaif.cluster.settings import ClusterSettings
    from rlaif.core.errors import ConfigError

    names = {
        "ray_address": "address",
        "actors": "actors",
        "actor_cpus": "cpus",
        "actor_gpus": "gpus",
        "in_flight": "in_flight",
    }
    settings = ClusterSettings(**{names[key]: value for key, value in given.items()})
    if find_spec("ray") is None:
        raise ConfigError(
            "--executor ray needs Ray, here and on every node: pip install 'rlaif[ray]'"
        )
    from rlaif.cluster.executor import open_cluster

    return open_cluster(settings)


@click.command()
@click.argument("url")
@click.argument("directory", metavar="DIR", type=FILE)
def pull(url: str, directory: Path) -> None:
    """Fetch the run at URL, the mirror of a run, into DIR.

    Only what DIR lacks is fetched. A run that goes on with this mirror is not disturbed.
    """
    from rlaif.pipeline.mirror.session import describe_pulled
    from rlaif.pipeline.mirror.session import pull as pull_run

    for line in describe_pulled(pull_run(url, directory), directory):
        click.echo(line)


def _print_rounds(run: Run) -> None:
    from rich.console import Console

    from rlaif.pipeline.labelling import labelling_rows
    from rlaif.pipeline.manifest import read_rounds
    from rlaif.report.arms import label_sentences, mark_judges
    from rlaif.report.labels import cost_sentences
    from rlaif.report.table import summary_table

    records = read_rounds(run.root)
    if not records:
        return
    console = Console(width=None if sys.stdout.isatty() else 140)
    page = run.page()
    console.print(summary_table(run.round_rows(), page, mark_judges(run.arms())))
    words = [*run.answers(page), *label_sentences(page.comparisons)]
    words += cost_sentences(labelling_rows(run))
    for record in records:
        arm = f"{record.arm}: " if run.manifest["arms"] else ""
        if record.round == records[-1].round:
            said = [*record.metrics.get("made_of", []), *record.metrics["words"]]
            words += [arm + word for word in said]
    for word in words:
        console.print(word, markup=False, highlight=False)


def _print_proxies(state: Mapping[str, Any]) -> None:
    from rlaif.report.over_optimisation import proxy_sentences

    for sentence in proxy_sentences(state["over_optimisation"]):
        click.echo(sentence)


def _print_trainings(state: Mapping[str, Any]) -> None:
    """Where on-policy trainings stand that have not ended."""
    from rlaif.report.over_optimisation import describe_training

    for training in state["training"]:
        click.echo(f"  {describe_training(training)}")


def _print_notes(run: Run) -> None:
    """What steps say of the answers that they could not use, each once."""
    notes = (note for step in run.status()["steps"] for note in step["notes"])
    for note in dict.fromkeys(notes):
        click.echo(f"note: {note}")


def _print_remote(run: Run) -> None:
    from rlaif.engines.remote.meter import in_words

    for name, row in run.remote().items():
        tokens = f"{row['input_tokens']} tokens in, {row['output_tokens']} out"
        click.echo(f"{name}: {row['calls']} calls, {tokens}, {in_words(row)}")


def _print_failures(steps: Sequence[Mapping[str, Any]]) -> None:
    from rlaif.metrics.words import failure_words

    for step in steps:
        for line in failure_words(step["errors"]):
            click.echo(f"{step['id']} (seed {step['seed']} round {step['round']}): {line}")


@click.command()
@click.argument("directory", metavar="DIR", type=FILE)
@click.option("--verify", is_flag=True, help="Only verify every stored byte against its checksum.")
@JSON
def status(directory: Path, verify: bool, as_json: bool) -> None:
    """Show the progress and results of the run in DIR.

    Steps, every metric per round with its interval, alarms, cost. With --verify: damaged files and
    the folders to delete; the exit code is 2 if there are any.
    """
    if verify:
        _verify_bytes(directory, as_json)
        return
    from rlaif.pipeline.runs import load_run

    run = load_run(directory)
    state = run.status()
    if as_json:
        click.echo(json.dumps(state, ensure_ascii=False))
        return
    done, total = state["steps_done"], state["steps_total"]
    click.echo(f"{state['name']}: {state['state']}, {done} of {total} steps, {state['seconds']} s")
    for step in state["steps"]:
        if step["state"] == "missing":
            arms = f"{', '.join(step['arms'])}, " if run.manifest["arms"] else ""
            where = f"{arms}seed {step['seed']} round {step['round']}"
            click.echo(f"  missing: {step['id']} ({where})")
    _print_trainings(state)
    _print_rounds(run)
    _print_proxies(state)
    _print_remote(run)
    _print_notes(run)
    _print_failures(state["steps"])


def _verify_bytes(directory: Path, as_json: bool) -> None:
    from rlaif.core.errors import StoreError
    from rlaif.pipeline.verify import verify_run

    found = verify_run(directory)
    compared = found.compared
    if as_json:
        click.echo(json.dumps(asdict(compared) | {"faults": found.faults}, ensure_ascii=False))
    else:
        old = f"; {compared.unchecked} of an earlier version have none" * bool(compared.unchecked)
        size = f"{compared.files} files, {compared.bytes / 1e6:.1f} MB"
        click.echo(f"{directory}: {size} compared with their checksums{old}")
    if found.faults:
        raise StoreError("\n".join(found.faults))


@click.command()
@click.argument("directory", metavar="DIR", type=FILE)
@click.option("--out", type=FILE, help="File [default: DIR/report.html].")
def report(directory: Path, out: Path | None) -> None:
    """Rebuild the report of the run in DIR.

    It is one self-contained HTML page.
    """
    from rlaif.pipeline.runs import load_run
    from rlaif.report.build import build_report

    click.echo(build_report(load_run(directory).view(), out or directory / "report.html"))


@click.command()
@click.argument("directory", metavar="DIR", type=FILE)
@click.argument("out", type=FILE)
@click.option(
    "--records",
    type=click.Choice(["trl", "prompts", "completions", "judgements", "preferences", "metrics"]),
    default="trl",
    help="trl: preferences in TRL's format; metrics: a row per arm, seed, round and metric;"
    " otherwise the raw records; judgements include the answers they are based on.",
)
def export(directory: Path, out: Path, records: str) -> None:
    """Export records of the run in DIR to a file.

    OUT ends in .jsonl, .jsonl.gz, .json, .csv or .parquet.
    """
    from rlaif.core.errors import ConfigError
    from rlaif.data.rows import write_rows
    from rlaif.pipeline.exports import judgement_rows, trl_rows
    from rlaif.pipeline.runs import load_run

    loaded = load_run(directory)
    kinds: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "trl": lambda: trl_rows(loaded),
        "prompts": loaded.prompt_rows,
        "judgements": lambda: judgement_rows(loaded),
        "metrics": loaded.metric_rows,
    }
    rows = iter(kinds.get(records, lambda: loaded.rows(records))())
    first = next(rows, None)
    if first is None:
        what = "preferences" if records == "trl" else records
        raise ConfigError(f"this run has no {what} yet", directory)
    count = write_rows(chain([first], rows), out)
    click.echo(f"{count} rows written to {out}")
