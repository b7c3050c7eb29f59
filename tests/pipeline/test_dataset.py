"""The shipped UltraFeedback experiment from prompts to dataset, reward model and DPO, on a tiny
model; and the same bytes after it was torn."""

from __future__ import annotations

import json
from pathlib import Path

import datasets

from rlaif.core.resources import find
from rlaif.pipeline.experiment import run_experiment

SMALL = [
    "steps.sample.prompts=6",
    "steps.sample.max_new_tokens=8",
    # It names no level either.
    "steps.aspects.min_label_mass=0.0",
    "prompts.holdout=4",
    # A random model's answers are all alike in length, and none refuses.
    "steps.pair.min_margin=0.0",
    "steps.pair.max_overlap=1.0",
]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_mini_experiment_builds_a_dataset_and_goes_on_after_a_kill(
    tiny_model: Path, tmp_path: Path
) -> None:
    path, out = find("experiments/ultrafeedback.yaml"), tmp_path / "run"
    settings = [f"models.policy.path={tiny_model}", "models.policy.dtype=float32", *SMALL]
    first = run_experiment(path, out, settings)
    assert first.dataset is not None and not first.dataset.lost
    assert first.dataset.rows["trl"]["train"] > 0
    manifest = json.loads((out / "manifest.json").read_text())
    kinds = {step["kind"] for step in manifest["steps"]}
    assert {"sample", "filter", "judge", "pair", "distill", "train"} <= kinds
    written = {row["model"] for row in _rows(out, manifest, "sample")}
    assert written == {"M0", "M1"}, "the second round's pool has the policy of the first"
    loaded = datasets.load_dataset(
        str(out / "dataset"), "ultrafeedback", cache_dir=str(tmp_path / "cache")
    )
    row = loaded["train"][0]
    assert {c["principle"] for c in row["completions"]} <= {
        "helpfulness",
        "truthfulness",
        "honesty",
    }
    whole = files(out / "dataset")
    for step in manifest["steps"]:
        if step["kind"] in ("sample", "judge", "pair", "filter"):
            folder = out / "steps" / step["hash"]
            (folder / "done.json").unlink(missing_ok=True)
            for file in folder.glob("*.jsonl"):
                data = file.read_bytes()
                file.write_bytes(data[: len(data) // 2])
    again = run_experiment(path, out, settings)
    assert again.ran > 0
    assert files(out / "dataset") == whole


def _rows(out: Path, manifest: dict[str, list[dict[str, str]]], kind: str) -> list[dict[str, str]]:
    return [
        json.loads(line)
        for step in manifest["steps"]
        if step["kind"] == kind and step["id"].startswith("sample/")
        for line in (out / "steps" / step["hash"] / "completions.jsonl").read_text().splitlines()
        if line
    ]
