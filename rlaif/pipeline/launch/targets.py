"""Where a job can go: how its file is written, and the command that takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlaif.pipeline.launch.job import Job
from rlaif.pipeline.launch.kuberay import write_kuberay
from rlaif.pipeline.launch.skypilot import write_skypilot
from rlaif.pipeline.launch.slurm import write_slurm


@dataclass(frozen=True)
class Target:
    """`ending` is that of the file's name; `keys_from_here` whether the command takes the secrets'
    values from its own environment."""

    ending: str
    write: Callable[[Job], str]
    submit: Callable[[Job, Path], list[str]]
    keys_from_here: bool


def _sbatch(job: Job, path: Path) -> list[str]:
    return ["sbatch", str(path)]


def _kubectl(job: Job, path: Path) -> list[str]:
    return ["kubectl", "apply", "-f", str(path)]


def _sky(job: Job, path: Path) -> list[str]:
    named = [word for name in job.secrets for word in ("--secret", name)]
    return ["sky", "jobs", "launch", "--yes", *named, str(path)]


TARGETS = {
    "slurm": Target(".sh", write_slurm, _sbatch, True),
    "kuberay": Target(".yaml", write_kuberay, _kubectl, False),
    "skypilot": Target(".yaml", write_skypilot, _sky, True),
}
