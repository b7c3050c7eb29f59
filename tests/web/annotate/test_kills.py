"""Several people vote at once while the server is killed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from rlaif.data.votes import read_votes
from tests.support.annotating import (
    Client,
    Crowd,
    Process,
    check_votes,
    make_database,
    make_items,
    sent_vote,
)


def test_no_vote_is_lost_or_double(tmp_path: Path) -> None:
    path = make_database(tmp_path / "v.db", make_items(60))
    server = Process(path, ["ada", "ben", "cy"])
    server.start()
    crowd = Crowd(server, each=20)
    crowd.run(kills=1, every=20)
    assert server.stop(signal.SIGINT) == 0
    assert check_votes(crowd) == (60, 0, 0)
    votes = read_votes(path)
    # Each item has one vote: a kill forgets nobody's lease.
    assert len({vote.item_id for vote in votes}) == 60
    sent = {vote["vote_id"]: vote for votes in crowd.confirmed.values() for vote in votes}
    assert all(vote.comment == sent[vote.vote_id]["comment"] for vote in votes)


def test_links_and_sessions_outlive_the_server(tmp_path: Path) -> None:
    path = make_database(tmp_path / "v.db", make_items(3))
    server = Process(path, ["ada"])
    server.start()
    links = dict(server.links)
    client = Client(links["ada"])
    client.open()
    item = client.next()
    vote = sent_vote(item["item_id"], 1)
    client.insist("/api/vote", vote)
    server.stop()
    client.close()
    server.start()
    assert server.links == links
    # The same vote once more, with the page and the cookie of the old server.
    answer = client.insist("/api/vote", vote)
    assert answer["progress"]["done"] == 1 == len(read_votes(path))
    client.close()
    assert server.stop(signal.SIGINT) == 0


def test_a_failed_commit_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    from rlaif.data.vote_store import VoteStore
    from tests.support.annotating import serve

    path = make_database(tmp_path / "v.db", make_items(1))
    with serve(path) as server:
        client = Client(server.links()["ada"])
        client.open()
        item = client.next()

        def fail(*given: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(VoteStore, "_count", fail)
            status, answer = client.post("/api/vote", sent_vote(item["item_id"], 1))
            assert status == 503 and "disk is full" in answer["error"]
            assert read_votes(path) == []
        assert client.post("/api/vote", sent_vote(item["item_id"], 1))[0] == 200
        assert len(read_votes(path)) == 1
        client.close()
