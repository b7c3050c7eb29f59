"""The request cache: what is in it, and how to make it smaller."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlaif.cli.options import JSON

if TYPE_CHECKING:
    from rlaif.engines.remote.cache import RequestCache

MODEL_NAME = click.option("--model", help="Only answers of this model (the name on its server).")


@click.group()
def cache() -> None:
    """Inspect and prune the cache of server answers.

    Stored answers are never requested twice. RLAIF_CACHE sets the folder and RLAIF_CACHE_GB the
    maximum size.
    """


@contextmanager
def _open_cache() -> Iterator[RequestCache]:
    from rlaif.engines.remote.cache import RequestCache, cache_limit, cache_path

    opened = RequestCache(cache_path(), cache_limit())
    try:
        yield opened
    finally:
        opened.close()


@cache.command("stats")
@JSON
def stats(as_json: bool) -> None:
    """Show the location and size of the cache, and its answers per model."""
    from rlaif.engines.remote.cache import cache_limit, cache_path

    if cache_path().exists():
        with _open_cache() as opened:
            found = opened.stats()
    else:
        # Looking creates nothing.
        found = {
            "path": str(cache_path()),
            "bytes": 0,
            "limit": cache_limit(),
            "answers": 0,
            "models": [],
        }
    if as_json:
        click.echo(json.dumps(found))
        return
    size, limit = found["bytes"] / 1e6, found["limit"] / 1e6
    click.echo(f"{found['path']}: {found['answers']} answers, {size:.1f} MB of {limit:.0f} MB")
    for row in found["models"]:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["last_used"]))
        click.echo(
            f"  {row['model']} at {row['base_url']}: {row['answers']} answers, "
            f"{row['bytes'] / 1e6:.1f} MB, last used {used}"
        )


@cache.command("prune")
@MODEL_NAME
@click.option("--unused-days", type=click.FloatRange(min=0), help="Answers unused for this long.")
@click.option(
    "--to-mb",
    type=click.FloatRange(min=0),
    help="If the cache is larger, drop the least recently used down to 90% of this.",
)
@click.option("--all", "everything", is_flag=True, help="Every answer.")
def prune(
    model: str | None, unused_days: float | None, to_mb: float | None, everything: bool
) -> None:
    """Delete stored answers. If needed again, they are requested and paid for again."""
    named = model is not None or unused_days is not None
    if [named, to_mb is not None, everything].count(True) != 1:
        raise click.UsageError("give --model and/or --unused-days, or --to-mb, or --all")
    with _open_cache() as opened:
        if to_mb is not None:
            dropped = opened.shrink(int(to_mb * 1e6))
        else:
            before = None if unused_days is None else time.time() - unused_days * 86400
            dropped = opened.prune(before, model)
        opened.compact()
        click.echo(f"{dropped} answers dropped, {opened.size() / 1e6:.1f} MB left")


@cache.command("export")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
@MODEL_NAME
def export(path: Path, model: str | None) -> None:
    """Write every request with its answer to PATH as JSON lines."""
    count = 0
    with _open_cache() as opened, path.open("w", encoding="utf-8") as file:
        for row in opened.rows(model):
            file.write(json.dumps(row) + "\n")
            count += 1
    click.echo(f"{count} answers in {path}")
