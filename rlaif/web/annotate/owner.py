"""The owner's page: how far the votes are, what they say of people and judges, and their export."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rlaif.data.votes import Vote, VoteSettings, open_votes, settings_of
from rlaif.metrics.intervals import Interval, direction, show_ends, show_value
from rlaif.metrics.people import FEWEST_PEOPLE, FEWEST_VOTES, Annotator, Ceiling
from rlaif.web.annotate.findings import Agreement, Bar, FindingsCache
from rlaif.web.annotate.templates import render_page

PER_PAGE = 20
"""Disputed items on one page."""
WIDTH, HEIGHT, GAP = 720.0, 120.0, 2.0
"""The picture of the throughput, in pixels."""
UNITS = ((1440, "day"), (60, "hour"), (1, "minute"))
FIGURES = ("people_agreement", "alpha", "fleiss_kappa")


@dataclass(frozen=True)
class Cell:
    """A figure as the page shows it: its value, its ends, and how many items it is of."""

    value: str
    ends: str
    n: int


@dataclass(frozen=True)
class Person:
    """What one person did. `seconds` is the median from showing to voting, None without a vote;
    `last` is the time of the latest vote (UTC, ISO 8601). `quality` is None without a vote."""

    name: str
    votes: int
    skipped: int
    commented: int
    seconds: float | None
    last: str | None
    quality: Annotator | None


def owner_page(cache: FindingsCache, people: Sequence[str], page: int = 1) -> str:
    """The page about a database's votes as HTML; `people` have a link now, and `page` is that of
    the disputed items. Raises StoreError."""
    found = cache.latest()
    with open_votes(cache.path) as db:
        settings = settings_of(db)
        (votes,) = db.execute("SELECT count(*) FROM votes WHERE undone IS NULL").fetchone()
    pages = max(1, -(-len(found.disputes) // PER_PAGE))
    page = min(max(1, page), pages)
    return render_page(
        "owner.html.j2",
        settings=settings,
        counts=count_items(cache.path),
        people=list_people(found.votes, people, found.people),
        votes=votes,
        counted=len(found.votes),
        bars=_place_bars(found.bars),
        step=_say_span(found.step),
        most=max((bar.votes for bar in found.bars), default=0),
        size=(WIDTH, HEIGHT),
        agreement=[_agreement_row(one) for one in found.agreement],
        by_two=[(two.first, two.second, show_cell(two.kappa)) for two in found.by_two],
        ceiling=[_ceiling_row(one) for one in found.ceiling],
        disputes=found.disputes[(page - 1) * PER_PAGE : page * PER_PAGE],
        disputed=len(found.disputes),
        page=page,
        pages=pages,
        cell=show_cell,
        verdict=lambda vote: say_verdict(vote, settings),
        fewest=FEWEST_VOTES,
        enough=sum(one.votes > 0 for one in found.people) >= FEWEST_PEOPLE,
    )


def count_items(path: Path) -> dict[str, int]:
    """How many items there are to vote on (`items`), have all their votes (`complete`), have some
    (`begun`), and are gold questions (`gold`). Raises StoreError."""
    with open_votes(path) as db:
        # Each looks at no more than what it counts.
        every, gold, complete, begun = db.execute(
            "SELECT (SELECT count(*) FROM items), "
            "(SELECT count(*) FROM items WHERE gold = 1), "
            "(SELECT count(*) FROM items WHERE gold = 0 AND open = 0), "
            "(SELECT count(*) FROM items WHERE gold = 0 AND open = 1 AND votes > 0)"
        ).fetchone()
    return {"items": every - gold, "complete": complete, "begun": begun, "gold": gold}


def list_people(
    votes: Sequence[Vote], people: Sequence[str], quality: Sequence[Annotator]
) -> list[Person]:
    """Everybody: those with a link first, then those who voted earlier."""
    by_person: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_person[vote.annotator].append(vote)
    known = {one.name: one for one in quality}
    names = list(dict.fromkeys([*people, *sorted(by_person)]))
    return [_describe_person(name, by_person[name], known.get(name)) for name in names]


def _describe_person(name: str, votes: Sequence[Vote], quality: Annotator | None) -> Person:
    return Person(
        name=name,
        votes=sum(vote.verdict != "skip" for vote in votes),
        skipped=sum(vote.verdict == "skip" for vote in votes),
        commented=sum(bool(vote.comment) for vote in votes),
        seconds=None if quality is None else quality.seconds,
        last=max((vote.created for vote in votes), default=None),
        quality=quality,
    )


def show_cell(interval: Interval | None) -> Cell | None:
    """A figure for the page; None where it is undefined."""
    if interval is None:
        return None
    known = interval.to_json()
    return Cell(show_value(known), show_ends(known), interval.n)


def _agreement_row(one: Agreement) -> tuple[str, list[Cell | None]]:
    return one.name, [show_cell(one.figures.get(name)) for name in FIGURES]


def _ceiling_row(one: Ceiling) -> tuple[str, list[Cell | None], str]:
    """The judge, its figures, and what the difference says."""
    difference = one.difference.to_json()
    cells = [show_cell(one.people), show_cell(one.judged), show_cell(one.difference)]
    sentences: Mapping[int, str] = {
        1: "agrees with a person more often than another person does",
        -1: "agrees with a person less often than another person does",
        0: "cannot be told from one more person, with so many items",
    }
    return one.judge, cells, sentences[direction(difference)]


def say_verdict(vote: Vote, settings: VoteSettings) -> str:
    """What a person said of an item, in words."""
    if vote.rating is not None:
        meaning = settings.scale.get(int(vote.rating))
        return f"{vote.rating:g}" + (f" ({meaning})" if meaning else "")
    words = {"a": "answer A", "b": "answer B", "tie": "a tie", "both_bad": "both bad"}
    return words.get(vote.verdict, "skipped")


def _place_bars(bars: Sequence[Bar]) -> list[tuple[float, float, float, float, str]]:
    """Each bar's left, top, width and height in the picture, and what it says."""
    most = max((bar.votes for bar in bars), default=0)
    room = WIDTH / max(len(bars), 1)
    return [
        (
            round(place * room, 2),
            round(HEIGHT * (1 - bar.votes / most), 2),
            round(max(1.0, min(room - GAP, 40.0)), 2),
            round(HEIGHT * bar.votes / most, 2),
            f"{bar.start:%Y-%m-%d %H:%M}: {bar.votes}",
        )
        for place, bar in enumerate(bars)
    ]


def _say_span(step: timedelta) -> str:
    minutes = round(step.total_seconds() / 60)
    size, name = next(unit for unit in UNITS if minutes % unit[0] == 0)
    count = minutes // size
    return name if count == 1 else f"{count} {name}s"
