"""Votes databases as `rlaif annotate` makes them, filled through its own writer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlaif.core.records import content_hash
from rlaif.data.vote_store import VoteStore, create_votes
from rlaif.data.votes import Vote, VoteItem, VoteSettings

QUESTION = [{"role": "user", "content": "Name a fruit."}]


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def pair_of(number: int, **known: Any) -> VoteItem:
    """A pair of a short and a long answer to a question of its own."""
    given: dict[str, Any] = {
        "item_id": f"i{number:04d}",
        "kind": "pair",
        "prompt_id": f"p{number}",
        "prompt": [{"role": "user", "content": f"Name fruit {number}."}],
        "a": say(f"Plum {number}."),
        "a_id": f"c_{number}a",
        "b": say(f"Well, that would be plum {number}, I say."),
        "b_id": f"c_{number}b",
    }
    return VoteItem(**given | known)


def vote_on(item: VoteItem, who: str, verdict: Any, **known: Any) -> Vote:
    given: dict[str, Any] = {
        "vote_id": "v" + content_hash(item.item_id, who),
        "item_id": item.item_id,
        "kind": item.kind,
        "annotator": who,
        "verdict": verdict,
        "probability": item.probability,
        "gold": item.gold is not None,
        "seconds": 4.0,
    }
    return Vote(**given | known)


def make_votes(
    path: Path, items: Iterable[VoteItem], votes: Iterable[Vote], **settings: Any
) -> Path:
    """A database with these votes, given in their order."""
    every = list(items)
    create_votes(path, VoteSettings(**{"source": "test", "kind": every[0].kind} | settings), every)
    store = VoteStore(path)
    for vote in votes:
        store.record(vote, content_hash(vote.vote_id))
    store.close()
    return path
