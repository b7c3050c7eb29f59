"""A job as a task of SkyPilot, for its managed jobs."""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from rlaif.core.errors import ConfigError
from rlaif.pipeline.launch.documents import write_documents
from rlaif.pipeline.launch.job import SHARED, Job

CACHED = {"mount_cached": {"transfers": 1, "vfs_write_back": "1s"}}
"""Files go to the bucket soon and in the order in which they were written, so that a marker of a
finished step is not there before the step's records."""
GRACE = 120
"""Seconds that an interrupted run has to end."""


def write_skypilot(job: Job) -> str:
    """The text of the file. Raises ConfigError for a resource that is no YAML, or that the job sets
    itself."""
    return write_documents([make_task(job)])


def make_task(job: Job) -> dict[str, Any]:
    """The task. Of several types of GPU SkyPilot takes the cheapest that is to be had."""
    resources: dict[str, Any] = {
        "image_id": f"docker:{job.image}",
        "cpus": f"{job.cpus}+",
        "memory": f"{job.memory}+",
    }
    if job.gpus:
        resources["accelerators"] = dict.fromkeys(job.types, job.gpus)
    for key, text in job.resources.items():
        if key in resources:
            raise ConfigError(f"--resource {key}: the job sets it; see `rlaif launch --help`")
        try:
            resources[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--resource {key}={text}: the value is no YAML") from None
    task: dict[str, Any] = {
        "name": job.name,
        "resources": resources,
        "workdir": ".",
        **({} if job.storage is None else _mount_bucket(job.storage)),
        # SkyPilot sets the machine up from within the container, for which it must be root.
        "config": {"docker": {"run_options": ["--user=root"]}},
        "run": f"{shlex.join(_limited(job))}\n",
    }
    if job.secrets:
        # Without a value each must come from the environment of whoever launches.
        task["secrets"] = dict.fromkeys(job.secrets)
    return task


def _mount_bucket(name: str) -> dict[str, Any]:
    """The bucket at `SHARED`, with the caches on it."""
    return {
        "file_mounts": {SHARED: {"name": name, "mode": "MOUNT_CACHED", "config": CACHED}},
        "envs": {
            "RLAIF_CACHE": f"{SHARED}/.cache/rlaif",
            "HF_HOME": f"{SHARED}/.cache/huggingface",
        },
    }


def _limited(job: Job) -> list[str]:
    """The command under the time limit, which SkyPilot has none of."""
    return ["timeout", "--signal=TERM", f"--kill-after={GRACE}", str(job.seconds), *job.command]
