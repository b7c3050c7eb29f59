"""The index against a reading of all records: grown bit by bit, killed, by two at once, damaged."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.core.errors import StoreError
from rlaif.core.records import content_hash
from rlaif.core.rowfiles import read_rows
from rlaif.web.ui import index
from rlaif.web.ui.index import Source, grow_index, open_index
from rlaif.web.ui.records import Reader
from rlaif.web.ui.search import SHOWN, Query, Scope, search
from tests.support.browsed import (
    STEPS,
    completion,
    judgement,
    preference,
    source_of,
    write_records,
)

WORDS = ("red", "green", "blue", "\ud800", "<b>bold</b>")
JUDGES, PRINCIPLES = ("self", "rules"), ("useful", "brief")
IDS = {
    "pairs": "preference_id",
    "answers": "completion_id",
    "judgements": "judgement_id",
    "prompts": "prompt_id",
}

Row = dict[str, Any]


def make_batch(rng: random.Random, number: int) -> list[tuple[str, list[Any]]]:
    """The records of one prompt, as (file, records) in the order in which steps commit them."""
    prompt = f"p{rng.randrange(4)}"
    names = [f"k{number}_{i}" for i in range(3)]
    answers = [
        completion(prompt, name, " ".join(rng.choices(WORDS, k=rng.randrange(1, 6))))
        for name in names
    ]
    judged = []
    for at, name in enumerate(names):
        for judge in JUDGES:
            value = rng.choice([None, 0.0, 0.25, 0.5, 1.0])
            more = {"judge": judge, "principle": rng.choice(PRINCIPLES)}
            raw = rng.choice([None, *WORDS])
            judged.append(
                judgement(prompt, f"j{number}_{at}{judge}", [name], value, raw=raw, **more)
            )
    for at, shown in enumerate((names[:2], names[1::-1])):
        judged.append(judgement(prompt, f"j{number}_both{at}", shown, rng.random(), judge="pairs"))
    known = rng.sample(judged, rng.randrange(len(judged) + 1))
    margin = rng.choice([None, 0.1, 0.5, 0.9])
    ids = [one.judgement_id for one in known]
    pair = preference(
        prompt, f"f{number}", answers[0], answers[1], margin=margin, judgement_ids=ids
    )
    return [("completions", answers), ("judgements", judged), ("preferences", [pair])]


def scan(source: Source, show: str) -> Iterator[tuple[int, Row]]:
    """Every record with the place of its step, read from the files."""
    kind = SHOWN[show]
    for place in [0] if show == "prompts" else range(1, len(source.steps) + 1):
        path = source.file(place, kind)
        if show == "prompts":
            yield from ((0, json.loads(line)) for line in path.read_text().splitlines())
        else:
            yield from ((place, row) for row in read_rows(path))


def text(messages: list[Row]) -> str:
    return " ".join(m["content"] for m in messages)


def body_of(show: str, row: Row) -> str:
    if show == "pairs":
        return " ".join(text(row[key]) for key in ("prompt", "chosen", "rejected"))
    if show == "judgements":
        return " ".join(filter(None, (row["rationale"], row["raw"], row["error"])))
    return text(row["messages"])


def value_of(row: Row) -> float | None:
    found: float | None = row["prob_first"] if len(row["shown"]) == 2 else row["score"]
    return found


def margins_on(pair: Row, judged: list[Row]) -> dict[tuple[str, str], list[tuple[bool, float]]]:
    """By judge and principle, per order: whether the chosen answer came first, and by how much it
    is preferred, from the judgements that a pair names."""
    a, b = pair["chosen_id"], pair["rejected_id"]
    found: dict[tuple[str, str], list[tuple[bool, float]]] = {}
    own = [j for j in judged if j["judgement_id"] in pair["judgement_ids"]]
    for who in {(j["judge"], j["principle"]) for j in own}:
        mine = [j for j in own if (j["judge"], j["principle"]) == who and value_of(j) is not None]
        both = [j for j in mine if sorted(j["shown"]) == sorted([a, b])]
        if both:
            found[who] = [
                (j["shown"][0] == a, (2 * j["prob_first"] - 1) * (1 if j["shown"][0] == a else -1))
                for j in both
            ]
        sides = [[j["score"] for j in mine if j["shown"] == [name]] for name in (a, b)]
        if all(sides):
            good, bad = (sum(side) / len(side) for side in sides)
            found[who] = [(True, good - bad)]
    return found


def in_range(value: float | None, low: float | None, high: float | None) -> bool:
    if low is None and high is None:
        return True
    return value is not None and (low is None or value >= low) and (high is None or value <= high)


def matches(query: Query, row: Row, judged: list[Row]) -> bool:
    """Whether a record is one that a query asks for."""
    show = query.show
    words = re.findall(r"\w+", body_of(show, row).lower())
    if not all(word in words for word in query.q.split()):
        return False
    if show == "judgements":
        same = query.judge in ("", row["judge"]) and query.principle in ("", row["principle"])
        same = same and query.status in ("", row["status"])
        return same and in_range(value_of(row), query.low, query.high)
    if show == "answers":
        count = len(text(row["messages"]).split())
        return in_range(count, query.gap_low, query.gap_high)
    if show == "pairs":
        gap = len(text(row["chosen"]).split()) - len(text(row["rejected"]).split())
        if not in_range(gap, query.gap_low, query.gap_high):
            return False
        return in_range(row["margin"], query.low, query.high) and agrees(query, row, judged)
    return True


def agrees(query: Query, row: Row, judged: list[Row]) -> bool:
    stands = margins_on(row, judged)
    own = {
        who: marks
        for who, marks in stands.items()
        if query.judge in ("", who[0]) and query.principle in ("", who[1])
    }
    means = {who: sum(m for _, m in marks) / len(marks) for who, marks in stands.items()}
    swayed = {
        who for who, marks in stands.items()
        if len(marks) == 2 and min(m for _, m in marks) < 0 < max(m for _, m in marks)
    }  # fmt: skip
    if query.differ == "judges":
        by_judge: dict[str, list[float]] = {}
        for (judge, _), mean in means.items():
            by_judge.setdefault(judge, []).append(mean)
        sides = [sum(values) / len(values) for values in by_judge.values()]
        if not (any(s > 0 for s in sides) and any(s < 0 for s in sides)):
            return False
    if query.differ == "orders" and not swayed & own.keys():
        return False
    if query.differ == "against" and not any(means[who] < 0 for who in own):
        return False
    return bool(own) if query.judge or query.principle else True


QUERIES = [
    *(Query(show=show) for show in SHOWN),
    *(Query(show=show, q=q) for show in SHOWN for q in ("red", "green blue", "bold", "absent")),
    *(Query(show="pairs", differ=differ) for differ in ("judges", "orders", "against")),
    Query(show="pairs", judge="self"),
    Query(show="pairs", judge="self", principle="brief", differ="against"),
    Query(show="pairs", judge="pairs", differ="orders"),
    Query(show="pairs", q="red", low=0.2, high=0.6),
    Query(show="pairs", gap_low=-1, gap_high=2),
    Query(show="judgements", judge="rules", principle="useful"),
    Query(show="judgements", status="unparsed"),
    Query(show="judgements", low=0.25, high=0.5),
    Query(show="judgements", q="blue", judge="self", low=0.5),
    Query(show="judgements", judge="nobody"),
    Query(show="answers", gap_low=2, gap_high=3),
]


def check_equal(path: Path, source: Source) -> None:
    """Every query finds by the index what a reading of the files finds, in its order."""
    judged = [row for _, row in scan(source, "judgements")]
    with open_index(path, source.key) as db, Reader(source) as reader:
        assert db is not None
        for query in QUERIES:
            for places in (None, (2,), (1, 3)):
                found = search(db, query, Scope(places))
                rows = [reader.row(SHOWN[query.show], at) for at in found.addresses]
                wanted = [
                    row
                    for place, row in scan(source, query.show)
                    if (places is None or query.show == "prompts" or place in places)
                    and matches(query, row, judged)
                ]
                key = IDS[query.show]
                said = [row[key] for row in rows]
                assert found.count == len(wanted), (query, places)
                assert said == [row[key] for row in wanted][:25], (query, places)


@contextmanager
def small_chunks(size: int) -> Iterator[None]:
    """Transactions of a few records."""
    before = index.CHUNK
    index.CHUNK = size
    try:
        yield
    finally:
        index.CHUNK = before


def stop_after(transactions: int) -> Callable[[], bool]:
    left = [transactions]

    def go_on() -> bool:
        left[0] -= 1
        return left[0] >= 0

    return go_on


@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**32),
    stops=st.lists(st.one_of(st.none(), st.integers(0, 12)), min_size=1, max_size=6),
    chunk=st.sampled_from([1, 700, 1 << 20]),
)
def test_it_finds_what_a_scan_finds_however_it_was_grown(
    seed: int, stops: list[int | None], chunk: int
) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, small_chunks(chunk):
        source = source_of(Path(folder) / "run", ["red?", "green or blue?"])
        path = Path(folder) / "index.sqlite"
        for number, stop in enumerate(stops):
            # The run grows, and the index for some transactions or to its end.
            for name, records in make_batch(rng, number):
                write_records(source.root, rng.randrange(3), name, records)
                if rng.random() < 0.3:
                    grow_index(path, source, stop_after(rng.randrange(6)))
            if stop is not None:
                grow_index(path, source, stop_after(stop))
        done, total = grow_index(path, source)
        assert done == total > 0
        check_equal(path, source)


def fill(source: Source, batches: int, first: int = 0) -> None:
    rng = random.Random(first)
    for number in range(first, first + batches):
        for name, records in make_batch(rng, number):
            write_records(source.root, number % 3, name, records)


def test_it_survives_being_killed(tmp_path: Path) -> None:
    source = source_of(tmp_path / "run", ["red?"])
    fill(source, 30)
    path = tmp_path / "index.sqlite"
    rng = random.Random(1)
    killed = 0
    with small_chunks(1000):
        for _ in range(8):
            child = os.fork()
            if child == 0:
                # As slow as it takes for a kill to come in the middle of it.
                grow_index(path, source, lambda: time.sleep(0.002) is None)
                os._exit(0)
            time.sleep(rng.uniform(0.01, 0.15))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            killed += os.WIFSIGNALED(status)
        grow_index(path, source)
    assert killed
    check_equal(path, source)


def test_two_at_once_index_each_record_once(tmp_path: Path) -> None:
    source = source_of(tmp_path / "run", ["red?"])
    fill(source, 40)
    path = tmp_path / "index.sqlite"
    with small_chunks(1500):
        threads = [threading.Thread(target=grow_index, args=(path, source)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    check_equal(path, source)


def changed_address(path: Path, source: Source) -> int:
    with open_index(path, source.key) as db:
        assert db is not None
        return search(db, Query(show="answers")).count


def test_a_step_that_was_made_again_is_indexed_again(tmp_path: Path) -> None:
    source = source_of(tmp_path / "run", ["red?"])
    fill(source, 9)
    path = tmp_path / "index.sqlite"
    grow_index(path, source)
    shutil.rmtree(source.root / "steps" / STEPS[0])
    rng = random.Random(77)
    for name, records in make_batch(rng, 100):
        write_records(source.root, 0, name, records)
    # Longer than before, so that its size alone says nothing.
    for number in range(101, 106):
        for name, records in make_batch(rng, number):
            write_records(source.root, 0, name, records)
    grow_index(path, source)
    check_equal(path, source)


def test_an_index_of_other_steps_is_made_anew(tmp_path: Path) -> None:
    source = source_of(tmp_path / "run", ["red?"])
    fill(source, 6)
    path = tmp_path / "index.sqlite"
    grow_index(path, source)
    fewer = Source(source.root, STEPS[1:], source.prompts)
    with open_index(path, fewer.key) as db:
        assert db is None
    grow_index(path, fewer)
    check_equal(path, fewer)


@pytest.mark.parametrize("damage", ["deleted", "cut", "noise"])
def test_an_index_that_is_damaged_or_deleted_is_made_anew(tmp_path: Path, damage: str) -> None:
    source = source_of(tmp_path / "run", ["red?"])
    fill(source, 20)
    path = tmp_path / "index.sqlite"
    grow_index(path, source)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if damage == "deleted":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        path.write_bytes(b"no database at all" * 300)
    with open_index(path, "another key") as found:
        assert found is None
    fill(source, 3, first=50)
    grow_index(path, source)
    check_equal(path, source)


def test_a_torn_batch_is_not_indexed_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    source = source_of(tmp_path / "run", ["red?"])
    write_records(source.root, 0, "completions", [completion("p", "k1", "red")])
    file = source.file(1, "completions")
    with file.open("ab") as out:
        out.write(b'{"completion_id": "k2", "prompt_id": "p"')
    path = tmp_path / "index.sqlite"
    grow_index(path, source)
    assert changed_address(path, source) == 1
    other = tmp_path / "other.sqlite"
    file.write_bytes(file.read_bytes().replace(b"red", b"rad"))
    with pytest.raises(
        StoreError, match=r"completions\.jsonl: bytes 0 to \d+ are damaged\. Delete"
    ):
        grow_index(other, source)


def test_files_without_a_log_are_indexed_to_their_last_whole_batch(tmp_path: Path) -> None:
    source = source_of(tmp_path / "run", ["red?"])
    fill(source, 6)
    for log in source.root.glob("steps/*/*.commits"):
        log.unlink()
        data = log.with_suffix(".jsonl")
        # Earlier versions closed a batch by a blank line.
        data.write_bytes(data.read_bytes() + b"\n" + b'{"torn')
    path = tmp_path / "index.sqlite"
    with small_chunks(600):
        grow_index(path, source)
    check_equal(path, source)


def test_the_run_folder_is_not_written_to(tmp_path: Path) -> None:
    source = source_of(tmp_path / "run", ["red?"])
    fill(source, 4)

    def state() -> dict[str, str]:
        files = sorted(p for p in source.root.rglob("*") if p.is_file())
        return {str(p): content_hash(p.read_bytes().hex(), p.stat().st_mtime_ns) for p in files}

    before = state()
    grow_index(tmp_path / "index.sqlite", source)
    assert state() == before
