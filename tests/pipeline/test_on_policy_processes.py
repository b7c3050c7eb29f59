"""On-policy training in two real processes (gloo) gives what one process gives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from rlaif.cli import cli
from rlaif.engines.model_size import measure_folder
from rlaif.train import checkpoint, on_policy, parallel
from tests.support.processes import children

TRAIN: dict[str, Any] = {
    "rewards": [{"judge": "checks"}],
    "rollouts": 2,
    "batch_size": 4,
    "n": 2,
    "max_new_tokens": 10,
    "temperature": 1.0,
    "precision": "fp32",
    "learning_rate": 1e-3,
    "warmup_ratio": 0,
    # Each group is a micro-batch, so that both processes have some.
    "micro_batch_tokens": 1,
    "checkpoint_every": 1,
}
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"method": "grpo", "beta": 0.1, "epochs": 2},
    "gspo": {"method": "gspo", "batch_size": 2, "sync_every": 2},
    "cispo": {"method": "cispo", "batch_size": 2, "sync_every": 2},
    "rloo": {"method": "rloo"},
    "ppo": {"method": "ppo", "beta": 0.05, "lam": 0.95, "epochs": 2},
    "ppo-critic": {"method": "ppo", "critic": "separate", "epochs": 2},
    "costs": {
        "method": "ppo",
        "epochs": 2,
        "rewards": [{"judge": "checks", "normalise": "running"}],
        "costs": [{"judge": "long", "limit": 0.05, "higher": "worse", "rate": 3.0}],
    },
    "pretraining": {"method": "ppo", "epochs": 2, "ptx_weight": 2.0, "uses": ["web"]},
    "reinforce": {"method": "reinforce", "critic": "head"},
    "reinforce_pp": {"method": "reinforce_pp"},
    "online_dpo": {"method": "online_dpo"},
    "sppo": {"method": "sppo"},
    "quark": {"method": "quark", "quantiles": 2, "sync_every": 1},
    "lora": {"method": "grpo", "beta": 0.1, "lora": {"r": 4}},
    "reverse_kl": {"method": "on_policy_distillation", "rewards": None, "teacher": "another"},
    "jsd": {
        "method": "on_policy_distillation",
        "rewards": None,
        "teacher": "another",
        "divergence": "jsd",
    },
    "normalised": {
        "method": "grpo",
        "rewards": [{"judge": "checks", "normalise": "reference"}],
        "lora": {"r": 4},
        "gates": {"entropy": {"warn": -1.0}},
    },
    "redraws": {"method": "grpo", "batch_size": 2, "resample": 3},
    "lag": {"method": "grpo", "beta": 0.1, "rollouts": 3, "lag": 1},
}
QUICK = [("none", "grpo"), ("full", "ppo-critic")]
SETUPS = [(sharding, name) for sharding in ("none", "full") for name in METHODS]


@pytest.fixture(scope="module")
def one_thread():
    """A sum over a matrix may depend on how many threads compute it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write(write_experiment, folder: Path, model: Path, train: dict[str, Any]) -> Path:
    # A batch has one or two prompts.
    policy = {"path": str(model), "dtype": "float32", "system_prompt": "drop", "batch_tokens": 60}
    steps = [{"train": {key: value for key, value in train.items() if value is not None}}]
    if "uses" in train:
        steps.insert(0, {"load": {"id": "web", "type": "text", "path": "web.txt"}})
    path = write_experiment(
        folder,
        model,
        models={"policy": policy},
        judges=[{"id": "checks", "kind": "rules"}, {"id": "long", "kind": "longer"}],
        steps=steps,
        rounds=1,
    )
    (folder / "web.txt").write_text("A river is water.\n\nBees make honey.\nThey fly.\n")
    return path


def run(path: Path, out: Path) -> None:
    done = CliRunner().invoke(cli, ["run", str(path), "--out", str(out), "-q", "--no-report"])
    assert done.exit_code == 0, done.output


def answers(out: Path) -> dict[tuple[str, str, int], tuple[Any, Any]]:
    """The tokens and their log-probs, by rollout, prompt and number."""
    (path,) = out.glob("steps/*/completions.jsonl")
    rows = map(json.loads, path.read_text().splitlines())
    return {
        (r["model"], r["prompt_id"], r["sample_index"]): (r["token_ids"], r["logprobs"])
        for r in rows
    }


def metrics(out: Path) -> list[dict[str, Any]]:
    """A row for each optimiser step."""
    (path,) = out.glob("steps/*/work/metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "timing"} for row in rows]


def masters(out: Path) -> dict[str, torch.Tensor]:
    found = list(out.glob("models/*/masters/model.safetensors"))
    return load_file(found[0] if found else next(out.glob("models/*/model.safetensors")))


@pytest.mark.parametrize(
    ("sharding", "name"),
    [s if s in QUICK else pytest.param(*s, marks=pytest.mark.slow) for s in SETUPS],
)
def test_two_processes_equal_one(
    tmp_path, make_model, write_experiment, one_thread, sharding, name
):
    model = make_model(0)
    for processes in (1, 2):
        train = TRAIN | METHODS[name] | {"processes": processes}
        if processes == 2:
            train["sharding"] = sharding
        if "teacher" in train:
            train["teacher"] = str(make_model(1))
        folder = tmp_path / str(processes)
        run(write(write_experiment, folder, model, train), folder / "run")
    one, two = (tmp_path / n / "run" for n in ("1", "2"))
    sampled = answers(one)
    assert len(sampled) >= 8 and answers(two).keys() == sampled.keys()
    for key, (tokens, logprobs) in answers(two).items():
        assert tokens == sampled[key][0]
        # The first rollout is the start's; after that gradients are summed in another order.
        exact = "rollout 1" in key[0]
        assert logprobs == (sampled[key][1] if exact else pytest.approx(sampled[key][1], abs=1e-3))
    assert 2 <= len(metrics(one)) <= 4
    for first, second in zip(metrics(one), metrics(two), strict=True):
        assert second == pytest.approx(first, rel=1e-3, abs=1e-5)
    weights = masters(one)
    assert masters(two).keys() == weights.keys()
    for key, value in masters(two).items():
        torch.testing.assert_close(value, weights[key], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_estimated_memory_is_what_a_process_holds(
    tmp_path, make_model, write_experiment, monkeypatch
):
    """Of the first of two: between steps, so without the layers that are gathered for one."""
    model = make_model(0)
    train = TRAIN | {"method": "grpo", "beta": 0.1, "processes": 2, "sharding": "full"}
    path = write(write_experiment, tmp_path, model, train)
    dry = CliRunner().invoke(cli, ["run", str(path), "--dry-run", "--json"])
    (row,) = (row for row in json.loads(dry.output)["memory"] if row["step"] == "train")
    estimated = {part["role"]: part["state"] for part in row["models"]}
    size = measure_folder(model)
    gathered = 4 * (size.outside + 2 * size.largest_layer)
    estimated["start"] -= gathered + 8 * max(size.outside, size.largest_layer)
    held = {}
    save, load_copy, load_frozen = checkpoint.save, on_policy.load_copy, on_policy.load_frozen

    def measure_training(work, step, masters, optimizer, *rest):
        moments = [v for own in optimizer.state.values() for v in own.values() if v.numel() > 1]
        tensors = [*masters.values(), *(m.grad for m in masters.values()), *moments]
        held["start"] = sum(tensor.nbytes for tensor in tensors)
        save(work, step, masters, optimizer, *rest)

    def measure(role, load):
        def measured(*given):
            found = load(*given)
            weights = found.module.parameters()
            own = [parallel.part(w) if parallel.is_split(w) else w for w in weights]
            held[role] = sum(weight.nbytes for weight in own)
            return found

        return measured

    monkeypatch.setattr(checkpoint, "save", measure_training)
    monkeypatch.setattr(on_policy, "load_copy", measure("sampler", load_copy))
    monkeypatch.setattr(on_policy, "load_frozen", measure("reference", load_frozen))
    run(path, tmp_path / "run")
    assert held.keys() == estimated.keys()
    for role, bytes_of in held.items():
        assert estimated[role] == pytest.approx(bytes_of, rel=0.15), role


@pytest.fixture(scope="module", params=["none", pytest.param("full", marks=pytest.mark.slow)])
def whole(request, tmp_path_factory, make_model, write_experiment) -> tuple[list[str], Path]:
    """A command without the folder of its run, and such a run."""
    folder = tmp_path_factory.mktemp("whole")
    train = TRAIN | {"method": "grpo", "rollouts": 4, "processes": 2, "beta": 0.1}
    train["sharding"] = request.param
    path = write(write_experiment, folder, make_model(0), train)
    command = [sys.executable, "-m", "rlaif", "run", str(path), "-q", "--no-report", "--out"]
    subprocess.run([*command, str(folder / "run")], check=True)
    return command, folder / "run"


@pytest.mark.parametrize("victim", ["other", pytest.param("first", marks=pytest.mark.slow)])
def test_a_killed_process_ends_all_and_the_run_goes_on_to_the_same_bytes(whole, tmp_path, victim):
    command, run_whole = whole
    out = tmp_path / "run"
    started = subprocess.Popen([*command, str(out)], stderr=subprocess.PIPE, text=True)
    # After the first rollout of four.
    while not list(out.glob("steps/*/work/checkpoint-*")):
        time.sleep(0.01)
        assert started.poll() is None
    (request,) = out.glob("steps/*/work/launch.json")
    (other,) = children(str(request), started.pid)
    os.kill(started.pid if victim == "first" else other.pid, signal.SIGKILL)
    said = started.communicate()[1]
    if victim == "other":
        assert started.returncode == 2 and "training in 2 processes failed" in said
        assert "exit code -9" in said and "workers.log" in said and "Traceback" not in said
    # None is left behind.
    other.wait(60)
    subprocess.run([*command, str(out)], check=True)
    assert answers(out) == answers(run_whole) and metrics(out) == metrics(run_whole)
    for key, value in masters(out).items():
        assert torch.equal(value, masters(run_whole)[key])
