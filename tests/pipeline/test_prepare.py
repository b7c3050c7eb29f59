"""What of an experiment's files and models a plan is made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

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
