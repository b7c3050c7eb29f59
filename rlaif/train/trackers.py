"""Experiment trackers, by name: each gets a training's hyperparameters, every optimiser step's
numbers and the figures of each round's evaluation."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from rlaif.core.errors import ConfigError

Log = Callable[[int, Mapping[str, float]], None]
Open = tuple[Log, Callable[[], Any]]
"""What logs a step, and what closes the tracker."""
LONGEST = 500
"""Characters of one hyperparameter; trackers refuse longer ones."""


@dataclass(frozen=True)
class Tracked:
    """One line of numbers in a tracker: `name` is its own in `project`, and the same when it is
    opened again. `parameters` say how it was made; `folder` takes what a tracker writes to disk."""

    project: str
    name: str
    folder: Path
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def flat(self) -> dict[str, bool | int | float | str]:
        """The parameters as a flat mapping: {"lora": {"r": 8}} is {"lora.r": 8}. None is left
        out."""
        found: dict[str, bool | int | float | str] = {}
        for name, value in _list_leaves("", self.parameters):
            plain = value if isinstance(value, (bool, int, float)) else str(value)[:LONGEST]
            found[_clean_name(name)] = plain
        return found


def _list_leaves(above: str, row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _list_leaves(f"{above}{name}.", value)
        elif value is not None:
            yield f"{above}{name}", value


def _clean_name(name: str) -> str:
    """The name in characters that every tracker takes."""
    return re.sub(r"[^\w\-. /]", "_", name)


@contextmanager
def open_trackers(names: Sequence[str], tracked: Tracked) -> Iterator[list[Log]]:
    """One function (step, numbers) for each tracker, which has been told the parameters.

    Raises ConfigError when a tracker is not installed (with the command) or does not start.
    """
    with ExitStack() as stack:
        logs = []
        for name in names:
            log, close = _open_tracker(name, tracked)
            stack.callback(_call_quietly, close)
            logs.append(log)
        yield logs


def _open_tracker(name: str, tracked: Tracked) -> Open:
    try:
        opened: Open = _call_quietly(_OPEN[name], tracked)
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


def _call_quietly(function: Callable[..., Any], *arguments: Any) -> Any:
    """Trackers greet and take their leave on stdout, which belongs to --json."""
    with redirect_stdout(sys.stderr):
        return function(*arguments)


def _open_tensorboard(tracked: Tracked) -> Open:
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    writer: Any = SummaryWriter(str(tracked.folder / "tensorboard"))
    # `add_hparams` would do the same in a subfolder of its own, apart from the numbers.
    for summary in hparams(tracked.flat(), {}):  # type: ignore[no-untyped-call]
        writer.file_writer.add_summary(summary)

    def log_step(step: int, numbers: Mapping[str, float]) -> None:
        """One step's numbers."""
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log_step, writer.close


def _open_wandb(tracked: Tracked) -> Open:
    opened: Any = import_module("wandb").init(
        # Characters that a project's name must not have.
        project=re.sub(r"[/\\#?%:]", "-", tracked.project),
        name=tracked.name,
        id=tracked.name,
        dir=str(tracked.folder),
        resume="allow",
        config=tracked.flat(),
    )
    return lambda step, numbers: opened.log(dict(numbers), step=step), opened.finish


def _open_mlflow(tracked: Tracked) -> Open:
    tracking: Any = import_module("mlflow")
    tracking.set_experiment(tracked.project)
    # A training that goes on after a kill goes on in its own run.
    known = tracking.search_runs(
        filter_string=f"attributes.run_name = '{tracked.name}'",
        output_format="list",
        max_results=1,
    )
    tracking.start_run(run_id=known[0].info.run_id if known else None, run_name=tracked.name)
    tracking.log_params(tracked.flat())

    def log_step(step: int, numbers: Mapping[str, float]) -> None:
        """One step's numbers."""
        tracking.log_metrics(
            {_clean_name(name): value for name, value in numbers.items()}, step=step
        )

    return log_step, tracking.end_run


def _open_trackio(tracked: Tracked) -> Open:
    tracking: Any = import_module("trackio")
    tracking.init(project=tracked.project, name=tracked.name, resume="allow", config=tracked.flat())
    return lambda step, numbers: tracking.log(dict(numbers), step=step), tracking.finish


_OPEN: dict[str, Callable[[Tracked], Open]] = {
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
    "mlflow": _open_mlflow,
    "trackio": _open_trackio,
}
