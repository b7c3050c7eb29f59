"""The task: its form, and its command. tests/peers/test_skypilot.py has SkyPilot's own loader."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.core.errors import ConfigError
from rlaif.pipeline.launch.skypilot import write_skypilot
from tests.support.launching import (
    LISTS,
    plain_job,
    put_program,
    run_script,
    with_programs,
    words_of,
)

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


def read(**changes: Any) -> dict[str, Any]:
    given = {"storage": "bucket"} | changes
    task: dict[str, Any] = yaml.safe_load(write_skypilot(plain_job(**given)))
    return task


def test_the_task_is_that_of_the_job() -> None:
    task = read(resources={"infra": "aws", "use_spot": "true", "disk_size": "512"})
    assert task["resources"] == {
        "image_id": "docker:rlaif:1-cuda",
        "cpus": "16+",
        "memory": "48+",
        "accelerators": {"L4": 2, "H100": 2},
        "infra": "aws",
        "use_spot": True,
        "disk_size": 512,
    }
    assert task["name"] == "rlaif-small" and task["workdir"] == "."
    mount = task["file_mounts"]["/shared"]
    assert (mount["name"], mount["mode"]) == ("bucket", "MOUNT_CACHED")
    assert mount["config"]["mount_cached"]["transfers"] == 1
    assert task["secrets"] == {"JUDGE_KEY": None}
    assert "num_nodes" not in task


def test_a_job_without_gpus_or_keys_names_none() -> None:
    task = read(gpus=0, types=(), secrets=())
    assert "accelerators" not in task["resources"] and "secrets" not in task


def test_a_job_with_a_mirror_alone_has_no_bucket() -> None:
    task = read(storage=None)
    assert "file_mounts" not in task and "envs" not in task
    assert read()["envs"]["RLAIF_CACHE"] == "/shared/.cache/rlaif"


@pytest.mark.parametrize(
    ("resources", "said"),
    [({"cpus": "4"}, "the job sets it"), ({"labels": "{a"}, "no YAML")],
)
def test_resources_that_cannot_be_are_refused(resources: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(resources=resources)


@settings(max_examples=30)
@given(st.lists(TEXT, min_size=1, max_size=3))
def test_every_word_of_the_command_arrives(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("programs")
    put_program(folder, "rlaif", LISTS)
    command = ("rlaif", "run", *(f"--set={word}" for word in words), "--", words[0])
    text = read(command=command)["run"]
    done = run_script(text, env=with_programs(folder, SAID=str(folder / "said")))
    assert done.returncode == 0, done.stderr
    assert words_of(folder / "said")[1:] == list(command[1:])


def test_the_command_ends_at_the_time_limit(tmp_path: Any) -> None:
    waits = "#!/bin/bash\ntrap 'exit 130' TERM\nwhile true; do sleep 0.05; done\n"
    put_program(tmp_path, "rlaif", waits)
    done = run_script(read(seconds=1)["run"], env=with_programs(tmp_path))
    assert done.returncode == 124
