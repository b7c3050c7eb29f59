"""The command line. Nothing heavy is imported before a command that needs it runs.

Results go to stdout, progress to stderr. Exit codes: 0 done, 2 user error, 3 stopped by a gate or a
budget, 130 interrupted (run the same command again to go on).
"""

from __future__ import annotations

import errno
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.errors import EXIT_INTERRUPTED, EXIT_USER, RlaifError

if TYPE_CHECKING:
    from rlaif.experiment import StepProgress

SET = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key; repeatable."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
QUIET = click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
SEED = click.option("--seed", default=0, show_default=True, help="Seed of every random choice.")
MODEL = click.option(
    "--model",
    default="builtin/smollm2-135m-instruct",
    show_default=True,
    help="builtin/NAME, a folder, or a hub id.",
)


def main() -> None:
    """The entry point: user errors become one message and an exit code, never a traceback."""
    # The tokenizer library forks nothing here; its warning would land among the results.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        cli.main(standalone_mode=False)
    except RlaifError as error:
        _exit(str(error), error.exit_code)
    except click.Abort:
        _exit("interrupted; run the same command again to go on", EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        _exit("interrupted; run the same command again to go on", EXIT_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_USER)
    except BrokenPipeError:
        sys.exit(EXIT_USER)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            _exit(f"{error.filename or 'writing'}: {error.strerror}", EXIT_USER)
        raise


def _exit(message: str, code: int) -> None:
    click.echo(f"rlaif: {message}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="rlaif")
def cli() -> None:
    """Experiments in which AI feedback trains a language model."""


@cli.command()
@click.argument("experiment", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Run folder [default: runs/NAME].")
@SET
@click.option(
    "--dry-run", is_flag=True, help="Print the plan and what would be reused; run nothing."
)
@click.option("--no-report", is_flag=True, help="Do not write report.html at the end.")
@QUIET
@JSON
def run(
    experiment: Path,
    out: Path | None,
    settings: tuple[str, ...],
    dry_run: bool,
    no_report: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run EXPERIMENT, or go on with it: finished steps are never run twice."""
    from rlaif.resources import find

    path = find(str(experiment))
    out = out or Path("runs") / path.stem
    if dry_run:
        from rlaif.dryrun import dry_run_report

        click.echo(dry_run_report(path, out, settings, as_json))
        return
    from rlaif.experiment import run_experiment
    from rlaif.runs import load_run

    result = run_experiment(
        path, out, settings, _progress(quiet), lambda text: click.echo(text, err=True)
    )
    loaded = load_run(out)
    if not no_report:
        from rlaif.report.build import build_report

        build_report(loaded.view(), out / "report.html")
    if as_json:
        status = loaded.status() | {"ran": result.ran, "reused": result.reused, "out": str(out)}
        click.echo(json.dumps(status, ensure_ascii=False))
        return
    _print_rounds(result.rounds)
    if result.ran:
        click.echo(f"Ran {result.ran} steps, reused {result.reused}. Run folder: {out}")
    else:
        click.echo(f"Nothing to do: all {result.reused} steps were finished. Run folder: {out}")
    if not no_report:
        click.echo(f"Report: {out / 'report.html'}")


def _progress(quiet: bool) -> StepProgress:
    from rlaif.progress import QuietProgress, TerminalProgress

    return QuietProgress() if quiet else TerminalProgress()


def _print_rounds(records: Sequence[Any]) -> None:
    from rich.console import Console

    from rlaif.records import to_json
    from rlaif.report.table import summary_table

    if not records:
        return
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(summary_table([to_json(r) for r in records]))  # type: ignore[misc]
    for record in records:
        for word in record.metrics["words"] if record.round == records[-1].round else []:
            console.print(word, markup=False, highlight=False)


@cli.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@JSON
def status(directory: Path, as_json: bool) -> None:
    """Where the run in DIR stands: steps, every metric per round with its interval, alarms."""
    from rlaif.experiment import read_rounds
    from rlaif.runs import load_run

    state = load_run(directory).status()
    if as_json:
        click.echo(json.dumps(state, ensure_ascii=False))
        return
    done, total = state["steps_done"], state["steps_total"]
    click.echo(f"{state['name']}: {state['state']}, {done} of {total} steps, {state['seconds']} s")
    for step in state["steps"]:
        if step["state"] != "done":
            where = f"seed {step['seed']} round {step['round']}"
            click.echo(f"  missing: {step['id']} ({where})")
    _print_rounds(read_rounds(directory))


@cli.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File [default: DIR/report.html].")
def report(directory: Path, out: Path | None) -> None:
    """Write the report of the run in DIR: one HTML page that loads nothing."""
    from rlaif.report.build import build_report
    from rlaif.runs import load_run

    click.echo(build_report(load_run(directory).view(), out or directory / "report.html"))


@cli.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--records",
    type=click.Choice(["trl", "prompts", "completions", "judgements", "preferences"]),
    default="trl",
    show_default=True,
    help="trl: preferences in TRL's format; otherwise the records as they are.",
)
def export(directory: Path, out: Path, records: str) -> None:
    """Export records of the run in DIR to OUT (.jsonl or .parquet)."""
    from rlaif.files import export_rows
    from rlaif.runs import load_run, trl_rows

    loaded = load_run(directory)
    rows: list[dict[str, Any]]
    if records == "trl":
        rows = trl_rows(loaded)
    elif records == "prompts":
        rows = [{str(k): v for k, v in row.items()} for row in loaded.prompts.to_dict("records")]
    else:
        rows = list(loaded.rows(records))
    export_rows(rows, out)
    click.echo(f"{len(rows)} rows written to {out}")


@cli.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def init(directory: Path) -> None:
    """Copy the shipped constitutions, prompts and experiments into DIR to edit."""
    import shutil

    from rlaif.errors import ConfigError
    from rlaif.resources import SHIPPED_FOLDERS, shipped_root

    taken = [name for name in SHIPPED_FOLDERS if (directory / name).exists()]
    if taken:
        raise ConfigError(f"{', '.join(taken)} is there already; nothing was copied", directory)
    for name in SHIPPED_FOLDERS:
        shutil.copytree(shipped_root() / name, directory / name)
    click.echo(f"Copied {', '.join(SHIPPED_FOLDERS)} to {directory}. Next:")
    click.echo(f"  cd {directory} && rlaif run experiments/quickstart.yaml")


@cli.command()
@click.argument("what", type=click.Choice(["experiment", "constitution"]), default="experiment")
def schema(what: str) -> None:
    """Print the JSON schema of an experiment or constitution file, for editors."""
    if what == "experiment":
        from rlaif.config import experiment_schema

        click.echo(experiment_schema())
    else:
        from rlaif.constitution import constitution_schema

        click.echo(json.dumps(constitution_schema(), indent=2))


@cli.group()
def prompt() -> None:
    """Look at prompts."""


@prompt.command("render")
@click.argument("experiment", type=click.Path(path_type=Path))
@click.option("--judge", help="A judge's id: what it is asked; the policy's prompt when absent.")
@click.option("--prompt-id", help="Which prompt [default: the first held-out one].")
@click.option("--response", default="(the answer)", show_default=True, help="The judged answer.")
@click.option("--response-2", default="(the other answer)", help="For pairwise judges.")
@click.option("--tokens", is_flag=True, help="Show every token with its id.")
@SET
@JSON
def render(
    experiment: Path,
    judge: str | None,
    prompt_id: str | None,
    response: str,
    response_2: str,
    tokens: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """The exact text and tokens that the policy or a judge will see for one record."""
    from rlaif.render import rendered
    from rlaif.resources import find

    path = find(str(experiment))
    shown = rendered(path, settings, judge, prompt_id, [response, response_2])
    if as_json:
        click.echo(json.dumps(shown, ensure_ascii=False))
        return
    for item in shown:
        click.echo(f"--- {item['title']}: {len(item['tokens'])} tokens")
        click.echo(item["text"])
        if tokens:
            click.echo(
                " ".join(f"{i}:{t!r}" for i, t in zip(item["tokens"], item["pieces"], strict=True))
            )


@cli.group()
def constitution() -> None:
    """Check, show and compare constitutions."""


@constitution.command("lint")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@JSON
def constitution_lint(paths: tuple[Path, ...], as_json: bool) -> None:
    """Problems in constitution files: exit code 2 when one is an error."""
    from dataclasses import asdict

    from rlaif.constitution import load_with_places
    from rlaif.lint import lint
    from rlaif.resources import find

    found = []
    for path in paths:
        place = find(str(path))
        found += [(place, f) for f in lint(*load_with_places(place))]
    if as_json:
        rows = [{"file": str(p), **asdict(f)} for p, f in found]
        click.echo(json.dumps(rows, ensure_ascii=False, default=str))
    else:
        for path, finding in found:
            click.echo(f"{path}:{finding.line or 1}: {finding.level}: {finding.message}")
        click.echo(f"{len(paths)} files, {len(found)} findings")
    if any(f.level == "error" for _, f in found):
        sys.exit(EXIT_USER)


@constitution.command("show")
@click.argument("path", type=click.Path(path_type=Path))
def constitution_show(path: Path) -> None:
    """The constitution as it is after `extends`."""
    from rlaif.constitution import load_constitution, show
    from rlaif.resources import find

    click.echo(show(load_constitution(find(str(path)))))


@constitution.command("diff")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
def constitution_diff(first: Path, second: Path) -> None:
    """What changed between two constitutions, principle by principle."""
    from rlaif.constitution import diff, load_constitution
    from rlaif.resources import find

    lines = diff(load_constitution(find(str(first))), load_constitution(find(str(second))))
    click.echo("\n".join(lines) or "no difference")


OUT = click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for the records."
)
CONSTITUTION = click.option("--constitution", help="A constitution file.")


def _file_step(as_json: bool, quiet: bool, **request: Any) -> None:
    from rlaif.files import Request, run_step

    summary = run_step(Request(**request), _progress(quiet))
    if as_json:
        click.echo(json.dumps(summary, ensure_ascii=False))
        return
    state = "already finished" if summary.get("reused") else "done"
    counts = ", ".join(f"{count} {name}" for name, count in summary["counts"].items())
    click.echo(f"{state}: {counts} in {request['out']}")


@cli.command()
@click.argument("prompts", type=click.Path(path_type=Path))
@MODEL
@OUT
@SET
@SEED
@QUIET
@JSON
def sample(
    prompts: Path,
    model: str,
    out: Path,
    settings: tuple[str, ...],
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Sample completions of PROMPTS (JSONL or Parquet). --set takes the keys of a sample step."""
    _file_step(
        as_json,
        quiet,
        kind="sample",
        out=out,
        settings=settings,
        prompts=prompts,
        models={"by": model},
        seed=seed,
    )


@cli.command()
@click.argument("completions", type=click.Path(path_type=Path))
@click.option(
    "--prompts", type=click.Path(path_type=Path), help="[default: kept by `rlaif sample`]"
)
@click.option("--kind", default="rules", show_default=True, help="The judge's kind.")
@CONSTITUTION
@MODEL
@OUT
@SET
@SEED
@QUIET
@JSON
def judge(
    completions: Path,
    prompts: Path | None,
    kind: str,
    constitution: str | None,
    model: str,
    out: Path,
    settings: tuple[str, ...],
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Judge COMPLETIONS (a folder from `rlaif sample`, or JSONL). --set takes a judge's keys."""
    _file_step(
        as_json,
        quiet,
        kind="judge",
        out=out,
        settings=(f"kind={kind}", *settings),
        prompts=prompts or completions,
        constitution=constitution,
        models={"by": model},
        inputs={"completions/0": str(completions)},
        seed=seed,
    )


@cli.command()
@click.argument("completions", type=click.Path(path_type=Path))
@click.argument("judgements", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--prompts", type=click.Path(path_type=Path), help="[default: kept by `rlaif sample`]"
)
@CONSTITUTION
@OUT
@SET
@SEED
@QUIET
@JSON
def pair(
    completions: Path,
    judgements: tuple[Path, ...],
    prompts: Path | None,
    constitution: str | None,
    out: Path,
    settings: tuple[str, ...],
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Make preferences of COMPLETIONS from JUDGEMENTS folders. --set takes a pair step's keys.

    A judge is called by the name of its folder in `--set weights={...}`.
    """
    inputs = {f"judgements/{path.stem}": str(path) for path in judgements}
    inputs |= {f"initial/{path.stem}": str(path) for path in judgements}
    _file_step(
        as_json,
        quiet,
        kind="pair",
        out=out,
        settings=settings,
        prompts=prompts or completions,
        constitution=constitution,
        inputs={"completions/0": str(completions), **inputs},
        seed=seed,
    )


@cli.command()
@click.argument("method", type=click.Choice(["dpo", "sft"]))
@click.argument("preferences", type=click.Path(path_type=Path))
@MODEL
@click.option("--reference", help="Reference model [default: the model itself].")
@click.option(
    "--completions", type=click.Path(path_type=Path), help="Their sampled tokens are used."
)
@OUT
@SET
@SEED
@QUIET
@JSON
def train(
    method: str,
    preferences: Path,
    model: str,
    reference: str | None,
    completions: Path | None,
    out: Path,
    settings: tuple[str, ...],
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train a model on PREFERENCES (a folder from `rlaif pair`, or a TRL-format JSONL file).

    --set takes the keys of a train step, such as beta or learning_rate. The model is in OUT/model.
    """
    from rlaif.files import Request, run_step

    models = {"start": model}
    if method == "dpo":
        models["reference"] = reference or model
    inputs = {"preferences/0": str(preferences)}
    if preferences.is_file():
        loading = Request(
            "load",
            out / "preferences",
            ("type=preferences", f"path={preferences.resolve()}"),
            inputs={"file": str(preferences)},
        )
        run_step(loading, _progress(True))
        inputs = {"preferences/0": str(out / "preferences")}
    if completions is not None:
        inputs["completions/0"] = str(completions)
    _file_step(
        as_json,
        quiet,
        kind="train",
        out=out,
        settings=(f"method={method}", *settings),
        models=models,
        inputs=inputs,
        seed=seed,
    )


@cli.command()
@click.argument("completions", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), help="Completions to compare with.")
@click.option("--judgements", multiple=True, type=click.Path(path_type=Path))
@click.option("--against-judgements", multiple=True, type=click.Path(path_type=Path))
@click.option(
    "--prompts", type=click.Path(path_type=Path), help="[default: kept by `rlaif sample`]"
)
@CONSTITUTION
@OUT
@SET
@SEED
@QUIET
@JSON
def evaluate(
    completions: Path,
    against: Path | None,
    judgements: tuple[Path, ...],
    against_judgements: tuple[Path, ...],
    prompts: Path | None,
    constitution: str | None,
    out: Path,
    settings: tuple[str, ...],
    seed: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Every metric of COMPLETIONS with intervals, and paired differences from --against."""
    inputs = {"completions": str(completions)}
    inputs |= {f"judgements/{path.stem}": str(path) for path in judgements}
    if against is not None:
        inputs["initial/completions"] = str(against)
        inputs |= {f"initial/judgements/{path.stem}": str(path) for path in against_judgements}
    from rlaif.files import Request, run_step
    from rlaif.store import StepFolder

    request = Request(
        "evaluate",
        out,
        settings,
        prompts or completions,
        constitution,
        inputs=inputs,
        seed=seed,
    )
    run_step(request, _progress(quiet))
    row = StepFolder(out).read("evaluation")[0]
    if as_json:
        click.echo(json.dumps(row, ensure_ascii=False))
        return
    for name, value in row["metrics"].items():
        change = row["deltas"].get("initial", {}).get(name)
        versus = (
            f"   {change['mean']:+.4f} [{change['low']:+.4f}, {change['high']:+.4f}]"
            if change
            else ""
        )
        click.echo(
            f"{name:32} {value['mean']:9.4f} [{value['low']:.4f}, {value['high']:.4f}]{versus}"
        )
