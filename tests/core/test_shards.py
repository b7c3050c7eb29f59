"""Records in several files are those of one, for every reader, and after a kill or damage."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from rlaif.core import integrity, rowfiles
from rlaif.core.errors import StoreError
from rlaif.core.records import Judgement
from rlaif.core.rowfiles import list_shards, locate_byte
from rlaif.core.store import StepFolder
from rlaif.data.rows import jsonl_rows
from rlaif.pipeline.prepare import _file_hash


def judgement(number: int) -> Judgement:
    name = f"p_{number % 5}"
    return Judgement(
        f"j_{number}", "c", name, "completion", ["k"], "k", "x", "y", "ai", None, "ok", 0.5
    )


ROWS = [judgement(number) for number in range(40)]


def write(folder: StepFolder, rows: list[Judgement]) -> None:
    for start in range(0, len(rows), 3):
        folder.append("judgements", rows[start : start + 3])


@pytest.fixture
def sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StepFolder:
    monkeypatch.setattr(rowfiles, "SHARD_BYTES", 2000)
    folder = StepFolder(tmp_path / "sharded")
    write(folder, ROWS)
    assert len(list_shards(folder.path / "judgements.jsonl")) > 3
    return folder


def test_readers_go_through_all_files(sharded: StepFolder, tmp_path: Path) -> None:
    path = sharded.path / "judgements.jsonl"
    assert list(sharded.records(Judgement)) == ROWS
    assert sharded.count("judgements") == len(ROWS)
    assert [row["judgement_id"] for _, row in jsonl_rows(path)] == [r.judgement_id for r in ROWS]
    index = sharded.index("judgements", "prompt_id")
    assert list(index.grow()) == [r.prompt_id for r in ROWS]
    assert list(index.keys()) == sorted({r.prompt_id for r in ROWS})
    part = pickle.loads(pickle.dumps(index.part(["p_3"])))
    for found in (index, part):
        assert found.records("p_3", Judgement) == [r for r in ROWS if r.prompt_id == "p_3"]
    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(b"".join(shard.read_bytes() for shard in list_shards(path)))
    assert _file_hash(path) == _file_hash(whole)
    assert _file_hash(path) != _file_hash(list_shards(path)[1])


def test_an_index_that_has_read_goes_on_in_a_file_that_came_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rowfiles, "SHARD_BYTES", 600)
    folder = StepFolder(tmp_path)
    index = folder.index("judgements", "judgement_id")
    for row in ROWS:
        folder.append("judgements", [row])
        assert list(index.grow()) == [row.judgement_id]
        assert index.records(row.judgement_id, Judgement) == [row]
    assert index.records("j_0", Judgement) == [ROWS[0]]


def test_a_byte_is_found_in_its_file(sharded: StepFolder) -> None:
    path = sharded.path / "judgements.jsonl"
    place = 0
    for shard in list_shards(path):
        assert locate_byte(path, place) == (shard, 0)
        assert locate_byte(path, place + 7) == (shard, 7)
        place += shard.stat().st_size


@pytest.mark.parametrize("rows", [7, 12, 20])
def test_after_a_kill_the_same_files_come_about(
    sharded: StepFolder, tmp_path: Path, rows: int
) -> None:
    """A batch was torn: in the middle of a file, and where one begins."""
    killed = StepFolder(tmp_path / "killed")
    write(killed, ROWS[: rows - rows % 3])
    torn = killed._open_shard("judgements")
    with torn.open("ab") as file:
        file.write(b'{"judgement_id": "torn')
    killed.repair()
    assert list(killed.records(Judgement)) == ROWS[: rows - rows % 3]
    write(killed, ROWS[rows - rows % 3 :])
    names = sorted(path.name for path in sharded.path.iterdir())
    assert names == sorted(path.name for path in killed.path.iterdir())
    for name in names:
        assert (killed.path / name).read_bytes() == (sharded.path / name).read_bytes(), name


def test_damage_in_a_later_file_is_named(sharded: StepFolder) -> None:
    sharded.finish({"counts": {}, "seconds": 0.0})
    marker = sharded.done()
    assert marker is not None
    later = list_shards(sharded.path / "judgements.jsonl")[2]
    assert later.name in marker["files"]
    assert sharded.verify().files == len(list_shards(sharded.path / "judgements.jsonl"))
    text = later.read_text()
    later.write_text(text.replace('"ok"', '"OK"', 1))
    with pytest.raises(StoreError, match=r"judgements\.0002\.jsonl: damaged"):
        sharded.done()
    # In a file without a log, as earlier versions wrote it, the line is named.
    integrity.log_of(sharded.path / "judgements.jsonl").unlink()
    sharded.marker.unlink()
    first = sharded.path / "judgements.jsonl"
    first.write_text(json.dumps({"judgement_id": 3}) + "\n\n")
    with pytest.raises(StoreError, match=r"judgements\.jsonl:1: damaged row"):
        list(sharded.records(Judgement))


def test_the_log_of_a_file_is_on_disk_before_another_goes_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a shorter log would have its batches made again, behind later ones."""
    synced: list[str] = []
    monkeypatch.setattr(rowfiles, "SHARD_BYTES", 600)
    monkeypatch.setattr(integrity, "sync_to_disk", lambda path: synced.append(path.name))
    write(StepFolder(tmp_path), ROWS[:9])
    assert synced == ["judgements.commits", "judgements.0001.commits"]
