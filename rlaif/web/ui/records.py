"""The records behind addresses, read from the run folder, and what belongs to one prompt."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rlaif.core.errors import StoreError
from rlaif.core.groups import group_by
from rlaif.core.rowfiles import locate_byte
from rlaif.report.browser import (
    answer_text,
    clip_text,
    count_own_words,
    format_conversation,
    judgement_entry,
)
from rlaif.web.ui.extract import key_of, split_address, text_of
from rlaif.web.ui.index import Source

Row = dict[str, Any]
ANSWERS = 12
"""Answers on a prompt's page."""
JUDGEMENTS = 200
"""Judgements that are shown of one answer."""
EXCERPT = 280


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record is from: the step, its round, seed and arms."""

    step: str
    kind: str
    round: int
    seed: int
    arms: tuple[str, ...]


Places = Mapping[int, Sequence[Place]]
"""By the place in addresses, where a step is in the run: once for each seed or round that it
serves."""


def list_places(manifest: Mapping[str, Any], source: Source) -> Places:
    """The steps of a run."""
    numbers = {digest: place for place, digest in enumerate(source.steps, 1)}
    found: dict[int, list[Place]] = {}
    for step in manifest["steps"]:
        known = (step["id"], step["kind"], step["round"], step["seed"], tuple(step["arms"]))
        found.setdefault(numbers[step["hash"]], []).append(Place(*known))
    return found


class Reader:
    """Reads rows by their addresses. Files are open while it is entered."""

    def __init__(self, source: Source):
        self._source = source
        self._files: dict[Path, BinaryIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def row(self, kind: str, address: int) -> Row:
        """The row of a record file. Raises StoreError where there is none any more."""
        place, offset = split_address(address)
        path, start = locate_byte(self._source.file(place, kind), offset)
        try:
            file = self._files.get(path)
            if file is None:
                file = self._files[path] = self._stack.enter_context(path.open("rb"))
            file.seek(start)
            row = json.loads(file.readline().decode("utf-8", "surrogatepass"))
        except (OSError, ValueError):
            row = None
        if not isinstance(row, dict):
            raise StoreError(f"{path}: changed since it was indexed. Load the page again.")
        return row


def find_prompt(db: sqlite3.Connection, reader: Reader, prompt_id: str) -> Row | None:
    """A prompt's JSON; as one of its pairs has it where the run's prompts lack it; None where
    neither is there."""
    key = (key_of(prompt_id),)
    found = db.execute("SELECT id FROM prompts WHERE key = ?", key).fetchone()
    if found is not None:
        return reader.row("prompts", found[0])
    found = db.execute("SELECT id FROM preferences WHERE prompt = ? LIMIT 1", key).fetchone()
    if found is not None:
        return {"prompt_id": prompt_id, "messages": reader.row("preferences", found[0])["prompt"]}
    return None


def list_answers(db: sqlite3.Connection, prompt_id: str) -> list[tuple[int, int]]:
    """Address and key of every answer to a prompt, in the order of the run."""
    found = db.execute(
        "SELECT id, key FROM completions WHERE prompt = ? ORDER BY id", (key_of(prompt_id),)
    )
    return found.fetchall()


def show_answers(
    db: sqlite3.Connection,
    reader: Reader,
    places: Places,
    prompt_id: str,
    shown: Sequence[tuple[int, int]],
) -> list[Row]:
    """Answers of a prompt (address and key) with all their judgements and what these rest on."""
    judged = _read_judgements(db, reader, prompt_id, {key for _, key in shown})
    anchored: set[int] = set()
    behind = _read_behind(db, reader, (row for rows in judged.values() for _, row in rows))
    found = []
    for address, key in shown:
        row = reader.row("completions", address)
        place = places[split_address(address)[0]][0]
        rows = judged[key]
        entries = []
        for at, own in rows[:JUDGEMENTS]:
            entry = judgement_entry(own, behind, row["completion_id"])
            entry |= {"id": own["judgement_id"], "error": own.get("error")}
            # One of two answers side by side is under both of them.
            entry |= {"anchor": at not in anchored, "place": places[split_address(at)[0]][0]}
            anchored.add(at)
            entries.append(entry)
        found.append(
            {
                "id": row["completion_id"],
                "place": place,
                "model": row["model"],
                "finish": row["finish_reason"],
                "text": clip_text(answer_text(row)),
                "words": count_own_words(row),
                "reasoning": clip_text(row.get("reasoning") or ""),
                "error": row.get("error"),
                "parent": row.get("parent_id"),
                "judges": list(group_by(entries, lambda entry: entry["judge"]).items()),
                "hidden": max(0, len(rows) - JUDGEMENTS),
            }
        )
    return found


def _read_judgements(
    db: sqlite3.Connection, reader: Reader, prompt_id: str, keys: set[int]
) -> dict[int, list[tuple[int, Row]]]:
    """By answer, address and JSON of the judgements that are about it, or compare it: no more than
    are shown are read."""
    found: dict[int, list[int]] = defaultdict(list)
    rows = db.execute(
        "SELECT id, subject, other FROM judgements WHERE prompt = ? ORDER BY id",
        (key_of(prompt_id),),
    )
    for address, *about in rows:
        for key in keys.intersection(about):
            found[key].append(address)
    read: dict[int, Row] = {}
    result: dict[int, list[tuple[int, Row]]] = defaultdict(list)
    for key, addresses in found.items():
        for number, address in enumerate(addresses):
            if number < JUDGEMENTS and address not in read:
                read[address] = reader.row("judgements", address)
            result[key].append((address, read.get(address, {})))
    return result


def _read_behind(db: sqlite3.Connection, reader: Reader, rows: Iterable[Row]) -> dict[str, Row]:
    """The stored answers that verdicts rest on, by call id; the last one to a call."""
    calls = {call for row in rows for call in row.get("rests_on") or ()}
    found: dict[str, Row] = {}
    for call in sorted(calls):
        key = (key_of(call),)
        row = db.execute("SELECT MAX(id) FROM answers WHERE key = ?", key).fetchone()
        if row[0] is not None:
            found[call] = reader.row("answers", row[0])
    return found


def show_pairs(
    db: sqlite3.Connection, reader: Reader, places: Places, addresses: Iterable[int]
) -> list[Row]:
    """Pairs with how each judge stands on them, by principle."""
    names = dict(db.execute("SELECT id, name FROM names"))
    found = []
    for address in addresses:
        row = reader.row("preferences", address)
        gap, judges, orders = db.execute(
            "SELECT gap, judges, orders FROM preferences WHERE id = ?", (address,)
        ).fetchone()
        stands = db.execute(
            "SELECT judge, principle, margin, orders FROM stands WHERE pair = ?", (address,)
        )
        found.append(
            {
                "id": row["preference_id"],
                "prompt_id": row["prompt_id"],
                "place": places[split_address(address)[0]][0],
                "prompt": format_conversation(row["prompt"]) if row["prompt"] else "",
                "chosen": clip_text(text_of(row["chosen"])),
                "rejected": clip_text(text_of(row["rejected"])),
                "paired": bool(row["chosen"] and row["rejected"]),
                "chosen_id": row["chosen_id"],
                "rejected_id": row["rejected_id"],
                "score_chosen": row["score_chosen"],
                "score_rejected": row["score_rejected"],
                "margin": row["margin"],
                "gap": gap,
                "reason": row["reason"],
                "source": row["source"],
                "judges_differ": bool(judges),
                "orders_differ": bool(orders),
                "stands": [(names[j], names[p], margin, bool(o)) for j, p, margin, o in stands],
            }
        )
    return found


def pairs_of(db: sqlite3.Connection, prompt_id: str) -> list[int]:
    """The addresses of a prompt's pairs, in the order of the run."""
    found = db.execute(
        "SELECT id FROM preferences WHERE prompt = ? ORDER BY id", (key_of(prompt_id),)
    )
    return [address for (address,) in found]


def list_items(
    db: sqlite3.Connection,
    reader: Reader,
    places: Places,
    show: str,
    addresses: Sequence[int],
) -> list[Row]:
    """One page of a list: pairs, answers, judgements or prompts, each with its `prompt_id`."""
    if show == "pairs":
        return show_pairs(db, reader, places, addresses)
    items = {"answers": _answer_item, "judgements": _judgement_item, "prompts": _prompt_item}
    return [items[show](db, reader, places, address) for address in addresses]


def _answer_item(db: sqlite3.Connection, reader: Reader, places: Places, address: int) -> Row:
    row = reader.row("completions", address)
    text = answer_text(row)
    return {
        "id": row["completion_id"],
        "prompt_id": row["prompt_id"],
        "place": places[split_address(address)[0]][0],
        "prompt": _prompt_text(db, reader, row["prompt_id"]),
        "model": row["model"],
        "text": clip_text(text),
        "words": count_own_words(row),
        "finish": row["finish_reason"],
        "error": row.get("error"),
    }


def _judgement_item(db: sqlite3.Connection, reader: Reader, places: Places, address: int) -> Row:
    row = reader.row("judgements", address)
    behind = _read_behind(db, reader, [row])
    return {
        **judgement_entry(row, behind, row["subject"]),
        "id": row["judgement_id"],
        "anchor": False,
        "prompt_id": row["prompt_id"],
        "subject": row["subject"],
        "error": row.get("error"),
        "place": places[split_address(address)[0]][0],
        "prompt": _prompt_text(db, reader, row["prompt_id"]),
    }


def _prompt_item(db: sqlite3.Connection, reader: Reader, _places: Places, address: int) -> Row:
    row = reader.row("prompts", address)
    key = (key_of(row["prompt_id"]),)
    counts = {
        name: db.execute(f"SELECT COUNT(*) FROM {table} WHERE prompt = ?", key).fetchone()[0]
        for name, table in (("answers", "completions"), ("pairs", "preferences"))
    }
    return {
        "id": row["prompt_id"],
        "prompt_id": row["prompt_id"],
        "prompt": format_conversation(row["messages"]),
        "source": row.get("source") or "",
        "tags": row.get("tags") or [],
        **counts,
    }


def _prompt_text(db: sqlite3.Connection, reader: Reader, prompt_id: str) -> str:
    row = find_prompt(db, reader, prompt_id)
    return format_conversation(row["messages"]) if row and row["messages"] else prompt_id


def make_excerpt(text: str, q: str) -> str:
    """The part of a text around the first word of a search, or its beginning."""
    words = [w.strip('"*').lower() for w in q.split()]
    lower = text.lower()
    places = [at for w in words if w and (at := lower.find(w)) >= 0]
    start = max(0, min(places, default=0) - EXCERPT // 3)
    end = start + EXCERPT
    return ("… " if start else "") + text[start:end].strip() + (" …" if end < len(text) else "")
