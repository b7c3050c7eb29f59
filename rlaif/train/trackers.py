"""Experiment trackers by name: each gets every optimiser step's numbers."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from rlaif.errors import ConfigError

Log = Callable[[int, dict[str, float]], None]
Open = tuple[Log, Callable[[], Any]]
"""What logs a step, and what closes the tracker."""


@contextmanager
def open_trackers(
    names: Sequence[str], project: str, run: str, folder: Path
) -> Iterator[list[Log]]:
    """One function (step, numbers) for each tracker. `folder` takes what a tracker writes to disk.

    Raises ConfigError when a tracker is not installed (with the command) or does not start.
    """
    with ExitStack() as stack:
        logs = []
        for name in names:
            log, close = _opened(name, project, run, folder)
            stack.callback(_quietly, close)
            logs.append(log)
        yield logs


def _opened(name: str, project: str, run: str, folder: Path) -> Open:
    try:
        opened: Open = _quietly(_OPEN[name], project, run, folder)
        return opened
    except ImportError as error:
        raise ConfigError(
            f"trackers: {name} is not installed ({error}). Run: pip install {name}"
        ) from None
    except Exception as error:
        # Each has errors of its own, for a missing login, a full disk or a wrong address.
        why = str(error).rstrip(".")
        raise ConfigError(
            f"trackers: {name} does not start: {why}. Mend that, or leave {name} out."
        ) from None


def _quietly(function: Callable[..., Any], *arguments: Any) -> Any:
    """Trackers greet and take their leave on stdout, which belongs to --json."""
    with redirect_stdout(sys.stderr):
        return function(*arguments)


def _tensorboard(project: str, run: str, folder: Path) -> Open:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(step: int, numbers: dict[str, float]) -> None:
        """One step's numbers."""
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log, writer.close


def _wandb(project: str, run: str, folder: Path) -> Open:
    opened: Any = import_module("wandb").init(
        # Characters that a project's name must not have.
        project=re.sub(r"[/\\#?%:]", "-", project),
        name=run,
        id=run,
        dir=str(folder),
        resume="allow",
    )
    return lambda step, numbers: opened.log(numbers, step=step), opened.finish


def _mlflow(project: str, run: str, folder: Path) -> Open:
    tracking: Any = import_module("mlflow")
    tracking.set_experiment(project)
    # A training that goes on after a kill goes on in its own run.
    known = tracking.search_runs(
        filter_string=f"attributes.run_name = '{run}'", output_format="list", max_results=1
    )
    tracking.start_run(run_id=known[0].info.run_id if known else None, run_name=run)
    return lambda step, numbers: tracking.log_metrics(numbers, step=step), tracking.end_run


def _trackio(project: str, run: str, folder: Path) -> Open:
    tracking: Any = import_module("trackio")
    tracking.init(project=project, name=run, resume="allow")
    return lambda step, numbers: tracking.log(numbers, step=step), tracking.finish


_OPEN: dict[str, Callable[[str, str, Path], Open]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
