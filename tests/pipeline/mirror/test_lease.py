"""One machine at a time: a lease is held by creating the next head, and by nothing else."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import msgspec
import pytest

from rlaif.core.errors import ConfigError, StoreError
from rlaif.pipeline.mirror.lease import (
    Head,
    Lease,
    Owner,
    Taken,
    Timing,
    describe_owner,
    list_numbers,
    read_heads,
)
from rlaif.pipeline.mirror.remote import Remote, open_remote

QUICK = Timing(lease=0.4, beat=0.1, grace=0.1)
LONG = Timing(lease=100.0, beat=30.0, grace=10.0)


@pytest.fixture(params=["file", "memory"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    place = f"{tmp_path}/a store ü" if request.param == "file" else f"/{uuid4().hex}"
    return open_remote(f"{request.param}://{place}")


def lease_of(remote: Remote, name: str, timing: Timing = QUICK) -> Lease:
    return Lease(remote, Owner(name, f"{name}.example", f"/runs/{name}"), timing)


def acquire(lease: Lease) -> list[str]:
    said: list[str] = []
    lease.acquire(said.append)
    return said


def test_a_tree_goes_from_owner_to_owner(remote: Remote) -> None:
    first, second = lease_of(remote, "first"), lease_of(remote, "second")
    assert first.acquire(print) is None
    first.renew("tree")
    first.release()
    # What is released is not waited for.
    said: list[str] = []
    before = second.acquire(said.append)
    assert before is not None and before.released and said == []
    assert (before.tree, before.owner.id) == ("tree", "first")
    assert second.head is not None and second.head.tree == "tree"
    assert read_heads(remote)[1] == second.head


def test_old_heads_go(remote: Remote) -> None:
    lease = lease_of(remote, "first")
    acquire(lease)
    for number in range(5):
        lease.renew(str(number))
    assert sorted(list_numbers(remote)) == [5, 6]


def test_a_second_machine_is_refused_while_the_first_renews(remote: Remote) -> None:
    first, second = lease_of(remote, "first"), lease_of(remote, "second")
    acquire(first)
    ended = threading.Event()

    def live() -> None:
        while not ended.wait(0.02):
            first.renew_if_due()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        said: list[str] = []
        with pytest.raises(Taken) as caught:
            second.acquire(said.append)
    finally:
        ended.set()
        thread.join()
    assert "waiting" in said[0] and "first.example" in said[0]
    words = str(caught.value)
    assert remote.url in words and "first.example (run folder /runs/first)" in words
    assert "UTC" in words and "Stop that run" in words
    # The first one is not disturbed.
    first.renew("tree")


def test_an_expired_lease_is_taken_over_and_its_owner_learns_of_it(remote: Remote) -> None:
    first, second = lease_of(remote, "first"), lease_of(remote, "second")
    acquire(first)
    assert first.is_valid
    began = time.monotonic()
    assert "waiting" in acquire(second)[0]
    assert time.monotonic() - began >= QUICK.lease + QUICK.grace - 0.05
    assert not first.is_valid
    for _ in range(3):
        second.renew("theirs")
    # The number after the first one's was used and is removed by now.
    assert min(list_numbers(remote)) > 2
    with pytest.raises(Taken, match=r"second\.example"):
        first.renew("ours")
    newest, head = read_heads(remote)
    assert head == second.head and head is not None and newest == head.number


def test_a_lease_that_expired_long_ago_is_not_waited_for(remote: Remote) -> None:
    acquire(lease_of(remote, "first", Timing(lease=0.0)))
    assert acquire(lease_of(remote, "second", Timing(grace=0.0))) == []


def test_a_folder_goes_on_with_its_own_lease_at_once(remote: Remote, tmp_path: Path) -> None:
    owner = describe_owner(tmp_path, "id")
    acquire(Lease(remote, owner, LONG))
    assert acquire(Lease(remote, owner, LONG)) == []
    # A copy of the folder is another owner.
    assert describe_owner(tmp_path / "copy", "id") != owner


def test_of_two_that_start_at_once_one_wins(remote: Remote) -> None:
    leases = [lease_of(remote, name, LONG) for name in "abcd"]
    together = threading.Barrier(4)
    lost: list[str] = []

    def start(lease: Lease) -> None:
        together.wait()
        try:
            # What each finds before any has created a head.
            lease._create(1, None)
        except Taken:
            lost.append(lease.owner.id)

    threads = [threading.Thread(target=start, args=[lease]) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lost) == 3
    head = read_heads(remote)[1]
    assert head is not None and head.owner.id not in lost


def test_nobody_sees_a_head_before_it_is_written(tmp_path: Path) -> None:
    """A reader that finds an empty head takes its writer for dead, and goes on with the next."""
    remote = open_remote(f"file://{tmp_path}/mirror")
    data = b"x" * 5_000_000
    seen: set[int] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            found = remote.read_if_there("leases/1")
            seen.add(-1 if found is None else len(found))

    reader = threading.Thread(target=read)
    reader.start()
    assert remote.create("leases/1", data)
    done.set()
    reader.join()
    assert seen <= {-1, len(data)}
    assert not remote.create("leases/1", data + b"y")
    assert set(remote.list_sizes("leases")) == {"1"}
    # Whoever may read what is written in the folder may read the head.
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "mirror/leases/1").stat().st_mode == plain.stat().st_mode


def test_a_disk_without_hard_links_has_heads_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    remote = open_remote(f"file://{tmp_path}/mirror")
    assert remote.create("heads/1", b"one") and not remote.create("heads/1", b"two")
    assert remote.list_sizes("heads") == {"1": 3}


def test_an_answer_that_was_lost_is_our_own_head(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = lease_of(remote, "first", LONG)
    acquire(lease)
    create = Remote.create

    def lose_answer(self: Remote, name: str, data: bytes) -> bool:
        create(self, name, data)
        raise ConnectionError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "create", lose_answer)
        with pytest.raises(ConnectionError):
            lease.renew("tree")
    lease.renew("tree")
    head = read_heads(remote)[1]
    assert head is not None and (head.owner.id, head.tree) == ("first", "tree")


def test_a_head_whose_writer_was_killed_is_passed_over(remote: Remote) -> None:
    first, second = lease_of(remote, "first"), lease_of(remote, "second")
    acquire(first)
    first.renew("tree")
    remote.write("heads/000000000003", b'{"number": 3, "own')
    assert read_heads(remote) == (3, first.head)
    acquire(second)
    assert second.head is not None and (second.head.number, second.head.tree) == (4, "tree")
    # Its writer lives after all, and has lost.
    with pytest.raises(Taken):
        first.renew("late")


def test_a_store_that_overwrites_is_refused(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overwrite(self: Remote, name: str, data: bytes) -> bool:
        self.write(name, data)
        return True

    monkeypatch.setattr(Remote, "create", overwrite)
    with pytest.raises(StoreError, match="cannot keep two machines apart"):
        acquire(lease_of(remote, "first"))


def test_a_refused_condition_by_any_name(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3-compatible stores and older clients raise a plain OSError for status 412."""
    assert remote.create("heads/1", b"one")

    def refuse(*args: Any, **more: Any) -> Any:
        raise OSError(22, "At least one of the pre-conditions you specified did not hold")

    monkeypatch.setattr(type(remote.fs), "open", refuse)
    monkeypatch.setattr("rlaif.pipeline.mirror.remote._create_whole", refuse)
    monkeypatch.setattr(Remote, "read_if_there", lambda self, name: b"one")
    assert not remote.create("heads/1", b"two")
    assert remote.create("heads/1", b"one")
    monkeypatch.setattr(Remote, "read_if_there", lambda self, name: None)
    with pytest.raises(OSError, match="pre-conditions"):
        remote.create("heads/1", b"two")


def test_heads_are_read_as_they_were_written() -> None:
    head = Head(7, Owner("id", "höst", "/a b"), 1.5, None)
    assert msgspec.json.decode(msgspec.json.encode(head), type=Head) == head


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(protocol: str) -> Any:
        raise ImportError("Install gcsfs to access Google Storage")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(ConfigError, match=r"gs://.*pip install 'rlaif\[gcs\]'"):
        open_remote("gs://bucket/run")
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"nosuch://.*expected a URL of fsspec"):
        open_remote("nosuch://bucket/run")
