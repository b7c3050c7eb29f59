"""What the reports of judge-bench and reward-bench share: columns of figures, tables, the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from rich.table import Table

from rlaif.metrics.figure_rules import rule_of
from rlaif.report.build import make_environment

Result = Mapping[str, Any]
HERE = Path(__file__).resolve().parent


class Column(NamedTuple):
    """One figure: its name in the result, its heading, and what it means."""

    name: str
    heading: str
    about: str


def column_of(name: str) -> Column:
    """The column of a figure, by its row in `figure_rules`; one that shares a row with others is
    headed by the end of its name."""
    rule = rule_of(name)
    return Column(name, rule.heading or name.rpartition("/")[2], rule.about)


def make_table(title: str, first: str, *headings: str) -> Table:
    """A terminal's table whose columns but the first are flush right."""
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def render_page(template: str, **values: Any) -> str:
    """A page that loads nothing."""
    style = Markup((HERE / "report.css").read_text(encoding="utf-8"))
    page: str = make_environment().get_template(template).render(style=style, **values)
    return page


def write_page(template: str, path: Path, **values: Any) -> Path:
    """Write a page that loads nothing; text that is not UTF-8 is replaced. Returns the file."""
    path.write_bytes(render_page(template, **values).encode("utf-8", "replace"))
    return path
