"""The owner's page: how far the votes are, by person, and their export."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rlaif.data.votes import Vote, open_votes, read_votes, settings_of
from rlaif.web.annotate.templates import render_page


@dataclass(frozen=True)
class Throughput:
    """What one person did. `seconds` is the median from showing to voting, None without a vote;
    `last` is the time of the latest vote (UTC, ISO 8601)."""

    name: str
    votes: int
    skipped: int
    commented: int
    seconds: float | None
    last: str | None


def owner_page(path: Path, people: Sequence[str]) -> str:
    """The page about a database's votes as HTML; `people` have a link now. Raises StoreError."""
    votes = read_votes(path)
    with open_votes(path) as db:
        settings = settings_of(db)
    return render_page(
        "owner.html.j2",
        settings=settings,
        counts=count_items(path),
        people=list_throughput(votes, people),
        votes=len(votes),
    )


def count_items(path: Path) -> dict[str, int]:
    """How many items there are to vote on (`items`), have all their votes (`complete`), have some
    (`begun`), and are gold questions (`gold`). Raises StoreError."""
    with open_votes(path) as db:
        items, complete, begun, gold = db.execute(
            "SELECT count(*) FILTER (WHERE gold = 0), "
            "count(*) FILTER (WHERE gold = 0 AND open = 0), "
            "count(*) FILTER (WHERE gold = 0 AND open = 1 AND votes > 0), "
            "count(*) FILTER (WHERE gold = 1) FROM items"
        ).fetchone()
    return {"items": items, "complete": complete, "begun": begun, "gold": gold}


def list_throughput(votes: Sequence[Vote], people: Sequence[str]) -> list[Throughput]:
    """By person, those with a link first, then those who voted earlier."""
    by_person: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_person[vote.annotator].append(vote)
    names = list(dict.fromkeys([*people, *sorted(by_person)]))
    return [_throughput(name, by_person[name]) for name in names]


def _throughput(name: str, votes: Sequence[Vote]) -> Throughput:
    return Throughput(
        name=name,
        votes=sum(vote.verdict != "skip" for vote in votes),
        skipped=sum(vote.verdict == "skip" for vote in votes),
        commented=sum(bool(vote.comment) for vote in votes),
        seconds=median(vote.seconds for vote in votes) if votes else None,
        last=votes[-1].created if votes else None,
    )
