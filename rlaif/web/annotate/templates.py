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


def render_page(template: str, /, **values: Any) -> str:
    """A page from the template of that name; every value is escaped."""
    return TEMPLATES.get_template(template).render(**values)
