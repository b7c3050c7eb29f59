"""The command `new`: an experiment file from a few answers."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from rlaif.cli.options import COUNT, FILE
from rlaif.cli.recipes import RECIPES

_METHODS = "\n".join(f"  {name:<16}{recipe.summary}" for name, recipe in RECIPES.items())


@click.command(epilog=f"\b\nRecipes:\n{_METHODS}")
@click.argument("file", type=FILE)
@click.option("--recipe", type=click.Choice([*RECIPES]), help="The method [default: dpo].")
@click.option("--name", help="The name in reports [default: that of FILE].")
@click.option("--model", help="The policy: builtin/NAME, a folder or a hub id.")
@click.option("--constitution", help="A shipped constitution by name, or a file.")
@click.option("--against", help="For the recipe constitutions: constitution B.")
@click.option("--judge", help="rules, self (the policy), a model, or a server's address.")
@click.option("--judge-model", help="For a server: its name for the model.")
@click.option("--data", help="For human-vs-ai: a file of labelled pairs.")
@click.option("--demonstrations", help="For self-rewarding: a file of prompts and completions.")
@click.option("--prompts", help="A file, or a dataset on the hub [default: the shipped ones].")
@click.option("--rounds", type=COUNT, help="The number of rounds [default: 2].")
@click.option("--seeds", metavar="N,N,...", help="Repeat the experiment for each [default: 1].")
@click.option("--yes", "-y", is_flag=True, help="Ask nothing; take the defaults.")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
def new(file: Path, recipe: str | None, yes: bool, force: bool, **given: Any) -> None:
    """Write a commented experiment to FILE, to start from.

    In a terminal, it asks for what no option sets; otherwise it takes the defaults.
    """
    from rlaif.cli.recipes.asking import Asking, find_values, read_recipe
    from rlaif.cli.recipes.render import render_recipe
    from rlaif.cli.recipes.writing import check_places, write_with_schema

    check_places(file, force)
    asking = Asking(file, {**given, "recipe": recipe}, not yes and sys.stdin.isatty())
    chosen = asking.answer("recipe", "Recipe", "dpo", read_recipe)
    schema = write_with_schema(file, render_recipe(chosen, find_values(asking, chosen)))
    for note in asking.notes:
        click.echo(f"note: {note}", err=True)
    path = shlex.quote(str(file))
    click.echo(f"Written: {path}, and for editors {shlex.quote(str(schema))}. Next:")
    click.echo(f"  rlaif run {path} --dry-run")
    click.echo(f"  rlaif explain {path}")
    click.echo(f"  rlaif {chosen.command} {path}")
