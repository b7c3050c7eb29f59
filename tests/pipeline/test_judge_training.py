"""Judges that are trained: questions, marks, groups of prompts and a bench, in whole runs."""

from __future__ import annotations

import json
import sys
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Judgement
from rlaif.core.store import Store
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.manifest import read_manifest
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.runs import Run
from tests.pipeline.test_kills import rows, weights

TRAIN = {"learning_rate": 1e-3, "batch_size": 2, "precision": "fp32"}
COMPARE = {"id": "compare", "kind": "pairwise", "by": "policy", "verdict": "written",
           "max_new_tokens": 5}  # fmt: skip
JUDGES = [
    COMPARE,
    {"id": "right", "kind": "verdict", "of": "compare"},
    {"id": "consistent", "kind": "verdict", "of": "compare", "both_orders": True},
]
STEPS: list[dict[str, Any]] = [
    {"load": {"id": "labelled", "type": "pairs", "path": "labelled.jsonl"}},
    {"questions": {"id": "cases", "judge": "compare", "uses": ["labelled"]}},
    {"sample": {"id": "tries", "n": 2, "prompts": "cases", "max_new_tokens": 5}},
    {"judge": {"id": "right", "uses": ["tries"]}},
    {"train": {"id": "cold", "method": "sft", "uses": ["tries"], **TRAIN}},
    {
        "train": {
            **TRAIN,
            "id": "j1",
            "method": "grpo",
            "prompts": "cases",
            "n": 2,
            "rollouts": 2,
            "sync_every": 2,
            "max_new_tokens": 5,
            "max_length": 2000,
            "rewards": {"consistent": 1},
        }
    },
    {"bench": {"judges": ["compare"], "pairs": "labelled", "by": ["initial", "cold", "j1"]}},
]

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, tiny_model: Path) -> Write:
    """`write(KEY=VALUE)`: J1 of the tiny model, beside labelled pairs."""
    pairs = [
        {"prompt": f"Which {n}?", "chosen": f"The {n}th.", "rejected": "No."} for n in range(6)
    ]
    (tmp_path / "labelled.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

    def write_file(**keys: Any) -> Path:
        whole = {
            "name": "j1",
            "models": {"policy": {"path": str(tiny_model), "dtype": "float32"}},
            "prompts": {"holdout": 2},
            "judges": JUDGES,
            "steps": STEPS,
        }
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(whole | keys, sort_keys=False))
        return path

    return write_file


def test_j1_leaves_its_trace(write: Write, tmp_path: Path) -> None:
    run_experiment(write(), tmp_path / "run")
    steps = {step["id"]: step for step in read_manifest(tmp_path / "run")["steps"]}
    print(json.dumps(steps, indent=1)[:3000])
