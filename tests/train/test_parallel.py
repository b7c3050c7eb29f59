"""Training in two real processes (torchrun, gloo) gives what one process gives."""

from __future__ import annotations

import json
import subprocess
from importlib.util import find_spec

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from rlaif.config.methods import METHODS
from rlaif.core.chat import ChatSettings
from rlaif.core.errors import ConfigError, EngineError, RlaifError, StoreError
from rlaif.train import checkpoint, parallel
from rlaif.train.methods.pairs import DpoTrain
from rlaif.train.methods.reward_models import BradleyTerryDistill
from rlaif.train.run import train

SHARED = {
    "batch_size": 4,
    "micro_batch_tokens": 60,
    "epochs": 1,
    "precision": "fp32",
    "learning_rate": 1e-3,
    "checkpoint_every": 1,
}


CHAT = ChatSettings(system_prompt="Be brief.")


def run(folder, options, start, preferences, progress=None, reference=None):
    work, out = folder / "work", folder / "out"
    return train(options, preferences, {}, start, reference, out, work, 3, "cpu", progress, CHAT)


NEEDS_8BIT = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
ADAPTERS = {"lora": {"r": 4, "dora": True}}
# Each example is a micro-batch: a batch has three for two ranks, and the last batch has one.
UNEVEN = {"batch_size": 3, "micro_batch_tokens": 1}


@pytest.mark.parametrize(
    ("spec", "changes", "other_reference"),
    [
        (DpoTrain, {}, False),
        pytest.param(BradleyTerryDistill, {}, False, marks=pytest.mark.slow),
        pytest.param(DpoTrain, {"sharding": "full"}, False, marks=pytest.mark.slow),
        pytest.param(BradleyTerryDistill, {"sharding": "full"}, False, marks=pytest.mark.slow),
        pytest.param(
            METHODS["sft"],
            {"method": "sft", "sharding": "full", **UNEVEN},
            False,
            marks=pytest.mark.slow,
        ),
        (DpoTrain, {"sharding": "full", "gradient_checkpointing": True, **ADAPTERS}, True),
    ],
    ids=["dpo", "distill", "sharded-dpo", "sharded-distill", "sharded-sft", "sharded-adapters"],
)
def test_two_processes_equal_one(
    tmp_path, make_model, make_preferences, spec, changes, other_reference
):
    start, preferences = make_model(0), make_preferences(10)
    reference = make_model(1) if other_reference else None
    seen = []
    outcomes = []
    for count in (1, 2):
        options = {**SHARED, **changes, "processes": count}
        if count == 1:
            options["sharding"] = "none"
        folder = tmp_path / str(count)
        outcomes.append(run(folder, spec(**options), start, preferences, seen.append, reference))
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


def test_sharding_is_refused_in_one_process(tmp_path, make_model, make_preferences):
    with pytest.raises(ValidationError, match="set `processes` above 1"):
        DpoTrain(sharding="full", processes=1)
    with pytest.raises(ConfigError, match="`processes: auto` means one on cpu"):
        run(tmp_path, DpoTrain(sharding="full"), make_model(0), make_preferences(4))


def test_a_module_without_layers_is_not_split():
    with pytest.raises(EngineError, match=r"Linear does not say .* set `sharding: none`"):
        parallel.shard(torch.nn.Linear(2, 2), {"Layer"}, torch.device("cpu"), torch.float32)


def test_parts_of_another_number_of_processes_are_refused(tmp_path):
    folder = tmp_path / "checkpoint-00000001"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"fingerprint": "f", "step": 1, "parts": 3}))
    optimizer = torch.optim.AdamW([torch.zeros(1)])
    with pytest.raises(StoreError, match="Set `processes: 3`"):
        checkpoint.restore(tmp_path, {}, optimizer, "f", sharded=True)


def test_what_a_worker_raises_is_raised_here(tmp_path, make_model, make_preferences):
    options = DpoTrain(**SHARED, processes=2, max_length=3)
    with pytest.raises(RlaifError, match="max_length"):
        run(tmp_path, options, make_model(0), make_preferences(4))


KILLED_AFTER_STEP_3 = """
import os
import sys
from pathlib import Path

from rlaif.train import checkpoint, worker

write_row = checkpoint.write_row


def last_row(work, row):
    write_row(work, row)
    if row["step"] == 3:
        os._exit(1)


checkpoint.write_row = last_row
sys.exit(worker.main(Path(sys.argv[1])))
"""
BF16 = """
import sys
from pathlib import Path

import torch

from rlaif.train import job, worker

# This machine may have no bf16 instructions, and would compute in fp32.
job.compute_dtype = lambda *_: torch.bfloat16
sys.exit(worker.main(Path(sys.argv[1])))
"""


@pytest.fixture
def workers_run(tmp_path, monkeypatch):
    """Has the next launch run another script than the worker's module."""
    popen = subprocess.Popen

    def use(text):
        script = tmp_path / "script.py"
        script.write_text(text)

        def started(command, **options):
            at = command.index("-m", 2)
            monkeypatch.undo()
            return popen([*command[:at], str(script), *command[at + 2 :]], **options)

        monkeypatch.setattr(parallel.subprocess, "Popen", started)

    return use


@pytest.mark.slow
def test_sharded_bf16_equals_copies(tmp_path, make_model, make_preferences, workers_run):
    start, preferences = make_model(0), make_preferences(10)
    outcomes = []
    for kind in ("none", "full"):
        # One step: a master that differs in its last bit can be rounded to another bf16 number.
        options = DpoTrain(**{**SHARED, "batch_size": 10}, processes=2, sharding=kind)
        workers_run(BF16)
        outcomes.append(run(tmp_path / kind, options, start, preferences))
    assert [o.compute_dtype for o in outcomes] == ["bfloat16"] * 2
    norms = [o.metrics["first_grad_norm"] for o in outcomes]
    # Copies keep the vocabulary's gradient in fp32; FSDP gets it rounded to bf16.
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    none, full = (
        load_file(tmp_path / s / "out/masters/model.safetensors") for s in ("none", "full")
    )
    for name in none:
        torch.testing.assert_close(full[name], none[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"lora": {"r": 4, "dropout": 0.5}}, marks=pytest.mark.slow),
        pytest.param({"sharding": "full"}, marks=pytest.mark.slow),
        pytest.param({"sharding": "full", "optimizer": "adamw_8bit"}, marks=NEEDS_8BIT),
    ],
    ids=["dropout", "sharded", "sharded-8bit"],
)
def test_killed_processes_go_on_to_the_same_bytes(
    tmp_path, make_model, make_preferences, workers_run, changes
):
    start, preferences = make_model(0), make_preferences(10)
    options = DpoTrain(**{**SHARED, "epochs": 2, "checkpoint_every": 2, **changes}, processes=2)
    whole = run(tmp_path / "whole", options, start, preferences)
    assert whole.steps == 6
    workers_run(KILLED_AFTER_STEP_3)
    with pytest.raises(EngineError, match=r"workers\.log"):
        run(tmp_path / "killed", options, start, preferences)
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
