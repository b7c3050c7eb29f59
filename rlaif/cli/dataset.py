"""Commands that make and look at data: build; data stats, sample, diff, filter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.options import (
    COUNT,
    FILE,
    JSON,
    ON_ERROR,
    PROFILE,
    QUIET,
    SEED,
    SET,
    ReadOptions,
    echo_table,
    gather_reading,
    progress_of,
    read_options,
    run_folder,
)

if TYPE_CHECKING:
    from rlaif.pipeline.dataset import Built
    from rlaif.pipeline.experiment import RunResult


@click.command()
@click.argument("config", metavar="CONFIG|RUN", type=FILE)
@click.option("--out", type=FILE, help="Run folder [default: runs/NAME, or runs/NAME-PROFILE].")
@click.option("--push", metavar="REPO", help="Upload the dataset to this hub repository.")
@click.option("--arm", help="Write the preferences of this arm.")
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), help="Write the preferences of this seed."
)
@click.option("--step", help="Write the preferences of this step, not those of `dataset.uses`.")
@PROFILE
@SET
@QUIET
@JSON
def build(
    config: Path,
    out: Path | None,
    push: str | None,
    arm: str | None,
    seed: int | None,
    step: str | None,
    profile: str | None,
    settings: tuple[str, ...],
    quiet: bool,
    as_json: bool,
) -> None:
    """Build a preference dataset.

    CONFIG is an experiment with a `dataset` section. Runs the missing steps, as `rlaif run` does,
    and writes the dataset to OUT/dataset. Run it again to resume after an interruption. RUN is a
    finished run folder, with or without that section. Where arms, seeds or stages have preferences
    of their own, --arm, --seed and --step say whose are written, to a folder with these in its
    name.
    """
    from rlaif.core.errors import ConfigError
    from rlaif.core.resources import find
    from rlaif.data.dataset import check_login, upload_dataset
    from rlaif.pipeline.choice import Choice
    from rlaif.pipeline.dataset import build_chosen

    choice = Choice(arm, seed, step)
    if push is not None:
        check_login()
    ran = None
    if config.is_dir():
        if out is not None or profile is not None or settings:
            raise ConfigError("a run is as it was run: --out, --profile and --set go with CONFIG")
        out = config
    else:
        from rlaif.pipeline.experiment import run_experiment
        from rlaif.pipeline.reading import load_experiment

        path = find(str(config))
        experiment, _ = load_experiment(path, settings, profile)
        if experiment.dataset is None:
            raise ConfigError("no `dataset` in it, so there is nothing to build; add one", path)
        choice.check(experiment)
        out = out or run_folder(path, profile)

        def say(text: str) -> None:
            click.echo(text, err=True)

        ran = run_experiment(path, out, settings, progress_of(quiet), say, profile)
    built = ran.dataset if ran is not None and choice == Choice() else None
    built = built or build_chosen(out, choice)
    if push is not None:
        upload_dataset(built.folder, push)
    if as_json:
        row: dict[str, Any] = {} if ran is None else {"ran": ran.ran, "reused": ran.reused}
        row |= {"rows": built.rows, "lost": built.lost}
        click.echo(json.dumps(row | {"folder": str(built.folder), "pushed": push}))
        return
    _echo_dataset(built, ran)
    click.echo(f"What its rounds did: rlaif report {out}")
    if push is not None:
        click.echo(f"Pushed to {push}")


def _echo_dataset(built: Built, ran: RunResult | None) -> None:
    """The sizes of each format, and where the dataset is."""
    for name, splits in built.rows.items():
        sizes = ", ".join(f"{count} {split}" for split, count in splits.items())
        left_out = f", {built.lost[name]} pairs that it cannot hold" if built.lost.get(name) else ""
        click.echo(f"{name}: {sizes}{left_out}")
    done = "" if ran is None else f"Ran {ran.ran} steps, reused {ran.reused}. "
    click.echo(f"{done}Dataset: {built.folder}")


@click.command()
@click.argument("config", type=FILE)
@click.option("--out", type=FILE, required=True, help="Folder for prompts.jsonl.")
@QUIET
@JSON
def prompts(config: Path, out: Path, quiet: bool, as_json: bool) -> None:
    """Collect and generate prompts.

    CONFIG lists the sources: files, and prompts written by a model. Run it again to resume after an
    interruption.
    """
    from rlaif.config.prompts import PromptsFile
    from rlaif.core.errors import placed
    from rlaif.core.resources import find
    from rlaif.core.yamlio import load_yaml, validate
    from rlaif.engines.base import Model
    from rlaif.pipeline.prepare import model_key
    from rlaif.pipeline.prompt_generation.run import check_mix, make_prompts
    from rlaif.pipeline.single_step import asking

    path = find(str(config))
    text, lines = load_yaml(path)
    spec = validate(PromptsFile, text, lines, path)
    with placed(path, None):
        check_mix(spec, spec.models)
    models = {}
    for name, given in spec.models.items():
        script = str(find(given.script, path)) if given.script else None
        model = given.model_copy(update={"script": script})
        models[name] = Model(model_key(model, True), name, model)
    with asking(out) as (store, pool), placed(path, None):
        report = make_prompts(spec, path, models, pool, store, progress_of(quiet))
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
        return
    for name, row in report["sources"].items():
        why = ", ".join(f"{why}: {count}" for why, count in row["refused"].items())
        left_out = f" (left out: {why})" if why else ""
        click.echo(f"{name}: {row['taken']} prompts, {row['mixed']} in the mix{left_out}")
    click.echo(f"{report['prompts']} prompts written to {out / 'prompts.jsonl'}")


@click.group()
def data() -> None:
    """Inspect labelled pairs in any format; filter prompts."""


@data.command()
@click.argument("file", type=FILE)
@read_options
@JSON
def stats(file: Path, reading: ReadOptions, as_json: bool) -> None:
    """Sizes, labels, lengths and anomalies of FILE."""
    from rlaif.data.describe import describe_data

    found = describe_data(reading.load_pairs(file)).to_json()
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    warnings = found.pop("warnings")
    for name, value in found.items():
        click.echo(f"{name.replace('_', ' '):16} {_show_value(value)}")
    for warning in warnings:
        click.echo(f"note: {warning}")


def _show_value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, dict) and "median" in value:
        low, high = value["low"], value["high"]
        middle = f"mean {value['mean']:.2f}, median {value['median']:g}"
        return f"{middle}, 5% to 95%: {low:g} to {high:g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items()) or "-"
    return str(value)


@data.command()
@click.argument("file", type=FILE)
@click.option("-n", "count", type=COUNT, default=3, help="How many pairs.")
@read_options
@SEED
@JSON
def sample(file: Path, count: int, reading: ReadOptions, seed: int, as_json: bool) -> None:
    """Print a few random pairs of FILE."""
    from rlaif.core.records import content_hash

    pairs = reading.load_pairs(file)
    drawn = sorted(pairs, key=lambda pair: content_hash("sample", seed, pair.pair_id))[:count]
    for pair in drawn:
        row = {
            "place": pair.place,
            "prompt": pair.prompt.messages,
            "first": pair.first.text,
            "second": pair.second.text,
            "label": pair.label,
            "scores": pair.scores,
        }
        if as_json:
            click.echo(json.dumps(row, ensure_ascii=False))
            continue
        click.echo(f"--- {pair.place}, label {'-' if pair.label is None else pair.label}")
        for turn in pair.prompt.messages:
            click.echo(f"[{turn['role']}] {turn['content']}")
        click.echo(f"[first] {pair.first.text}\n[second] {pair.second.text}")


@data.command()
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@ON_ERROR
@JSON
@gather_reading
def diff(first: Path, second: Path, reading: ReadOptions, as_json: bool) -> None:
    """Compare two files of pairs.

    Their formats and row orders may differ.
    """
    from dataclasses import asdict

    from rlaif.data.describe import compare_pairs

    found = asdict(compare_pairs(reading.load_pairs(first), reading.load_pairs(second)))
    if as_json:
        click.echo(json.dumps(found))
        return
    for name, value in found.items():
        click.echo(f"{name.replace('_', ' '):12} {value}")


@data.command("filter")
@click.argument("prompts", type=FILE)
@click.argument("out", type=FILE)
@click.option("--filters", type=FILE, required=True, help="A YAML file with `filters`.")
@click.option("--refused", type=FILE, help="Write what was left out, and why, to this file.")
@JSON
def filter_(prompts: Path, out: Path, filters: Path, refused: Path | None, as_json: bool) -> None:
    """Write the prompts that pass every filter.

    Reads PROMPTS, writes OUT and prints how many prompts each filter removed.
    """
    from rlaif.config.filters import FilterSet
    from rlaif.core.errors import ConfigError, placed
    from rlaif.core.records import to_json
    from rlaif.core.resources import find
    from rlaif.core.yamlio import load_yaml, validate
    from rlaif.data.hygiene import of_prompt, sift_items
    from rlaif.data.rows import write_rows
    from rlaif.data.sources import every_prompt
    from rlaif.pipeline.prompt_generation.run import check_for_prompts
    from rlaif.pipeline.steps.filter import nothing_left, read_beside, refused_rows

    path = find(str(filters))
    text, lines = load_yaml(path)
    wanted = validate(FilterSet, text, lines, path)
    with placed(path, None):
        check_for_prompts(wanted)
    records = every_prompt(find(str(prompts)))
    sifted = sift_items(
        [of_prompt(p) for p in records], wanted.filters, read_beside(wanted, path, [])
    )
    if not sifted.kept:
        raise ConfigError(nothing_left("prompts", sifted), prompts)
    kept = set(sifted.kept)
    write_rows((to_json(p) for p in records if p.prompt_id in kept), out)
    if refused is not None:
        write_rows(refused_rows(sifted), refused)
    if as_json:
        click.echo(json.dumps({"kept": len(kept), "funnel": sifted.funnel()}, ensure_ascii=False))
        return
    echo_table(
        [
            {
                "filter": stage.filter,
                "in": str(stage.came),
                "out": str(stage.left),
                "why": ", ".join(f"{why}: {count}" for why, count in stage.why.items()),
            }
            for stage in sifted.stages
        ]
    )
    click.echo(f"{len(kept)} prompts written to {out}")
