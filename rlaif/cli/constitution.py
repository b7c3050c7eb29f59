"""Commands on constitution files: lint, show, diff, import."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from rlaif.cli.options import ARM, FILE, JSON, constitution_of, echo_table
from rlaif.core.errors import EXIT_USER, ConfigError


@click.group()
def constitution() -> None:
    """Check, compare, analyse, fit and infer constitutions."""


@constitution.command("lint")
@click.argument("paths", nargs=-1, required=True, type=FILE)
@click.option("--prompts", type=FILE, help="Report principles that apply to none of these.")
@click.option("--revise", is_flag=True, help="Every principle must have a critique and a revision.")
@JSON
def lint(paths: tuple[Path, ...], prompts: Path | None, revise: bool, as_json: bool) -> None:
    """Report problems in constitution files.

    The exit code is 2 if any of them is an error.
    """
    from dataclasses import asdict

    from rlaif.constitution.lint import lint as doubts
    from rlaif.constitution.model import load_with_places
    from rlaif.core.resources import find

    asked = []
    if prompts is not None:
        from rlaif.data.sources import every_prompt

        asked = every_prompt(prompts)
    found = []
    for path in paths:
        place = find(str(path))
        loaded, places = load_with_places(place)
        found += [(place, f) for f in doubts(loaded, places, asked, revise)]
    if as_json:
        rows = [{"file": str(p), **asdict(f)} for p, f in found]
        click.echo(json.dumps(rows, ensure_ascii=False, default=str))
    else:
        for path, finding in found:
            where = f"{finding.path or path}:{finding.line or 1}"
            name = f"{finding.principle}: " if finding.principle else ""
            click.echo(f"{where}: {finding.level}: {name}{finding.message}")
        click.echo(f"{len(paths)} files, {len(found)} findings")
    if any(f.level == "error" for _, f in found):
        sys.exit(EXIT_USER)


@constitution.command("show")
@click.argument("path", type=FILE)
@click.option("--table", is_flag=True, help="One line per principle instead of the YAML.")
@JSON
def show(path: Path, table: bool, as_json: bool) -> None:
    """Print the constitution with `extends` resolved."""
    from rlaif.constitution.model import show_constitution as as_yaml
    from rlaif.constitution.model import summarise_constitution

    loaded = constitution_of(path)
    if as_json:
        click.echo(json.dumps(loaded.model_dump(mode="json"), ensure_ascii=False))
    elif table:
        click.echo(f"{loaded.name}, version {loaded.version}: {len(loaded.principles)} principles")
        if loaded.description:
            click.echo(loaded.description)
        echo_table(summarise_constitution(loaded))
    else:
        click.echo(as_yaml(loaded))


@constitution.command("diff")
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@click.option("--run", "folder", type=FILE, help="A run with FIRST: the effect on its records.")
@ARM
@JSON
def diff(first: Path, second: Path, folder: Path | None, arm: str | None, as_json: bool) -> None:
    """List the changes from FIRST to SECOND by principle."""
    from dataclasses import asdict

    from rlaif.constitution.lint import list_changes

    if arm is not None and folder is None:
        raise ConfigError("--arm is an arm of a run: give the run with --run DIR")
    before, after = constitution_of(first), constitution_of(second)
    found = list_changes(before, after)
    reach = None
    if folder is not None:
        from rlaif.analysis.reach import measure_reach as reach_of
        from rlaif.pipeline.runs import load_run

        reach = reach_of(load_run(folder), before, after, arm)
    if as_json:
        rows: dict[str, Any] = {"changes": [asdict(change) for change in found]}
        if reach is not None:
            rows["run"] = asdict(reach)
        click.echo(json.dumps(rows, ensure_ascii=False))
        return
    click.echo("\n".join(map(str, found)) or "no difference")
    if reach is not None:
        click.echo("\n".join(reach.lines()))


@constitution.command("import")
@click.argument("path", type=FILE)
@click.option("--out", type=FILE, required=True, help="The YAML file to write.")
@click.option("--name", help="The constitution's name [default: the file's].")
def import_(path: Path, out: Path, name: str | None) -> None:
    """Import another project's constitution (JSON).

    Supported: {"NAME": {"prompt": [...], "edit_request": ...}} and {"constitutions": [{"critic",
    "revision"}]}.
    """
    from rlaif.constitution.model import show_constitution as as_yaml
    from rlaif.core.store import write_atomic
    from rlaif.data.constitutions import import_constitution

    made, left = import_constitution(path, name)
    write_atomic(out, as_yaml(made))
    click.echo(f"{len(made.principles)} principles written to {out}")
    for line in left:
        click.echo(f"left out: {line}")
