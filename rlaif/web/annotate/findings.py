"""What the votes in a database say of people, judges and items, computed once for each state of it.

Gold questions count in nobody's agreement: they were not drawn, and were chosen to be easy to
decide.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock, Thread
from time import monotonic

import msgspec

from rlaif.core.records import message_text
from rlaif.data.votes import Vote, VoteItem, open_votes, read_settings, read_votes
from rlaif.metrics.intervals import Interval
from rlaif.metrics.people import (
    Annotator,
    Ceiling,
    TwoPeople,
    agreement_intervals,
    annotator_quality,
    human_ceiling,
    kappas_by_two,
    vote_table,
    vote_value,
)

MOST_BARS = 48
PATIENCE = 0.1
"""Seconds that a page waits for findings of the latest votes, if it has earlier ones."""
STEPS = tuple(
    timedelta(minutes=minutes)
    for minutes in (1, 5, 15, 30, 60, 120, 240, 480, 1440, 2880, 10080, 43200)
)
"""The spans of time that a bar of the throughput may stand for."""


@dataclass(frozen=True)
class Agreement:
    """How far people agree on the whole or on one principle; `figures` are absent where they are
    undefined."""

    name: str
    figures: Mapping[str, Interval]


@dataclass(frozen=True)
class Dispute:
    """An item that people disagree on: its texts, and who said what. `share` is that of its pairs
    of votes that differ."""

    item_id: str
    prompt: str
    a: str
    b: str | None
    votes: Sequence[Vote]
    share: float


@dataclass(frozen=True)
class Bar:
    """The votes of one span of time, which begins at `start` (UTC)."""

    start: datetime
    votes: int


@dataclass(frozen=True)
class Findings:
    """All of it. `step` is the span of time of each of the `bars`."""

    votes: Sequence[Vote]
    agreement: Sequence[Agreement]
    by_two: Sequence[TwoPeople]
    ceiling: Sequence[Ceiling]
    people: Sequence[Annotator]
    disputes: Sequence[Dispute]
    step: timedelta
    bars: Sequence[Bar]


State = tuple[int | None, int]
"""The place of a database's last vote, and how many votes no longer count: each vote, and each vote
that is taken back, makes one of them grow."""


class FindingsCache:
    """The last findings about one database.

    Where votes came after them and they took longer than `PATIENCE`, they are given as they are,
    and newer ones are computed meanwhile.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = Lock()
        self._last: tuple[State, Findings, float] | None = None
        self._busy = False

    def latest(self) -> Findings:
        """The findings of all votes, or of all but the latest ones. Raises StoreError."""
        state = read_state(self.path)
        with self._lock:
            last = self._last
            if last is not None and last[0] == state:
                return last[1]
            later = last is not None and last[2] > PATIENCE
            if later and not self._busy:
                self._busy = True
                Thread(target=self._compute_later, args=(state,), daemon=True).start()
        return last[1] if later and last is not None else self._compute(state)

    def _compute_later(self, state: State) -> None:
        try:
            self._compute(state)
        finally:
            self._busy = False

    def _compute(self, state: State) -> Findings:
        began = monotonic()
        found = find_all(self.path)
        with self._lock:
            self._last = state, found, monotonic() - began
        return found


def read_state(path: Path) -> State:
    """What changes with every vote. Raises StoreError."""
    with open_votes(path) as db:
        last, undone = db.execute("SELECT max(place), count(undone) FROM votes").fetchone()
    return last, undone


def find_all(path: Path) -> Findings:
    """The findings about a database as it is now. Raises StoreError."""
    votes = read_votes(path)
    items = read_voted_items(path)
    counted = [vote for vote in votes if not vote.gold]
    principles = [principle.id for principle in read_settings(path).principles]
    tables = {name: vote_table(counted, items, name) for name in principles}
    overall = vote_table(counted, items)
    step, bars = count_over_time(votes)
    return Findings(
        votes,
        [
            Agreement(name, agreement_intervals(table))
            for name, table in {"whole answer": overall, **tables}.items()
        ],
        [] if overall.scaled else kappas_by_two(overall),
        human_ceiling(votes, items),
        annotator_quality(votes, items),
        list_disputes(votes, items),
        step,
        bars,
    )


def read_voted_items(path: Path) -> dict[str, VoteItem]:
    """The items that have a vote, by id. Raises StoreError."""
    decode = msgspec.json.Decoder(VoteItem).decode
    with open_votes(path) as db:
        rows = db.execute(
            "SELECT body FROM items WHERE item_id IN "
            "(SELECT item_id FROM votes WHERE undone IS NULL)"
        )
        return {item.item_id: item for item in (decode(body) for (body,) in rows)}


def list_disputes(votes: Sequence[Vote], items: Mapping[str, VoteItem]) -> list[Dispute]:
    """The items on which two people said different things, those with most pairs of people who did
    first; of ratings the farthest apart. Ties are in order of id."""
    by_item: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_item[vote.item_id].append(vote)
    found = []
    for name, own in by_item.items():
        values = [value for vote in own if (value := vote_value(vote)) is not None]
        if len(set(values)) > 1 and name in items:
            found.append(_make_dispute(items[name], own, values))
    return sorted(found, key=lambda one: (-one.share, -len(one.votes), one.item_id))


def _make_dispute(item: VoteItem, votes: Sequence[Vote], values: Sequence[float]) -> Dispute:
    if item.kind == "rating":
        share = max(values) - min(values)
    else:
        pairs = len(values) * (len(values) - 1)
        share = 1.0 - sum(n * (n - 1) for n in map(values.count, set(values))) / pairs
    ordered = sorted(votes, key=lambda vote: vote.annotator)
    asked = [f"{turn['role']}: {message_text(turn)}" for turn in item.prompt]
    return Dispute(
        item.item_id,
        message_text(item.prompt[0]) if len(item.prompt) == 1 else "\n\n".join(asked),
        "\n\n".join(map(message_text, item.a)),
        None if item.b is None else "\n\n".join(map(message_text, item.b)),
        ordered,
        share,
    )


def count_over_time(votes: Sequence[Vote]) -> tuple[timedelta, list[Bar]]:
    """The votes in spans of equal length from the first to the last, `MOST_BARS` at most where the
    longest of `STEPS` allows it, and the length."""
    times = sorted(datetime.fromisoformat(vote.created) for vote in votes)
    if not times:
        return STEPS[0], []
    whole = times[-1] - times[0]
    step = next((step for step in STEPS if whole <= step * (MOST_BARS - 1)), STEPS[-1])
    midnight = times[0].replace(hour=0, minute=0, second=0, microsecond=0)
    start = midnight + step * ((times[0] - midnight) // step)
    counts = [0] * ((times[-1] - start) // step + 1)
    for time in times:
        counts[(time - start) // step] += 1
    return step, [Bar(start + step * place, count) for place, count in enumerate(counts)]
