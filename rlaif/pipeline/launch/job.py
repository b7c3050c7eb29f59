"""What the job of an experiment needs, from its plan and from what a user states."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath

from fsspec.utils import get_protocol

from rlaif.config.training import TextStep
from rlaif.core.errors import ConfigError
from rlaif.core.resources import expand_home, find
from rlaif.core.store import Store
from rlaif.engines.model_folders import BUILTIN, locate
from rlaif.pipeline.forecast import Forecast, forecast
from rlaif.pipeline.launch.devices import (
    Memory,
    computing_models,
    count_gpus,
    find_types,
    main_memory,
)
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare

SHARED = "/shared"
"""Where KubeRay and SkyPilot mount the storage that outlives the job."""
SPARE, LEAST, ROUND = 1.5, 1800, 600
"""A job may take half as much again as the estimate, at least half an hour, in steps of ten
minutes: an estimate is none of a slow disk or a busy server."""
CPUS = 8
"""CPUs for each GPU, and of a job without one."""
ON_ONE_MACHINE = ("file", "local", "memory")
"""Protocols of fsspec whose files are on the machine that names them."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


@dataclass(frozen=True)
class Request:
    """What a user states. `out` is the run folder as the job sees it, `resources` keys of the
    target's own, and None means: by the plan, or the target's default."""

    target: str
    experiment: Path
    out: str | None = None
    profile: str | None = None
    settings: tuple[str, ...] = ()
    image: str | None = None
    gpus: int | None = None
    gpu: str | None = None
    device_memory: float | None = None
    flops: float | None = None
    hours: float | None = None
    cpus: int | None = None
    memory: int | None = None
    secrets: tuple[str, ...] = ()
    storage: str | None = None
    resources: tuple[str, ...] = ()
    mirror: str | None = None


@dataclass(frozen=True)
class Job:
    """One job on one node. `command` is also the command that resumes it; `memory` is GiB of main
    memory, `seconds` the time limit, `types` the types of GPU that hold every step."""

    name: str
    command: tuple[str, ...]
    image: str
    gpus: int
    gpu: str | None
    types: tuple[str, ...]
    cpus: int
    memory: int
    seconds: int
    secrets: tuple[str, ...]
    folder: str
    storage: str | None
    resources: Mapping[str, str]
    notes: tuple[str, ...] = field(default=())


def make_job(request: Request) -> Job:
    """The job of a request. Nothing is run, fetched or written. Raises ConfigError, with what to
    set where the plan needs more than is stated."""
    path = find(request.experiment)
    _check_place(request)
    inputs = prepare(path, request.settings, fetch=False, profile=request.profile)
    plan = make_plan(inputs)
    out = _run_folder(request)
    rows = forecast(inputs, Store(_seen_from_here(request, out)), plan, request.flops)
    to_do = {row.hash for row in rows if not row.reused}
    use = count_gpus(plan)
    gpus = use.count if request.gpus is None else request.gpus
    if 0 < gpus < use.count:
        raise ConfigError(f"--gpus {gpus}: the plan uses {use.count} ({use.words})")
    if gpus == 0 and request.gpu is not None:
        raise ConfigError(f"--gpu {request.gpu}: the job has no GPU")
    held = Memory(0.0, (), (), False)
    if gpus:
        held = find_types(plan, to_do, request.gpu, request.device_memory)
    secrets = list_secrets(plan, request.secrets)
    seconds, words = _limit_time(rows, request)
    size = f"{seconds / 3600:.2f} h x {max(gpus, 1)} {'GPU' if gpus else 'machine'}"
    notes = [
        f"{words}; the job's limit is {size} = "
        f"{seconds / 3600 * max(gpus, 1):.2f} {'GPU' if gpus else 'machine'}-hours",
        *_device_notes(request, gpus, held),
        *_software_notes(plan, request, secrets),
    ]
    return Job(
        name=name_job(inputs.experiment.name),
        command=_command(request, out),
        image=request.image or f"rlaif:{version('rlaif')}-{'cuda' if gpus else 'cpu'}",
        gpus=gpus,
        gpu=request.gpu,
        types=held.types,
        cpus=request.cpus or CPUS * max(gpus, 1),
        memory=request.memory or main_memory(plan),
        seconds=seconds,
        secrets=secrets,
        folder=str(Path.cwd()) if request.target == "slurm" else SHARED,
        storage=request.storage,
        resources=read_resources(request.resources),
        notes=tuple(notes),
    )


def name_job(name: str) -> str:
    """A name that Slurm, Kubernetes and SkyPilot all take."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:32].strip("-")
    return f"rlaif-{plain or 'experiment'}"


def read_resources(pairs: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE by key. Raises ConfigError for a pair without a key, or a key given twice."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise ConfigError(f"--resource {pair}: expected KEY=VALUE")
        if key in found:
            raise ConfigError(f"--resource {key} is given twice")
        found[key] = value
    return found


def list_secrets(plan: Sequence[Planned], more: Sequence[str]) -> tuple[str, ...]:
    """The names of the environment variables with keys: those that models' `key_env` name, that of
    a tracker that has one, and `more`. Raises ConfigError for what is no name."""
    names = list(more)
    for name in more:
        if not _VARIABLE.fullmatch(name):
            # What was given may be the key itself, so it is not repeated.
            raise ConfigError("--secret takes the name of an environment variable, never a key")
    for planned in plan:
        names += [m.spec.key_env for m in planned.models.values() if m.spec.key_env is not None]
        if isinstance(planned.step, TextStep) and "wandb" in planned.step.trackers:
            names.append("WANDB_API_KEY")
    return tuple(sorted(set(names)))


def _check_place(request: Request) -> None:
    """The job finds the experiment under the path that its command has."""
    given = expand_home(request.experiment)
    if request.target == "slurm":
        seen = [Path.cwd(), *map(Path, filter(None, [request.storage]))]
        for path in (given, Path(request.out or ".")):
            whole = Path(os.path.normpath(Path.cwd() / path))
            if not any(whole.is_relative_to(folder) for folder in seen):
                raise ConfigError(
                    f"{path}: the container sees the current folder and that of --storage, and it "
                    "lies in neither"
                )
        if request.storage is not None and not Path(request.storage).is_absolute():
            raise ConfigError(f"--storage {request.storage}: for Slurm, the path of a folder")
        return
    if given.is_absolute() or ".." in given.parts:
        where = (
            "the current folder, which SkyPilot copies to the machine"
            if request.target == "skypilot"
            else f"the volume, which is mounted at {SHARED}"
        )
        raise ConfigError(f"{request.experiment}: give the path from {where}")
    if request.mirror is not None and get_protocol(request.mirror) in ON_ONE_MACHINE:
        raise ConfigError(
            f"--mirror {request.mirror}: give a store that outlives the job's machine, such as "
            "s3://BUCKET/NAME"
        )
    if request.target == "skypilot" and request.mirror is not None and request.storage is None:
        _check_own_disk(request)
        return
    if request.storage is None:
        kind = "bucket" if request.target == "skypilot" else "PersistentVolumeClaim"
        other = ". Or give --mirror" if request.target == "skypilot" else ""
        raise ConfigError(
            f"--storage is missing: the name of the {kind} that the run folder is on; without it "
            f"nothing of the run would outlive the job's machine{other}"
        )
    if request.out is not None and not PurePosixPath(request.out).is_relative_to(SHARED):
        raise ConfigError(f"--run {request.out}: must lie in {SHARED}, where --storage is mounted")


def _check_own_disk(request: Request) -> None:
    """The run folder is on the disk of SkyPilot's machine, since its mirror outlives that."""
    if request.out is not None and PurePosixPath(request.out).is_relative_to(SHARED):
        raise ConfigError(f"--run {request.out}: there is no {SHARED} without --storage")


def _run_folder(request: Request) -> str:
    if request.out is not None:
        return request.out
    name = "-".join(filter(None, (request.experiment.stem, request.profile)))
    # A relative one of SkyPilot is on the machine's own disk.
    own = request.target == "slurm" or (request.target == "skypilot" and request.storage is None)
    return f"runs/{name}" if own else f"{SHARED}/runs/{name}"


def _seen_from_here(request: Request, out: str) -> Path:
    """The run folder, where finished steps can be looked up: elsewhere all of them count."""
    return Path(out) if request.target == "slurm" else Path(f"{SHARED}/none")


def _command(request: Request, out: str) -> tuple[str, ...]:
    words = ["rlaif", "run"]
    if request.profile is not None:
        words += [f"--profile={request.profile}"]
    words += [f"--set={setting}" for setting in request.settings]
    words += [] if request.mirror is None else [f"--mirror={request.mirror}"]
    # After `--` a name may begin with a dash.
    return (*words, f"--out={out}", "--", str(request.experiment))


def _limit_time(rows: Sequence[Forecast], request: Request) -> tuple[int, str]:
    """The job's time limit in seconds, and the estimate that it is made of, in words."""
    if request.hours is not None:
        return round(request.hours * 3600), f"{request.hours:g} h, as stated"
    todo = [row for row in rows if not row.reused]
    unknown = [row for row in todo if row.seconds is None]
    if unknown:
        advice = "; or --flops, and `parameters` for models that are not on this machine"
        if any(row.units is None for row in unknown):
            advice = ", since how many records a loaded file has is known when it is read"
        raise ConfigError(f"the time of {len(unknown)} steps is not known: give --hours{advice}")
    seconds = sum(row.seconds or 0.0 for row in todo)
    limit = max(LEAST, -ROUND * int(-seconds * SPARE // ROUND))
    rough = request.flops is None and not any(row.measured for row in todo)
    guess = ", a rough guess for a 135M model on two CPU cores" if rough and seconds else ""
    return limit, f"the estimate is {seconds / 3600:.2f} h{guess}"


def _device_notes(request: Request, gpus: int, held: Memory) -> list[str]:
    notes = []
    if held.unknown:
        models = ", ".join(held.unknown)
        notes.append(f"not counted in the memory, say how many `parameters` they have: {models}")
        if request.target == "skypilot" and request.gpu is None:
            raise ConfigError(
                f"{notes[0]}. Or name a type of GPU with --gpu, since none can be found from the "
                "memory"
            )
    if gpus and held.most:
        notes.append(f"one device holds at most {held.most:.1f} GiB, without the framework's own")
    if request.gpu is not None and request.device_memory is None and not held.checked:
        notes.append(f"{request.gpu}: its memory is not known; give --device-memory to check it")
    if gpus and request.gpu is None:
        notes.append(f"types of GPU that hold it: {', '.join(held.types)}")
    return notes


def _software_notes(plan: Sequence[Planned], request: Request, secrets: Sequence[str]) -> list[str]:
    notes = []
    specs = [spec for planned in plan for spec in computing_models(planned)]
    if request.image is None:
        notes.append(
            "build the image by tools/docker/Dockerfile, push it to a registry that the job can "
            "reach, and name it with --image"
        )
    if any(spec.engine.startswith("vllm") for spec in specs):
        notes.append("a model uses vLLM, which the image of tools/docker/Dockerfile does not have")
    if request.mirror is not None:
        notes.append(
            f"the job writes to {request.mirror}: by a role of its machine, or with keys that are "
            "named by --secret, such as AWS_ACCESS_KEY_ID"
        )
    hub = {spec.path for spec in specs if spec.path not in BUILTIN and locate(spec.path) is None}
    if hub and "HF_TOKEN" not in secrets:
        models = ", ".join(sorted(hub))
        notes.append(f"fetched from the hub by the job, gated ones by --secret HF_TOKEN: {models}")
    return notes
