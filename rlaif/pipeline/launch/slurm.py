"""A job as a batch script of Slurm, in a container of Apptainer."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import jinja2

from rlaif.core.errors import ConfigError
from rlaif.pipeline.launch.job import Job

WARNING = 300
"""Seconds before the time limit at which a run is interrupted."""
RESTARTS = 20
"""How often a job goes on by itself after its time limit."""
_WORD = re.compile(r"[\w.,:/@%+=*&|()\[\]-]+", re.ASCII)


def write_slurm(job: Job) -> str:
    """The text of the script. Raises ConfigError for what no option of Slurm can be."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("slurm.sh.j2").render(
        options=_list_options(job),
        secrets=job.secrets,
        folder=shlex.quote(job.folder),
        container=shlex.join(_container(job)),
        command=shlex.join(job.command),
        warning=WARNING,
        restarts=RESTARTS,
    )


def _list_options(job: Job) -> dict[str, str]:
    hours, rest = divmod(job.seconds, 3600)
    options = {
        "job-name": job.name,
        "output": f"{job.name}-%j.log",
        # A job that goes on keeps what it said before.
        "open-mode": "append",
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": str(job.cpus),
        "mem": f"{job.memory}G",
        "time": f"{hours:02}:{rest // 60:02}:{rest % 60:02}",
        "requeue": "",
        "signal": f"B:USR1@{WARNING}",
        # What is not named here stays behind, keys of other programs above all.
        "export": ",".join(["HOME", "PATH", "USER", *job.secrets]),
    }
    if job.gpus:
        kind = "" if job.gpu is None else f"{job.gpu}:"
        options["gres"] = f"gpu:{kind}{job.gpus}"
    for key, value in job.resources.items():
        if key in options:
            raise ConfigError(f"--resource {key}: the job sets it; see `rlaif launch --help`")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", key) or (value and not _WORD.fullmatch(value)):
            raise ConfigError(f"--resource {key}={value}: not an option of sbatch, such as qos=low")
        options[key] = value
    for key, value in options.items():
        if value and not _WORD.fullmatch(value):
            raise ConfigError(f"{key} {value!r}: not a value that sbatch can take")
    return options


def _container(job: Job) -> list[str]:
    seen = [job.folder, *filter(None, [job.storage])]
    for folder in seen:
        if set(folder) & set(':,"\\\n'):
            # Apptainer's --bind has no way to quote them.
            raise ConfigError(
                f"the folder {folder!r} has a character that no folder of a container can have, "
                "such as `:` or `,`"
            )
    nvidia = ["--nv"] if job.gpus else []
    bound = [word for folder in seen for word in ("--bind", folder)]
    return ["apptainer", "exec", *nvidia, *bound, "--pwd", job.folder, name_image(job.image)]


def name_image(image: str) -> str:
    """The image as Apptainer names it: a file, or an address with its kind."""
    is_file = image.endswith(".sif") or image.startswith(("/", "./", "../"))
    return image if is_file or "://" in image else f"docker://{image}"
