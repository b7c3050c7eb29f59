"""Commands on what a person writes: init, schema, prompt."""

from __future__ import annotations

import json
from pathlib import Path

import click

from rlaif.cli.options import FILE, JSON, PROFILE, SET


@click.command()
@click.argument("directory", metavar="DIR", type=FILE)
def init(directory: Path) -> None:
    """Copy the shipped files into DIR for editing.

    These are the constitutions, prompts and experiments.
    """
    import shutil

    from rlaif.core.errors import ConfigError
    from rlaif.core.resources import SHIPPED_FOLDERS, shipped_root

    taken = [name for name in SHIPPED_FOLDERS if (directory / name).exists()]
    if taken:
        raise ConfigError(f"{', '.join(taken)} is there already; nothing was copied", directory)
    for name in SHIPPED_FOLDERS:
        shutil.copytree(shipped_root() / name, directory / name)
    click.echo(f"Copied {', '.join(SHIPPED_FOLDERS)} to {directory}. Next:")
    click.echo(f"  cd {directory} && rlaif run experiments/quickstart.yaml")


@click.command()
@click.argument("what", type=click.Choice(["experiment", "constitution"]), default="experiment")
def schema(what: str) -> None:
    """Print the JSON schema of a file, for editors."""
    if what == "experiment":
        from rlaif.pipeline.reading import experiment_schema

        click.echo(experiment_schema())
    else:
        from rlaif.constitution.model import constitution_schema

        click.echo(json.dumps(constitution_schema(), indent=2))


@click.group()
def prompt() -> None:
    """Inspect the prompts that models receive."""


@prompt.command("render")
@click.argument("experiment", type=FILE)
@click.option("--judge", help="Show this judge's prompt (by judge id) instead of the policy's.")
@click.option("--prompt-id", help="Which prompt [default: the first held-out one].")
@click.option("--response", default="(the answer)", help="The judged answer.")
@click.option(
    "--response-2", default="(the other answer)", show_default=False, help="For pairwise judges."
)
@click.option("--tokens", is_flag=True, help="Show every token with its id.")
@PROFILE
@SET
@JSON
def render(
    experiment: Path,
    judge: str | None,
    prompt_id: str | None,
    response: str,
    response_2: str,
    tokens: bool,
    profile: str | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Print the exact text that the policy or a judge will see.

    With --tokens, also every token.
    """
    from rlaif.core.resources import find
    from rlaif.pipeline.preview import rendered

    path = find(str(experiment))
    shown = rendered(path, settings, judge, prompt_id, [response, response_2], profile)
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
