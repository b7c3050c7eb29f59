"""Training by Ray Train: its workers are the ranks that torchrun starts on one machine."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from rlaif.cluster.settings import Node, uses_gpus
from rlaif.core.errors import EngineError
from rlaif.train import parallel, worker
from rlaif.train.loop import TrainJob, TrainOutcome, TrainProgress, read_outcome
from rlaif.train.run import request_of

log = logging.getLogger(__name__)

TRIES = 4
"""How often a training is begun whose workers end, each time from its last checkpoint."""
PROGRESS = "progress.jsonl"
LOOK_SECONDS = 0.5
"""How often the progress is read."""
WAIT_SECONDS = 7200
"""Longest wait for another rank: one writes checkpoints and exports while the others wait."""


def train_by_ray(job: TrainJob[Any], nodes: Sequence[Node]) -> TrainOutcome:
    """Do the job in as many workers of the cluster as `processes` says; `auto` means all of its
    GPUs, or one worker where the model is not trained on GPUs.

    When workers are lost, all are started again and go on from the last checkpoint. Raises what a
    worker raised, and EngineError where workers were lost TRIES times.
    """
    spec = job.spec
    on_gpus = spec is not None and uses_gpus(spec, nodes)
    count = job.options.processes
    if count == "auto":
        count = max(1, int(sum(node.gpus for node in nodes))) if on_gpus else 1
    work = job.work.absolute()
    # The workers have another current folder.
    own = replace(
        job,
        start=job.start.absolute(),
        reference=None if job.reference is None else job.reference.absolute(),
        out=job.out.absolute(),
        work=work,
        device=torch.device("cuda" if on_gpus else "cpu"),
    )
    work.mkdir(parents=True, exist_ok=True)
    asked, progress = work / parallel.REQUEST, work / PROGRESS
    request = request_of(own)
    if count == 1:
        # As many as this process would train with: sums of other parts differ in their last bits.
        request["threads"] = torch.get_num_threads()
    asked.write_text(json.dumps(request))
    shown = _Shown(progress, job.progress)
    why = ""
    for _ in range(TRIES):
        # One that was lost after the export has left nothing to do.
        if read_outcome(work, own.out) is None:
            shown.begin()
            (work / parallel.ANSWER).unlink(missing_ok=True)
            why = _run_workers(asked, count, on_gpus, shown)
            failure = parallel.read_failure(work)
            if failure is not None:
                raise failure
        outcome = read_outcome(work, own.out)
        if outcome is not None:
            for file in (asked, progress):
                file.unlink(missing_ok=True)
            return outcome
        log.warning("the training's workers have ended and are started again: %s", why)
    raise EngineError(f"training in {count} workers failed {TRIES} times, the last time by: {why}")


def _run_workers(asked: Path, count: int, on_gpus: bool, shown: _Shown) -> str:
    """Run the workers to their end; why they ended early, or nothing."""
    storage = asked.with_name("ray")
    # Ray would take an earlier one's state for this one's.
    shutil.rmtree(storage, ignore_errors=True)
    trainer = TorchTrainer(
        train_rank,
        train_loop_config={"asked": str(asked)},
        torch_config=TorchConfig("nccl" if on_gpus else "gloo", timeout_s=WAIT_SECONDS),
        scaling_config=ScalingConfig(num_workers=count, use_gpu=on_gpus),
        run_config=RunConfig(
            name="training",
            storage_path=str(storage),
            # Which of the failures are worth another try is known here.
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    failures: list[BaseException] = []
    # Not in this thread, where Ray would take Ctrl-C for itself.
    thread = threading.Thread(target=partial(_fit, trainer, failures), daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(LOOK_SECONDS)
        shown.read()
    shutil.rmtree(storage, ignore_errors=True)
    return f"{failures[0]}".strip() if failures else ""


def _fit(trainer: TorchTrainer, failures: list[BaseException]) -> None:
    try:
        trainer.fit()
    # Its classes of errors move from version to version; whatever it is, the workers have ended.
    except BaseException as error:
        failures.append(error)


def train_rank(config: dict[str, str]) -> None:
    """What a worker runs, within the process group that Ray has made."""
    asked = Path(config["asked"])

    def append_row(row: str) -> None:
        """Add a line where the run's own process reads them."""
        with asked.with_name(PROGRESS).open("a") as file:
            file.write(row + "\n")

    worker.main(asked, append_row)


class _Shown:
    """Shows the rows of a progress file, each optimiser step once."""

    def __init__(self, path: Path, show: Callable[[TrainProgress], None] | None):
        self._path = path
        self._show = show
        self._step = 0
        self._read = 0

    def begin(self) -> None:
        """The file begins anew; its steps may repeat some that were shown."""
        self._path.unlink(missing_ok=True)
        self._read = 0

    def read(self) -> None:
        """Show what is new."""
        if self._show is None or not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        # The last line may be half written.
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            progress = TrainProgress(**json.loads(line))
            if progress.step > self._step:
                self._step = progress.step
                self._show(progress)
