"""Training in two real processes (torchrun, gloo) gives what one process gives."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from rlaif.config import DistillStep, DpoTrain
from rlaif.errors import RlaifError
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


@pytest.mark.parametrize("spec", [DpoTrain, DistillStep], ids=["dpo", "distill"])
def test_two_processes_equal_one(tmp_path, make_model, make_preferences, spec):
    start, preferences = make_model(0), make_preferences(10)
    seen = []
    outcomes = [
        run(tmp_path / str(n), spec(**SHARED, processes=n), start, preferences, seen.append)
        for n in (1, 2)
    ]
    assert outcomes[0].steps == outcomes[1].steps == 3
    assert outcomes[0].tokens == outcomes[1].tokens
    for name, value in outcomes[0].metrics.items():
        if "memory" not in name:
            assert outcomes[1].metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert [p.step for p in seen] == [1, 2, 3, 1, 2, 3]
    one, two = (load_file(tmp_path / f"{n}/out/masters/model.safetensors") for n in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=2e-5)
    rows = (tmp_path / "2/work/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3]


def test_what_a_worker_raises_is_raised_here(tmp_path, make_model, make_preferences):
    options = DpoTrain(**SHARED, processes=2, max_length=3)
    with pytest.raises(RlaifError, match="max_length"):
        run(tmp_path, options, make_model(0), make_preferences(4))
