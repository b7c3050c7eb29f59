"""From values to the text of an experiment file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml

from rlaif.cli.recipes import Recipe


def render_recipe(recipe: Recipe, values: Mapping[str, Any]) -> str:
    """The text of an experiment file. Raises jinja2.UndefinedError for a value that is missing."""
    return _environment().get_template(recipe.template).render(values)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["yaml"] = write_value
    return environment


def write_value(value: Any) -> str:
    """A value as YAML on one line, quoted so that it reads back as it is wherever it stands."""
    # Line breaks and the like need escapes, which only double quotes have.
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    # As the item of a list, where a plain text may hold no comma and no bracket.
    text = yaml.safe_dump(
        [value],
        default_flow_style=True,
        default_style=style,
        allow_unicode=True,
        width=float("inf"),
    )
    return text.strip()[1:-1]
