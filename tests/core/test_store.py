"""The run folder: batches whole or absent, markers, locks, full disks, foreign folders."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlaif.core import integrity
from rlaif.core.errors import ConfigError, StoreError
from rlaif.core.finished import Verified
from rlaif.core.integrity import publish_folder, seal_row
from rlaif.core.store import (
    FORMAT,
    StepFolder,
    Store,
    explain_os_errors,
    remove_partials,
    write_atomic,
    write_jsonl,
)
from rlaif.pipeline import experiment
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.manifest import read_manifest

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


@given(BATCHES, st.sampled_from(["data", "log"]))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_a_file_cut_at_any_byte_keeps_exactly_its_whole_batches(batches: Any, cut: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = StepFolder(Path(name) / "step")
        path = folder.path / "rows.jsonl"
        log = integrity.log_of(path)
        folder.path.mkdir()
        path.touch()
        log.touch()
        ends, wholes = [(0, 0)], [[]]
        for batch in batches:
            folder.append("rows", batch)
            ends.append((path.stat().st_size, log.stat().st_size))
            wholes.append([*wholes[-1], *batch])
        whole = {"data": path.read_bytes(), "log": log.read_bytes()}
        for size in range(len(whole[cut]) + 1):
            path.write_bytes(whole["data"][: size if cut == "data" else None])
            log.write_bytes(whole["log"][: size if cut == "log" else None])
            number = sum(end[cut == "log"] <= size for end in ends) - 1
            assert folder.read("rows") == wholes[number]
            assert folder.count("rows") == len(wholes[number])
            folder.repair()
            assert path.read_bytes() == whole["data"][: ends[number][0]]
            assert log.read_bytes() == whole["log"][: ends[number][1]]


@given(BATCHES.filter(bool), st.integers(0), st.integers(1, 255), st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_one_changed_byte_is_found_with_its_folder(
    batches: Any, place: int, change: int, finished: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = StepFolder(Path(name) / "step")
        for batch in batches:
            folder.append("rows", batch)
        if finished:
            folder.finish({"counts": {"rows": 1}})
        # Of a log's last row that is damaged an unfinished step knows no more than of a torn one.
        files = [p for p in folder.path.iterdir() if finished or p.suffix == ".jsonl"]
        sizes = [p.stat().st_size for p in files]
        place %= sum(sizes)
        number = next(n for n in range(len(files)) if place < sum(sizes[: n + 1]))
        data = bytearray(files[number].read_bytes())
        at = place - sum(sizes[:number])
        # Spaces between a marker's keys say nothing.
        assume(files[number] != folder.marker or data[at : at + 1].strip())
        data[at] ^= change
        files[number].write_bytes(data)
        # What is finished is looked at before it is used, what is not before it is gone on with.
        with pytest.raises(StoreError, match=f"Delete the folder {folder.path}"):
            folder.done() if finished else folder.repair()


def test_each_line_of_a_record_file_is_json(tmp_path: Path) -> None:
    folder = StepFolder(tmp_path / "step")
    for number in range(3):
        folder.append("rows", [{"a": number}, {"a": "\n\n\u2028"}])
    text = (folder.path / "rows.jsonl").read_text("utf-8")
    assert text.endswith("\n")
    rows = [json.loads(line) for line in text[:-1].split("\n")]
    assert rows == folder.read("rows")


def test_a_file_that_was_only_touched_or_copied_is_believed(tmp_path: Path) -> None:
    folder = StepFolder(tmp_path / "step")
    folder.append("rows", [{"a": 1}])
    folder.finish({"counts": {"rows": 1}})
    for path in folder.path.iterdir():
        os.utime(path, ns=(1, 1))
    assert folder.done() is not None
    shutil.copytree(folder.path, tmp_path / "copy")
    assert StepFolder(tmp_path / "copy").done() is not None


def test_damage_behind_an_unchanged_time_is_found_by_verify(tmp_path: Path) -> None:
    folder = StepFolder(tmp_path / "step")
    folder.append("rows", [{"text": "yes"}])
    folder.append("rows", [{"text": "no"}])
    folder.finish({})
    path = folder.path / "rows.jsonl"
    before = path.stat().st_mtime_ns
    assert folder.verify() == Verified(1, path.stat().st_size)
    path.write_text(path.read_text().replace("yes", "yet"))
    os.utime(path, ns=(before, before))
    assert folder.done() is not None
    with pytest.raises(StoreError, match=r"rows\.jsonl: damaged: its rows 1 to 1 .*Delete"):
        folder.verify()


@pytest.mark.parametrize("torn", [False, True])
def test_batches_closed_by_blank_lines_are_read_and_gone_on_with(
    tmp_path: Path, torn: bool
) -> None:
    folder = StepFolder(tmp_path / "step")
    folder.path.mkdir()
    path = folder.path / "rows.jsonl"
    rows = [{"a": 1}, {"a": 2}, {"a": 3}]
    path.write_text('{"a":1}\n{"a":2}\n\n{"a":3}\n\n' + ('{"a":4}\n{"a' if torn else ""))
    assert folder.read("rows") == rows
    index = folder.index("rows", "text")
    if torn:
        # Without a repair first: the torn end must not become a part of the next batch.
        folder.append("rows", [{"a": 5}])
    else:
        folder.repair()
        folder.append("rows", [{"a": 5}])
    assert folder.read("rows") == [*rows, {"a": 5}]
    assert index is not None
    folder.finish({})
    assert folder.verify().unchecked == 0
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="its rows 1 to 3 are not"):
        folder.verify()


def test_a_marker_of_an_earlier_version_is_believed_by_its_sizes(tmp_path: Path) -> None:
    folder = StepFolder(tmp_path / "step")
    folder.path.mkdir()
    (folder.path / "rows.jsonl").write_text('{"a":1}\n\n')
    folder.marker.write_text('{"files": {"rows.jsonl": 9}, "counts": {"rows": 1}}')
    assert folder.done() == {"files": {"rows.jsonl": 9}, "counts": {"rows": 1}}
    assert folder.verify() == Verified(unchecked=1)
    folder.marker.write_text('{"files": {"rows.jsonl": 8}, "counts": {"rows": 1}}')
    with pytest.raises(StoreError, match="changed or removed"):
        folder.done()


@pytest.mark.parametrize(
    "text", ["{}", "[]", "", "null", '{"files": [], "counts": {}}', '{"counts": {}}', "[" * 9999]
)
def test_a_marker_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    folder = StepFolder(tmp_path / "step")
    folder.append("rows", [{"a": 1}])
    folder.marker.write_text(text)
    with pytest.raises(StoreError, match=r"done\.json: damaged .*Delete the folder"):
        folder.done()


def test_what_dead_processes_left_half_written_goes(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".{dead.pid}.dataset").mkdir()
    (tmp_path / f".dataset.{dead.pid}.tmp").mkdir()
    (tmp_path / f".dataset.{dead.pid}.tmp" / "part").write_text("")
    (tmp_path / f".report.html.{dead.pid}.tmp").write_text("")
    mine = [".lock", ".5 notes", f".report.html.{os.getppid()}.tmp", "steps", ".x.y.tmp"]
    for name in mine:
        (tmp_path / name).mkdir()
    remove_partials(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(mine)


def test_what_an_earlier_process_of_our_own_number_left_goes(tmp_path: Path) -> None:
    # In a container the next process may have the same number.
    (tmp_path / f".report.html.{os.getpid()}.tmp").write_text("")
    remove_partials(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_goes_when_the_folder_is_locked(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    store = Store(tmp_path / "run")
    store.prepare()
    half = [store.root / f".manifest.json.{dead.pid}.tmp", store.root / "models" / "h.partial"]
    half[1].mkdir(parents=True)
    half[0].write_text("{")
    with store.locked():
        assert not any(path.exists() for path in half)


def test_a_batch_is_on_disk_before_its_row_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    whole = os.fsync

    def synced(descriptor: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    StepFolder(tmp_path / "step").append("rows", [{"a": 1}])
    data = order.index("rows.jsonl")
    assert "rows.commits" in order[data:]


def test_damage_in_an_unfinished_step_and_in_a_model_is_found_by_verify(tmp_path: Path) -> None:
    folder = StepFolder(tmp_path / "step")
    folder.append("rows", [{"text": "yes"}])
    path = folder.path / "rows.jsonl"
    path.write_text(path.read_text().replace("yes", "yet"))
    with pytest.raises(StoreError, match=r"rows\.jsonl: damaged"):
        folder.verify()
    half, model = tmp_path / "half", tmp_path / "model"
    half.mkdir()
    (half / "weights").write_text("yes")
    publish_folder(half, model)
    made = StepFolder(tmp_path / "made")
    made.finish({}, model)
    assert made.verify().files == 2
    before = (model / "weights").stat()
    (model / "weights").write_text("yet")
    os.utime(model / "weights", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert made.done() is not None
    with pytest.raises(StoreError, match=r"weights: damaged \(its checksum differs\)"):
        made.verify()


@pytest.mark.parametrize("damage", ["a changed row", "rows in another order"])
def test_a_damaged_log_is_named_and_not_its_records(tmp_path: Path, damage: str) -> None:
    folder = StepFolder(tmp_path / "step")
    for number in range(3):
        folder.append("rows", [{"a": number}])
    log = folder.path / "rows.commits"
    first, second, third = log.read_bytes().splitlines(keepends=True)
    if damage == "a changed row":
        second = second.replace(b" 0000000001 ", b" 0000000002 ")
    else:
        first, second = second, first
    log.write_bytes(first + second + third)
    with pytest.raises(StoreError, match=r"rows\.commits: damaged\. Delete the folder"):
        folder.verify()
    with pytest.raises(StoreError, match=r"rows\.commits: damaged\. Delete the folder"):
        folder.repair()


def test_a_log_that_ends_elsewhere_than_its_file_is_damaged(tmp_path: Path) -> None:
    folder = StepFolder(tmp_path / "step")
    folder.append("rows", [{"a": 1}])
    folder.append("rows", [{"a": 2}])
    folder.finish({})
    log = folder.path / "rows.commits"
    before = log.stat()
    # The last row of the log gone, and its size made up for by what is no row.
    data = log.read_bytes()
    log.write_bytes(data[: len(data) // 2] + b" " * (len(data) // 2))
    os.utime(log, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(StoreError, match=r"rows\.commits: damaged"):
        folder.verify()


def test_after_a_repair_appending_goes_on(tmp_path: Path) -> None:
    folder = StepFolder(tmp_path / "step")
    folder.append("rows", [{"a": 1}, {"a": 2}])
    path = folder.path / "rows.jsonl"
    with path.open("ab") as file:
        file.write(b'{"a":3}\n{"a"')
    folder.repair()
    folder.append("rows", [{"a": 4}])
    assert folder.read("rows") == [{"a": 1}, {"a": 2}, {"a": 4}]
    assert [json.loads(line) for line in path.read_text().splitlines()] == folder.read("rows")


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
    found = (folder.path / "rows.jsonl").stat()
    assert made["files"]["rows.jsonl"] == {"size": found.st_size, "mtime_ns": found.st_mtime_ns}
    assert sorted(made["files"]) == ["rows.commits", "rows.jsonl"]
    assert [p.name for p in folder.path.iterdir() if p.name.endswith(".tmp")] == []


@pytest.mark.parametrize("change", ["longer", "shorter", "removed", "log removed"])
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
        (integrity.log_of(path) if change == "log removed" else path).unlink()
    with pytest.raises(
        StoreError, match=r"rows\.(jsonl|commits): changed or removed.*Delete the folder"
    ):
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
        "from rlaif.core.store import Store\n"
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
        (errno.EDQUOT, "share of the disk is used up"),
        (errno.EFBIG, "larger than this system allows"),
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


def test_a_whole_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    for versions in ({"rlaif": "9.9"}, [], None):
        manifest = seal_row({"format": FORMAT + 1, "versions": versions})
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(StoreError, match=f"run format {FORMAT + 1}"):
            Store(tmp_path).prepare()
        with pytest.raises(ConfigError, match=f"run format {FORMAT + 1}"):
            read_manifest(tmp_path)


def test_lack_of_space_is_said_before_the_run(tmp_path: Path) -> None:
    Store(tmp_path).need_space(0)
    with pytest.raises(StoreError, match="Free some space"):
        Store(tmp_path).need_space(1 << 60)


def test_a_run_that_the_disk_cannot_hold_is_refused_before_its_first_step(
    tmp_path: Path,
    tiny_model: Path,
    write_experiment: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two exports of 2 bytes a parameter, masters of 4 and 4, and a checkpoint of 12: 24."""
    path = write_experiment(tmp_path / "files", tiny_model)
    parameters = sum(f.stat().st_size for f in tiny_model.glob("*.safetensors")) // 2
    free = [24 * parameters - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0]))
    with pytest.raises(StoreError, match="Free some space"):
        run_experiment(path, tmp_path / "run")
    assert not list((tmp_path / "run").glob("steps/*"))

    def began(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment._Runner, "run", began)
    free[0] += 1
    with pytest.raises(KeyboardInterrupt):
        run_experiment(path, tmp_path / "run")


def test_exports_are_plain_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": "é\u2028"}, {"a": 2}])
    assert path.read_text("utf-8") == '{"a":"é\u2028"}\n{"a":2}\n'


def test_another_models_checksums_do_not_vouch_for_a_model(tmp_path: Path) -> None:
    for name, text in (("model", "yes"), ("other", "yet")):
        half = tmp_path / "half"
        half.mkdir()
        (half / "weights").write_text(text)
        publish_folder(half, tmp_path / name)
    made = StepFolder(tmp_path / "made")
    made.finish({}, tmp_path / "model")
    shutil.copy(tmp_path / "other/checksums.json", tmp_path / "model/checksums.json")
    with pytest.raises(StoreError, match=r"weights: damaged \(its checksum differs\)"):
        made.done()
