"""The index of a run's records: an SQLite file in the user's cache, made from the commit logs.

It is derived and disposable. A chunk of whole batches and the place up to which its file is indexed
are one transaction, so a kill loses that chunk's work and nothing else, and several processes may
build one index: each goes on from where the last transaction ended. An index of another run, other
steps or another form, and one whose files are not those that were indexed, is made anew.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from rlaif.core import integrity
from rlaif.core.errors import StoreError
from rlaif.core.records import VALUED, content_hash
from rlaif.core.rowfiles import kind_of, list_shards, locate_byte, whole_bytes
from rlaif.web.ui import extract
from rlaif.web.ui.extract import KINDS, NO_PRINCIPLE, PROMPTS, address_of, key_of

FORM = 1
"""Changes when the index of the same records is another."""
CHUNK = 4 << 20
"""Bytes that are indexed in one transaction, or one batch."""
WAIT = 60.0
"""Seconds to wait for another process's transaction."""
TABLES = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE files (place INTEGER, kind TEXT, end INTEGER, commits INTEGER, digest TEXT,
    PRIMARY KEY (place, kind)) WITHOUT ROWID;
CREATE TABLE names (id INTEGER PRIMARY KEY, kind TEXT, name TEXT, UNIQUE (kind, name));
CREATE TABLE prompts (id INTEGER PRIMARY KEY, key INTEGER);
CREATE TABLE completions (id INTEGER PRIMARY KEY, prompt INTEGER, key INTEGER, words INTEGER);
CREATE TABLE judgements (id INTEGER PRIMARY KEY, prompt INTEGER, key INTEGER, subject INTEGER,
    other INTEGER, judge INTEGER, principle INTEGER, status INTEGER, value REAL);
CREATE TABLE preferences (id INTEGER PRIMARY KEY, prompt INTEGER, key INTEGER, margin REAL,
    gap INTEGER, judges INTEGER, orders INTEGER);
CREATE TABLE stands (pair INTEGER, judge INTEGER, principle INTEGER, margin REAL, orders INTEGER,
    PRIMARY KEY (pair, judge, principle)) WITHOUT ROWID;
CREATE TABLE unsettled (number INTEGER PRIMARY KEY AUTOINCREMENT, pair INTEGER);
CREATE TABLE answers (id INTEGER PRIMARY KEY, key INTEGER);
CREATE INDEX prompts_key ON prompts (key);
CREATE INDEX completions_prompt ON completions (prompt);
CREATE INDEX judgements_prompt ON judgements (prompt, subject);
CREATE INDEX judgements_filters ON judgements (judge, principle, status, value);
CREATE INDEX judgements_value ON judgements (value);
CREATE INDEX preferences_prompt ON preferences (prompt);
CREATE INDEX answers_key ON answers (key);
"""
SEARCHED = (PROMPTS, "completions", "judgements", "preferences")
"""The tables whose records have a text: each has a `TABLE_text`, with the same row ids."""


@dataclass(frozen=True, slots=True)
class Source:
    """The records of a run: its folder, the hashes of its steps in the order of the manifest, and
    the checksum of its file of prompts, which is written whole."""

    root: Path
    steps: tuple[str, ...]
    prompts: str

    @property
    def key(self) -> str:
        """What an index of this run has as its own."""
        return content_hash(FORM, str(self.root), self.steps, self.prompts)

    def file(self, place: int, kind: str) -> Path:
        """A record file. Places count from 1; 0 is the run itself, which has the prompts."""
        if place == 0:
            return self.root / f"{kind}.jsonl"
        return self.root / "steps" / self.steps[place - 1] / f"{kind}.jsonl"

    def files(self) -> Iterator[tuple[int, str]]:
        """Place and kind of every record file that there may be, in the order of indexing."""
        yield 0, PROMPTS
        for kind in KINDS:
            for place in range(1, len(self.steps) + 1):
                yield place, kind
                # Files that go on from it are kinds of their own, of which each has its progress.
                yield from ((place, path.stem) for path in list_shards(self.file(place, kind))[1:])

    def begin(self, place: int, name: str) -> int:
        """Which byte of all the records of its kind a record file begins with."""
        path = self.file(place, name)
        before = itertools.takewhile(
            lambda shard: shard != path, list_shards(self.file(place, kind_of(path)))
        )
        return sum(shard.stat().st_size for shard in before)


class Changed(Exception):
    """The files are not those that were indexed."""


class Stopped(Exception):
    """The caller wanted no more."""


def make_source(root: Path, manifest: dict[str, Any]) -> Source:
    """The records of the run in `root`."""
    steps = tuple(dict.fromkeys(step["hash"] for step in manifest["steps"]))
    prompts = manifest.get("files", {}).get("prompts.jsonl") or manifest["prompts"]["hash"]
    return Source(root.resolve(), steps, str(prompts))


def locate_index(root: Path) -> Path:
    """The file of a run's index; RLAIF_CACHE moves its folder."""
    cache = Path(os.environ.get("RLAIF_CACHE") or platformdirs.user_cache_dir("rlaif"))
    return cache / "ui" / f"{content_hash(str(root.resolve()))}.sqlite"


@contextmanager
def open_index(path: Path, key: str) -> Iterator[sqlite3.Connection | None]:
    """The index in a file for reading; None where there is none of this key."""
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=WAIT)
    except sqlite3.OperationalError:
        yield None
        return
    with closing(db):
        try:
            row = db.execute("SELECT value FROM about WHERE key = 'key'").fetchone()
        except sqlite3.DatabaseError:
            row = None
        yield db if row == (key,) else None


def grow_index(
    path: Path, source: Source, go_on: Callable[[], bool] = lambda: True
) -> tuple[int, int]:
    """Index what was committed since the last call. Returns how many bytes are indexed, and how
    many there are; `go_on` is asked between transactions.

    Raises StoreError where a batch is not what was written.
    """
    for _ in range(2):
        try:
            with closing(_open_writer(path)) as db:
                _settle_form(db, source.key)
                return _grow(db, source, go_on)
        except Changed:
            _drop_tables(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                raise
            # Damaged: it is derived, so it is made anew.
            for end in ("", "-wal", "-shm"):
                path.with_name(path.name + end).unlink(missing_ok=True)
    raise StoreError(f"{source.root}: its files change while they are indexed. Try again.")


def _open_writer(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA cache_size = -65536")
    return db


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _settle_form(db: sqlite3.Connection, key: str) -> None:
    """Make the tables, unless they are there for this key."""
    with _transaction(db):
        names = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        if "about" in names:
            row = db.execute("SELECT value FROM about WHERE key = 'key'").fetchone()
            if row == (key,):
                return
        _drop_all(db)
        for statement in filter(str.strip, TABLES.split(";")):
            db.execute(statement)
        for name in SEARCHED:
            db.execute(
                f"CREATE VIRTUAL TABLE {name}_text USING fts5(body, content='', columnsize=0)"
            )
        db.execute("INSERT INTO about VALUES ('key', ?)", (key,))


def _drop_all(db: sqlite3.Connection) -> None:
    tables = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
    # A virtual table takes its own tables with it.
    for name, _sql in sorted(tables, key=lambda row: not str(row[1]).startswith("CREATE VIRTUAL")):
        with suppress(sqlite3.OperationalError):
            db.execute(f'DROP TABLE IF EXISTS "{name}"')


def _drop_tables(path: Path) -> None:
    with closing(_open_writer(path)) as db, _transaction(db):
        _drop_all(db)


def _grow(db: sqlite3.Connection, source: Source, go_on: Callable[[], bool]) -> tuple[int, int]:
    builder = _Builder(db, source)
    done, total, last = 0, 0, 0
    for place, kind in source.files():
        size, end = _committed(source.file(place, kind)), 0
        more = True
        while more and go_on():
            with _transaction(db):
                end, more = builder.add_chunk(place, kind, size)
        done, total = done + min(end, size), total + size
        if kind_of(source.file(place, kind)) == "preferences":
            # What these were made from was committed before them, and is indexed after them.
            last = db.execute("SELECT MAX(number) FROM unsettled").fetchone()[0] or 0
    more = True
    while more and go_on():
        with _transaction(db):
            more = builder.settle_pairs(last) > 0
    return done, total


def _committed(path: Path) -> int:
    """Bytes of whole batches. A file without a log is whole: that of the prompts."""
    if path.name == f"{PROMPTS}.jsonl":
        return path.stat().st_size if path.exists() else 0
    return whole_bytes(path) if path.exists() else 0


def committed_bytes(source: Source) -> int:
    """Bytes of whole batches in all files that are indexed."""
    return sum(_committed(source.file(place, kind)) for place, kind in source.files())


class _Builder:
    """Adds records to an index, inside the caller's transactions."""

    def __init__(self, db: sqlite3.Connection, source: Source):
        self.db = db
        self.source = source
        self._log: tuple[Path, int, list[integrity.Commit]] | None = None

    def add_chunk(self, place: int, kind: str, size: int) -> tuple[int, bool]:
        """Index about `CHUNK` more bytes of one file, of whose `size` bytes are committed. Returns
        where the index of it ends, and whether there is more. Raises Changed, StoreError."""
        at = (place, kind)
        row = self.db.execute(
            "SELECT end, commits, digest FROM files WHERE place = ? AND kind = ?", at
        ).fetchone()
        if row is None and not size:
            return 0, False
        end, commits, digest = row or (0, 0, "")
        path = self.source.file(place, kind)
        log = self._read_log(path, commits)
        if end > size or (commits and (not log or (log[0].end, log[0].digest) != (end, digest))):
            raise Changed
        if end == size:
            return end, False
        block, new = _read_chunk(path, end, size, log[commits > 0 :], commits)
        try:
            self._add_rows(place, kind, block, end)
        except ValueError:
            raise StoreError(f"{path}: damaged between bytes {end} and {new[0]}.") from None
        self.db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", (*at, *new))
        return new[0], new[0] < size

    def _read_log(self, path: Path, commits: int) -> list[integrity.Commit]:
        """The commits of a file from the last of the `commits` that are indexed on; none of a file
        without a log. It is read once for each file."""
        first = max(commits - 1, 0)
        if self._log is None or self._log[0] != path or self._log[1] > first:
            found = []
            if integrity.log_of(path).exists():
                found = integrity.read_log(path, _advice(path), first)
            self._log = (path, first, found)
        return self._log[2][first - self._log[1] :]

    def _add_rows(self, place: int, kind: str, block: bytes, start: int) -> None:
        start += self.source.begin(place, kind)
        kind = kind_of(self.source.file(place, kind))
        add = getattr(self, f"_add_{kind}")
        record = extract.Question if kind == PROMPTS else KINDS[kind]
        lines = extract.decode_lines(record, block, start)
        add([(address_of(place, line.offset), line.record) for line in lines])

    def _insert(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            places = ", ".join("?" * len(rows[0]))
            self.db.executemany(f"INSERT INTO {table} VALUES ({places})", rows)

    def _insert_texts(self, table: str, texts: Sequence[tuple[int, str]]) -> None:
        self.db.executemany(f"INSERT INTO {table}_text (rowid, body) VALUES (?, ?)", texts)

    def _add_prompts(self, lines: Sequence[tuple[int, extract.Question]]) -> None:
        self._insert("prompts", [(at, key_of(p.prompt_id)) for at, p in lines])
        texts = [(at, extract.clean_text(extract.text_of(p.messages))) for at, p in lines]
        self._insert_texts("prompts", texts)

    def _add_completions(self, lines: Sequence[tuple[int, extract.Answer]]) -> None:
        rows = [
            (at, key_of(a.prompt_id), key_of(a.completion_id), extract.answer_words(a))
            for at, a in lines
        ]
        self._insert("completions", rows)
        said = [
            (at, extract.clean_text(extract.text_of(a.messages), a.reasoning, a.error))
            for at, a in lines
        ]
        self._insert_texts("completions", said)

    def _add_judgements(self, lines: Sequence[tuple[int, extract.Verdict]]) -> None:
        ids = self._name_ids(
            {("judge", j.judge) for _, j in lines}
            | {("principle", j.principle or NO_PRINCIPLE) for _, j in lines}
            | {("status", j.status) for _, j in lines}
        )
        rows = []
        for at, j in lines:
            # Of two answers side by side the first is the subject, whose probability it gives.
            first, other = j.shown[:2] if j.compares else (j.subject, None)
            value = j.prob_first if j.compares else j.score
            rows.append(
                (
                    *(at, key_of(j.prompt_id), key_of(j.judgement_id), key_of(first)),
                    None if other is None else key_of(other),
                    ids["judge", j.judge],
                    ids["principle", j.principle or NO_PRINCIPLE],
                    ids["status", j.status],
                    value if j.status in VALUED else None,
                )
            )
        self._insert("judgements", rows)
        texts = ((at, extract.clean_text(j.rationale, j.raw, j.error)) for at, j in lines)
        self._insert_texts("judgements", [(at, text) for at, text in texts if text])

    def _add_preferences(self, lines: Sequence[tuple[int, extract.Pair]]) -> None:
        rows = [
            (*(at, key_of(p.prompt_id), key_of(p.preference_id), p.margin),
             *(extract.length_gap(p), None, None))
            for at, p in lines
        ]  # fmt: skip
        self._insert("preferences", rows)
        self._insert("unsettled", [(None, at) for at, p in lines if p.judgement_ids])
        texts = [
            (at, extract.clean_text(*map(extract.text_of, (p.prompt, p.chosen, p.rejected))))
            for at, p in lines
        ]
        self._insert_texts("preferences", texts)

    def _add_answers(self, lines: Sequence[tuple[int, extract.Asked]]) -> None:
        self._insert("answers", [(at, key_of(a.call_id)) for at, a in lines])

    def _name_ids(self, names: set[tuple[str, str]]) -> dict[tuple[str, str], int]:
        clean = {(kind, name): extract.clean_text(name) for kind, name in sorted(names)}
        self.db.executemany(
            "INSERT OR IGNORE INTO names (kind, name) VALUES (?, ?)",
            [(kind, name) for (kind, _), name in clean.items()],
        )
        ids = {(kind, name): i for i, kind, name in self.db.execute("SELECT * FROM names")}
        return {(kind, name): ids[kind, text] for (kind, name), text in clean.items()}

    def settle_pairs(self, last: int) -> int:
        """Compare some of the pairs up to number `last` with the judgements that they were made
        from. Returns how many."""
        found = self.db.execute(
            "SELECT number, pair FROM unsettled WHERE number <= ? LIMIT 500", (last,)
        ).fetchall()
        for _, address in found:
            self._settle_pair(address)
        numbers = [(number,) for number, _ in found]
        self.db.executemany("DELETE FROM unsettled WHERE number = ?", numbers)
        return len(found)

    def _settle_pair(self, address: int) -> None:
        place, offset = extract.split_address(address)
        path, start = locate_byte(self.source.file(place, "preferences"), offset)
        with path.open("rb") as file:
            file.seek(start)
            line = next(extract.decode_lines(extract.Pair, file.readline(), offset))
        pair: extract.Pair = line.record
        behind = {key_of(name) for name in pair.judgement_ids}
        rows = self.db.execute(
            "SELECT key, judge, principle, subject, other, value FROM judgements "
            "WHERE prompt = ? AND value IS NOT NULL ORDER BY id",
            (key_of(pair.prompt_id),),
        )
        opinions = [extract.Opinion(*row) for key, *row in rows if key in behind]
        stands = extract.stands_on(key_of(pair.chosen_id), key_of(pair.rejected_id), opinions)
        self._insert("stands", [(address, *stand) for stand in stands])
        if stands:
            self.db.execute(
                "UPDATE preferences SET judges = ?, orders = ? WHERE id = ?",
                (extract.judges_differ(stands), any(s.orders for s in stands), address),
            )


def _advice(path: Path) -> str:
    return f"Delete the folder {path.parent} and run the experiment again."


def _read_chunk(
    path: Path, start: int, size: int, log: Sequence[integrity.Commit], commits: int
) -> tuple[bytes, tuple[int, int, str]]:
    """The next whole batches of a file, about `CHUNK` bytes of them, and where they end: the byte,
    the number of batches so far and the checksum of the last. A file without a log is read by
    lines. Raises StoreError where a batch is not what was written."""
    with path.open("rb") as file:
        file.seek(start)
        if not log:
            block = file.read(min(CHUNK, size - start))
            if not block.endswith(b"\n"):
                block += file.readline()
            return block, (start + len(block), 0, "")
        blocks: list[bytes] = []
        end, last = start, ""
        for commit in log:
            if commit.end > size or (blocks and commit.end - start > CHUNK):
                break
            batch = file.read(commit.end - end)
            if integrity.digest(batch) != commit.digest:
                raise StoreError(
                    f"{path}: bytes {end} to {commit.end} are damaged. {_advice(path)}"
                )
            blocks.append(batch)
            end, last, commits = commit.end, commit.digest, commits + 1
        return b"".join(blocks), (end, commits, last)
