"""Every kind of judge runs in an experiment, is forecast by the dry run, and is not run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.forecast import dry_run_report

SCRIPT = {
    "default": "- [essential] Fine.\nVerdict: 1\nText 1\nRating: 4\nText 2\nRating: 2\n"
    "[RESULT] 3\nScore: 3",
    "rules": [
        {"match": "^Name a|^How do|^What|^Why|^Give|^Which", "replies": ["A cherry", "No idea"]},
        {
            "match": "Answer|Reply|Choose|Does",
            "replies": ["I think so. Score: 2", "It is fine. Score: 4", "Verdict: 2"],
            "labels": {
                "yes": 0.5,
                "no": 0.2,
                "first": 0.4,
                "second": 0.1,
                "A": 0.2,
                "B": 0.1,
                "3": 0.3,
                "4": 0.1,
            },
        },
    ],
}
PLAIN = "rules yes_no rating direct critique prometheus additive pairwise constitutional"
PLAIN += " prometheus_pair ultrafeedback implicit_reward"
KINDS: dict[str, dict[str, Any]] = {kind: {"kind": kind} for kind in PLAIN.split(" ")}
KINDS |= {
    "pairwise_cot": {"kind": "pairwise", "cot": True},
    "rbr": {"kind": "rbr", "weights": "weights.yaml"},
    "rbrm": {
        "kind": "rbrm",
        "classes": [{"id": "a", "text": "good"}, {"id": "b", "text": "bad"}],
        "tables": [{"rewards": {"a": 1, "b": 0}}],
    },
    "rubric": {"kind": "rubric", "generate": {"most": 2}},
    "template": {
        "kind": "template",
        "template": "prompts/judges/template_example.j2",
        "parse": {"pattern": r"verdict:\W*(\w+)", "values": {"1": 1, "2": None}},
    },
    "meta": {"kind": "meta", "by": "other", "judge": {"kind": "additive", "by": "policy"}},
    "jury": {
        "kind": "jury",
        "pool": "vote",
        "of": [{"kind": "yes_no", "by": "policy"}, {"kind": "direct", "by": "other"}],
    },
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_judges_in_a_small_experiment(
    name: str, tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    model = {"path": "none", "engine": "fake", "script": "script.yaml"}
    by = {} if name in ("rules", "jury") else {"by": "policy"}
    path = write_experiment(
        tmp_path,
        None,
        rounds=1,
        models={"policy": model, "other": model},
        steps=[
            {"sample": {"n": 2, "max_new_tokens": 8}},
            {"judge": {**by, **KINDS[name], "id": "self"}},
            {"pair": {"missing": "renormalise"}},
            {"evaluate": {"resamples": 50}},
        ],
    )
    (tmp_path / "script.yaml").write_text(yaml.safe_dump(SCRIPT), encoding="utf-8")
    (tmp_path / "weights.yaml").write_text("weights: {useful: 1.0}", encoding="utf-8")
    out = tmp_path / "run"
    forecast = json.loads(dry_run_report(path, out, (), True))
    (wanted,) = [s for s in forecast["steps"] if s["kind"] == "judge" and s["id"] == "self"]
    first = run_experiment(path, out)
    assert first.ran and run_experiment(path, out).ran == 0
    manifest = json.loads((out / "manifest.json").read_text())
    (step,) = [s for s in manifest["steps"] if s["id"] == "self"]
    folder = out / "steps" / step["hash"]
    done = json.loads((folder / "done.json").read_text())
    assert done["counts"]["judgements"] > 0
    assert done["counts"]["with_value"] > 0, done["statuses"]
    rows = sum(
        bool(line) for kind in ("reasons", "answers") for line in _lines(folder / f"{kind}.jsonl")
    )
    assert rows <= wanted["calls"]
    assert (wanted["calls"] == 0) == (name == "rules")


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
