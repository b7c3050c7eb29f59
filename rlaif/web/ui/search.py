"""Searching an index: what a page asks, as it stands in the URL, and the addresses of what matches.

Only the first `MOST` matches are counted and can be paged through; more filters reach the others.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_type_hints
from urllib.parse import urlencode

from rlaif.web.ui.extract import OFFSET_BITS

PAGE = 25
MOST = 10_000
SORTED, LOOKUPS = 50_000, 3_000
"""Matches of filters that are sorted, and those whose texts are looked at one by one."""
SHOWN = {
    "pairs": "preferences",
    "answers": "completions",
    "judgements": "judgements",
    "prompts": "prompts",
}
"""What can be listed, and the table that has it."""
DIFFER = {
    "judges": "judges disagree",
    "orders": "verdicts change with the order",
    "against": "a judge prefers the rejected answer",
}
STEPLESS = ("prompts",)


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked. Every field is a parameter of the URL; `low` and `high` are ends of a pair's
    margin or of a judgement's value, `gap_low` and `gap_high` of the length gap (of pairs: words
    of the chosen answer above those of the rejected) or of an answer's length in words."""

    show: str = "pairs"
    q: str = ""
    judge: str = ""
    principle: str = ""
    status: str = ""
    differ: str = ""
    step: str = ""
    alarm: str = ""
    low: float | None = None
    high: float | None = None
    gap_low: float | None = None
    gap_high: float | None = None
    page: int = 1

    def url(self, **changes: Any) -> str:
        """The query string of this query with some fields changed."""
        defaults = Query()
        values = asdict(replace(self, **changes))
        given = {n: v for n, v in values.items() if v != getattr(defaults, n)}
        return "?" + urlencode(given) if given else "?"


def read_query(given: Mapping[str, str]) -> Query:
    """The query in a URL's parameters. What is no value of its field counts as not given."""
    values: dict[str, Any] = {}
    kinds = get_type_hints(Query)
    for field in fields(Query):
        text = given.get(field.name, "").strip()
        if not text:
            continue
        if kinds[field.name] is str:
            values[field.name] = text.encode("utf-8", "replace").decode()
            continue
        try:
            number = float(text)
        except ValueError:
            continue
        if abs(number) < 1e12:
            values[field.name] = int(number) if field.name == "page" else number
    query = Query(**values)
    show = query.show if query.show in SHOWN else "pairs"
    return replace(query, show=show, page=max(1, query.page))


@dataclass(frozen=True, slots=True)
class Scope:
    """The steps and the judge to which a `step` or an `alarm` of a query leads: places of steps, or
    None for all."""

    places: tuple[int, ...] | None = None
    judge: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """The addresses on one page, and how many there are in all, up to `MOST`."""

    addresses: list[int]
    count: int
    pages: int

    @property
    def more(self) -> bool:
        """Whether there are more than are counted."""
        return self.count > MOST


def match_text(q: str) -> str:
    """The text of a search as FTS5 reads it: words, and phrases in quotation marks, all of which
    must be there; a word that ends in * is the beginning of one. Empty where there is no word."""
    found = []
    for phrase, word in re.findall(r'"([^"]*)"|(\S+)', q):
        begins = bool(word) and word.endswith("*")
        bare = (phrase or word.rstrip("*")).replace('"', " ").replace("\0", " ").strip()
        if re.search(r"\w", bare):
            found.append(f'"{bare}"' + "*" * begins)
    return " ".join(found)


def search(db: sqlite3.Connection, query: Query, scope: Scope = Scope()) -> Found:
    """What matches a query, in the order of the run."""
    conditions: list[str] = []
    values: list[Any] = []
    for condition, given in _conditions(db, query, scope):
        conditions.append(condition)
        values += given
    where = " AND ".join(conditions) or "1"
    found = _search_filters(db, query, where, values)
    if found is None:
        found = _search_in_order(db, query, where, values)
    start = (query.page - 1) * PAGE
    return Found(found[:MOST][start : start + PAGE], len(found), -(-min(len(found), MOST) // PAGE))


def _search_in_order(
    db: sqlite3.Connection, query: Query, where: str, values: Sequence[Any]
) -> list[int]:
    """The first matches, row by row in the order of the run."""
    table, text = SHOWN[query.show], match_text(query.q)
    source, address = f"{table} AS r NOT INDEXED", "r.id"
    if query.q:
        # Joined from the text's side, whose rows come in the same order.
        texts = f"{table}_text"
        source, address = (
            f"{texts} CROSS JOIN {table} AS r ON r.id = {texts}.rowid",
            f"{texts}.rowid",
        )
        where = f"{texts} MATCH ? AND {where}" if text else "0"
        values = [text, *values] if text else []
    rows = db.execute(
        f"SELECT {address} FROM {source} WHERE {where} ORDER BY {address} LIMIT {MOST + 1}", values
    )
    return [row for (row,) in rows]


def _search_filters(
    db: sqlite3.Connection, query: Query, where: str, values: Sequence[Any]
) -> list[int] | None:
    """The first matches by an index of judgements that has the filtered columns; None where there
    is none, or so many match the filters that going through the rows in order is quicker."""
    ranged = query.low is not None or query.high is not None
    filtered = query.judge or query.principle or query.status
    if query.show != "judgements" or not (ranged or filtered):
        return None
    by = "judgements_filters" if filtered or query.alarm else "judgements_value"
    most = LOOKUPS if query.q else SORTED
    rows = db.execute(
        f"SELECT r.id FROM judgements AS r INDEXED BY {by} WHERE {where} LIMIT {most + 1}", values
    )
    found = sorted(row for (row,) in rows)
    if len(found) > most:
        return None
    if query.q:
        text = match_text(query.q)
        look = "SELECT 1 FROM judgements_text WHERE judgements_text MATCH ? AND rowid = ?"
        found = [row for row in found if text and db.execute(look, (text, row)).fetchone()]
    return found[: MOST + 1]


def _conditions(
    db: sqlite3.Connection, query: Query, scope: Scope
) -> Iterable[tuple[str, list[Any]]]:
    """The parts of WHERE, each with its values; a filter that says nothing of what is shown has
    none."""
    judge, show = query.judge or scope.judge, query.show
    if scope.places is not None and show not in STEPLESS:
        yield _within(scope.places), []
    if show == "judgements":
        for column, name in (("judge", judge), ("principle", query.principle)):
            if name:
                yield f"r.{column} = ?", [name_id(db, column, name)]
        if query.status:
            yield "r.status = ?", [name_id(db, "status", query.status)]
        yield from _range("r.value", query.low, query.high)
    if show == "answers":
        yield from _range("r.words", query.gap_low, query.gap_high)
    if show == "pairs":
        yield from _range("r.margin", query.low, query.high)
        yield from _range("r.gap", query.gap_low, query.gap_high)
        yield from _stands(db, query, judge)


def _stands(db: sqlite3.Connection, query: Query, judge: str) -> Iterable[tuple[str, list[Any]]]:
    """By how judges stand on pairs. With a judge or a principle, disagreement is theirs."""
    if query.differ == "judges":
        yield "r.judges = 1", []
    conditions, values = [], []
    for column, name in (("judge", judge), ("principle", query.principle)):
        if name:
            conditions.append(f"s.{column} = ?")
            values.append(name_id(db, column, name))
    if query.differ == "orders":
        yield "r.orders = 1", []
        conditions.append("s.orders = 1")
    if query.differ == "against":
        conditions.append("s.margin < 0")
    if conditions:
        inner = " AND ".join(["s.pair = r.id", *conditions])
        yield f"EXISTS (SELECT 1 FROM stands AS s WHERE {inner})", values


def _range(column: str, low: float | None, high: float | None) -> Iterable[tuple[str, list[Any]]]:
    if low is not None:
        yield f"{column} >= ?", [low]
    if high is not None:
        yield f"{column} <= ?", [high]


def _within(places: tuple[int, ...]) -> str:
    """The condition that a row is of one of some steps: addresses from the first to the last, and
    among them those places."""
    if not places:
        return "0"
    first, last = min(places) << OFFSET_BITS, (max(places) + 1) << OFFSET_BITS
    inside = f"r.id >= {first} AND r.id < {last}"
    if len(places) == max(places) - min(places) + 1:
        return inside
    return f"{inside} AND (r.id >> {OFFSET_BITS}) IN ({', '.join(map(str, places))})"


def name_id(db: sqlite3.Connection, kind: str, name: str) -> int:
    """The number of a judge, a principle or a status; -1 of one that no record has."""
    row = db.execute("SELECT id FROM names WHERE kind = ? AND name = ?", (kind, name)).fetchone()
    return row[0] if row else -1


def list_names(db: sqlite3.Connection, kind: str) -> list[str]:
    """The judges, principles or statuses that records have."""
    rows = db.execute("SELECT name FROM names WHERE kind = ? AND name != '' ORDER BY name", (kind,))
    return [name for (name,) in rows]
