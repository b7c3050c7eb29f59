"""`rlaif annotate` and `rlaif votes`: people's feedback."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from rlaif.cli.options import CONSTITUTION, COUNT, FILE, FROM, Finite

if TYPE_CHECKING:
    from rlaif.data.vote_store import VoteStore
    from rlaif.web.annotate.server import AnnotationServer

DEFAULT_PORT = 8300


def _split(_context: click.Context, _option: click.Parameter, value: str | None) -> list[str]:
    return [name.strip() for name in (value or "").split(",") if name.strip()]


@click.command()
@click.argument("source", metavar="[PAIRS|RUN]", required=False)
@click.option("--db", type=FILE, required=True, help="The votes database to create or continue.")
@click.option(
    "--people",
    default="annotator",
    callback=_split,
    metavar="NAMES",
    help="Names (pseudonyms) such as ada,ben; each gets a link of their own.",
)
@click.option("--rate", is_flag=True, help="Ask for ratings of single answers, not comparisons.")
@click.option("--scale", type=FILE, help="A YAML file that says what each rating means.")
@click.option(
    "--evaluation",
    callback=_split,
    metavar="MODELS",
    help="Take a run's held-out answers of two models, such as M0,M1, in place of its pairs.",
)
@CONSTITUTION
@click.option(
    "--principles",
    metavar="IDS",
    help="The principles to ask about, such as brief,kind, or none [default: all of the "
    "constitution that have a text].",
)
@click.option("--overlap", type=COUNT, help="How many people vote on an item. [default: 1]")
@click.option("--budget", type=COUNT, help="Draw about this many items, by judges' uncertainty.")
@click.option("--gold", type=FILE, help="Labelled pairs to mix in as gold questions.")
@click.option(
    "--gold-share",
    type=Finite(0, 1),
    help="Share of gold questions; without --gold, they are pairs that people labelled. "
    "[default: 0.1 with --gold, else 0]",
)
@click.option(
    "--prelabels",
    type=click.Choice(["hidden", "after", "shown"]),
    help="Whether people see AI verdicts: never, after their vote, or before it. [default: hidden]",
)
@click.option(
    "--lease",
    type=Finite(0.1, 1440),
    metavar="MINUTES",
    help="How long an item is reserved for the person who was shown it. [default: 15]",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of the draw, slots and order."
)
@FROM
@click.option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, help="0 picks a free port."
)
@click.option(
    "--host",
    default="127.0.0.1",
    help="Address to listen on. Any but a loopback address lets others on the network reach it.",
)
@click.option(
    "--address",
    metavar="URL",
    help="The address in people's links, if it differs from --host and --port.",
)
def annotate(
    source: str | None,
    db: Path,
    people: list[str],
    rate: bool,
    scale: Path | None,
    evaluation: list[str],
    constitution: str | None,
    principles: str | None,
    overlap: int | None,
    budget: int | None,
    gold: Path | None,
    gold_share: float | None,
    prelabels: Literal["hidden", "after", "shown"] | None,
    lease: float | None,
    seed: int | None,
    from_: str | None,
    port: int,
    host: str,
    address: str | None,
) -> None:
    """Serve pages on which people vote, until Ctrl-C.

    The items are the pairs of a file in any format that `rlaif data` reads, or of a run folder. An
    existing database continues with its own items: `rlaif annotate --db FILE` is enough.

    Everybody opens a link of their own. The order of the answers is drawn by seed, person and item,
    and nothing reveals who wrote them. A vote is on the disk before its page confirms it. The
    owner's link shows the progress of the votes.

    With --budget, an item is drawn with probability min(1, c(0.1 + u)), where u is the judges'
    uncertainty or disagreement (1 if no judge judged it), and the probability is stored with the
    votes.

    The database contains the secret behind the links: publish what `rlaif votes` writes instead.
    """
    from rlaif.web.annotate.server import AnnotationServer, Place
    from rlaif.web.annotate.study import Study, open_study

    study = Study(
        source=source,
        from_=from_,
        models=evaluation,
        rate=rate,
        scale=scale,
        constitution=constitution,
        principles=_read_ids(principles),
        seed=seed,
        budget=budget,
        gold=gold,
        gold_share=gold_share,
        overlap=overlap,
        prelabels=prelabels,
        lease=None if lease is None else 60.0 * lease,
    )
    store = open_study(db, study)
    try:
        server = AnnotationServer(store, people, Place(host, port, address))
        _echo_links(server, store, host)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    finally:
        store.close()
    click.echo(f"stopped; the votes are in {db}")


def _read_ids(principles: str | None) -> list[str] | None:
    if principles is None:
        return None
    return [] if principles == "none" else [n.strip() for n in principles.split(",") if n.strip()]


def _echo_links(server: AnnotationServer, store: VoteStore, host: str) -> None:
    from rlaif.web.annotate.access import LOOPBACK

    what = "answers" if store.settings.kind == "rating" else "pairs"
    click.echo(f"{store.total} {what} of {store.settings.source} at {server.address.base}")
    for name, link in server.links().items():
        click.echo(f"  {name}: {link}")
    click.echo(f"the owner: {server.owner_link}")
    if host not in LOOPBACK:
        tls = "" if server.address.secure else " Pages and links travel unencrypted."
        click.echo(
            f"note: --host {host} lets others on the network reach these pages, and who has a link "
            f"can vote under its name.{tls}",
            err=True,
        )


@click.command()
@click.argument("db", type=FILE)
@click.option("--out", type=FILE, required=True, help="The file to write: .jsonl or .csv.")
@click.option(
    "--records",
    type=click.Choice(["votes", "judgements"]),
    default="votes",
    help="Votes as they are stored, or what they say of whole answers as judgements (.jsonl).",
)
def votes(db: Path, out: Path, records: Literal["votes", "judgements"]) -> None:
    """Write the votes in the database DB to a file, one row each.

    Votes that were undone or voted again are left out. Verdicts are about the answers a and b of
    the item, whichever of them stood first.
    """
    from rlaif.web.annotate.writing import write_votes

    click.echo(f"{write_votes(db, out, records)} votes in {out}")
