"""The one writer of a votes database.

A vote is there when its transaction is on the disk (WAL, full sync), and the method that records it
returns no earlier. A vote id is unique: the same vote sent again changes nothing. What was undone
or voted again stays in the table with the time at which it ceased to count.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
from filelock import FileLock, Timeout
from msgspec import Struct, structs

from rlaif.core.errors import StoreError
from rlaif.core.records import content_hash
from rlaif.core.store import partial_of
from rlaif.data.votes import (
    APPLICATION,
    SCHEMA,
    Vote,
    VoteItem,
    VoteSettings,
    check_schema,
    settings_of,
)

TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    place INTEGER PRIMARY KEY, item_id TEXT NOT NULL UNIQUE, gold INTEGER NOT NULL,
    votes INTEGER NOT NULL DEFAULT 0, open INTEGER NOT NULL DEFAULT 1, body BLOB NOT NULL
);
CREATE INDEX open_items ON items (place) WHERE open = 1 AND gold = 0;
CREATE INDEX gold_items ON items (place) WHERE gold = 1;
CREATE INDEX item_states ON items (gold, open, votes);
CREATE TABLE handed (
    annotator TEXT NOT NULL, item_id TEXT NOT NULL, expires REAL NOT NULL,
    prelabel_shown INTEGER NOT NULL, PRIMARY KEY (annotator, item_id)
) WITHOUT ROWID;
CREATE INDEX handed_items ON handed (item_id);
CREATE INDEX leases ON handed (annotator, expires);
CREATE TABLE votes (
    place INTEGER PRIMARY KEY AUTOINCREMENT, vote_id TEXT NOT NULL UNIQUE, item_id TEXT NOT NULL,
    annotator TEXT NOT NULL, verdict TEXT NOT NULL, request TEXT NOT NULL, undone TEXT,
    body BLOB NOT NULL
);
CREATE UNIQUE INDEX votes_that_count ON votes (annotator, item_id) WHERE undone IS NULL;
CREATE INDEX votes_of_items ON votes (item_id);
CREATE INDEX votes_of_people ON votes (annotator, place);
"""

NETWORK = re.compile(
    r"nfs\d*|cifs|smb\d*|smbfs|afs|9p|ceph|lustre|gpfs|beegfs\w*|glusterfs|ocfs2|gfs2|pvfs2|"
    r"orangefs|panfs|wekafs|fuse\.(sshfs|glusterfs|ceph\S*|s3fs|rclone|gcsfuse|juicefs|davfs\S*|"
    r"mount-s3|goofys|blobfuse\S*)|fuse\.\S*nfs\S*"
)
"""Types of file systems whose locks and shared memory other machines do not see."""

# Without the named index, SQLite may sort all open items to hand out the first of them.
NEXT_ITEM = """
SELECT item_id FROM items AS i INDEXED BY open_items WHERE open = 1 AND gold = 0
    AND NOT EXISTS (SELECT 1 FROM votes AS v
        WHERE v.annotator = :who AND v.item_id = i.item_id AND v.undone IS NULL)
    AND i.votes + (SELECT count(*) FROM handed AS h
        WHERE h.item_id = i.item_id AND h.annotator <> :who AND h.expires > :now) < :overlap
ORDER BY place LIMIT 1
"""
NEXT_GOLD = """
SELECT item_id FROM items AS i INDEXED BY gold_items WHERE gold = 1
    AND NOT EXISTS (SELECT 1 FROM votes AS v
        WHERE v.annotator = :who AND v.item_id = i.item_id AND v.undone IS NULL)
ORDER BY place LIMIT 1
"""
OWN_LEASE = """
SELECT item_id FROM handed AS h WHERE annotator = :who AND expires > :now
    AND NOT EXISTS (SELECT 1 FROM votes AS v
        WHERE v.annotator = :who AND v.item_id = h.item_id AND v.undone IS NULL)
ORDER BY expires DESC LIMIT 1
"""
COUNT_OPEN = "SELECT count(*) FROM items WHERE open = 1 AND gold = 0"
COUNT_VOTES = """
UPDATE items SET votes = (SELECT count(*) FROM votes
    WHERE item_id = :item AND undone IS NULL AND verdict <> 'skip') WHERE item_id = :item
"""


class VoteRefused(StoreError):
    """A vote that cannot be recorded; the message says why."""


class Progress(Struct, frozen=True):
    """Where a person stands. `done` are the person's votes, `complete` of `total` items (gold
    questions aside) have all their votes, and `last` is the vote that an undo takes back."""

    done: int
    complete: int
    total: int
    last: str | None


class Handed(Struct, frozen=True):
    """An item in a person's hands. `state` without one: `waiting` where others hold what is left,
    else `done`."""

    item: VoteItem | None
    prelabel_shown: bool = False
    state: Literal["voting", "waiting", "done"] = "voting"


def slot_of_a(seed: int, annotator: str, item_id: str) -> int:
    """Where answer a stands for a person: 0 first, 1 second; drawn by seed, person and item."""
    return int(content_hash("slot", seed, annotator, item_id, length=8), 16) % 2


def order_items(items: Sequence[VoteItem], seed: int) -> list[VoteItem]:
    """The items in the order, drawn by seed and id, in which they are handed out: the votes of a
    study that ends early are about a random part of them."""
    return sorted(items, key=lambda item: content_hash("order", seed, item.item_id))


def file_system_of(path: Path, mounts: str) -> str:
    """The type of the file system that a path is on, from the text of /proc/self/mountinfo; empty
    where it is not listed."""
    best, kind = "", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if not after:
            continue
        point = re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), before.split()[4])
        inside = path == Path(point) or Path(point) in path.parents
        if inside and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind


def refuse_network(path: Path) -> None:
    """Raises StoreError for a database on a network file system, where the system tells."""
    mounts = Path("/proc/self/mountinfo")
    if not mounts.is_file():
        return
    kind = file_system_of(path.resolve(), mounts.read_text(encoding="utf-8", errors="replace"))
    if NETWORK.fullmatch(kind):
        raise StoreError(
            f"{path}: on a network file system ({kind}), where SQLite's locks do not hold and "
            "votes could be lost; name a file on a disk of this machine with --db"
        )


def create_votes(path: Path, settings: VoteSettings, items: Sequence[VoteItem]) -> None:
    """Make a database of drawn items. It appears when all of them are in it. Raises StoreError."""
    refuse_network(path)
    partial = partial_of(path)
    encode = msgspec.json.encode
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Only its owner may read it: the secret behind people's links is in it.
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        db = sqlite3.connect(partial, isolation_level=None)
        try:
            db.executescript(f"BEGIN;{TABLES}")
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(f"PRAGMA user_version = {SCHEMA}")
            db.executemany(
                "INSERT INTO meta VALUES (?, ?)",
                [("settings", encode(settings)), ("secret", os.urandom(32))],
            )
            db.executemany(
                "INSERT INTO items (place, item_id, gold, body) VALUES (?, ?, ?, ?)",
                (
                    (place, item.item_id, item.gold is not None, encode(item))
                    for place, item in enumerate(order_items(items, settings.seed))
                ),
            )
            db.execute("COMMIT")
        finally:
            db.close()
        os.rename(partial, path)
    except (OSError, sqlite3.OperationalError) as error:
        raise StoreError(
            f"{path}: the votes database cannot be written ({error}); name another file with --db"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


class VoteStore:
    """A votes database open for writing, by this process alone."""

    def __init__(self, path: Path):
        refuse_network(path)
        self.path = path
        self._lock = threading.Lock()
        self._file_lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            self._file_lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(
                f"{path}: another `rlaif annotate` serves this database; stop it, or name another "
                "file with --db"
            ) from None
        except OSError as error:
            raise StoreError(f"{path}: cannot be locked for writing: {error.strerror}") from None
        try:
            self._db = self._open()
            self.settings = settings_of(self._db)
            (self.secret,) = self._db.execute(
                "SELECT value FROM meta WHERE name = 'secret'"
            ).fetchone()
            (self.total,) = self._db.execute("SELECT count(*) FROM items WHERE gold = 0").fetchone()
            # Kept, since counting takes a hundredth of a second with 100,000 items.
            (self._open_items,) = self._db.execute(COUNT_OPEN).fetchone()
        except BaseException:
            self._file_lock.release()
            raise

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=30.0, isolation_level=None, check_same_thread=False)
        try:
            check_schema(db, self.path)
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise StoreError(
                    f"{self.path}: this file system does not support SQLite's WAL mode; name a "
                    "file on a disk of this machine with --db"
                )
            db.execute("PRAGMA synchronous = FULL")
        except sqlite3.DatabaseError as error:
            db.close()
            raise StoreError(f"{self.path}: cannot be opened for writing: {error}") from None
        except StoreError:
            db.close()
            raise
        return db

    def close(self) -> None:
        """Let others open it for writing."""
        with self._lock:
            self._db.close()
        self._file_lock.release()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it is on the disk when it ends, or nothing."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                (self._open_items,) = self._db.execute(COUNT_OPEN).fetchone()
                raise

    def change_settings(self, settings: VoteSettings) -> None:
        """Store settings that may change between votes, such as the overlap."""
        with self._transaction() as db:
            body = msgspec.json.encode(settings)
            db.execute("UPDATE meta SET value = ? WHERE name = 'settings'", (body,))
            db.execute("UPDATE items SET open = votes < ?", (settings.overlap,))
            (self._open_items,) = db.execute(COUNT_OPEN).fetchone()
        self.settings = settings

    def hand_out(self, annotator: str, now: float) -> Handed:
        """The item that a person holds, else the next one, held from `now` (seconds) on for the
        lease. No item is in more hands, voted on or held, than the overlap, but for gold
        questions, which everybody is asked."""
        asked = {"who": annotator, "now": now, "overlap": self.settings.overlap}
        with self._transaction() as db:
            row = db.execute(OWN_LEASE, asked).fetchone()
            if row is None and self._is_gold_turn(db, annotator):
                row = db.execute(NEXT_GOLD, asked).fetchone()
            if row is None:
                row = db.execute(NEXT_ITEM, asked).fetchone()
            if row is None:
                return Handed(None, state="waiting" if self._others_hold(db, asked) else "done")
            return self._hold(db, annotator, row[0], now)

    def _hold(self, db: sqlite3.Connection, annotator: str, item_id: str, now: float) -> Handed:
        (body,) = db.execute("SELECT body FROM items WHERE item_id = ?", (item_id,)).fetchone()
        (earlier,) = db.execute(
            "SELECT count(*) FROM votes WHERE annotator = ? AND item_id = ?", (annotator, item_id)
        ).fetchone()
        # Who has voted once has seen the AI's verdict, unless it is never shown.
        mode = self.settings.prelabels
        shown = mode == "shown" or (mode == "after" and earlier > 0)
        (before,) = db.execute(
            "SELECT max(prelabel_shown) FROM handed WHERE annotator = ? AND item_id = ?",
            (annotator, item_id),
        ).fetchone()
        shown = shown or bool(before)
        db.execute(
            "INSERT INTO handed VALUES (?, ?, ?, ?) ON CONFLICT (annotator, item_id) "
            "DO UPDATE SET expires = excluded.expires, prelabel_shown = excluded.prelabel_shown",
            (annotator, item_id, now + self.settings.lease, shown),
        )
        return Handed(msgspec.json.decode(body, type=VoteItem), shown)

    def _is_gold_turn(self, db: sqlite3.Connection, annotator: str) -> bool:
        share = self.settings.gold_share
        if not share:
            return False
        (done,) = db.execute(
            "SELECT count(*) FROM votes WHERE annotator = ? AND undone IS NULL", (annotator,)
        ).fetchone()
        drawn = content_hash("gold turn", self.settings.seed, annotator, done, length=13)
        return int(drawn, 16) / 16**13 < share

    def _others_hold(self, db: sqlite3.Connection, asked: dict[str, object]) -> bool:
        """Whether an item would be the person's, were it not in other hands."""
        return db.execute(NEXT_ITEM, asked | {"now": float("inf")}).fetchone() is not None

    def item(self, annotator: str, item_id: str) -> Handed:
        """An item that was handed to a person. Raises VoteRefused where it was not."""
        with self._lock:
            row = self._db.execute(
                "SELECT body, prelabel_shown FROM items JOIN handed USING (item_id) "
                "WHERE annotator = ? AND item_id = ?",
                (annotator, item_id),
            ).fetchone()
        if row is None:
            raise VoteRefused("this item was not handed to you; reload the page for another")
        return Handed(msgspec.json.decode(row[0], type=VoteItem), bool(row[1]))

    def record(self, vote: Vote, request: str) -> Vote:
        """Commit a vote; what is stored under its id, which is the same vote where it was sent
        before. `request` is the hash of what the browser sent. An earlier vote of the person on the
        item no longer counts. Raises VoteRefused where another vote has the id."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        vote = structs.replace(vote, created=now)
        with self._transaction() as db:
            known = db.execute(
                "SELECT request, body FROM votes WHERE vote_id = ?", (vote.vote_id,)
            ).fetchone()
            if known is not None:
                if known[0] != request:
                    raise VoteRefused(f"another vote has the id {vote.vote_id}")
                return msgspec.json.decode(known[1], type=Vote)
            who = {"who": vote.annotator, "item": vote.item_id, "now": now}
            db.execute(
                "UPDATE votes SET undone = :now "
                "WHERE annotator = :who AND item_id = :item AND undone IS NULL",
                who,
            )
            db.execute(
                "INSERT INTO votes (vote_id, item_id, annotator, verdict, request, body) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (
                    *(vote.vote_id, vote.item_id, vote.annotator, vote.verdict),
                    *(request, msgspec.json.encode(vote)),
                ),
            )
            db.execute(
                "UPDATE handed SET expires = 0 WHERE annotator = :who AND item_id = :item", who
            )
            self._count(db, vote.item_id)
        return vote

    def undo(self, annotator: str, vote_id: str, now: float) -> None:
        """Take back a person's own vote: the item is in the person's hands again. Undoing twice is
        undoing once. Raises VoteRefused for a vote that is not the person's."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT item_id, undone FROM votes WHERE vote_id = ? AND annotator = ?",
                (vote_id, annotator),
            ).fetchone()
            if row is None:
                raise VoteRefused("there is no such vote of yours")
            if row[1] is not None:
                return
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            db.execute("UPDATE votes SET undone = ? WHERE vote_id = ?", (time, vote_id))
            self._count(db, row[0])
            # Before any item that the person already holds: a longer lease comes first.
            self._hold(db, annotator, row[0], now)

    def _count(self, db: sqlite3.Connection, item_id: str) -> None:
        is_open = "SELECT open AND NOT gold FROM items WHERE item_id = ?"
        (before,) = db.execute(is_open, (item_id,)).fetchone()
        db.execute(COUNT_VOTES, {"item": item_id})
        db.execute(
            "UPDATE items SET open = votes < ? WHERE item_id = ?",
            (self.settings.overlap, item_id),
        )
        (after,) = db.execute(is_open, (item_id,)).fetchone()
        self._open_items += after - before

    def progress(self, annotator: str) -> Progress:
        """Where a person stands."""
        with self._lock:
            (done,) = self._db.execute(
                "SELECT count(*) FROM votes WHERE annotator = ? AND undone IS NULL", (annotator,)
            ).fetchone()
            last = self._db.execute(
                "SELECT vote_id FROM votes WHERE annotator = ? AND undone IS NULL "
                "ORDER BY place DESC LIMIT 1",
                (annotator,),
            ).fetchone()
        complete = self.total - self._open_items
        return Progress(done, complete, self.total, None if last is None else last[0])
