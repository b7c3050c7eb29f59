"""Damage to what a training goes on from, or has written, is named; nothing is trained on it."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from rlaif.core import integrity
from rlaif.core.errors import StoreError
from rlaif.core.store import Store
from rlaif.train import checkpoint, reward_model
from rlaif.train.loop import read_outcome
from tests.train.test_loop import Stop, _files, _options, _train

NAMES = [
    "checkpoint-00000004/part-0/weights.safetensors",
    "checkpoint-00000004/part-0/optimizer.safetensors",
    "checkpoint-00000004/random.safetensors",
    "checkpoint-00000004/state.json",
    "checkpoint-00000004/checksums.json",
    "reference.jsonl",
    "metrics.jsonl",
]

MORE = ["digit", "cut", "emptied", "{}"]
"""Damage whose faster siblings are tried always."""
CASES = [
    *((name, damage) for damage in ("bit", "removed") for name in NAMES),
    # Rows that are read as well as the right ones.
    ("reference.jsonl", "digit"),
    *(
        pytest.param(name, damage, marks=pytest.mark.slow)
        for damage in MORE
        for name in NAMES
        if (name, damage) != ("reference.jsonl", "digit")
    ),
]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, make_model, make_preferences):
    """A training that was stopped after its checkpoint of step 4, and what it ends in."""
    folder = tmp_path_factory.mktemp("stopped")
    given = make_model(0), make_preferences(10), _options()

    def stop(progress):
        if progress.step == 5:
            raise Stop

    with pytest.raises(Stop):
        _train(folder / "half", *given, progress=stop)
    _train(folder / "whole", *given)
    return folder, given


def _go_on(folder, given):
    """What is said against going on with a training; None where it ended."""
    try:
        _train(folder, *given)
    except StoreError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("name", "damage"), CASES)
def test_damage_is_named_and_deleting_what_it_names_trains_the_same(
    stopped, tmp_path, name, damage
):
    folder, given = stopped
    shutil.copytree(folder / "half", tmp_path / "half")
    path = tmp_path / "half/work" / name
    data = path.read_bytes()
    middle = len(data) // 2
    digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
    at = digits[len(digits) // 3]
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(
            {
                "bit": data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :],
                "digit": data[:at] + str((int(chr(data[at])) + 1) % 10).encode() + data[at + 1 :],
                "cut": data[:middle],
                "emptied": b"",
                "{}": b"{}",
            }[damage]
        )
    said = _go_on(tmp_path / "half", given)
    if said is None:
        # As far as any reader can tell it was being computed: its rest is made again.
        assert name == "reference.jsonl" and damage in ("cut", "emptied", "removed", "{}")
    else:
        named = said.split("Delete the folder ")[1].split(" to train")[0]
        assert named.startswith(str(tmp_path / "half/work"))
        assert str(path) in said or str(path.parent) in said
        shutil.rmtree(named)
        assert _go_on(tmp_path / "half", given) is None
    assert _files(tmp_path / "half/out") == _files(folder / "whole/out")


def test_metrics_that_a_checkpoint_counts_on_are_on_disk_before_it(stopped):
    folder, _ = stopped
    state = json.loads((folder / "half/work" / NAMES[3]).read_text())
    data = (folder / "half/work/metrics.jsonl").read_bytes()
    assert integrity.digest(data[: state["metrics"]["size"]]) == state["metrics"]["digest"]
    assert data[: state["metrics"]["size"]].count(b"\n") == 4


def test_metrics_are_flushed_before_their_checksum_is_taken(tmp_path, monkeypatch):
    flushed = []
    whole = os.fsync

    def synced(descriptor):
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    checkpoint.write_row(tmp_path, {"step": 1})
    assert checkpoint.describe_log(tmp_path / checkpoint.ROWS)["size"] > 0
    assert flushed == [str(tmp_path / checkpoint.ROWS)]


def test_a_checkpoint_of_the_version_before_is_gone_on_from(stopped, tmp_path):
    folder, given = stopped
    shutil.copytree(folder / "half", tmp_path / "half")
    path = tmp_path / "half/work" / NAMES[3]
    (path.parent / integrity.CHECKSUMS_NAME).unlink()
    state = json.loads(path.read_text())
    del state["metrics"]
    path.write_text(json.dumps(state))
    # Its reference had neither batches nor a log.
    (tmp_path / "half/work/reference.commits").unlink()
    seen = []
    _train(tmp_path / "half", *given, progress=lambda p: seen.append(p.step))
    assert seen == [5, 6]
    assert _files(tmp_path / "half/out") == _files(folder / "whole/out")


@pytest.mark.parametrize("name", ["model.safetensors", "masters/model.safetensors", "config.json"])
def test_a_changed_export_is_found_where_its_step_is_used(stopped, tmp_path, name):
    folder, _ = stopped
    store = Store(tmp_path)
    out = store.model_path("h")
    shutil.copytree(folder / "whole/out", out)
    step = store.step("h")
    step.finish({"counts": {}}, out)
    assert step.done() is not None
    path = out / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=rf"{name}: damaged .*Delete the folder {step.path} "):
        step.done()
    # Masters that were dropped are not missed.
    shutil.rmtree(out / "masters")
    if name.startswith("masters"):
        assert step.done() is not None


def test_a_damaged_outcome_and_a_damaged_model_beside_it_are_named(stopped, tmp_path):
    folder, _ = stopped
    shutil.copytree(folder / "whole", tmp_path / "whole")
    work, out = tmp_path / "whole/work", tmp_path / "whole/out"
    assert read_outcome(work, out) is not None
    path = work / "outcome.json"
    text = path.read_text()
    for bad in (text.replace('"steps": 6', '"steps": 7'), "{}", "[]", text[:-9], ""):
        path.write_text(bad)
        with pytest.raises(StoreError, match=r"outcome\.json: damaged"):
            read_outcome(work, out)
    path.write_text(text)
    (out / "config.json").write_text("{}")
    with pytest.raises(StoreError, match=r"config\.json: damaged"):
        read_outcome(work, out)


@pytest.mark.parametrize("text", [None, "{}", "[]", '{"round": 1}'])
def test_a_damaged_record_of_accuracy_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / reward_model.RECORD).write_text(text)
    with pytest.raises(StoreError, match=r"refresh\.json: .*damaged.* Delete the folder"):
        reward_model.read_trained(tmp_path)
