"""Engines that stay while their weights change: between rounds, and within on-policy training."""

from __future__ import annotations

import json

import pytest

from rlaif.engines import build
from rlaif.pipeline.experiment import run_experiment
from tests.support import reloadable

GRPO = {
    "method": "grpo",
    "rewards": {"checks": 1.0},
    "rollouts": 3,
    "n": 3,
    "batch_size": 2,
    "max_new_tokens": 8,
    "precision": "fp32",
    "learning_rate": 1e-2,
}
DPO = {"learning_rate": 1e-3, "batch_size": 2, "precision": "fp32"}


@pytest.fixture
def events(monkeypatch):
    reloads = build.ENGINES["vllm"]._replace(load="tests.support.reloadable:load")
    monkeypatch.setitem(build.ENGINES, "vllm", reloads)
    reloadable.events.clear()
    return reloadable.events


def written(folder, tiny_model, write_experiment, engine="vllm", **changes):
    spec = {"path": str(tiny_model), "dtype": "float32", "system_prompt": "drop", "engine": engine}
    return write_experiment(folder, tiny_model, models={"policy": spec}, **changes)


def steps_of(out, kind):
    steps = json.loads((out / "manifest.json").read_text())["steps"]
    return [out / "steps" / step["hash"] for step in steps if step["kind"] == kind]


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line]


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_every_rollout_is_sampled_with_the_weights_of_its_moment(
    tmp_path, tiny_model, write_experiment, events, lora
):
    path = written(
        tmp_path,
        tiny_model,
        write_experiment,
        rounds=1,
        judges=[{"id": "checks", "kind": "rules"}],
        steps=[{"train": GRPO | ({"lora": lora} if lora else {})}],
    )
    run_experiment(path, tmp_path / "out")
    [train] = steps_of(tmp_path / "out", "train")
    made = rows_of(train / "completions.jsonl")
    assert len(made) == 3 * 2 * 3
    names = [f"{train.name}@{number}" for number in range(3)]
    assert [row["weights_hash"] for row in made[::6]] == names
    assert events == ["start", *(f"weights {name}" for name in names), "close"]
    # The sampler has the trainer's weights, also after steps that moved them far.
    metrics = rows_of(train / "work/metrics.jsonl")
    assert len(metrics) >= 3
    assert max(row["logprob_gap"] for row in metrics) < 1e-4
    assert not (train / "work/rollout").exists()


def test_a_rollout_that_is_stored_starts_no_engine(tmp_path, tiny_model, write_experiment, events):
    path = written(
        tmp_path,
        tiny_model,
        write_experiment,
        rounds=1,
        judges=[{"id": "checks", "kind": "rules"}],
        steps=[{"train": GRPO}],
    )
    run_experiment(path, tmp_path / "out")
    [train] = steps_of(tmp_path / "out", "train")
    first = (tmp_path / "out/models" / train.name / "model.safetensors").read_bytes()
    for gone in (train / "done.json", train / "work/outcome.json"):
        gone.unlink()
    events.clear()
    run_experiment(path, tmp_path / "out")
    assert events == []
    assert (tmp_path / "out/models" / train.name / "model.safetensors").read_bytes() == first


def test_the_next_round_takes_its_weights_in_place(tmp_path, tiny_model, write_experiment, events):
    steps = [
        {"sample": {"n": 3, "temperature": 1.0, "max_new_tokens": 12}},
        {"judge": {"id": "checks", "kind": "rules"}},
        {"pair": {}},
        {"train": DPO},
    ]
    texts = []
    for engine in ("vllm", "hf"):
        folder = tmp_path / engine
        path = written(folder, tiny_model, write_experiment, engine, steps=steps)
        run_experiment(path, folder / "out")
        last = steps_of(folder / "out", "sample")[-1]
        texts.append([row["weights_hash"] for row in rows_of(last / "completions.jsonl")])
    one, _ = steps_of(tmp_path / "vllm/out", "train")
    assert len(set(texts[0])) == 1
    assert events == ["start", "rest", f"weights {texts[0][0]}", "rest", "close"]
    assert (tmp_path / "vllm/out/models" / one.name).is_dir()
