"""Steps as commands on files: sample, judge, pair, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from rlaif.cli.options import (
    ALLOW_CODE,
    CONSTITUTION,
    FILE,
    JSON,
    MODEL,
    OUT,
    PROMPTS,
    QUIET,
    Finite,
    file_step,
    progress_of,
    step_options,
)


@click.command()
@click.argument("prompts", type=FILE)
@MODEL
@CONSTITUTION
@step_options
def sample(prompts: Path, model: str, **given: Any) -> None:
    """Sample completions for PROMPTS (JSONL or Parquet).

    --set takes the keys of a sample step; a template of a system prompt sees the --constitution.
    """
    file_step("sample", prompts=prompts, models={"by": model}, **given)


@click.command()
@click.argument("completions", type=FILE)
@click.option("--against", type=FILE, help="Other answers to the same prompts, judged as well.")
@PROMPTS
@click.option("--kind", default="rules", help="The kind of judge.")
@CONSTITUTION
@MODEL
@ALLOW_CODE
@step_options
def judge(
    completions: Path,
    against: Path | None,
    prompts: Path | None,
    kind: str,
    model: str,
    settings: tuple[str, ...],
    **given: Any,
) -> None:
    """Judge COMPLETIONS.

    COMPLETIONS is a folder from `rlaif sample`, or a file (JSONL, JSON, CSV, Parquet) of anyone's
    answers: rows of prompt and completion, or of messages. Judges that compare see the answers of
    --against beside them. --set takes a judge's keys.
    """
    inputs = {"completions/0": str(completions)}
    if against is not None:
        inputs["completions/1"] = str(against)
    file_step(
        "judge",
        settings=(f"kind={kind}", *settings),
        prompts=prompts or completions,
        models={"by": model},
        inputs=inputs,
        **given,
    )


@click.command()
@click.argument("completions", type=FILE)
@PROMPTS
@click.option("--model", required=True, help="A reward model: a folder, a hub id or a YAML file.")
@OUT
@QUIET
@JSON
def score(completions: Path, prompts: Path | None, model: str, **given: Any) -> None:
    """Score COMPLETIONS with a reward model. The output is judgements, as with any judge."""
    file_step(
        "judge",
        settings=("kind=reward_model", f"by={model}"),
        prompts=prompts or completions,
        models={"by": model},
        inputs={"completions/0": str(completions)},
        **given,
    )


@click.command()
@click.argument("completions", type=FILE)
@click.argument("judgements", nargs=-1, type=FILE)
@PROMPTS
@CONSTITUTION
@step_options
def pair(
    completions: Path, judgements: tuple[Path, ...], prompts: Path | None, **given: Any
) -> None:
    """Make preference pairs from COMPLETIONS and JUDGEMENTS.

    --set takes a pair step's keys. In `--set weights={...}`, a judge is named after its folder.
    With `--set strategy=reference` no judgements are needed.
    """
    inputs = {"completions/0": str(completions)}
    inputs |= {f"judgements/{path.stem}": str(path) for path in judgements}
    inputs |= {f"initial/{path.stem}": str(path) for path in judgements}
    file_step("pair", prompts=prompts or completions, inputs=inputs, **given)


@click.command()
@click.argument("completions", type=FILE)
@click.option("--against", type=FILE, help="Completions to compare against.")
@click.option(
    "--judgements", multiple=True, type=FILE, help="A folder from `rlaif judge`; repeatable."
)
@click.option(
    "--against-judgements",
    multiple=True,
    type=FILE,
    help="The same judges on the answers in --against; repeatable.",
)
@PROMPTS
@CONSTITUTION
@ALLOW_CODE
@step_options
def evaluate(
    completions: Path,
    against: Path | None,
    judgements: tuple[Path, ...],
    against_judgements: tuple[Path, ...],
    prompts: Path | None,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Compute every metric of COMPLETIONS, with intervals.

    COMPLETIONS is a folder from `rlaif sample`, or a file of anyone's answers, as `rlaif judge`
    reads it. With --against, also the paired differences.
    """
    from rlaif.core.store import StepFolder
    from rlaif.metrics.intervals import show_interval
    from rlaif.pipeline.single_step import Request, run_step

    if against is None and against_judgements:
        raise click.UsageError("--against-judgements is for --against: whose answers are judged?")
    inputs = {"completions": str(completions)}
    inputs |= {f"judgements/{path.stem}": str(path) for path in judgements}
    if against is not None:
        inputs["initial/completions"] = str(against)
        inputs |= {f"initial/judgements/{path.stem}": str(path) for path in against_judgements}
    request = Request("evaluate", prompts=prompts or completions, inputs=inputs, **given)
    run_step(request, progress_of(quiet))
    row = StepFolder(request.out).read("evaluation")[0]
    if as_json:
        click.echo(json.dumps(row, ensure_ascii=False))
        return
    for name, value in row["metrics"].items():
        change = row["deltas"].get("initial", {}).get(name)
        line = f"{name:32} {show_interval(value):28}"
        click.echo(f"{line} {show_interval(change, signed=True)}" if change else line.rstrip())


@click.command("rbr-weights")
@click.argument("judgements", type=FILE)
@click.argument("preferences", type=FILE)
@click.option(
    "--margin", type=Finite(0, 1e9), default=1.0, help="By how much rewards should differ."
)
@click.option("--ridge", type=Finite(0, 1e9), default=0.0, help="Penalty on the squared weights.")
@click.option(
    "--rewards",
    type=FILE,
    help="A reward model's judgements of the same answers, to whose raw values the sum is added.",
)
@click.option("--out", type=FILE, required=True, help="The weights, YAML.")
@JSON
def rbr_weights(
    judgements: Path,
    preferences: Path,
    margin: float,
    ridge: float,
    rewards: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    """Fit the weights of an `rbr` judge.

    JUDGEMENTS come from a yes_no judge on the propositions; PREFERENCES compare the same answers.
    """
    from dataclasses import asdict

    import yaml

    from rlaif.core.records import Judgement, Preference, from_json
    from rlaif.core.store import write_atomic
    from rlaif.judges.rbr import fit
    from rlaif.pipeline.single_step import Records

    judged = [from_json(Judgement, row) for row in Records(judgements).read("judgements")]
    pairs = [from_json(Preference, row) for row in Records(preferences).read("preferences")]
    added = None
    if rewards is not None:
        added = [from_json(Judgement, row) for row in Records(rewards).read("judgements")]
    found = fit(judged, pairs, margin, ridge, added)
    write_atomic(out, yaml.safe_dump({"weights": found.weights}, sort_keys=True))
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    for name, (count, right) in (("fitted", found.fitted), ("held out", found.held_out)):
        share = "" if right is None else f", {right:.1%} in the right order"
        click.echo(f"{name}: {count} pairs{share}")
    click.echo(f"{len(found.weights)} weights in {out}; {found.skipped} pairs lack a judgement")
