"""SkyPilot's own loader, in an environment of its own, reads the task as it is meant."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.pipeline.launch.skypilot import write_skypilot
from tests.support.launching import plain_job

pytestmark = pytest.mark.peer

PYTHON = os.environ.get("RLAIF_SKYPILOT_PYTHON")


def loaded(tmp_path: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    if PYTHON is None:
        pytest.skip("SKYPILOT IS NOT INSTALLED: make test-peers")
    job = plain_job(storage="bucket-of-mine", **changes)
    path = tmp_path / "task.yaml"
    path.write_text(write_skypilot(job), "utf-8")
    # It keeps its state in the user's home.
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    script = str(Path(__file__).with_name("skypilot_load.py"))
    command = [PYTHON, script, str(path), *job.secrets]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_the_loader_reads_what_the_job_has(tmp_path: Path) -> None:
    done = loaded(tmp_path, resources={"use_spot": "true"})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    wanted = yaml.safe_load((tmp_path / "task.yaml").read_text("utf-8"))
    assert found["run"] == wanted["run"]
    assert found["name"] == "rlaif-small" and found["nodes"] == 1
    assert found["gpus"] == [["H100", 2], ["L4", 2]]
    assert found["images"] == ["docker:rlaif:1-cuda"]
    assert (found["cpus"], found["memory"], found["spot"]) == (["16+"], ["48+"], [True])
    assert found["storage"] == {"/shared": "MOUNT_CACHED"} and found["cached"] == {"/shared": 1}
    assert found["secrets"] == ["JUDGE_KEY"]
    assert wanted["envs"].items() <= found["envs"].items()


def test_a_job_without_a_gpu_is_read(tmp_path: Path) -> None:
    done = loaded(tmp_path, gpus=0, types=(), secrets=())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["gpus"] == []


def test_the_loader_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    """Otherwise the tests above would say little."""
    done = loaded(tmp_path, resources={"unheard_of": "1"})
    assert done.returncode != 0 and "unheard_of" in done.stderr
