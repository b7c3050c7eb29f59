"""The owner's page: what it says of votes, and that it runs nothing that people wrote."""

from __future__ import annotations

import re
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from rlaif.core.records import content_hash
from rlaif.data.vote_store import VoteStore
from rlaif.data.votes import AskedPrinciple, ItemJudge, Vote
from rlaif.web.annotate import findings as module
from rlaif.web.annotate.findings import FindingsCache, count_over_time, list_disputes
from rlaif.web.annotate.owner import PER_PAGE, owner_page
from tests.support.voting import make_votes, pair_of, say, vote_on

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"
JUDGES = [ItemJudge(judge="checks", annotator="rules", annotator_kind="rule", prob_a=0.9)]


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def cells_of(html: str, head: str) -> list[str]:
    """The cells of the last row that begins with a name."""
    rows = re.findall(r"<tr>.*?</tr>", html, re.S)
    row = next(row for row in reversed(rows) if f">{head}</th>" in row)
    return [text_of(cell).strip() for cell in re.findall(r"<td.*?</td>", row, re.S)]


def three_people(path: Path, count: int = 24, **known: Any) -> Path:
    """Ada and ben always choose a, cy does so in two items of three; a judge too."""
    items = [pair_of(n, judges=JUDGES, principles=["brief"], **known) for n in range(count)]
    votes = [
        vote_on(item, who, "b" if who == "cy" and n % 3 == 0 else "a", principles={"brief": "a"})
        for n, item in enumerate(items)
        for who in ("ada", "ben", "cy")
    ]
    return make_votes(path, items, votes, principles=[AskedPrinciple("brief", "It is brief.")])


def test_figures_of_people_and_judges(tmp_path: Path) -> None:
    html = owner_page(FindingsCache(three_people(tmp_path / "v.db")), ["ada", "dot"])
    # 16 items of 24 have all three votes the same, the others one pair of three.
    items, same, *_ = cells_of(html, "whole answer")
    assert items == "24" and same.startswith("0.778 [")
    assert cells_of(html, "brief")[1].startswith("1.000 [")
    checks = cells_of(html, "checks")
    assert checks[1].startswith("0.778 [") and checks[2].startswith("0.889 [")
    assert checks[3].startswith("0.111 [")
    assert checks[4] == "agrees with a person more often than another person does"
    ada, cy = cells_of(html, "ada"), cells_of(html, "cy")
    assert ada[:2] == ["24", "0"] and ada[3] == "4.0"
    assert ada[4].startswith("0.833 [") and cy[4].startswith("0.667 [")
    assert cells_of(html, "dot") == ["0", "0", "0", *["–"] * 6]
    assert "8 items with different votes" in text_of(html)


def test_what_people_wrote_is_text(tmp_path: Path) -> None:
    item = pair_of(
        1, item_id="i<b>", a=say(HOSTILE), prompt=[{"role": "user", "content": HOSTILE}], b=say("x")
    )
    votes = [
        vote_on(item, "ada", "a", comment=HOSTILE),
        vote_on(item, "ben", "b", comment="'\"&"),
    ]
    db = make_votes(tmp_path / "v.db", [item], votes, source=HOSTILE)
    html = owner_page(FindingsCache(db), [])
    assert "<script" not in html and "<img" not in html and "onerror=alert(1)&gt;" in html
    assert not re.search(r"<[^>]* (style|on\w+)=", html), "the policy refuses what is inline"


def test_disagreements_come_in_pages_the_hardest_first(tmp_path: Path) -> None:
    items = [pair_of(n) for n in range(PER_PAGE + 3)]
    votes = [vote_on(item, who, v) for item in items for who, v in (("ada", "a"), ("ben", "b"))]
    votes += [vote_on(items[4], "cy", "tie"), vote_on(items[5], "cy", "a")]
    cache = FindingsCache(make_votes(tmp_path / "v.db", items, votes))
    first, second = owner_page(cache, []), owner_page(cache, [], 2)
    names = [re.findall(r'id="item-(\w+)"', html) for html in (first, second)]
    # Three answers of three, two of two, two of three.
    assert names[0][:2] == ["i0004", "i0000"] and names[1][-1] == "i0005"
    assert len(names[0]) == PER_PAGE and len(names[1]) == 3
    assert 'href="?page=2#disagreements"' in first and 'href="?page=1#disagreements"' in second
    assert owner_page(cache, [], 99) == second


def test_a_skipped_item_and_a_single_vote_are_no_dispute() -> None:
    items = {item.item_id: item for item in (pair_of(1), pair_of(2))}
    votes = [
        vote_on(items["i0001"], "ada", "a"),
        vote_on(items["i0001"], "ben", "skip"),
        vote_on(items["i0002"], "ada", "both_bad"),
        vote_on(items["i0002"], "ben", "a"),
    ]
    assert [one.item_id for one in list_disputes(votes, items)] == ["i0002"]


def at(time: str) -> Vote:
    return vote_on(pair_of(1), "ada", "a", created=f"2026-03-01T{time}+00:00")


def test_votes_over_time() -> None:
    step, bars = count_over_time([at("10:02:30"), at("10:00:10"), at("10:02:59")])
    assert step == timedelta(minutes=1)
    assert [(bar.start.minute, bar.votes) for bar in bars] == [(0, 1), (1, 0), (2, 2)]
    step, bars = count_over_time([at("00:30:00"), at("23:30:00")])
    assert step == timedelta(minutes=30) and (len(bars), bars[-1].votes) == (47, 1)
    assert count_over_time([])[1] == []


def record(store: VoteStore, vote: Vote) -> None:
    store.record(vote, content_hash(vote.vote_id))


def test_a_new_vote_and_one_taken_back_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 1e9)
    db = three_people(tmp_path / "v.db")
    cache, store = FindingsCache(db), VoteStore(db)
    assert cache.latest() is cache.latest()
    vote = vote_on(pair_of(0), "dot", "b")
    record(store, vote)
    assert len(cache.latest().votes) == 73
    store.undo("dot", vote.vote_id, 0.0)
    assert len(cache.latest().votes) == 72
    store.close()


def test_a_page_does_not_wait_for_findings_that_take_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = three_people(tmp_path / "v.db")
    cache, store = FindingsCache(db), VoteStore(db)
    # Any computation takes longer than no time.
    monkeypatch.setattr(module, "PATIENCE", -1.0)
    assert "are being computed" not in owner_page(cache, [])
    go, find_all = threading.Event(), module.find_all

    def find_later(path: Path) -> module.Findings:
        go.wait(30)
        return find_all(path)

    monkeypatch.setattr(module, "find_all", find_later)
    record(store, vote_on(pair_of(0), "dot", "b"))
    store.close()
    assert "are of 72 votes; those of all 73 are being computed" in text_of(owner_page(cache, []))
    go.set()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.name.startswith("Thread"):
            thread.join(30)
    assert "are being computed" not in owner_page(cache, [])


def test_gold_questions_are_the_person_s_and_nobody_s_agreement(tmp_path: Path) -> None:
    items = [pair_of(n, gold="a" if n < 6 else None) for n in range(8)]
    votes = [vote_on(item, who, "a") for item in items for who in ("ada", "ben")]
    votes[0] = structs.replace(votes[0], verdict="b")
    html = owner_page(FindingsCache(make_votes(tmp_path / "v.db", items, votes)), [])
    assert cells_of(html, "whole answer")[0] == "2"
    assert cells_of(html, "ada")[7].startswith("0.833 [")
