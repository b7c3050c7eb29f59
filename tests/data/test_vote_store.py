"""The votes database: what is committed, what counts, and who holds what."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest
from msgspec import structs

from rlaif.core.errors import StoreError
from rlaif.data import vote_store
from rlaif.data.vote_store import (
    NEXT_GOLD,
    NEXT_ITEM,
    VoteRefused,
    VoteStore,
    create_votes,
    file_system_of,
    refuse_network,
    slot_of_a,
)
from rlaif.data.votes import Vote, VoteSettings, open_votes, read_items, read_settings, read_votes
from tests.support.annotating import make_database, make_items

NOW = 1_000_000.0


def vote_of(item: str, who: str, number: int, verdict: str = "a") -> Vote:
    return Vote(
        vote_id=f"vote-{number:012d}",
        item_id=item,
        kind="pair",
        annotator=who,
        verdict=verdict,  # type: ignore[arg-type]
    )


@pytest.fixture
def store(tmp_path: Path):
    made = VoteStore(make_database(tmp_path / "v.db", make_items(4), overlap=2))
    yield made
    made.close()


def handed(store: VoteStore, who: str, now: float = NOW) -> str | None:
    item = store.hand_out(who, now).item
    return None if item is None else item.item_id


def test_what_was_made_is_read_back(tmp_path: Path) -> None:
    items = [structs.replace(item, gold="a", tags=["x"]) for item in make_items(3)]
    path = make_database(tmp_path / "v.db", items, seed=5, budget=9)
    assert sorted(read_items(path), key=lambda i: i.item_id) == items
    assert read_settings(path) == VoteSettings(source="a test", kind="pair", seed=5, budget=9)
    assert read_votes(path) == []
    # The secret behind people's links is in it.
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["v.db"]


def test_the_order_of_items_is_drawn_by_seed(tmp_path: Path) -> None:
    orders = []
    for number, seed in enumerate((1, 1, 2)):
        items = make_items(20)
        path = make_database(
            tmp_path / f"{number}.db", items[:: -1 if number == 1 else 1], seed=seed
        )
        orders.append([item.item_id for item in read_items(path)])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != [item.item_id for item in make_items(20)]


def test_a_database_is_durable_and_has_one_writer(store: VoteStore) -> None:
    settings = [
        store._db.execute(f"PRAGMA {n}").fetchone()[0] for n in ("journal_mode", "synchronous")
    ]
    assert settings == ["wal", 2]
    with pytest.raises(StoreError, match="another `rlaif annotate` serves this database"):
        VoteStore(store.path)


def test_a_vote_that_is_sent_again_is_the_same_vote(store: VoteStore) -> None:
    item = handed(store, "ada")
    assert item is not None
    first = store.record(vote_of(item, "ada", 1), "request")
    again = store.record(vote_of(item, "ada", 1), "request")
    assert first == again and first.created.endswith("+00:00")
    assert read_votes(store.path) == [first]
    with pytest.raises(VoteRefused, match="another vote has the id"):
        store.record(vote_of(item, "ada", 1, "b"), "another request")
    assert read_votes(store.path) == [first]


def test_the_latest_vote_of_a_person_counts(store: VoteStore) -> None:
    item = handed(store, "ada")
    assert item is not None
    store.record(vote_of(item, "ada", 1, "a"), "1")
    store.record(vote_of(item, "ada", 2, "tie"), "2")
    assert [v.verdict for v in read_votes(store.path)] == ["tie"]
    assert store.progress("ada").done == 1
    with open_votes(store.path) as db:
        assert db.execute("SELECT count(*) FROM votes").fetchone() == (2,)
        assert db.execute("SELECT max(votes) FROM items").fetchone() == (1,)


def test_undo_is_history_and_hands_the_item_out_again(store: VoteStore) -> None:
    first = handed(store, "ada")
    assert first is not None
    store.record(vote_of(first, "ada", 1), "1")
    second = handed(store, "ada")
    assert second not in (None, first)
    store.undo("ada", "vote-000000000001", NOW + 1)
    store.undo("ada", "vote-000000000001", NOW + 2)
    assert read_votes(store.path) == []
    assert handed(store, "ada", NOW + 3) == first
    # Sent once more, it is what it was: a vote that was taken back.
    store.record(vote_of(first, "ada", 1), "1")
    assert read_votes(store.path) == []
    store.record(vote_of(first, "ada", 2), "2")
    assert handed(store, "ada", NOW + 4) == second
    assert store.progress("ada").last == "vote-000000000002"
    with open_votes(store.path) as db:
        assert db.execute("SELECT count(*) FROM votes").fetchone() == (2,)
    with pytest.raises(VoteRefused, match="no such vote of yours"):
        store.undo("ben", "vote-000000000002", NOW)


def test_no_item_is_in_more_hands_than_the_overlap(store: VoteStore) -> None:
    people = ["ada", "ben", "cy", "dee", "eve"]
    held = [handed(store, who) for who in people]
    assert max(held.count(item) for item in held) == 2
    assert held == [handed(store, who, NOW + 1) for who in people]
    # Two people may hold each of the four items: eight hands, of which three are free.
    more = [handed(store, who) for who in ("fay", "gil", "hal", "ida")]
    assert more[3] is None and None not in more[:3]
    assert store.hand_out("ida", NOW).state == "waiting"


@pytest.mark.parametrize("query", [NEXT_ITEM, NEXT_GOLD], ids=["item", "gold"])
def test_handing_out_sorts_no_items(store: VoteStore, query: str) -> None:
    """It would take longer with every item: 0.2 s with 100,000."""
    asked = {"who": "ada", "now": 0.0, "overlap": 1}
    with open_votes(store.path) as db:
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}", asked)]
    assert "USING INDEX" in plan[0]
    assert not [line for line in plan if "ORDER BY" in line]


def test_an_item_waits_for_the_lease_and_no_longer(store: VoteStore) -> None:
    people = ["ada", "ben", "cy", "dee", "eve", "fay", "gil", "hal"]
    for who in people:
        assert handed(store, who)
    lease = store.settings.lease
    assert handed(store, "ida", NOW + lease - 1) is None
    late = handed(store, "ida", NOW + lease + 1)
    assert late is not None
    # Who was late has not voted in vain.
    store.record(vote_of(late, "ada", 1), "1")
    assert len(read_votes(store.path)) == 1


def test_a_skip_leaves_the_item_to_others(tmp_path: Path) -> None:
    store = VoteStore(make_database(tmp_path / "v.db", make_items(1)))
    item = handed(store, "ada")
    assert item is not None
    assert handed(store, "ben") is None
    store.record(vote_of(item, "ada", 1, "skip"), "1")
    assert handed(store, "ada") is None
    assert store.hand_out("ada", NOW).state == "done"
    assert handed(store, "ben") == item
    assert store.progress("ben").complete == 0
    store.record(vote_of(item, "ben", 2), "2")
    assert (store.progress("ben").complete, store.progress("ben").total) == (1, 1)
    store.close()


def test_gold_questions_are_asked_of_everybody_at_their_share(tmp_path: Path) -> None:
    gold = [structs.replace(i, item_id=f"g{n}", gold="a") for n, i in enumerate(make_items(100))]
    path = make_database(tmp_path / "v.db", [*make_items(300), *gold], gold_share=0.2)
    store = VoteStore(path)
    asked: dict[str, list[str]] = {"ada": [], "ben": []}
    for who, items in asked.items():
        for number in range(120):
            item = handed(store, who)
            assert item is not None
            items.append(item)
            store.record(vote_of(item, who, number + 1000 * (who == "ben")), str(number))
    store.close()
    known = {who: [i for i in items if i.startswith("g")] for who, items in asked.items()}
    # 24 expected, with a standard deviation of 4.4.
    assert all(10 < len(items) < 38 for items in known.values())
    assert set(known["ada"]) & set(known["ben"])
    assert not set(asked["ada"]) & set(asked["ben"]) - set(known["ada"])


def test_what_a_person_has_seen_after_a_vote_is_known(tmp_path: Path) -> None:
    store = VoteStore(make_database(tmp_path / "v.db", make_items(1), prelabels="after"))
    item = handed(store, "ada")
    assert item is not None and not store.hand_out("ada", NOW).prelabel_shown
    store.record(vote_of(item, "ada", 1), "1")
    store.undo("ada", "vote-000000000001", NOW)
    assert store.hand_out("ada", NOW).prelabel_shown
    store.change_settings(structs.replace(store.settings, prelabels="hidden"))
    assert store.hand_out("ada", NOW).prelabel_shown
    store.close()


def test_a_larger_overlap_opens_items_again(tmp_path: Path) -> None:
    store = VoteStore(make_database(tmp_path / "v.db", make_items(1)))
    item = handed(store, "ada")
    assert item is not None
    store.record(vote_of(item, "ada", 1), "1")
    assert handed(store, "ben") is None
    store.change_settings(structs.replace(store.settings, overlap=2))
    assert handed(store, "ben") == item
    store.close()
    assert read_settings(store.path).overlap == 2


def test_the_complete_items_are_those_of_the_database(tmp_path: Path) -> None:
    """Through votes, skips, votes again, undo, gold questions, refusals and another overlap."""
    items = make_items(6)
    items[5] = structs.replace(items[5], gold="a")
    path = make_database(tmp_path / "v.db", items)

    def check(store: VoteStore) -> int:
        with open_votes(path) as db:
            sql = "SELECT count(*) FROM items WHERE open = 0 AND gold = 0"
            (closed,) = db.execute(sql).fetchone()
        assert store.progress("ada").complete == closed
        return int(closed)

    store = VoteStore(path)
    seen = [check(store)]
    for number, (item, verdict) in enumerate(
        [("i0", "a"), ("i0", "b"), ("i1", "skip"), ("i5", "a")]
    ):
        store.record(vote_of(item, "ada", number, verdict), f"{number}")
        seen.append(check(store))
    with pytest.raises(VoteRefused):
        store.record(vote_of("i2", "ada", 0), "another")
    store.undo("ada", "vote-000000000001", NOW)
    seen.append(check(store))
    store.record(vote_of("i0", "ada", 7), "7")
    store.change_settings(structs.replace(store.settings, overlap=2))
    seen.append(check(store))
    store.record(vote_of("i0", "ben", 8), "8")
    seen.append(check(store))
    store.close()
    again = VoteStore(path)
    seen.append(check(again))
    again.close()
    assert seen == [0, 1, 1, 1, 1, 0, 0, 1, 1]


def test_the_slot_is_drawn_by_person_and_item() -> None:
    slots = {(w, n): slot_of_a(0, w, f"i{n}") for w in ("ada", "ben") for n in range(400)}
    assert 340 < sum(slots.values()) < 460
    same = sum(slots["ada", n] == slots["ben", n] for n in range(400))
    assert 150 < same < 250
    assert [slot_of_a(1, "ada", f"i{n}") for n in range(99)] != [slots["ada", n] for n in range(99)]


@pytest.mark.parametrize("reader", [read_votes, read_items, read_settings, VoteStore])
def test_another_file_is_refused(tmp_path: Path, reader) -> None:
    path = tmp_path / "v.db"
    path.write_text("no database " * 100)
    with pytest.raises(StoreError, match="not a votes database"):
        reader(path)
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE votes (body)")
    with pytest.raises(StoreError, match="not a votes database; name another file"):
        reader(path)
    path.unlink()
    make_database(path, make_items(1))
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(
        StoreError, match="of version 99, and this version of rlaif reads version 1"
    ):
        reader(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file; `rlaif annotate` makes"):
        read_votes(tmp_path / "none.db")


def test_a_database_that_could_not_be_made_is_not_there(tmp_path: Path) -> None:
    broken = [structs.replace(i, item_id="same") for i in make_items(2)]
    with pytest.raises(sqlite3.IntegrityError):
        create_votes(tmp_path / "v.db", VoteSettings(source="s", kind="pair"), broken)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="cannot be written"):
        create_votes(Path("/proc/v.db"), VoteSettings(source="s", kind="pair"), [])


MOUNTS = """\
27 1 254:0 / / rw - ext4 /dev/vda rw
30 27 0:40 / /home rw - nfs4 server:/home rw
31 30 0:41 / /home/ada/my\\040disk rw - ext4 /dev/vdb rw
32 27 0:42 / /mnt/share rw - fuse.sshfs host: rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/v.db", "ext4"),
        ("/home/ada/v.db", "nfs4"),
        ("/homes/v.db", "ext4"),
        ("/home/ada/my disk/v.db", "ext4"),
        ("/mnt/share/x/v.db", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_path(path: str, kind: str) -> None:
    assert file_system_of(Path(path), MOUNTS) == kind


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "lustre", "fuse.sshfs"])
def test_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = make_database(tmp_path / "v.db", make_items(1))
    monkeypatch.setattr(vote_store, "file_system_of", lambda *given: kind)
    for use in (lambda: VoteStore(path), lambda: refuse_network(path)):
        with pytest.raises(StoreError, match=f"on a network file system .{kind}.*--db"):
            use()


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "apfs", "fuse.ntfs", ""]
)
def test_a_local_file_system_is_taken(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(vote_store, "file_system_of", lambda *given: kind)
    refuse_network(Path("v.db"))


def test_the_latest_of_two_mounts_at_a_place_is_the_one_that_is_seen() -> None:
    over = MOUNTS + "33 27 0:43 / /mnt/share rw - tmpfs none rw\n"
    assert file_system_of(Path("/mnt/share/v.db"), over) == "tmpfs"


def test_only_who_was_handed_an_item_sees_it(store: VoteStore) -> None:
    name = handed(store, "ada")
    assert name is not None
    found = store.item("ada", name).item
    assert found is not None and found.item_id == name
    with pytest.raises(VoteRefused, match="was not handed to you"):
        store.item("ben", name)


def test_votes_are_read_in_the_order_in_which_they_were_committed(store: VoteStore) -> None:
    for number, (item, who) in enumerate([("i2", "cy"), ("i0", "ben"), ("i1", "ada")]):
        store.record(vote_of(item, who, 9 - number), f"{number}")
    assert [vote.item_id for vote in read_votes(store.path)] == ["i2", "i0", "i1"]
    assert store.progress("ada").last == "vote-000000000007"


def test_a_smaller_overlap_completes_what_has_its_votes(store: VoteStore) -> None:
    store.record(vote_of("i0", "ada", 1), "1")
    assert store.progress("ada").complete == 0
    store.change_settings(structs.replace(store.settings, overlap=1))
    assert store.progress("ada").complete == 1
