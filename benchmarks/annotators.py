"""Do votes survive a server that is killed, and are the annotation pages quick on many pairs?

    python benchmarks/annotators.py [--people 20] [--votes 2000] [--kills 5] [--pairs 100000]
        [--quick] [--json]

People vote at once over HTTP, each on connections of their own, and send a vote again under its id
until the server says that it is committed. Meanwhile the server is killed (SIGKILL) and started
again. Every confirmed vote must be in the database, once, and nothing else. Then one person opens
every page of a database of many pairs, in which some thousand votes are given: the median and the
largest time of a request in milliseconds, from the request to the last byte, and the mean
processor time of the server: on a machine that does other work, this is what a page takes.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

from msgspec import structs

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from ui_pages import cpu_seconds  # noqa: E402

from rlaif.data.vote_store import VoteStore  # noqa: E402
from rlaif.data.votes import Vote  # noqa: E402
from tests.support.annotating import (  # noqa: E402
    Client,
    Crowd,
    Process,
    check_votes,
    make_database,
    make_items,
    sent_vote,
)

LIMIT = 200.0
"""Milliseconds that a page may take."""
TEXT = "A sentence of an answer that is as long as answers are. " * 30


def measure_kills(people: int, votes: int, kills: int, folder: Path) -> dict[str, Any]:
    """How many votes were confirmed, lost and double, and how long it took."""
    path = make_database(folder / "kills.db", make_items(votes))
    server = Process(path, [f"person{n}" for n in range(people)])
    server.start()
    crowd = Crowd(server, each=votes // people)
    began = time.perf_counter()
    crowd.run(kills, every=votes // (kills + 1))
    seconds = time.perf_counter() - began
    server.stop(signal.SIGINT)
    confirmed, lost, double = check_votes(crowd)
    return {
        "people": people,
        "confirmed": confirmed,
        "kills": kills,
        "lost": lost,
        "double": double,
        "seconds": round(seconds, 1),
    }


def measure_pages(pairs: int, votes: int, folder: Path) -> dict[str, Any]:
    """Milliseconds of each page on a database of `pairs`, `votes` of them voted on by others."""
    turn = [{"role": "assistant", "content": TEXT}]
    items = [structs.replace(item, a=turn, b=turn) for item in make_items(pairs)]
    path = make_database(folder / "pages.db", items)
    _vote_on(path, votes)
    server = Process(path, ["ada"])
    began = time.perf_counter()
    server.start()
    start = time.perf_counter() - began
    assert server.process is not None
    took: dict[str, list[tuple[float, float]]] = defaultdict(list)
    ask = partial(_time, took, server.process.pid)
    ada, owner = Client(server.links["ada"]), Client(server.links["the owner"])
    for client in (ada, owner):
        client.open()
    for number in range(20):
        ask("a person's page", lambda: ada.ask("GET", "/"))
        item = ask("the next item", ada.next)
        vote = sent_vote(item["item_id"], number)
        again = {"vote_id": vote["vote_id"]}
        ask("a vote", lambda vote=vote: ada.insist("/api/vote", vote))
        ask("undo", lambda again=again: ada.insist("/api/undo", again))
        ask("the owner's page", lambda: owner.ask("GET", "/owner"))
    server.stop(signal.SIGINT)
    return {
        "pairs": pairs,
        "votes": votes,
        "start_seconds": round(start, 1),
        "megabytes": round(path.stat().st_size / 1e6),
        "pages": {
            name: {
                "median_ms": round(median(wall for wall, _ in times), 1),
                "largest_ms": round(max(wall for wall, _ in times), 1),
                "processor_ms": round(fmean(used for _, used in times), 1),
            }
            for name, times in took.items()
        },
    }


def _vote_on(path: Path, votes: int) -> None:
    store = VoteStore(path)
    for number in range(votes):
        who = f"person{number % 20}"
        item = store.hand_out(who, time.time()).item
        assert item is not None, "there are more pairs than votes"
        name = f"earlier-{number:012d}"
        vote = Vote(vote_id=name, item_id=item.item_id, kind="pair", annotator=who, verdict="a")
        store.record(vote, name)
    store.close()


def _time(
    took: dict[str, list[tuple[float, float]]], process: int, name: str, work: Callable[[], Any]
) -> Any:
    began, used = time.perf_counter(), cpu_seconds(process)
    found = work()
    wall, used = time.perf_counter() - began, cpu_seconds(process) - used
    took[name].append((1000.0 * wall, 1000.0 * used))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--votes", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--quick", action="store_true", help="a tenth of it")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    share = 10 if options.quick else 1
    with tempfile.TemporaryDirectory() as folder:
        kills = measure_kills(options.people, options.votes // share, options.kills, Path(folder))
        pages = measure_pages(options.pairs // share, options.votes // share, Path(folder))
    good = kills["lost"] == kills["double"] == 0 and all(
        page["median_ms"] < LIMIT for page in pages["pages"].values()
    )
    if options.json:
        print(json.dumps({"kills": kills, "pages": pages, "good": good}))
    else:
        print(
            f"{kills['people']} people, {kills['confirmed']} votes confirmed in "
            f"{kills['seconds']} s, {kills['kills']} kills: {kills['lost']} lost, "
            f"{kills['double']} double"
        )
        print(
            f"{pages['pairs']} pairs ({pages['megabytes']} MB), {pages['votes']} votes; the server "
            f"was ready after {pages['start_seconds']} s"
        )
        for name, page in pages["pages"].items():
            print(
                f"  {name}: {page['median_ms']} ms, at most {page['largest_ms']} ms, processor "
                f"{page['processor_ms']} ms"
            )
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
