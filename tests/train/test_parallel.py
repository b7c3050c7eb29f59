"""Training in two real processes (torchrun, gloo) gives what one process gives."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from rlaif.config import METHODS, DistillStep, DpoTrain
from rlaif.errors import RlaifError
from rlaif.train import parallel
from rlaif.train.run import train

SHARED = {
    "batch_size": 4,
    "micro_batch_tokens": 60,
    "epochs": 1,
    "precision": "fp32",
    "learning_rate": 1e-3,
    "checkpoint_every": 1,
}


def run(folder, options, start, preferences, progress=None):
    work = folder / "work"
    return train(options, preferences, {}, start, None, folder / "out", work, 3, "cpu", progress)


ADAPTERS = {"lora": {"r": 4, "dora": True}}
# Each example is a micro-batch: a batch has three for two ranks, and the last batch has one.
UNEVEN = {"batch_size": 3, "micro_batch_tokens": 1}


@pytest.mark.parametrize(
    ("spec", "changes"),
    [
        (DpoTrain, {}),
        (DistillStep, {}),
        (DpoTrain, {"sharding": "full"}),
        (DistillStep, {"sharding": "full"}),
        (METHODS["sft"], {"method": "sft", "sharding": "full", **UNEVEN}),
        (DpoTrain, {"sharding": "full", "gradient_checkpointing": True, **ADAPTERS}),
    ],
    ids=["dpo", "distill", "sharded-dpo", "sharded-distill", "sharded-sft", "sharded-adapters"],
)
def test_two_processes_equal_one(tmp_path, make_model, make_preferences, spec, changes):
    start, preferences = make_model(0), make_preferences(10)
    seen = []
    outcomes = []
    for count in (1, 2):
        options = {**SHARED, **changes, "processes": count}
        if count == 1:
            options["sharding"] = "none"
        folder = tmp_path / str(count)
        outcomes.append(run(folder, spec(**options), start, preferences, seen.append))
    steps = 4 if "batch_size" in changes else 3
    assert outcomes[0].steps == outcomes[1].steps == steps
    assert outcomes[0].tokens == outcomes[1].tokens
    for name, value in outcomes[0].metrics.items():
        if "memory" not in name:
            assert outcomes[1].metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert [p.step for p in seen] == 2 * list(range(1, steps + 1))
    one, two = (load_file(tmp_path / f"{n}/out/masters/model.safetensors") for n in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=2e-5)
    rows = (tmp_path / "2/work/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, steps + 1))


def test_what_a_worker_raises_is_raised_here(tmp_path, make_model, make_preferences):
    options = DpoTrain(**SHARED, processes=2, max_length=3)
    with pytest.raises(RlaifError, match="max_length"):
        run(tmp_path, options, make_model(0), make_preferences(4))


class Stop(Exception):
    pass


KILLED_AFTER_STEP_3 = """
import os
import sys
from pathlib import Path

from rlaif.train import loop, worker

write_row = loop.write_row


def last_row(work, row):
    write_row(work, row)
    if row["step"] == 3:
        os._exit(1)


loop.write_row = last_row
worker.main(Path(sys.argv[1]))
"""


@pytest.fixture
def killed_workers(tmp_path, monkeypatch):
    """Launches whose workers die after the third step's row and before its checkpoint."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED_AFTER_STEP_3)

    def launch(request, processes, work, progress):
        work.mkdir(parents=True)
        (work / "launch.json").write_text(json.dumps(request))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(processes), str(script), str(work / "launch.json")]
        subprocess.run(command, capture_output=True, check=False)
        raise Stop

    def use():
        monkeypatch.setattr(parallel, "launch", launch)
        return monkeypatch.undo

    return use


@pytest.mark.parametrize(
    "changes",
    [{"lora": {"r": 4, "dropout": 0.5}}, {"sharding": "full"}],
    ids=["dropout", "sharded"],
)
def test_killed_processes_go_on_to_the_same_bytes(
    tmp_path, make_model, make_preferences, killed_workers, changes
):
    start, preferences = make_model(0), make_preferences(10)
    options = DpoTrain(**{**SHARED, "epochs": 2, "checkpoint_every": 2, **changes}, processes=2)
    whole = run(tmp_path / "whole", options, start, preferences)
    assert whole.steps == 6
    undo = killed_workers()
    with pytest.raises(Stop):
        run(tmp_path / "killed", options, start, preferences)
    undo()
    kept = [p.name for p in (tmp_path / "killed/work").glob("checkpoint-*")]
    assert kept == ["checkpoint-00000002"]
    # It is computed anew from the start's weights, before the checkpoint's are there.
    (tmp_path / "killed/work/reference.jsonl").unlink()
    seen = []
    run(tmp_path / "killed", options, start, preferences, lambda p: seen.append(p.step))
    assert seen == [3, 4, 5, 6]
    for name in ("masters/model.safetensors", "model.safetensors"):
        whole_bytes = (tmp_path / "whole/out" / name).read_bytes()
        assert (tmp_path / "killed/out" / name).read_bytes() == whole_bytes
