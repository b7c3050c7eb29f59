"""An experiment as a job on a cluster: launch."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlaif.cli.options import COUNT, FILE, PROFILE, SET, Finite, run_folder

if TYPE_CHECKING:
    from rlaif.pipeline.launch.job import Job

LIMIT = Finite(min=0.2, max=8760)
"""Hours: a run is interrupted some minutes before, and is none of more than a year."""


@click.command()
@click.argument("experiment", type=FILE)
@click.option(
    "--to",
    "target",
    type=click.Choice(["slurm", "kuberay", "skypilot"]),
    required=True,
    help="What takes the job.",
)
@click.option("--dry-run", is_flag=True, help="Print the job's file; write and submit nothing.")
@click.option("--out", type=FILE, help="Folder for the job's file [default: runs/NAME-launch].")
@click.option(
    "--run", "run_", metavar="DIR", help="Run folder as the job sees it [default: runs/NAME]."
)
@PROFILE
@SET
@click.option("--image", help="Container image [default: that of tools/docker/Dockerfile].")
@click.option(
    "--gpus", type=click.IntRange(min=0), help="GPUs of the node [default: what the plan uses]."
)
@click.option(
    "--gpu", metavar="TYPE", help="Type of GPU, such as L4 or H100; the plan must fit it."
)
@click.option(
    "--device-memory",
    type=Finite(min=1, max=1e5),
    help="GiB of one GPU, where --gpu does not tell it.",
)
@click.option(
    "--flops",
    type=Finite(min=1e6, max=1e21),
    help="FLOP/s that one device reaches, such as 4e14, for the time.",
)
@click.option("--hours", type=LIMIT, help="Time limit [default: 1.5 x the plan's estimate].")
@click.option("--cpus", type=COUNT, help="CPUs of the node [default: 8 for each GPU].")
@click.option("--memory", type=COUNT, help="GiB of main memory [default: by the plan's models].")
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="NAME",
    help="Environment variable that the job gets besides those of `key_env`; repeatable.",
)
@click.option(
    "--storage",
    metavar="NAME",
    help="kuberay: PersistentVolumeClaim; skypilot: bucket; both are mounted at /shared. slurm: a "
    "folder that the job sees besides the current one.",
)
@click.option(
    "--resource",
    "resources",
    multiple=True,
    metavar="KEY=VALUE",
    help="slurm: option of sbatch; kuberay: label of the node; skypilot: key of `resources`; "
    "repeatable.",
)
@click.option(
    "--mirror",
    metavar="URL",
    help="Where the job mirrors its run folder, such as s3://BUCKET/NAME; with skypilot instead "
    "of --storage.",
)
def launch(
    experiment: Path,
    target: str,
    dry_run: bool,
    out: Path | None,
    run_: str | None,
    profile: str | None,
    settings: tuple[str, ...],
    image: str | None,
    gpus: int | None,
    gpu: str | None,
    device_memory: float | None,
    flops: float | None,
    hours: float | None,
    cpus: int | None,
    memory: int | None,
    secrets: tuple[str, ...],
    storage: str | None,
    resources: tuple[str, ...],
    mirror: str | None,
) -> None:
    """Run EXPERIMENT as a job on a cluster, on one node.

    The job's file is made from the plan: GPUs, memory, time limit. Its command resumes the run when
    the job starts again after preemption or its time limit. Keys are passed on by name.
    """
    from rlaif.core.store import write_atomic
    from rlaif.pipeline.launch.job import Request, make_job
    from rlaif.pipeline.launch.targets import TARGETS

    stated = (image, gpus, gpu, device_memory, flops, hours, cpus, memory)
    places = (secrets, storage, resources, mirror)
    job = make_job(Request(target, experiment, run_, profile, settings, *stated, *places))
    text = TARGETS[target].write(job)
    for note in job.notes:
        click.echo(f"note: {note}", err=True)
    if dry_run:
        click.echo(text, nl=False)
        return
    default = run_folder(experiment, profile)
    folder = out or default.with_name(f"{default.name}-launch")
    path = folder / f"{job.name}{TARGETS[target].ending}"
    write_atomic(path, text)
    click.echo(str(path))
    _submit(job, path, target)


def _submit(job: Job, path: Path, target: str) -> None:
    """Hand the file to the program that takes it. Raises RlaifError where it is not here or says
    no."""
    from rlaif.core.errors import RlaifError
    from rlaif.pipeline.launch.targets import TARGETS

    words = TARGETS[target].submit(job, path)
    said = shlex.join(words)
    missing = [name for name in job.secrets if not os.environ.get(name)]
    if missing and TARGETS[target].keys_from_here:
        raise RlaifError(
            f"{path} is written, and not submitted: {', '.join(missing)} is not set here. Export "
            f"it, then run: {said}"
        )
    if shutil.which(words[0]) is None:
        raise RlaifError(
            f"{path} is written, and not submitted: there is no program {words[0]} here. Where "
            f"there is, run: {said}"
        )
    code = subprocess.run(words, check=False).returncode
    if code:
        raise RlaifError(f"{path} is written, and not submitted: {said} ended with code {code}")
