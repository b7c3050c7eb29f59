"""What an experiment does, before it runs: explain."""

from __future__ import annotations

from pathlib import Path

import click

from rlaif.cli.options import FILE, PROFILE, SET

FORMATS = {".svg": "svg", ".mmd": "mermaid", ".mermaid": "mermaid"}
"""What a file is by its ending; any other is text."""


@click.command()
@click.argument("experiment", type=FILE)
@PROFILE
@click.option("--arm", metavar="NAME", help="Show only this arm [default: all].")
@SET
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "mermaid", "svg"]),
    help="text, a Mermaid flowchart, or an SVG picture [default: by the ending of --out, or text].",
)
@click.option("--out", type=FILE, help="Write it to this file instead of stdout.")
def explain(
    experiment: Path,
    profile: str | None,
    arm: str | None,
    settings: tuple[str, ...],
    form: str | None,
    out: Path | None,
) -> None:
    """Show what EXPERIMENT does, as text or as a picture.

    Shows every step with its numbers: prompts, model calls, pairs, models and what they start from,
    and what is thrown away. It is derived from the plan; nothing is run or fetched.
    """
    from rlaif.core.resources import find
    from rlaif.core.store import write_atomic
    from rlaif.pipeline.explain.plan import explain_file
    from rlaif.report.flow_svg import draw_flow
    from rlaif.report.flow_text import render_mermaid, render_text

    form = form or FORMATS.get(out.suffix.lower() if out else "", "text")
    flow = explain_file(find(str(experiment)), settings, profile, arm)
    if form == "svg":
        text = f"{draw_flow(flow, standalone=True)}\n"
    else:
        text = render_mermaid(flow) if form == "mermaid" else render_text(flow)
    if out is None:
        click.echo(text, nl=False)
        return
    write_atomic(out, text)
    click.echo(str(out))
