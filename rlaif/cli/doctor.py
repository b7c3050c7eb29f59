"""rlaif doctor: is everything here that a run needs?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from rlaif.cli.options import FILE, JSON


@click.command()
@click.option("--out", type=FILE, default=Path("runs"), help="Where run folders are to go.")
@JSON
def doctor(out: Path, as_json: bool) -> None:
    """Check this machine: what is missing, and the command for it.

    Python and packages, optional extras, devices, the built-in model, caches, API keys by name,
    disk space, network file systems. The exit code is 1 only if the quickstart cannot run.
    """
    from rlaif.analysis.doctor import examine

    findings = []
    for finding in examine(out):
        findings.append(finding)
        if not as_json:
            click.echo(f"{finding.state:8} {finding.name}: {finding.detail}")
            if finding.remedy:
                click.echo(f"{'':8}   -> {finding.remedy}")
    fatal = [finding.name for finding in findings if finding.fatal]
    if as_json:
        rows = [asdict(finding) for finding in findings]
        click.echo(json.dumps({"ready": not fatal, "findings": rows}, ensure_ascii=False))
    elif fatal:
        click.echo(f"The quickstart cannot run: {', '.join(fatal)}.")
    else:
        click.echo("The quickstart can run.")
    sys.exit(1 if fatal else 0)
