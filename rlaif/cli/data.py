"""Commands on data files: convert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlaif.cli.options import COLUMNS, CONFIG, FROM, JSON, ON_ERROR, SPLIT, column_map

if TYPE_CHECKING:
    from rlaif.core.labelled import LabelledPair
    from rlaif.data.readers import OnError

SHOWN = 10
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


def say_skipped(skipped: list[str]) -> None:
    """The rows that were left out, on stderr."""
    for message in skipped[:SHOWN]:
        click.echo(f"skipped: {message}", err=True)
    if len(skipped) > SHOWN:
        click.echo(f"skipped: {len(skipped) - SHOWN} more rows", err=True)


def labelled_pairs(
    path: Path,
    from_: str | None,
    columns: Path | None,
    on_error: OnError,
    split: str = "train",
    config: str | None = None,
) -> list[LabelledPair]:
    """The labelled pairs of a file or a dataset on the hub; rows that were left out are said."""
    from rlaif.data.readers import read_labelled
    from rlaif.data.rows import source_of

    source = source_of(str(path), split, config)
    reading = read_labelled(source, from_, column_map(columns), on_error)
    pairs = list(reading)
    say_skipped(reading.skipped)
    return pairs


@click.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@FROM
@click.option("--to", required=True, metavar="FORMAT", help="The format of OUT.")
@COLUMNS
@SPLIT
@CONFIG
@ON_ERROR
@JSON
def convert(
    source: Path,
    out: Path,
    from_: str | None,
    to: str,
    columns: Path | None,
    split: str,
    config: str | None,
    on_error: OnError,
    as_json: bool,
) -> None:
    """Convert labelled pairs to another format.

    IN is a file, a folder of `datasets`, or the id of a dataset on the hub (OWNER/NAME). OUT ends
    in .jsonl, .jsonl.gz, .json or .parquet. Skipped pairs, and information that the new format
    cannot represent, are reported.
    """
    from dataclasses import asdict

    from rlaif.data.convert import convert as converted
    from rlaif.data.rows import source_of

    read = source_of(str(source), split, config)
    done = converted(read, out, to, from_, column_map(columns), on_error)
    say_skipped(done.skipped)
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
