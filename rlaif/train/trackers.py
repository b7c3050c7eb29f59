"""Experiment trackers by name: each gets every optimiser step's numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rlaif.errors import ConfigError

Log = Callable[[int, dict[str, float]], None]
INSTALL = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
}


def open_trackers(names: Sequence[str], project: str, run: str, folder: Path) -> list[Log]:
    """One function (step, numbers) for each tracker. `folder` takes what a tracker writes to disk.

    Raises ConfigError, with the command that installs it, when a tracker's package is missing.
    """
    found = []
    for name in names:
        try:
            found.append(_OPEN[name](project, run, folder))
        except ImportError:
            raise ConfigError(
                f"trackers: {name} is not installed. Run: pip install {INSTALL[name]}"
            ) from None
    return found


def _tensorboard(project: str, run: str, folder: Path) -> Log:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log


def _wandb(project: str, run: str, folder: Path) -> Log:
    opened: Any = import_module("wandb").init(
        project=project, name=run, dir=str(folder), resume="allow", id=run, reinit="finish_previous"
    )
    return lambda step, numbers: opened.log(numbers, step=step)


def _mlflow(project: str, run: str, folder: Path) -> Log:
    tracking: Any = import_module("mlflow")
    # One training of this process may have left its run open.
    tracking.end_run()
    tracking.set_experiment(project)
    tracking.start_run(run_name=run)
    return lambda step, numbers: tracking.log_metrics(numbers, step=step)


def _trackio(project: str, run: str, folder: Path) -> Log:
    tracking: Any = import_module("trackio")
    tracking.init(project=project, name=run, resume="allow")
    return lambda step, numbers: tracking.log({**numbers, "step": step})


_OPEN: dict[str, Callable[[str, str, Path], Log]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
