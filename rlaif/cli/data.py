"""Commands on data files: convert."""

from __future__ import annotations

import json
from pathlib import Path

import click

from rlaif.cli.options import FILE, JSON, ReadOptions, column_map, echo_skipped, read_hub_options

LOSSES = {
    "prompt": "turns of the prompt, or blanks around them",
    "answers": "blanks around answers",
    "order": "which answer came first",
    "label": "how sure the label is",
    "subset": "the subset",
    "authors": "who wrote the answers",
    "scores": "the scores of the answers",
    "margin": "by how much the better answer is better",
    "calls": "tool calls and reasoning of answers",
    "annotator": "who labelled",
    "annotator_kind": "whether a person or a model labelled",
}


@click.command()
@click.argument("source", metavar="IN", type=FILE)
@click.argument("out", type=FILE)
@click.option("--to", required=True, metavar="FORMAT", help="The format of OUT.")
@read_hub_options
@JSON
def convert(source: Path, out: Path, to: str, reading: ReadOptions, as_json: bool) -> None:
    """Convert labelled pairs to another format.

    IN is a file, a folder of `datasets`, or the id of a dataset on the hub (OWNER/NAME). OUT ends
    in .jsonl, .jsonl.gz, .json or .parquet. Skipped pairs, and information that the new format
    cannot represent, are reported.
    """
    from dataclasses import asdict

    from rlaif.data.convert import convert_pairs as converted
    from rlaif.data.rows import source_of

    read = source_of(str(source), reading.split, reading.config)
    columns = column_map(reading.columns)
    done = converted(read, out, to, reading.from_, columns, reading.on_error)
    echo_skipped(done.skipped)
    if as_json:
        click.echo(json.dumps(asdict(done), ensure_ascii=False))
        return
    click.echo(
        f"{done.written} pairs of {done.rows} rows ({done.format}) written to {out} ({to}), "
        f"{len(done.skipped)} skipped"
    )
    for name, count in sorted(done.lost.items()):
        click.echo(f"lost: {LOSSES[name]} ({count} pairs)")
    if done.dropped:
        click.echo(f"not carried over: {', '.join(done.dropped)}")
