"""kill -9 at random writes of `rlaif build`: what it leaves in the end is that of a run without."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.core.resources import find
from tests.pipeline.test_dataset import SMALL, files

REPLIES = ["Yes.", "It is a plum.", "I cannot help with that.", "One two three four five six."]
SCRIPT = {"rules": [{"match": ".", "replies": REPLIES, "labels": {"3": 0.5, "5": 0.1}}]}
STEPS: list[dict[str, Any]] = [
    {
        "sample": {
            "n": 3,
            "pool": [
                {"by": "policy"},
                {"by": "other"},
                {"by": "policy", "system_prompt": "Brief."},
            ],
            "principles": {"texts": {"brief": ["Be brief."], "kind": ["Be kind."]}},
        }
    },
    {
        "filter": {
            "id": "answers",
            "records": "completions",
            "filters": [{"kind": "rule", "rule": "no_refusal"}],
        }
    },
    {"judge": {"id": "checks", "kind": "rules", "principles": ["brief"]}},
    {"judge": {"id": "aspects", "kind": "ultrafeedback", "by": "policy", "expected": True}},
    {"pair": {"strategy": "all"}},
    {"filter": {"filters": [{"kind": "near_duplicates", "of": "answers"}]}},
]


def _run_killed(folder: Path, *arguments: str) -> Any:
    command = [sys.executable, "-m", "tests.support.kills", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def killed(folder: Path, runs: int, seed: int, *arguments: str) -> int:
    """How often a command was killed until each of its runs was done."""
    return int(_run_killed(folder, str(runs), str(seed), *arguments))


def killed_in(folder: Path, path: Path, *ids: str) -> dict[str, int]:
    """How many steps were done when an experiment was killed in each of some steps; its run ends in
    FOLDER/1, and that without a kill is FOLDER/0."""
    run = ("run", str(path), "--no-report", "-q")
    done: dict[str, int] = _run_killed(folder, "--in", ",".join(ids), *run)
    return done


def rows(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Every record of a run's steps, without the time that it took."""
    return {
        str(path.relative_to(out)): [
            {key: value for key, value in json.loads(line).items() if key != "latency"}
            for line in path.read_text().splitlines()
            if line
        ]
        for path in sorted((out / "steps").rglob("*.jsonl"))
    }


def test_a_killed_build_ends_in_the_same_dataset(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    model = {"path": "none", "engine": "fake", "script": "script.yaml"}
    other = {**model, "system_prompt": "Speak as a pirate."}
    path = write_experiment(
        tmp_path,
        None,
        rounds=1,
        models={"policy": model, "other": other},
        prompts={"path": "prompts.jsonl", "holdout": 2},
        steps=STEPS,
        dataset={"formats": ["trl", "ultrafeedback"], "test": 0.3},
    )
    (tmp_path / "script.yaml").write_text(yaml.safe_dump(SCRIPT), encoding="utf-8")
    assert killed(tmp_path, 3, 11, "build", str(path), "-q") >= 3
    whole = files(tmp_path / "0" / "dataset")
    assert whole
    for number in ("1", "2", "3"):
        assert rows(tmp_path / number) == rows(tmp_path / "0")
        assert files(tmp_path / number / "dataset") == whole


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{"resample": 3}, {"rollouts": 4, "lag": 1}], ids=str)
def test_a_killed_on_policy_training_ends_in_the_same_bytes(
    tiny_model: Path, tmp_path: Path, write_experiment: Callable[..., Path], keys: dict[str, int]
) -> None:
    """A check of one value or the other leaves many prompts without a difference. With a lag, what
    is learned from next has been sampled by weights that are gone."""
    train = {
        "method": "grpo",
        "rewards": {"checks": 1.0},
        "rollouts": 2,
        "batch_size": 2,
        "n": 2,
        "max_new_tokens": 8,
        "learning_rate": 1e-2,
        "precision": "fp32",
        "checkpoint_every": 1,
        **keys,
    }
    path = write_experiment(
        tmp_path,
        tiny_model,
        rounds=1,
        judges=[{"id": "checks", "kind": "rules"}],
        steps=[{"train": train}],
    )
    assert killed(tmp_path, 1, 5, "run", str(path), "-q") >= 1
    whole, again = tmp_path / "0", tmp_path / "1"
    assert weights(again) == weights(whole) != {}
    steps = rows(whole)
    (metrics,) = (found for name, found in steps.items() if name.endswith("metrics.jsonl"))
    if "lag" in keys:
        assert [row["lag"] for row in metrics] == [0, 1, 1, 1]
    else:
        assert any(row["prompts_drawn"] > 2 for row in metrics)
    for name, found in rows(again).items():
        ours, theirs = ([{**row, "timing": None} for row in part] for part in (found, steps[name]))
        assert ours == theirs


@pytest.mark.slow
def test_the_mini_experiment_killed_anywhere_ends_in_the_same_dataset(
    tiny_model: Path, tmp_path: Path
) -> None:
    settings = [f"models.policy.path={tiny_model}", "models.policy.dtype=float32", *SMALL]
    given = [part for setting in settings for part in ("--set", setting)]
    path = str(find("experiments/ultrafeedback.yaml"))
    assert killed(tmp_path, 4, 3, "build", path, "-q", *given) >= 4
    whole = files(tmp_path / "0" / "dataset")
    assert whole
    for number in range(1, 5):
        assert files(tmp_path / str(number) / "dataset") == whole
        assert weights(tmp_path / str(number)) == weights(tmp_path / "0")


def weights(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted((out / "models").glob("*/*.safetensors"))
    }
