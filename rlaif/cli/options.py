"""Options and helpers that several commands share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rlaif.config.columns import LabelColumns
    from rlaif.constitution.model import Constitution
    from rlaif.core.labelled import LabelledPair
    from rlaif.data.readers import OnError
    from rlaif.metrics.intervals import Interval
    from rlaif.pipeline.experiment import StepProgress

Command = Callable[..., None]
FILE = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)
SHOWN = 10
"""How many rows are named that could not be read, or that repeat one another."""


class Finite(click.FloatRange):
    """A range of numbers, of which NaN is none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """See click."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is no number.", param, ctx)
        return number


def _no_effect(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value is not None:
        click.echo(
            f"note: {option.opts[0]} has no effect: intervals are computed, not drawn", err=True
        )


RESAMPLES, NO_SEED = (
    click.option(name, type=int, hidden=True, expose_value=False, callback=_no_effect)
    for name in ("--resamples", "--seed")
)
"""Options of earlier versions."""
SET = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key; repeatable."
)
PROFILE = click.option(
    "--profile", metavar="NAME", help="One of the file's `profiles`, such as its full size."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
QUIET = click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")
ARM = click.option("--arm", help="The arm of the run [default: those of its own constitution].")
SEED = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Seed for every random choice."
)


def _allow_code(context: click.Context, option: click.Parameter, value: bool) -> None:
    from rlaif.constitution.code_rule import code_allowed

    if value:
        # Until the command ends.
        context.with_resource(code_allowed())


def cluster_options(command: Command) -> Command:
    """The command with `--executor` and what goes with `ray`."""
    for option in reversed(_CLUSTER):
        command = option(command)
    return command


_CLUSTER = (
    click.option(
        "--executor",
        type=click.Choice(["local", "ray"]),
        default="local",
        help="Where models compute: in this process, or on the nodes of a Ray cluster.",
    ),
    click.option(
        "--ray-address",
        metavar="HOST:PORT",
        help="With --executor ray: the cluster [default: RAY_ADDRESS, the one that runs on this"
        " machine, or one that is started here].",
    ),
    click.option(
        "--actors",
        type=COUNT,
        help="With --executor ray: copies of a model [default: as many as the GPUs hold; without"
        " GPUs, one on each node].",
    ),
    click.option(
        "--actor-cpus",
        type=click.FloatRange(min=0),
        help="With --executor ray: CPUs of a copy [default: 1 with a GPU, else all of a node].",
    ),
    click.option(
        "--actor-gpus",
        type=click.FloatRange(min=0),
        help="With --executor ray: GPUs of a copy, which may be a part of one [default: those that"
        " the model computes with].",
    ),
    click.option(
        "--in-flight",
        type=COUNT,
        help="With --executor ray: batches per copy that are dealt out and not stored yet"
        " [default: 4].",
    ),
)


ALLOW_CODE = click.option(
    "--allow-code",
    is_flag=True,
    expose_value=False,
    callback=_allow_code,
    help="Let the rule code_tests run the code of answers, on this machine and as you.",
)
MODEL = click.option(
    "--model",
    default="builtin/smollm2-135m-instruct",
    help="builtin/NAME, a folder, a hub id, or a YAML file with a model's keys.",
)
OUT = click.option("--out", type=FILE, required=True, help="Folder to write or resume.")
CONSTITUTION = click.option("--constitution", help="A constitution file.")
PROMPTS = click.option(
    "--prompts", type=FILE, help="The prompts file [default: the one kept by `rlaif sample`]."
)

FROM = click.option(
    "--from", "from_", metavar="FORMAT", help="The file's format [default: found from its columns]."
)
COLUMNS = click.option("--columns", type=FILE, help="A YAML file that maps the columns.")
SPLIT = click.option("--split", default="train", help="The split of a dataset on the hub.")
CONFIG = click.option("--config", help="The configuration (subset) of a dataset on the hub.")
ON_ERROR = click.option(
    "--on-error",
    type=click.Choice(["skip", "fail"]),
    default="skip",
    help="What to do with a row that cannot be read.",
)


@dataclass(frozen=True)
class ReadOptions:
    """How a file of labelled pairs, or a dataset on the hub, is read: one value for --from,
    --columns, --on-error, --split and --config."""

    from_: str | None = None
    columns: Path | None = None
    on_error: OnError = "skip"
    split: str = "train"
    config: str | None = None

    def load_pairs(self, path: Path) -> list[LabelledPair]:
        """The labelled pairs in `path`; rows that were left out are named on stderr."""
        from rlaif.data.readers import read_labelled
        from rlaif.data.rows import source_of

        source = source_of(str(path), self.split, self.config)
        reading = read_labelled(source, self.from_, column_map(self.columns), self.on_error)
        pairs = list(reading)
        echo_skipped(reading.skipped)
        return pairs


def gather_reading(command: Command) -> Command:
    """The command with one `reading: ReadOptions` in place of an argument for each option."""

    @wraps(command)
    def call_command(**given: Any) -> None:
        own = {f.name: given.pop(f.name) for f in fields(ReadOptions) if f.name in given}
        command(**given, reading=ReadOptions(**own))

    return call_command


def step_options(command: Command) -> Command:
    """What every step on files is given, under the names that `file_step` takes."""
    return OUT(SET(SEED(QUIET(JSON(command)))))


def read_options(command: Command) -> Command:
    """How a file of labelled pairs is read, given to the command as `reading`."""
    return FROM(COLUMNS(ON_ERROR(gather_reading(command))))


def read_hub_options(command: Command) -> Command:
    """As `read_options`, of a file or of a dataset on the hub."""
    return FROM(COLUMNS(SPLIT(CONFIG(ON_ERROR(gather_reading(command))))))


def echo_skipped(skipped: Sequence[str]) -> None:
    """The rows that were left out, on stderr."""
    for message in skipped[:SHOWN]:
        click.echo(f"skipped: {message}", err=True)
    if len(skipped) > SHOWN:
        click.echo(f"skipped: {len(skipped) - SHOWN} more rows", err=True)


def run_folder(experiment: Path, profile: str | None) -> Path:
    """Where a run is kept by default: runs/NAME, or runs/NAME-PROFILE."""
    return Path("runs") / "-".join(filter(None, (experiment.stem, profile)))


def constitution_of(path: Path) -> Constitution:
    """The constitution in a file, looked for where configs look."""
    from rlaif.constitution.model import load_constitution
    from rlaif.core.resources import find

    return load_constitution(find(str(path)))


def shown(interval: Interval | None, signed: bool = False) -> str:
    """An interval as text, a dash where there is none."""
    from rlaif.metrics.intervals import show_interval

    return "-" if interval is None else show_interval(interval.to_json(), signed)


def column_map(path: Path | None) -> LabelColumns | None:
    """The column map in the file of --columns."""
    from rlaif.data.readers import load_columns

    return None if path is None else load_columns(path)


def echo_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Rows of the same keys as columns under their names."""
    names = list(rows[0]) if rows else []
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in names]
    for line in [dict(zip(names, names, strict=True)), *rows] if rows else []:
        cells = [line[name].ljust(width) for name, width in zip(names, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())


def progress_of(quiet: bool) -> StepProgress:
    """Bars on stderr, or nothing."""
    from rlaif.core.progress import QuietProgress, TerminalProgress

    return QuietProgress() if quiet else TerminalProgress()


def file_step(kind: str, as_json: bool, quiet: bool, **request: Any) -> None:
    """Run one step on files and say what it did; `request` has the fields of a `Request`."""
    from rlaif.metrics.words import failure_words
    from rlaif.pipeline.single_step import Request, run_step

    summary = run_step(Request(kind, **request), progress_of(quiet))
    if as_json:
        click.echo(json.dumps(summary, ensure_ascii=False))
        return
    state = "already finished" if summary.get("reused") else "done"
    counts = ", ".join(f"{count} {name}" for name, count in summary["counts"].items())
    click.echo(f"{state}: {counts} in {request['out']}")
    for note in summary.get("notes", ()):
        click.echo(f"note: {note}", err=True)
    for line in failure_words(summary.get("errors", {})):
        click.echo(line)
