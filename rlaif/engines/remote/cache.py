"""The request cache: every answer that a server gave, by the hash of what it was asked.

SQLite in WAL mode, so several processes read and write one file. A commit survives the death of the
process at any moment; with `synchronous=NORMAL` a power cut may take the last ones, and those calls
are then made again.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif.core.errors import ConfigError, StoreError
from rlaif.core.integrity import CHECK, is_whole, seal_row
from rlaif.engines.model_folders import cache_folder

FORMAT = 1
LIMIT_GB = 10.0
KEPT = 0.9
"""Share of the limit that is left when old answers are dropped."""
CHECK_EVERY = 1000
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, url TEXT NOT NULL,
    request TEXT NOT NULL, answer TEXT NOT NULL, made REAL NOT NULL, used REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answers_used ON answers (used);
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer to keep: `request` is the body that was sent, `answer` what came, without keys of
    the account."""

    key: str
    model: str
    url: str
    request: dict[str, Any]
    answer: dict[str, Any]


def cache_path() -> Path:
    """The cache's file; RLAIF_CACHE moves its folder."""
    return cache_folder() / "requests.sqlite"


def cache_limit() -> int:
    """The largest size of the file in bytes: RLAIF_CACHE_GB, or 10 GB."""
    text = os.environ.get("RLAIF_CACHE_GB")
    try:
        limit = float(text) if text else LIMIT_GB
    except ValueError:
        limit = -1.0
    if not 0 < limit < 1e6:
        raise ConfigError(f"RLAIF_CACHE_GB={text}: expected a number of gigabytes above 0")
    return int(limit * 1e9)


class RequestCache:
    """An open cache, for one thread. Raises StoreError for a file that cannot be used."""

    def __init__(self, path: Path, limit: int):
        self.path = path
        self.limit = limit
        self._unchecked = 0
        with self._explain_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60.0, isolation_level=None)
            self._prepare_database()

    def _prepare_database(self) -> None:
        version = self._query_number("PRAGMA user_version")
        if version not in (0, FORMAT):
            raise StoreError(
                f"{self.path} is a request cache of format {version}; this version reads {FORMAT}. "
                "Move it away, or set RLAIF_CACHE to another folder."
            )
        if version == 0:
            # Both hold for a new file only: before the first table.
            self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.executescript(SCHEMA)
            self._db.execute(f"PRAGMA user_version={FORMAT}")
        self._db.execute("PRAGMA synchronous=NORMAL")

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"{self.path}: the request cache cannot be used ({error}). Mend or move the file, "
                "set RLAIF_CACHE to another folder, or set `cache: false` for the model."
            ) from None

    @contextmanager
    def _open_transaction(self) -> Iterator[None]:
        with self._explain_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the file; the cache cannot be used afterwards."""
        self._db.close()

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer to `key`, or None; a damaged one is as if it were not there."""
        with self._explain_errors():
            row = self._db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return _decode_answer(key, row[0]) if row else None

    def put(self, entries: Sequence[Entry], used: Sequence[str] = ()) -> None:
        """Commit all of `entries` or none, and note that the answers to `used` were of use."""
        now = time.time()
        # ASCII, since an answer may hold half a surrogate pair and SQLite takes none.
        rows = [
            (
                e.key,
                e.model,
                e.url,
                json.dumps(e.request),
                _encode_answer(e.key, e.answer),
                now,
                now,
            )
            for e in entries
        ]
        with self._open_transaction():
            self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?,?,?,?,?,?,?)", rows)
            self._db.executemany(
                "UPDATE answers SET used = ? WHERE key = ?", [(now, k) for k in used]
            )
        self._unchecked += len(rows)
        if self._unchecked >= CHECK_EVERY:
            self._unchecked = 0
            self.shrink(self.limit)

    def size(self) -> int:
        """Bytes that the answers take."""
        pages = self._query_number("PRAGMA page_count") - self._query_number(
            "PRAGMA freelist_count"
        )
        return pages * self._query_number("PRAGMA page_size")

    def shrink(self, limit: int) -> int:
        """Drop the answers that were of use longest ago, until nine tenths of `limit` bytes are
        left, where there are more than `limit`. How many were dropped."""
        size = self.size()
        if size <= limit:
            return 0
        count = self._query_number("SELECT count(*) FROM answers")
        # Answers are near enough of one size for a share of them to be that share of the bytes.
        drop = min(count, -(-count * (size - int(KEPT * limit)) // size))
        query = "key IN (SELECT key FROM answers ORDER BY used LIMIT ?)"
        return self._delete_answers(query, (drop,))

    def prune(self, before: float | None = None, model: str | None = None) -> int:
        """Drop the answers last of use before the time `before` (seconds since 1970) and of
        `model`; every answer when neither is given. How many were dropped."""
        return self._delete_answers(
            "(? IS NULL OR used < ?) AND (? IS NULL OR model = ?)", (before, before, model, model)
        )

    def _delete_answers(self, where: str, values: tuple[Any, ...]) -> int:
        with self._open_transaction():
            return self._db.execute(f"DELETE FROM answers WHERE {where}", values).rowcount

    def compact(self) -> None:
        """Return the space of dropped answers to the disk; otherwise new answers reuse it."""
        with self._explain_errors():
            # As a script: a single `execute` takes one step, and this pragma frees a page a step.
            self._db.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE);")

    def stats(self) -> dict[str, Any]:
        """Size in bytes, the limit, and of each model the answers and when the last was of use."""
        query = (
            "SELECT model, url, count(*), sum(length(request) + length(answer)), max(used) "
            "FROM answers GROUP BY model, url ORDER BY model, url"
        )
        with self._explain_errors():
            rows = self._db.execute(query).fetchall()
        names = ("model", "base_url", "answers", "bytes", "last_used")
        return {
            "path": str(self.path),
            "bytes": self.size(),
            "limit": self.limit,
            "answers": sum(row[2] for row in rows),
            "models": [dict(zip(names, row, strict=True)) for row in rows],
        }

    def rows(self, model: str | None = None) -> Iterator[dict[str, Any]]:
        """Every answer (of `model`) with its request, by key."""
        query = (
            "SELECT key, model, url, request, answer, made FROM answers "
            "WHERE ? IS NULL OR model = ? ORDER BY key"
        )
        with self._explain_errors(), closing(self._db.execute(query, (model, model))) as cursor:
            for key, name, url, request, answer, made in cursor:
                found = _decode_answer(key, answer)
                if found is not None:
                    yield {
                        "key": key,
                        "model": name,
                        "base_url": url,
                        "request": _decode_request(request),
                        "answer": found,
                        "made": made,
                    }

    def _query_number(self, query: str) -> int:
        with self._explain_errors():
            (value,) = self._db.execute(query).fetchone()
        return int(value)


def _encode_answer(key: str, answer: dict[str, Any]) -> str:
    """An answer as it is stored: with a checksum that also covers whose answer it is."""
    return json.dumps({**answer, CHECK: seal_row({**answer, "": key})[CHECK]})


def _decode_answer(key: str, text: str) -> dict[str, Any] | None:
    """The answer in a stored text, or None where it is damaged: it is then asked for again. Earlier
    versions stored no checksum."""
    try:
        row = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    if not isinstance(row, dict) or (CHECK in row and not is_whole({**row, "": key})):
        return None
    return {name: value for name, value in row.items() if name != CHECK}


def _decode_request(text: str) -> Any:
    """What was asked, which is kept to be looked at; None where it is damaged."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
