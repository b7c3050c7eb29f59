"""`rlaif arena`: models meet on the same prompts, and are rated."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.options import (
    ALLOW_CODE,
    CONSTITUTION,
    COUNT,
    FILE,
    JSON,
    OUT,
    QUIET,
    SEED,
    Finite,
    progress_of,
)

if TYPE_CHECKING:
    from rlaif.core.records import Prompt
    from rlaif.pipeline.runs import Run

ANSWER_FILES = (".jsonl", ".json", ".csv", ".parquet", ".gz")


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODELS...")
@click.option("--judge", "kind", default="pairwise", help="The kind of judge.")
@click.option("--by", help="The judge's model, given like one of MODELS.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A key of the judge.")
@click.option(
    "--prompts", type=FILE, help="The prompts file [default: those of the first file of answers]."
)
@CONSTITUTION
@ALLOW_CODE
@click.option(
    "--battles", type=COUNT, help="Draw at most this many [default: all pairs on all prompts]."
)
@click.option(
    "--pairing",
    type=click.Choice(["information", "variance", "uniform"]),
    default="information",
    help="With --battles, how pairs are drawn: by the information about the ratings, by the "
    "reduction of the win rate's error, or uniformly.",
)
@click.option("--anchor", help="The model that is rated 1000 [default: the mean of all].")
@click.option("--max-new-tokens", type=COUNT, default=256, help="Per answer.")
@click.option("--temperature", type=Finite(0, 100), default=0.7, help="Of the answers.")
@SEED
@OUT
@QUIET
@JSON
def arena(
    models: tuple[str, ...],
    prompts: Path | None,
    out: Path,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Rate MODELS by battles, judged in both orders.

    Each of MODELS is builtin/NAME, a folder, a hub id, a YAML file with a model's keys, or answers:
    a folder from `rlaif sample`, or a file (JSONL, JSON, CSV, Parquet) of prompt and completion.
    NAME=MODEL names it. OUT is a run folder, with arena.html and battles.jsonl, which `rlaif
    winrate` reads; the same command goes on with it.
    """
    import yaml

    from rlaif.core.records import to_json
    from rlaif.core.store import Store, make_folder, write_atomic, write_jsonl
    from rlaif.pipeline.experiment import run_experiment
    from rlaif.pipeline.runs import load_run

    names = _name_entrants(models)
    answers = {name: Path(what) for name, what in names.items() if _holds_answers(what)}
    asked = _read_asked(prompts, list(answers.values()))
    # So that what follows finds a run folder.
    Store(out).prepare()
    own = out / "asked"
    make_folder(own)
    write_jsonl(own / "prompts.jsonl", [to_json(prompt) for prompt in asked])
    experiment = _make_experiment(names, answers, own / "prompts.jsonl", **given)
    text = yaml.safe_dump(experiment, sort_keys=False, allow_unicode=True)
    write_atomic(own / "arena.yaml", text)
    run_experiment(own / "arena.yaml", out, progress=progress_of(quiet), say=_say)
    _show(load_run(out), out, as_json)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _read_asked(prompts: Path | None, answers: Sequence[Path]) -> list[Prompt]:
    """All prompts of a file, or those that the first of the answers are to. Raises UsageError and
    ConfigError."""
    from rlaif.core.errors import ConfigError
    from rlaif.data.given import holds_records, read_given
    from rlaif.pipeline.single_step import read_prompts

    if prompts is not None:
        return read_prompts(prompts)
    if not answers:
        raise click.UsageError("--prompts is missing: models have to be asked something.")
    first = answers[0]
    if first.is_dir():
        return read_prompts(first)
    if holds_records(first):
        raise ConfigError("its records do not say what was asked; name --prompts", first)
    return read_given(first).prompts


def _make_experiment(
    names: Mapping[str, str],
    answers: Mapping[str, Path],
    prompts: Path,
    kind: str,
    by: str | None,
    settings: Sequence[str],
    constitution: str | None,
    battles: int | None,
    pairing: str,
    anchor: str | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> dict[str, Any]:
    """The experiment of one arena, whose paths are absolute. Raises UsageError."""
    from rlaif.config.paths import apply_changes, read_setting

    specs = {name: _model_keys(what) for name, what in names.items() if name not in answers}
    judge_id = kind if kind.isidentifier() else "judge"
    judge: dict[str, Any] = {"id": judge_id, "kind": kind}
    if by is not None:
        judge["by"] = "judging"
        specs["judging"] = _model_keys(by)
    judge |= apply_changes({}, {}, [read_setting(setting) for setting in settings])[0]
    # An arena has no policy; a run folder names one.
    policy = next(iter(specs.values()), {"engine": "fake", "path": "none"})
    step: dict[str, Any] = {"models": list(names), "judge": judge_id, "split": "all"}
    step |= {} if anchor is None else {"anchor": anchor}
    step |= {"max_new_tokens": max_new_tokens, "temperature": temperature}
    if battles is not None:
        step |= {"battles": battles, "pairing": pairing}
    loads = [
        {"load": {"id": name, "type": "completions", "path": str(_records_in(path))}}
        for name, path in answers.items()
    ]
    found: dict[str, Any] = {
        "name": "arena",
        "seed": seed,
        "models": {"policy": policy, **specs},
        # One has to be held out, and all are asked.
        "prompts": {"path": str(prompts.resolve()), "holdout": 1},
        "judges": [judge],
        "steps": [*loads, {"arena": step}],
    }
    if constitution is not None:
        from rlaif.core.resources import find

        found["constitution"] = str(find(constitution).resolve())
    return found


def _name_entrants(models: Sequence[str]) -> dict[str, str]:
    """What each is called, in the order given. Raises UsageError where two share a name."""
    found: dict[str, str] = {}
    for text in models:
        name, _, what = text.rpartition("=")
        if not name:
            file = Path(what)
            name = file.stem if file.suffix in (*ANSWER_FILES, ".yaml", ".yml") else file.name
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
        name = name if name[:1].isalpha() else f"m-{name}"
        if name in found or name in ("policy", "judging", "arena", "judge"):
            raise click.UsageError(f"{text}: the name {name!r} is taken; give another: NAME={what}")
        found[name] = what
    if len(found) < 2:
        raise click.UsageError("an arena needs two models at least.")
    return found


def _holds_answers(what: str) -> bool:
    path = Path(what)
    return path.suffix in ANSWER_FILES or (path / "completions.jsonl").is_file()


def _records_in(path: Path) -> Path:
    return (path / "completions.jsonl" if path.is_dir() else path).resolve()


def _model_keys(name: str) -> dict[str, Any]:
    from rlaif.pipeline.single_step import named_spec

    spec = named_spec(name)[1]
    path = spec.path
    if path is not None and Path(path).is_dir():
        spec = spec.model_copy(update={"path": str(Path(path).resolve())})
    keys: dict[str, Any] = spec.model_dump(mode="json", exclude_defaults=True)
    return keys


def _show(run: Run, out: Path, as_json: bool) -> None:
    """Write the page and the battles beside the run, and print the ratings."""
    from rich.console import Console

    from rlaif.core.records import Completion
    from rlaif.data.rows import write_rows
    from rlaif.pipeline.run_rows import arena_rows
    from rlaif.pipeline.steps.arena import ANSWERS, annotation_rows
    from rlaif.report.arena import terminal_tables, write_arena
    from rlaif.report.arenas import make_arena_table

    step = next(s for s in reversed(run.manifest["steps"]) if s["kind"] == "arena")
    row = next(r for r in reversed(arena_rows(run.manifest, run.store)))
    texts = {
        completion.digest: completion.text
        for name, digest in step["inputs"].items()
        if name.startswith(ANSWERS)
        for completion in run.store.step(digest).records(Completion)
    }
    rows = annotation_rows(run.store.step(step["hash"]), run.prompt_records(), texts)
    write_rows(rows, out / "battles.jsonl")
    table = make_arena_table(row)
    page = write_arena(table, out / "arena.html")
    if as_json:
        click.echo(json.dumps({**row["result"], "out": str(out)}, ensure_ascii=False))
        return
    console = Console(width=140, highlight=False)
    for one in terminal_tables(table):
        console.print(one)
    for note in (note for step in run.status()["steps"] for note in step["notes"]):
        click.echo(f"note: {note}", err=True)
    click.echo(f"Page: {page}")
