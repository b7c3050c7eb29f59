"""How long the owner's page takes: 100,000 pairs in a database and 5,000 votes of four people.

    python benchmarks/owner_page.py --db /tmp/big.db

The first page computes everything; the next ones show it again; after a vote a page shows what was
known while the rest is computed anew.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlaif.core.records import content_hash
from rlaif.data.vote_store import VoteStore, create_votes
from rlaif.data.votes import AskedPrinciple, ItemJudge, Verdict, Vote, VoteItem, VoteSettings
from rlaif.web.annotate.findings import FindingsCache
from rlaif.web.annotate.owner import owner_page

RIGHT = {"ada": 0.9, "ben": 0.85, "cleo": 0.7, "dina": 0.55}
"""How often each person follows the judge; else any verdict."""
PRINCIPLES = ("brief", "kind", "honest")
VERDICTS: tuple[Verdict, ...] = ("a", "b", "tie", "both_bad")
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "it")


def main(given: Sequence[str] | None = None) -> None:
    """Make the database where there is none, and print the seconds of pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--db", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--votes", type=int, default=5_000)
    options = parser.parse_args(given)
    if not options.db.exists():
        fill(options.db, options.pairs, options.votes)
    cache, names = FindingsCache(options.db), list(RIGHT)
    print(f"first page: {timed(lambda: owner_page(cache, names)):.3f} s")
    again = [timed(lambda: owner_page(cache, names)) for _ in range(20)]
    print(f"next pages: median {statistics.median(again):.3f} s, at most {max(again):.3f} s")
    store = VoteStore(options.db)
    record(store, make_vote(make_item(0), f"late{time.time_ns()}", random.Random(0)))
    store.close()
    print(f"after a vote: {timed(lambda: owner_page(cache, names)):.3f} s")


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def fill(path: Path, pairs: int, votes: int) -> None:
    """A database of pairs, of which the first have two votes of different people."""
    items = [make_item(number) for number in range(pairs)]
    asked = [AskedPrinciple(name, f"The answer is {name}.") for name in PRINCIPLES]
    settings = VoteSettings(source="a benchmark", kind="pair", principles=asked, overlap=2)
    create_votes(path, settings, items)
    store = VoteStore(path)
    for vote in draw_votes(items[: votes // 2]):
        record(store, vote)
    store.close()


def draw_votes(items: Sequence[VoteItem]) -> Iterator[Vote]:
    """Two votes on each item."""
    rng = random.Random(0)
    for item in items:
        for who in rng.sample(list(RIGHT), 2):
            yield make_vote(item, who, rng)


def make_item(number: int) -> VoteItem:
    """A pair of answers of 60 words, and two judges' verdicts."""
    rng = random.Random(number)
    sides = [
        [{"role": "assistant", "content": " ".join(rng.choices(WORDS, k=60))}] for _ in range(2)
    ]
    judges = [
        ItemJudge(judge=name, annotator=name, prob_a=round(rng.random(), 3))
        for name in ("checks", "self")
    ]
    return VoteItem(
        item_id=f"i{number:06d}",
        kind="pair",
        prompt_id=f"p{number}",
        prompt=[{"role": "user", "content": f"What is item {number}?"}],
        a=sides[0],  # type: ignore[arg-type]
        a_id=f"a{number}",
        b=sides[1],  # type: ignore[arg-type]
        b_id=f"b{number}",
        judges=judges,
        principles=list(PRINCIPLES),
        probability=rng.choice([0.1, 0.5, 1.0]),
    )


def make_vote(item: VoteItem, who: str, rng: random.Random) -> Vote:
    """What a person says of an item."""
    prob = item.judges[0].prob_a
    judged: Verdict = "a" if prob is not None and prob > 0.5 else "b"
    follows = rng.random() < RIGHT.get(who, 0.5)
    return Vote(
        vote_id="v" + content_hash(item.item_id, who),
        item_id=item.item_id,
        kind="pair",
        annotator=who,
        verdict=judged if follows else rng.choice(VERDICTS),
        principles={name: rng.choice(VERDICTS[:3]) for name in PRINCIPLES if rng.random() < 0.7},
        slot_of_a=rng.randrange(2),
        seconds=round(rng.expovariate(0.1), 3),
        probability=item.probability,
    )


def record(store: VoteStore, vote: Vote) -> None:
    """Commit a vote as the server does."""
    store.record(vote, content_hash(vote.vote_id))


if __name__ == "__main__":
    main()
