"""From the mirror into a run folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from uuid import uuid4

import pytest

from rlaif.core.errors import StoreError
from rlaif.core.integrity import digest
from rlaif.core.store import Store
from rlaif.pipeline.mirror.pull import Pulled, name_object, pull_tree, read_tree
from rlaif.pipeline.mirror.remote import Remote, open_remote
from rlaif.pipeline.mirror.snapshot import (
    Entry,
    Tree,
    encode_tree,
    list_files,
    read_piece,
    take_snapshot,
)

EMPTY = Tree({})
MARKER = "steps/ab/done.json"


def in_turn(jobs: Iterable[Callable[[], None]]) -> None:
    for job in jobs:
        job()


@pytest.fixture
def remote() -> Remote:
    return open_remote(f"memory:///{uuid4().hex}")


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A run folder with a finished step."""
    root = tmp_path / "theirs ü"
    step = Store(root).step("ab")
    step.append("rows", [{"row": 1}])
    step.append("rows", [{"row": 2}])
    step.finish({"counts": {}})
    (root / "manifest.json").write_text("{}")
    return root


def upload(root: Path, remote: Remote) -> Tree:
    found = take_snapshot(root, EMPTY, {}, lambda: None)
    assert found is not None
    for piece in found.new:
        data = read_piece(piece)
        assert data is not None
        remote.write(name_object(piece.part.digest), data)
    return found.tree


def pull(remote: Remote, tree: Tree, root: Path, last: Tree = EMPTY) -> Pulled:
    root.mkdir(exist_ok=True)
    return pull_tree(remote, tree, root, last, in_turn, lambda: None)


def contents(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in list_files(root)}


def test_a_folder_becomes_the_same(remote: Remote, theirs: Path, tmp_path: Path) -> None:
    tree = upload(theirs, remote)
    ours = tmp_path / "ours"
    pulled = pull(remote, tree, ours)
    assert contents(ours) == contents(theirs)
    assert pulled == Pulled(sum(part.size for part in tree.parts()), [])
    # The markers' times hold, so no step is compared with its checksums.
    times = {name: seen.mtime_ns for name, seen in list_files(theirs).items()}
    assert {name: seen.mtime_ns for name, seen in list_files(ours).items()} == times
    assert Store(ours).step("ab").done() is not None
    assert pull(remote, tree, ours) == Pulled(0, [])


def test_an_older_folder_gets_what_it_lacks(remote: Remote, theirs: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    Store(ours).step("ab").append("rows", [{"row": 1}])
    begun = sum(path.stat().st_size for path in (ours / "steps/ab").iterdir())
    tree = upload(theirs, remote)
    size = sum(entry.size for entry in tree.files.values())
    pulled = pull(remote, tree, ours)
    assert contents(ours) == contents(theirs)
    # Uploaded at once, so each file is one part, which has to come whole.
    assert pulled.bytes == size > begun
    assert pulled.aside == []


def test_parts_that_are_here_are_not_fetched(remote: Remote, theirs: Path, tmp_path: Path) -> None:
    step = Store(theirs).step("cd")
    step.append("rows", [{"row": 1}])
    first = take_snapshot(theirs, EMPTY, {}, lambda: None)
    assert first is not None
    upload(theirs, remote)
    ours = tmp_path / "ours"
    pull(remote, first.tree, ours)
    step.append("rows", [{"row": 2}])
    second = take_snapshot(theirs, first.tree, first.seen, lambda: None)
    assert second is not None
    for piece in second.new:
        remote.write(name_object(piece.part.digest), read_piece(piece) or b"")
    fresh = second.tree.parts() - first.tree.parts()
    assert pull(remote, second.tree, ours).bytes == sum(part.size for part in fresh)
    assert contents(ours) == contents(theirs)


def test_what_the_mirror_never_had_is_moved_aside(
    remote: Remote, theirs: Path, tmp_path: Path
) -> None:
    tree = upload(theirs, remote)
    ours = tmp_path / "ours"
    pull(remote, tree, ours)
    # Since then theirs has lost a step, and ours has made another and a batch of its own.
    (theirs / MARKER).unlink()
    for path in (theirs / "steps/ab").iterdir():
        path.unlink()
    Store(ours).step("cd").append("rows", [{"row": 5}])
    (ours / "manifest.json").write_text("[]")
    pulled = pull(remote, upload(theirs, remote), ours, last=tree)
    assert contents(ours) == contents(theirs)
    assert not (ours / "steps/ab").exists() and not (ours / "steps/cd").exists()
    assert pulled.aside == ["manifest.json", "steps/cd/rows.commits", "steps/cd/rows.jsonl"]
    aside = ours / ".mirror" / "aside"
    assert (aside / "steps/cd/rows.jsonl").read_bytes() == b'{"row":5}\n'
    assert (aside / "manifest.json").read_text() == "[]"
    # What was mirrored before is deleted as it was there.
    assert not (aside / MARKER).exists()


def test_a_killed_pull_leaves_the_folder_and_goes_on(
    remote: Remote, theirs: Path, tmp_path: Path
) -> None:
    tree = upload(theirs, remote)
    ours = tmp_path / "ours"
    Store(ours).step("ab").append("rows", [{"row": 9}])
    before = contents(ours)
    done = 0

    def kill(jobs: Iterable[Callable[[], None]]) -> None:
        nonlocal done
        for job in jobs:
            if done == 2:
                raise KeyboardInterrupt
            job()
            done += 1

    with pytest.raises(KeyboardInterrupt):
        pull_tree(remote, tree, ours, EMPTY, kill, lambda: None)
    assert contents(ours) == before
    pulled = pull(remote, tree, ours)
    assert contents(ours) == contents(theirs)
    assert 0 < pulled.bytes < sum(part.size for part in tree.parts())


def test_markers_come_last_and_go_first(
    remote: Remote, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = upload(theirs, remote)
    ours = tmp_path / "ours"
    placed: list[str] = []
    from rlaif.pipeline.mirror import pull as module

    replace = module.os.replace

    def watch(source: Path, target: Path) -> None:
        placed.append(target.relative_to(ours).as_posix())
        replace(source, target)

    monkeypatch.setattr(module.os, "replace", watch)
    pull(remote, tree, ours)
    assert placed[-2:] == [MARKER, "manifest.json"]
    placed.clear()
    pull(remote, EMPTY, ours)
    assert placed[:2] == [f".mirror/aside/{name}" for name in ("manifest.json", MARKER)]


def test_a_damaged_object_is_named(remote: Remote, theirs: Path, tmp_path: Path) -> None:
    tree = upload(theirs, remote)
    part = tree.files["steps/ab/rows.jsonl"].parts[0]
    remote.write(name_object(part.digest), b"other")
    ours = tmp_path / "ours"
    with pytest.raises(StoreError, match=f"{remote.url}/objects/{part.digest}: damaged.*Delete"):
        pull(remote, tree, ours)
    assert contents(ours) == {}


@pytest.mark.parametrize("name", ["../up", "steps/../../up", "/etc/up", ".mirror/state.json"])
def test_a_tree_stays_within_the_run_folder(remote: Remote, name: str) -> None:
    data = encode_tree(Tree({name: Entry(0, 0, ())}))
    remote.write(name_object(digest(data)), data)
    with pytest.raises(StoreError, match=re.escape(f"outside the run folder: {name}")):
        read_tree(remote, digest(data))


def test_a_tree_of_another_version_is_said(remote: Remote) -> None:
    data = b'{"folders": []}'
    remote.write(name_object(digest(data)), data)
    with pytest.raises(StoreError, match="another version of rlaif"):
        read_tree(remote, digest(data))
