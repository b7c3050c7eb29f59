"""The browser of runs: ui."""

from __future__ import annotations

from pathlib import Path

import click

from rlaif.cli.options import FILE


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUNS]...", type=FILE)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    help="Port to listen on; 0 picks a free one.",
)
@click.option("--open/--no-open", "opens", default=True, help="Open the page in a browser.")
def ui(runs: tuple[Path, ...], port: int, opens: bool) -> None:
    """Browse runs in a web browser until Ctrl-C.

    RUNS are run folders, or folders that hold some; by default the working folder. The pages show
    every run as it goes, its curves, config and records, and are served on this machine alone. Run
    folders are read and never written to.
    """
    from rlaif.web.ui.app import serve_pages

    serve_pages(runs, port, opens, click.echo)
