"""kill -9 of one machine after the other, in an upload or in a step: the last one ends with the
bytes of a run that nothing disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.test_killed_steps import timeless
from tests.pipeline.test_kills import rows, weights
from tests.support.s3 import serve_s3


def run_killed(folder: Path, url: str, seed: int, experiment: Path) -> Path:
    """The run folder of the machine that ended; some before it were killed in either way."""
    command = [sys.executable, "-m", "tests.support.killed_mirrors", folder, url, seed, experiment]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["killed"]["uploads"] >= 1 and found["killed"]["writes"] >= 1
    return folder / str(found["last"])


def settled(root: Path) -> dict[str, object]:
    """What a run says of itself, without times and places."""
    manifest = json.loads((root / "manifest.json").read_text("utf-8"))
    for key in ("check", "experiment_path"):
        del manifest[key]
    lines = (root / "rounds.jsonl").read_text("utf-8").splitlines()
    rounds = [timeless(json.loads(line)) for line in lines]
    return {
        "manifest": manifest,
        "rounds": [{key: row[key] for key in row if key != "check"} for row in rounds],
        "prompts": (root / "prompts.jsonl").read_bytes(),
        "config": (root / "config.yaml").read_bytes(),
    }


def test_machines_that_are_killed_end_in_the_same_bytes(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    path = write_experiment(tmp_path / "an experiment ü", None)
    last = run_killed(tmp_path, f"file://{tmp_path}/the store ü", 5, path)
    assert rows(last) == rows(tmp_path / "whole") != {}
    assert settled(last) == settled(tmp_path / "whole")


def test_machines_that_are_killed_while_they_train_end_in_the_same_bytes(
    tiny_model: Path, tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    """Over S3's protocol. Nothing is uploaded twice, whoever was killed."""
    path = write_experiment(tmp_path, tiny_model, rounds=1)
    with pytest.MonkeyPatch.context() as patch, serve_s3(patch.setenv) as server:
        assert "AWS_ENDPOINT_URL" in os.environ
        last = run_killed(tmp_path, "s3://runs/killed ü", 7, path)
    assert timeless(rows(last)) == timeless(rows(tmp_path / "whole"))
    assert weights(last) == weights(tmp_path / "whole") != {}
    assert settled(last) == settled(tmp_path / "whole")
    parts = {key: count for key, count in server.puts.items() if "/objects/" in key}
    # What no tree named any more was removed, and may be needed again.
    assert all(count <= 1 + server.deletes[key] for key, count in parts.items())
