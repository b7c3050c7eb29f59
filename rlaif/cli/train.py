"""`rlaif train METHOD DATA`: one command for each method, with that method's keys as options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rlaif.cli.options import JSON, MODEL, OUT, QUIET, SEED, SET, file_step, progress_of

# Not options: what the command line says in another way, and a key with keys of its own.
HIDDEN = {"id", "method", "from_", "uses", "reference", "lora", "adam_betas"}


class MethodGroup(click.Group):
    """The methods as sub-commands, built when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all methods."""
        from rlaif.config import METHODS

        return list(METHODS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of one method."""
        from rlaif.config import METHODS

        return _command(cmd_name) if cmd_name in METHODS else None


@click.group(cls=MethodGroup)
def train() -> None:
    """Train a model on a file of preferences (TRL's formats) or a folder from `rlaif pair`."""


def _command(method: str) -> click.Command:
    from rlaif.config import METHODS, ReferenceTrain

    spec = METHODS[method]

    def run(data: Path, model: str, out: Path, seed: int, **given: Any) -> None:
        settings = [f"method={method}", *given.pop("settings")]
        if given.pop("lora"):
            settings.append("lora={}")
        as_json, quiet = given.pop("as_json"), given.pop("quiet")
        models = {"start": model}
        if issubclass(spec, ReferenceTrain):
            models["reference"] = given.pop("reference") or model
        completions = given.pop("completions")
        settings += [f"{key}={value}" for key, value in given.items() if value is not None]
        inputs = {"preferences/0": str(_preferences(data, out))}
        if completions is not None:
            inputs["completions/0"] = str(completions)
        file_step(
            as_json,
            quiet,
            kind="train",
            out=out,
            settings=tuple(settings),
            models=models,
            inputs=inputs,
            seed=seed,
        )

    run.__doc__ = f"""{spec.__doc__}

    DATA is JSONL or Parquet with prompt, chosen and rejected, or a folder from `rlaif pair`. --set
    takes every key of a train step. The trained model is in OUT/model.
    """
    command: Any = click.command(method)(run)
    for option in [*_key_options(spec), *_reference_option(spec)]:
        command = option(command)
    for option in (JSON, QUIET, SEED, SET, OUT, MODEL):
        command = option(command)
    command = click.option("--lora", is_flag=True, help="Low-rank adapters (--set lora.r=8 ...).")(
        command
    )
    command = click.option(
        "--completions", type=click.Path(path_type=Path), help="Their sampled tokens are used."
    )(command)
    return click.argument("data", type=click.Path(path_type=Path))(command)  # type: ignore[no-any-return]


def _reference_option(spec: Any) -> list[Any]:
    from rlaif.config import ReferenceTrain

    if not issubclass(spec, ReferenceTrain):
        return []
    return [click.option("--reference", help="Reference model [default: the model itself].")]


def _key_options(spec: Any) -> list[Any]:
    """One option for each key; what is not given keeps its default, which the help shows."""
    found = []
    for name, field in reversed(spec.model_fields.items()):
        if name in HIDDEN:
            continue
        text = f"{field.description or ''} [default: {field.default}]".strip()
        found.append(click.option("--" + name.replace("_", "-"), name, help=text, metavar="VALUE"))
    return found


def _preferences(data: Path, out: Path) -> Path:
    """A folder of preference records; a file of another format is brought in first."""
    if not data.is_file():
        return data
    from rlaif.files import Request, run_step

    settings = ("type=preferences", f"path={data.resolve()}")
    loading = Request("load", out / "preferences", settings, inputs={"file": str(data)})
    run_step(loading, progress_of(True))
    return out / "preferences"
