"""What of a run folder counts as being there at one moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rlaif.core.store import Store
from rlaif.pipeline.mirror import snapshot as module
from rlaif.pipeline.mirror.snapshot import (
    Seen,
    Snapshot,
    Tree,
    agree,
    decode_tree,
    encode_tree,
    list_files,
    read_piece,
    take_snapshot,
)

EMPTY = Tree({})
LOG = "steps/ab/rows.commits"
ROWS = "steps/ab/rows.jsonl"


def snap(root: Path, before: Snapshot | None = None) -> Snapshot:
    known, seen = (EMPTY, {}) if before is None else (before.tree, before.seen)
    found = take_snapshot(root, known, seen, lambda: None)
    assert found is not None
    return found


def content(found: Snapshot, name: str, stored: dict[str, bytes]) -> bytes:
    """A file as it is put together from what was uploaded; `stored` gets the new parts."""
    for piece in found.new:
        data = read_piece(piece)
        assert data is not None
        stored[piece.part.digest] = data
    return b"".join(stored[part.digest] for part in found.tree.files[name].parts)


def append(root: Path, *rows: int) -> None:
    Store(root).step("ab").append("rows", [{"row": row} for row in rows])


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def new_bytes(found: Snapshot) -> int:
    return sum(piece.part.size for piece in found.new)


def test_only_whole_batches_count(tmp_path: Path) -> None:
    append(tmp_path, 1, 2)
    whole = (tmp_path / ROWS).read_bytes()
    with (tmp_path / ROWS).open("ab") as file:
        file.write(b'{"row": 3}\n{"ro')
    with (tmp_path / LOG).open("ab") as file:
        file.write(b"0000")
    found = snap(tmp_path)
    assert content(found, ROWS, {}) == whole
    assert found.tree.files[LOG].size == (tmp_path / LOG).stat().st_size - 4


def test_a_batch_is_uploaded_once(tmp_path: Path) -> None:
    append(tmp_path, 1)
    stored: dict[str, bytes] = {}
    first = snap(tmp_path)
    content(first, ROWS, stored)
    size = (tmp_path / ROWS).stat().st_size
    append(tmp_path, 2, 3)
    second = snap(tmp_path, first)
    assert content(second, ROWS, stored) == (tmp_path / ROWS).read_bytes()
    # What was there is named again, as other files have no part of the same bytes.
    fresh = {piece.part for piece in second.new} - first.tree.parts()
    grown = (tmp_path / ROWS).stat().st_size - size
    log = (tmp_path / LOG).stat().st_size // 2
    assert sum(part.size for part in fresh) == grown + log
    assert snap(tmp_path, second).new == ()


def test_another_process_finds_what_was_uploaded(tmp_path: Path) -> None:
    append(tmp_path, 1)
    first = snap(tmp_path)
    append(tmp_path, 2)
    again = take_snapshot(tmp_path, first.tree, {}, lambda: None)
    assert again is not None
    assert again.tree.files[ROWS].parts[0] == first.tree.files[ROWS].parts[0]
    assert take_snapshot(tmp_path, again.tree, {}, lambda: None) == Snapshot(
        again.tree, again.seen, ()
    )


def test_a_step_that_is_made_again_is_read_again(tmp_path: Path) -> None:
    """The new file has the old one's size and more: its beginning differs all the same."""
    append(tmp_path, 1)
    first = snap(tmp_path)
    for name in (ROWS, LOG):
        # The old inode stays in use, so that the new file has another one.
        os.link(tmp_path / name, tmp_path / f".{Path(name).name}")
        (tmp_path / name).unlink()
    append(tmp_path, 7)
    append(tmp_path, 8)
    second = snap(tmp_path, first)
    assert content(second, ROWS, {}) == (tmp_path / ROWS).read_bytes()


def test_a_small_change_of_a_large_file_is_one_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART", 4)
    path = write(tmp_path / "models/ab/weights", "aaaabbbbccccdd")
    first = snap(tmp_path)
    assert [part.size for part in first.tree.files["models/ab/weights"].parts] == [4, 4, 4, 2]
    path.write_text("aaaabbbbccccddee")
    second = snap(tmp_path, first)
    assert content(second, "models/ab/weights", {}) == b"aaaabbbbccccddee"
    assert len({p.part for p in second.new} - first.tree.parts()) == 1


def test_removed_files_are_in_no_later_tree(tmp_path: Path) -> None:
    write(tmp_path / "models/ab/masters/weights", "w")
    write(tmp_path / "config.yaml", "c")
    first = snap(tmp_path)
    assert set(first.tree.files) == {"models/ab/masters/weights", "config.yaml"}
    (tmp_path / "models/ab/masters/weights").unlink()
    assert set(snap(tmp_path, first).tree.files) == {"config.yaml"}


def test_what_is_being_written_is_left_out(tmp_path: Path) -> None:
    for name in (
        ".lock",
        ".mirror/state.json",
        ".manifest.json.12.tmp",
        "models/ab.partial/weights",
        "merged/ab/weights",
        "steps/ab/rows.commits.tmp",
        "steps/ab/work/partial-00000001/weights",
        "steps/ab/work/rollout/weights",
        "steps/ab/work/launch.json",
        "steps/ab/work/meeting.1",
    ):
        write(tmp_path / name, "x")
    wanted = {
        "manifest.json",
        "models/ab/merged/weights",
        "steps/ab/done.json",
        "steps/ab/work/checkpoint-00000001/state.json",
        "dataset/rollout",
        "prompts ü.jsonl",
    }
    for name in wanted:
        write(tmp_path / name, "x")
    assert set(list_files(tmp_path)) == wanted


def after_listings(monkeypatch: pytest.MonkeyPatch, *changes: Callable[[], object]) -> None:
    """Have each change made after one listing of the folder."""
    listed, left = list_files, iter(changes)

    def listing(root: Path) -> dict[str, Seen]:
        found = listed(root)
        next(left, lambda: None)()
        return found

    monkeypatch.setattr(module, "list_files", listing)


def test_a_marker_that_appears_meanwhile_makes_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(tmp_path, 1)
    after_listings(monkeypatch, lambda: write(tmp_path / "steps/ab/done.json", ""))
    assert take_snapshot(tmp_path, EMPTY, {}, lambda: None) is None
    assert "steps/ab/done.json" in snap(tmp_path).tree.files


def test_rows_that_are_appended_meanwhile_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is the moment between the listings, for all files alike: a batch of judgements is
    never there without the batch of answers that it rests on."""
    metrics = "steps/ab/work/metrics.jsonl"
    write(tmp_path / metrics, "{}\n")
    append(tmp_path, 1)
    after_listings(monkeypatch, lambda: append(tmp_path, 2))
    find, late = module.find_last_commit, False

    def find_last_commit(path: Path) -> tuple[int, int] | None:
        nonlocal late
        found = find(path)
        if path.name == "rows.jsonl" and not late and found is not None and found[1] > 12:
            # Between two looks, before the file that is looked at next.
            late = True
            append(tmp_path, 3)
            write(tmp_path / metrics, "{}\n{}\n")
        return found

    monkeypatch.setattr(module, "find_last_commit", find_last_commit)
    found = snap(tmp_path)
    assert late
    stored: dict[str, bytes] = {}
    assert content(found, ROWS, stored).count(b"\n") == 3
    assert content(found, metrics, stored) == b"{}\n{}\n"


def test_files_that_never_stand_still_make_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(tmp_path, 1)
    find = module.find_last_commit

    def find_last_commit(path: Path) -> tuple[int, int] | None:
        append(tmp_path, 2)
        return find(path)

    monkeypatch.setattr(module, "find_last_commit", find_last_commit)
    assert take_snapshot(tmp_path, EMPTY, {}, lambda: None) is None


def test_rows_that_were_dropped_are_read_again(tmp_path: Path) -> None:
    """As after a rollback: the file is replaced by its first rows, and others follow."""
    path = write(tmp_path / "steps/ab/work/metrics.jsonl", "a\nb\n")
    first = snap(tmp_path)
    write(tmp_path / "steps/ab/work/new.tmp", "a\nc\nd\n").replace(path)
    second = snap(tmp_path, first)
    assert content(second, "steps/ab/work/metrics.jsonl", {}) == b"a\nc\nd\n"


def test_meters_count_in_any_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "steps/ab/remote.json"
    write(tmp_path / name, "old")

    def replace_meters() -> None:
        write(tmp_path / "steps/ab/.new", "newer").replace(tmp_path / name)

    after_listings(monkeypatch, replace_meters)
    found = snap(tmp_path)
    assert content(found, name, {}) == b"newer"
    assert found.tree.files[name].size == 5


def test_lists_agree_on_what_held_between_them(tmp_path: Path) -> None:
    write(tmp_path / "config.yaml", "a")
    append(tmp_path, 1)
    first = list_files(tmp_path)
    append(tmp_path, 2)
    assert agree(first, list_files(tmp_path)) and not agree(list_files(tmp_path), first)
    write(tmp_path / "config.yaml", "ab")
    assert not agree(first, list_files(tmp_path))


def test_a_checkpoint_that_is_replaced_is_still_uploaded(tmp_path: Path) -> None:
    path = write(tmp_path / "steps/ab/work/checkpoint-00000001/weights", "old")
    found = snap(tmp_path)
    path.unlink()
    name = "steps/ab/work/checkpoint-00000001/weights"
    assert content(found, name, {}) == b"old"


def test_a_file_that_changes_while_it_is_read_makes_another_try(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "notes", "old")
    assert take_snapshot(tmp_path, EMPTY, {}, lambda: path.write_text("newer") and None) is None


def test_without_hard_links_files_are_read_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    path = write(tmp_path / "notes", "old")
    found = snap(tmp_path)
    assert content(found, "notes", {}) == b"old"
    path.write_text("new")
    assert read_piece(found.new[0]) is None


def test_a_tree_is_read_as_it_was_written(tmp_path: Path) -> None:
    append(tmp_path, 1)
    write(tmp_path / "models/ü b/weights", "x")
    tree = snap(tmp_path).tree
    assert decode_tree(encode_tree(tree)) == tree
    turned = Tree(dict(reversed(list(tree.files.items()))))
    assert encode_tree(turned) == encode_tree(tree)
