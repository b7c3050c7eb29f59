"""A votes database as rows, an item and its votes each: how it is read wherever a file of labelled
pairs is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from rlaif.data.votes import APPLICATION, Vote, open_votes, read_votes, settings_of, stream_items

MAGIC = b"SQLite format 3\x00"
UNREAD = ("vote_id", "item_id", "seconds", "created")
"""What no label depends on: the same votes given again, at another time, are the same data."""


def is_votes(path: Path) -> bool:
    """Whether a file is a votes database, whatever it is called."""
    try:
        with path.open("rb") as file:
            head = file.read(72)
    except OSError:
        return False
    return head.startswith(MAGIC) and head[68:72] == APPLICATION.to_bytes(4, "big")


def vote_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of every item that somebody voted on or skipped, in order of id: the keys of the
    item, `votes` in order of name, and the `scale` of ratings. Raises StoreError."""
    by_item: dict[str, list[Vote]] = defaultdict(list)
    for vote in read_votes(path):
        by_item[vote.item_id].append(vote)
    with open_votes(path) as db:
        scale = settings_of(db).scale
        voted = [item for item in stream_items(db) if item.item_id in by_item]
    for item in sorted(voted, key=lambda item: item.item_id):
        votes = sorted(by_item[item.item_id], key=lambda vote: vote.annotator)
        row = msgspec.to_builtins(item)
        # What judges said is no part of what people did.
        del row["judges"], row["uncertainty"]
        kept = [msgspec.to_builtins(vote) for vote in votes]
        row["votes"] = [{k: v for k, v in vote.items() if k not in UNREAD} for vote in kept]
        row["scale"] = {str(level): text for level, text in scale.items()}
        yield f"{path}: item {item.item_id}", row
