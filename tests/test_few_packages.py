"""What a step does not use, it does not import: a machine without it can run the step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MISSING = [
    "openai",
    "httpx2",
    "datasets",
    "gguf",
    "phonenumbers",
    "stdnum",
    "jsonschema",
    "rapidfuzz",
    "trl",
]
# huggingface_hub 2 needs httpx2 itself, so of that only rlaif's own imports are refused.
BLOCKED = f"""
import builtins, sys

plain = builtins.__import__

def without(name, globals=None, *rest, **more):
    own = (globals or {{}}).get("__name__", "").startswith("rlaif")
    if name.split(".")[0] in {MISSING!r} and (own or not name.startswith("httpx2")):
        raise ModuleNotFoundError("No module named " + repr(name), name=name)
    return plain(name, globals, *rest, **more)

builtins.__import__ = without
from rlaif.cli import main

sys.argv = ["rlaif", *sys.argv[1:]]
main()
"""


def run_without(*words: object) -> subprocess.CompletedProcess[str]:
    """The command in an interpreter in which MISSING cannot be imported."""
    command = [sys.executable, "-c", BLOCKED, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows: list[dict[str, object]] = [
        {"prompt": f"Name fruit {n}.", "chosen": "A ripe plum.", "rejected": "No. No. No."}
        for n in range(4)
    ]
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


@pytest.mark.parametrize("method", ["dpo", "distil", "grpo"])
def test_training_runs_without_what_it_does_not_use(method, pairs, tiny_model, tmp_path):
    sizes = ["--set", "batch_size=2", "--set", "precision=fp32", "--quiet"]
    out = tmp_path / "out"
    if method == "dpo":
        run_without("train", "dpo", pairs, "--model", tiny_model, "--out", out, *sizes)
    elif method == "distil":
        run_without("distill", pairs, "--model", tiny_model, "--out", out, *sizes)
    else:
        prompts = write_rows(
            tmp_path / "prompts.jsonl", [{"prompt": "Name a fruit."}, {"prompt": "Name a tree."}]
        )
        house = tmp_path / "constitution.yaml"
        house.write_text(
            "name: a\nversion: '1'\nprinciples:\n  - {id: b, text: Short., check: "
            "{rule: word_limits, params: {min: 1, max: 5}}}\n"
        )
        asked = ["--reward", "rules", "--constitution", house, "--n", 2, "--max-new-tokens", 4]
        words = ["train", "grpo", prompts, "--model", tiny_model, "--out", out]
        run_without(*words, *asked, "--rollouts", 1, *sizes)
    assert list(out.rglob("model.safetensors"))


def test_the_quickstarts_steps_run_without_what_they_do_not_use(
    write_experiment, tiny_model, tmp_path
):
    path = write_experiment(tmp_path, tiny_model, rounds=1)
    run_without("run", path, "--out", tmp_path / "run")
    assert (tmp_path / "run/report.html").is_file()
