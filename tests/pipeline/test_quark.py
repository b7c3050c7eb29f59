"""Quark through whole experiments: evaluations after each quantile's token, a training that is
killed, and what is refused before anything runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlaif.core.errors import ConfigError
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.runs import load_run
from rlaif.report.build import build_report
from rlaif.train.tokenise import load_tokenizer

TRAIN: dict[str, Any] = {
    "method": "quark",
    "rewards": [{"judge": "a"}],
    "rollouts": 4,
    "batch_size": 2,
    "n": 4,
    "epochs": 2,
    "max_new_tokens": 8,
    "learning_rate": 1e-3,
    "precision": "fp32",
    "checkpoint_every": 2,
    "keep_tokens": True,
}
WORST = {"id": "worst", "against": ["initial", "train"], "max_new_tokens": 8}
QUANTILE = {"chat_template_kwargs": {"quantile": 5}}


@pytest.fixture
def write(
    tmp_path: Path, make_model: Callable[[int], Path], write_experiment: Callable[..., Path]
) -> Callable[..., Path]:
    def write_steps(*steps: Any, model: dict[str, Any] | None = None, **keys: Any) -> Path:
        policy = {"path": str(make_model(0)), "dtype": "float32"} | (model or {})
        judges = [{"id": "a", "kind": "tests.support.measures:Measure", "options": {}}]
        return write_experiment(
            tmp_path,
            make_model(0),
            models={"policy": policy},
            judges=judges,
            steps=list(steps),
            **({"rounds": 1} | keys),
        )

    return write_steps


def test_each_evaluation_asks_after_its_own_token(
    tmp_path: Path, make_model: Callable[[int], Path], write: Callable[..., Path]
) -> None:
    best = {"id": "best", "max_new_tokens": 8}
    path = write({"train": TRAIN}, {"evaluate": best}, {"evaluate": WORST | QUANTILE})
    run_experiment(path, tmp_path / "run")
    run = load_run(tmp_path / "run")
    samples = {s["id"]: s for s in run.manifest["steps"] if s["kind"] == "sample" and s["round"]}
    prompts: dict[str, set[str]] = {}
    for name in ("best.sample", "worst.sample"):
        rows = run.store.step(samples[name]["hash"]).read("completions")
        prompts[name] = {row["rendered_hash"] for row in rows}
    assert not prompts["best.sample"] & prompts["worst.sample"]
    # M0, which has no tokens, is sampled once for both.
    start = [s for s in run.manifest["steps"] if s["kind"] == "sample" and not s["round"]]
    assert len({step["hash"] for step in start}) == 1
    [last] = [r for r in run.round_rows() if r["step"] == "worst" and r["metrics"]["deltas"]]
    assert last["label"].startswith("M1, quantile 5")
    # The policy after its worst token beside itself after the best.
    assert {"initial", "train"} <= last["metrics"]["deltas"].keys()
    page = build_report(run.view(), tmp_path / "page.html").read_text()
    assert "Pool, quantile 1" in page and "Pool, quantile 5" in page
    [made] = (tmp_path / "run/models").iterdir()
    assert len(load_tokenizer(made)) == len(load_tokenizer(make_model(0))) + 5


def test_a_killed_training_ends_in_the_same_bytes(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    """SIGKILL at the first step of the fourth rollout; the checkpoint is of the first two."""
    path = write({"train": TRAIN})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_experiment(path, whole)
    command = [sys.executable, "-m", "tests.support.killed_training", str(path), str(killed), "7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not list(killed.glob("models/*/masters"))
    run_experiment(path, killed)
    for name in ("pool.jsonl", "metrics.jsonl"):
        [one], [other] = (list(run.glob(f"steps/*/work/{name}")) for run in (whole, killed))
        rows = [[json.loads(x) for x in p.read_text().splitlines()] for p in (one, other)]
        for row in (row for own in rows for row in own):
            row.pop("timing", None)
        assert rows[0] == rows[1]
    found = [load_file(next(r.glob("models/*/masters/model.safetensors"))) for r in (whole, killed)]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(weight, found[1][name]) for name, weight in found[0].items())


EVALUATED = {"evaluate": WORST | QUANTILE | {"against": ["initial"]}}


@pytest.mark.parametrize(
    ("steps", "keys", "message"),
    [
        ([{"train": TRAIN}], {"rounds": 2}, "has quantile tokens of its own, since step train"),
        ([{"train": TRAIN}], {"model": {"engine": "vllm"}}, "only the module in training has"),
        ([EVALUATED], {}, "M0 is what others are compared with: set them in `models`"),
        (
            [{"train": TRAIN}, {"evaluate": {"chat_template_kwargs": {"tokenize": True}}}],
            {},
            "`tokenize` is no variable of a chat template",
        ),
    ],
    ids=["second use", "engine", "M0", "variable"],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    write: Callable[..., Path], steps: Any, keys: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        make_plan(prepare(write(*steps, **keys)))
    assert "experiment.yaml:" in str(error.value)


def test_without_its_tokens_it_trains_in_every_round(write: Callable[..., Path]) -> None:
    plan = make_plan(prepare(write({"train": TRAIN | {"keep_tokens": False}}, rounds=2)))
    assert [step.id for step in plan] == ["train", "train"]


def test_an_evaluation_without_variables_keeps_its_hash(write: Callable[..., Path]) -> None:
    plans = [
        make_plan(prepare(write({"train": TRAIN}, {"evaluate": WORST | more})))
        for more in ({}, {"chat_template_kwargs": {}}, QUANTILE)
    ]
    hashes = [[step.hash for step in plan] for plan in plans]
    assert hashes[0] == hashes[1] != hashes[2]
