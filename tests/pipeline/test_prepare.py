"""What of an experiment's files and models a plan is made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.core import rowfiles
from rlaif.core.records import Completion
from rlaif.core.store import StepFolder
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare


def test_a_training_may_name_folders_as_its_start_and_its_reference(
    tmp_path: Path,
    tiny_model: Path,
    make_model: Callable[[int], Path],
    write_experiment: Callable[..., Path],
) -> None:
    path = write_experiment(tmp_path, tiny_model, rounds=1)
    data = yaml.safe_load(path.read_text())
    [train] = [step["train"] for step in data["steps"] if "train" in step]
    train |= {"from": str(make_model(0)), "reference": str(make_model(1))}
    path.write_text(yaml.safe_dump(data))
    [planned] = [step for step in make_plan(prepare(path)) if step.kind == "train"]
    keys = {role: planned.models[role].key for role in ("start", "reference")}
    assert all(key.startswith("weights:") for key in keys.values())
    assert keys["start"] != keys["reference"]


def test_the_hash_of_loaded_records_is_of_all_their_files(
    tmp_path: Path, write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rowfiles, "SHARD_BYTES", 1)
    load = {"load": {"type": "completions", "path": "made/completions.jsonl"}}
    path = write_experiment(tmp_path, None, steps=[load])
    folder, hashes = StepFolder(tmp_path / "made"), []
    for number in range(3):
        turns: Any = [{"role": "assistant", "content": f"Answer {number}."}]
        folder.append(
            "completions", [Completion(f"k{number}", "p", 0, turns, "m", "w", {}, "stop")]
        )
        hashes.append(prepare(path).files["made/completions.jsonl"])
    assert len(list((tmp_path / "made").glob("completions*.jsonl"))) == 3
    assert len(set(hashes)) == 3
