"""The run folder: batches whole or absent, markers, locks, full disks, foreign folders."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import StoreError
from rlaif.store import FORMAT, StepFolder, Store, explain_os_errors, write_atomic, write_jsonl

TEXTS = st.text(st.characters(exclude_categories=()), max_size=12)
BATCHES = st.lists(
    st.lists(
        st.fixed_dictionaries({"id": st.integers(0, 99), "text": TEXTS}), min_size=1, max_size=3
    ),
    max_size=3,
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        made = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        made = False
    if not made:
        pytest.skip("no right to mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@given(BATCHES)
@settings(max_examples=8, deadline=None)
def test_a_file_cut_at_any_byte_keeps_exactly_its_whole_batches(batches: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = StepFolder(Path(name) / "step")
        path = folder.path / "rows.jsonl"
        folder.path.mkdir()
        path.touch()
        ends, wholes = [0], [[]]
        for batch in batches:
            folder.append("rows", batch)
            ends.append(path.stat().st_size)
            wholes.append([*wholes[-1], *batch])
        data = path.read_bytes()
        for cut in range(len(data) + 1):
            path.write_bytes(data[:cut])
            number = sum(end <= cut for end in ends) - 1
            assert folder.read("rows") == wholes[number]
            folder.repair()
            assert path.read_bytes() == data[: ends[number]]


def test_after_a_repair_appending_goes_on(tmp_path: Path) -> None:
    folder = StepFolder(tmp_path / "step")
    folder.append("rows", [{"a": 1}, {"a": 2}])
    path = folder.path / "rows.jsonl"
    with path.open("ab") as file:
        file.write(b'{"a":3}\n{"a"')
    folder.repair()
    folder.append("rows", [{"a": 4}])
    assert folder.read("rows") == [{"a": 1}, {"a": 2}, {"a": 4}]
    assert [json.loads(line) for line in path.read_text().splitlines() if line] == folder.read(
        "rows"
    )


def test_no_rows_write_nothing(tmp_path: Path) -> None:
    folder = StepFolder(tmp_path / "step")
    folder.append("rows", [])
    assert not folder.path.exists()
    assert folder.read("rows") == []


def test_marker_is_there_only_after_finish(tmp_path: Path) -> None:
    folder = StepFolder(tmp_path / "step")
    folder.append("rows", [{"a": 1}])
    assert folder.done() is None
    made = folder.finish({"counts": {"rows": 1}})
    assert folder.done() == made
    assert made["counts"] == {"rows": 1}
    assert made["files"] == {"rows.jsonl": (folder.path / "rows.jsonl").stat().st_size}
    assert [p.name for p in folder.path.iterdir() if p.name.endswith(".tmp")] == []


@pytest.mark.parametrize("change", ["longer", "shorter", "removed"])
def test_a_file_changed_after_the_marker_is_detected(tmp_path: Path, change: str) -> None:
    folder = StepFolder(tmp_path / "step")
    folder.append("rows", [{"a": 1}])
    folder.finish({})
    path = folder.path / "rows.jsonl"
    if change == "longer":
        folder.append("rows", [{"a": 2}])
    elif change == "shorter":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    with pytest.raises(StoreError, match=r"rows\.jsonl.*changed or removed.*Delete the folder"):
        folder.done()


def test_a_damaged_row_and_a_damaged_marker_are_named(tmp_path: Path) -> None:
    folder = StepFolder(tmp_path / "step")
    folder.path.mkdir()
    (folder.path / "rows.jsonl").write_text('{"a": 1}\nnot json\n\n')
    with pytest.raises(StoreError, match=r"rows\.jsonl:2: damaged row"):
        folder.read("rows")
    folder.marker.write_text('{"files"')
    with pytest.raises(StoreError, match=r"done\.json: damaged JSON"):
        folder.done()


def test_second_process_is_refused_and_the_first_ones_death_frees_the_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from rlaif.store import Store\n"
        "with Store(Path(sys.argv[1])).locked():\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(600)\n"
    )
    store = Store(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(StoreError, match="another rlaif is working"), store.locked():
            pass
    finally:
        holder.kill()
        holder.communicate()
    with store.locked():
        assert (tmp_path / ".lock").exists()


def test_a_full_disk_is_one_message_and_loses_no_whole_batch(small_disk: Path) -> None:
    folder = StepFolder(small_disk / "step")
    row = {"text": "x" * 8000}
    written = 0
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    while free > 12_000:
        folder.append("rows", [row])
        written += 1
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    with pytest.raises(StoreError, match="the disk is full") as caught:
        folder.append("rows", [row] * 3)
    assert str(folder.path) in str(caught.value)
    assert 0 < written < 20
    folder.repair()
    assert folder.read("rows") == [row] * written


def test_a_full_disk_keeps_the_old_text_of_an_atomic_file(small_disk: Path) -> None:
    path = small_disk / "manifest.json"
    write_atomic(path, "old")
    with pytest.raises(StoreError, match="the disk is full"):
        write_atomic(path, "x" * 200_000)
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EROFS, "not writable"),
        (errno.EACCES, "not writable"),
    ],
)
def test_errors_of_the_disk_become_store_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match=words):
        StepFolder(tmp_path / "step").append("rows", [{"a": 1}])
    with pytest.raises(StoreError, match=words):
        write_atomic(tmp_path / "file", "text")


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="broken"), explain_os_errors(tmp_path):
        raise OSError(errno.EIO, "broken")


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear reader")
    with pytest.raises(StoreError, match=r"not a run folder \(it holds thesis\.tex\)"):
        Store(tmp_path).prepare()
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("")
    with pytest.raises(StoreError, match="a folder was expected"):
        Store(path).prepare()


@pytest.mark.parametrize("kind", ["absent", "empty", "begun"])
def test_a_new_or_begun_folder_is_taken(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "run"
    if kind != "absent":
        root.mkdir()
    if kind == "begun":
        # Killed before the manifest was written.
        (root / "steps").mkdir()
        (root / "config.yaml").write_text("name: x")
    Store(root).prepare()
    assert (root / "steps").is_dir()


def test_another_format_is_refused(tmp_path: Path) -> None:
    manifest = {"format": FORMAT + 1, "versions": {"rlaif": "9.9"}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=rf"run format {FORMAT + 1}.*\(9\.9\)"):
        Store(tmp_path).prepare()


def test_lack_of_space_is_said_before_the_run(tmp_path: Path) -> None:
    Store(tmp_path).need_space(0)
    with pytest.raises(StoreError, match="Free some space"):
        Store(tmp_path).need_space(1 << 60)


def test_exports_are_plain_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": "é\u2028"}, {"a": 2}])
    assert path.read_text("utf-8") == '{"a":"é\u2028"}\n{"a":2}\n'
