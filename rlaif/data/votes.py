"""People's votes, and the items that they vote on: one SQLite file, read here and written by
`rlaif.data.vote_store`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from rlaif.core.errors import StoreError
from rlaif.core.records import AnnotatorKind, Message

APPLICATION = 0x726C6166
"""SQLite's application id of a votes database: "rlaf"."""
SCHEMA = 1
"""The version of its tables."""

Kind = Literal["pair", "rating"]
Verdict = Literal["a", "b", "tie", "both_bad", "skip", "rated"]
Prelabels = Literal["hidden", "after", "shown"]
PAIR_VERDICTS: tuple[Verdict, ...] = ("a", "b", "tie", "both_bad", "skip")
RATING_VERDICTS: tuple[Verdict, ...] = ("rated", "skip")


class Vote(Struct, frozen=True, kw_only=True):
    """What one person said of one item.

    `vote_id` was made by the browser: a vote that is sent again is the same vote. `item_id` is a
    pair's preference id or an answer's completion id, `annotator` the name in the person's link.
    `verdict` is about the record's answers a and b, never about their slots; `slot_of_a` is 0 where
    a stood first (left) and 1 where it stood second. `rating` is on the described scale and exists
    with verdict `rated` only. `principles` has the verdict on each principle, or its level as text.
    `seconds` passed from showing to voting. `probability` is that with which the item was drawn,
    1.0 unless a budget was given. `gold`: the owner knows the answer. `prelabel_shown`: the AI's
    verdict could be seen before the vote. `created` is the time of the commit, UTC, ISO 8601.
    """

    vote_id: str
    item_id: str
    kind: Kind
    annotator: str
    verdict: Verdict
    rating: float | None = None
    principles: dict[str, str] = {}
    comment: str = ""
    slot_of_a: int = 0
    seconds: float = 0.0
    probability: float = 1.0
    gold: bool = False
    prelabel_shown: bool = False
    created: str = ""


class ItemJudge(Struct, frozen=True, kw_only=True):
    """What was known of an item before people saw it: one annotator's verdict.

    `prob_a` is the probability that answer a is better (0.5 a tie), None of a single answer;
    `score` is a single answer's, on [0, 1], None of a pair. `uncertainty` is on [0, 1]: 1 where the
    verdict is a coin's.
    """

    judge: str
    annotator: str
    annotator_kind: AnnotatorKind = "ai"
    prob_a: float | None = None
    score: float | None = None
    uncertainty: float | None = None


class VoteItem(Struct, frozen=True, kw_only=True):
    """What people vote on: two answers to one prompt, or one (`b` and `b_id` are None).

    `uncertainty`, on [0, 1], is that of the judges together (see
    `rlaif.metrics.active_choice.item_uncertainty`), None where there is none. `gold` is the answer
    that the owner knows: "a", "b", "tie", or a level of the scale as text. `principles` are the ids
    of those that apply. `probability` is that with which the item was drawn.
    """

    item_id: str
    kind: Kind
    prompt_id: str
    prompt: list[Message]
    a: list[Message]
    a_id: str
    b: list[Message] | None = None
    b_id: str | None = None
    judges: list[ItemJudge] = []
    uncertainty: float | None = None
    gold: str | None = None
    tags: list[str] = []
    principles: list[str] = []
    probability: float = 1.0


class AskedPrinciple(Struct, frozen=True):
    """A principle that people are asked about beside the whole; `scale` describes the levels of a
    rating."""

    id: str
    text: str
    scale: dict[int, str] = {}


class VoteSettings(Struct, frozen=True, kw_only=True):
    """How a database's items were drawn and are asked about.

    `source` is where the items came from, and `population` how many there were to draw from.
    `seed` draws items, slots and the places of gold questions. `budget` is how many items were
    expected to be drawn, None for all. `scale` describes the levels of a rating of the whole
    answer. `gold_share` is the share of a person's questions whose answer is known. `overlap`
    people vote on an item that is not gold. `lease` (seconds) is how long an item waits for who it
    was handed to.
    """

    source: str
    kind: Kind
    seed: int = 0
    population: int = 0
    budget: int | None = None
    scale: dict[int, str] = {}
    principles: list[AskedPrinciple] = []
    gold_share: float = 0.0
    overlap: int = 1
    prelabels: Prelabels = "hidden"
    lease: float = 900.0


def read_votes(path: Path) -> list[Vote]:
    """The votes in a database in the order in which they were committed, without those that were
    undone, and of a person's several votes on an item the latest. Raises StoreError."""
    decode = msgspec.json.Decoder(Vote).decode
    with open_votes(path) as db:
        rows = db.execute("SELECT body FROM votes WHERE undone IS NULL ORDER BY place")
        return [decode(body) for (body,) in rows]


def read_items(path: Path) -> list[VoteItem]:
    """The items of a database that were drawn, in the order in which they are handed out. Raises
    StoreError."""
    with open_votes(path) as db:
        return list(stream_items(db))


def stream_items(db: sqlite3.Connection) -> Iterator[VoteItem]:
    """As `read_items`, one by one."""
    decode = msgspec.json.Decoder(VoteItem).decode
    for (body,) in db.execute("SELECT body FROM items ORDER BY place"):
        yield decode(body)


def read_settings(path: Path) -> VoteSettings:
    """How the items of a database are asked about. Raises StoreError."""
    with open_votes(path) as db:
        return settings_of(db)


def settings_of(db: sqlite3.Connection) -> VoteSettings:
    """As `read_settings`, of an open database."""
    (body,) = db.execute("SELECT value FROM meta WHERE name = 'settings'").fetchone()
    return msgspec.json.decode(body, type=VoteSettings)


@contextmanager
def open_votes(path: Path) -> Iterator[sqlite3.Connection]:
    """A votes database to read from, also while a server writes to it. Raises StoreError where it
    is none, or of another version."""
    if path.is_dir():
        raise StoreError(f"{path}: a folder, and a votes database is a file; name one with --db")
    if not path.is_file():
        raise StoreError(f"{path}: no such file; `rlaif annotate` makes a votes database")
    db = sqlite3.connect(path, timeout=30.0)
    try:
        db.execute("PRAGMA query_only = ON")
        check_schema(db, path)
        yield db
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path}: cannot be read as a votes database: {error}") from None
    finally:
        db.close()


def check_schema(db: sqlite3.Connection, path: Path) -> None:
    """Raises StoreError unless the file is a votes database of this version."""
    try:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"{path}: not a votes database ({error}); name another file with --db"
        ) from None
    if application != APPLICATION:
        raise StoreError(f"{path}: not a votes database; name another file with --db")
    if version != SCHEMA:
        raise StoreError(
            f"{path}: a votes database of version {version}, and this version of rlaif reads "
            f"version {SCHEMA}; use the rlaif that wrote it, or start another with --db"
        )
