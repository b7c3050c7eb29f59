"""The pages' templates."""

from __future__ import annotations

from typing import Any

import jinja2

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("rlaif.web.annotate", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_page(name: str, **values: Any) -> str:
    """A page from a template of this folder; every value is escaped."""
    return TEMPLATES.get_template(name).render(**values)
