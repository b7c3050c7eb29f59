"""`rlaif train METHOD DATA`: one command for each method, with that method's keys as options."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import click

from rlaif.cli.options import (
    ALLOW_CODE,
    COLUMNS,
    CONFIG,
    CONSTITUTION,
    FILE,
    FROM,
    JSON,
    MODEL,
    OUT,
    QUIET,
    SEED,
    SET,
    SPLIT,
    column_map,
    file_step,
    progress_of,
    step_options,
)

# Not options: what the command line says in another way, and a key with keys of its own.
HIDDEN = {
    *("id", "method", "from_", "uses", "reference", "teacher", "given", "lora"),
    *("adam_betas", "rewards", "costs", "gates", "stop", "trackers"),
}


class MethodGroup(click.Group):
    """The methods as sub-commands, built when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all methods."""
        from rlaif.config.methods import METHODS

        return list(METHODS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of one method."""
        from rlaif.config.methods import METHODS

        return _make_command(cmd_name) if cmd_name in METHODS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The method that the first word names. Raises UsageError, which says the nearest one."""
        from rlaif.core.yamlio import suggest

        methods = self.list_commands(ctx)
        if args[0] not in methods:
            raise click.UsageError(f"No method {args[0]!r}{suggest(args[0], methods)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=MethodGroup)
def train() -> None:
    """Train a model on preferences, or on its own samples."""


def _make_command(method: str) -> click.Command:
    from rlaif.config.methods import METHODS
    from rlaif.config.on_policy import RolloutTrain

    spec = METHODS[method]
    fresh = issubclass(spec, RolloutTrain)

    def run_method(data: Path, model: str, out: Path, seed: int, **given: Any) -> None:
        settings = [f"method={method}"]
        if given.pop("lora"):
            settings.append("lora={}")
        request: dict[str, Any] = {"models": {"start": model}}
        if "reference" in given:
            request["models"]["reference"] = given.pop("reference") or model
        if "teacher" in given:
            request["models"]["teacher"] = given.pop("teacher")
            request |= {"prompts": data}
        elif fresh:
            request |= {"prompts": data, "constitution": given.pop("constitution")}
            request["judges"] = [_reward_judge(text, request) for text in given.pop("rewards")]
            terms = [{"judge": judge["id"]} for judge in request["judges"]]
            settings.append(f"rewards={json.dumps(terms)}")
        else:
            given_pairs = _bring_in_preferences(data, out, reading_of(given))
            request["inputs"] = {"preferences/0": str(given_pairs)}
            if (completions := given.pop("completions")) is not None:
                request["inputs"]["completions/0"] = str(completions)
        as_json, quiet = given.pop("as_json"), given.pop("quiet")
        chosen = given.pop("settings")
        settings += [f"{key}={value}" for key, value in given.items() if value is not None]
        settings += chosen
        file_step("train", as_json, quiet, out=out, settings=settings, seed=seed, **request)

    data_help = _PROMPTS_HELP if fresh else _DATA_HELP.get(method, _PAIRS_HELP)
    run_method.__doc__ = f"{inspect.getdoc(spec)}\n\n{data_help}"
    command: Any = click.command(method)(run_method)
    own = _OFFLINE
    if fresh:
        own = [_TEACHER] if "teacher" in spec.model_fields else _ON_POLICY
    first = [MODEL, OUT, *_reference_option(spec), *own, _LORA, SET]
    for option in [*first, *_key_options(spec), SEED, QUIET, JSON]:
        command = option(command)
    return click.argument("data", type=FILE)(command)  # type: ignore[no-any-return]


_OUT_HELP = "--set takes every key of a train step. The trained model is in OUT/model.\n"
_PAIRS_HELP = f"""DATA is a file with prompt, chosen and rejected, or in any format of docs/data.md,
a dataset id on the hub, or a folder from `rlaif pair`. {_OUT_HELP}"""
_DATA_HELP = {
    "sft": _PAIRS_HELP.replace("with prompt", "with prompt and completion, or with prompt"),
    "kto": _PAIRS_HELP.replace("with prompt", "with prompt, completion and label, or with prompt"),
}
_PROMPTS_HELP = """DATA is a file of prompts (JSONL or Parquet). --set takes every key of a train
step. The trained model is in OUT/model, and every sampled answer with its judgements in OUT.
"""
_LORA = click.option("--lora", is_flag=True, help="Low-rank adapters (--set lora.r=8 ...).")
_OFFLINE = [
    *(FROM, COLUMNS, SPLIT, CONFIG),
    click.option(
        "--completions",
        type=FILE,
        help="The completions that the pairs came from, for their sampled tokens.",
    ),
]
_ON_POLICY = [
    CONSTITUTION,
    ALLOW_CODE,
    click.option(
        "--reward",
        "rewards",
        multiple=True,
        default=["rules"],
        help="A judge's kind, or the folder of a reward model; repeatable, and summed. "
        "Other weights: --set 'rewards=[{judge: ID, weight: 0.5}]'.",
    ),
]


_TEACHER = click.option(
    "--teacher", required=True, help="The teacher to learn from: a folder or a hub id."
)


def _reward_judge(text: str, request: dict[str, Any]) -> dict[str, str]:
    """The judge of one --reward; a model that it asks is added to the request."""
    if Path(text).is_dir():
        name = f"reward{len(request['models'])}"
        request["models"][f"judge/{name}"] = text
        return {"id": name, "kind": "reward_model", "by": text}
    if text != "rules":
        request["models"][f"judge/{text}"] = request["models"]["start"]
    return {"id": text, "kind": text}


def _reference_option(spec: Any) -> list[Any]:
    from rlaif.config.training import ReferenceTrain

    if not issubclass(spec, ReferenceTrain):
        return []
    return [click.option("--reference", help="Reference model [default: the model itself].")]


def _key_options(spec: Any) -> list[Any]:
    """One option for each key, the method's own first; what is not given keeps its default, which
    the help shows."""
    from rlaif.config.training import TrainStep

    schema = spec.model_json_schema(by_alias=False)["properties"]
    fields = sorted(spec.model_fields.items(), key=lambda item: item[0] in TrainStep.model_fields)
    found = []
    for name, field in fields:
        if name in HIDDEN:
            continue
        text = f"{field.description or ''}{_describe_default(field.default)}".strip()
        option = "--" + name.replace("_", "-")
        found.append(click.option(option, name, help=text, metavar=_make_metavar(schema[name])))
    return found


def _describe_default(value: Any) -> str:
    """The end of a key's help; nothing where it is unset."""
    if value is None:
        return ""
    return f" [default: {value if isinstance(value, str) else json.dumps(value)}]"


def _make_metavar(schema: dict[str, Any]) -> str:
    """What a key may be, by its JSON schema: its words, or the kind of number."""
    if "anyOf" in schema:
        return "|".join(_make_metavar(s) for s in schema["anyOf"] if s.get("type") != "null")
    words = schema.get("enum", [schema["const"]] if "const" in schema else [])
    kinds = {"boolean": "true|false", "integer": "INTEGER", "number": "NUMBER"}
    return "|".join(words) or kinds.get(schema.get("type", ""), "VALUE")


def reading_of(given: dict[str, Any]) -> dict[str, Any]:
    """What the options say of how DATA is read, by the keys of a load step. What only reading uses
    is taken out of all that was given."""
    columns = column_map(given.pop("columns"))
    keys = {
        "format": given.pop("from_"),
        "columns": None if columns is None else columns.model_dump(exclude_none=True),
        "on_error": given["on_error"],
        "dataset_split": given.pop("split"),
        "dataset_config": given.pop("config"),
    }
    return {key: value for key, value in keys.items() if value is not None}


def _holds_dataset(folder: Path) -> bool:
    """Whether `datasets` can load a folder, and it is none of preference records."""
    from rlaif.data.rows import ENDINGS

    if (folder / "preferences.jsonl").exists():
        return False
    saved = any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))
    return saved or any(path.name.endswith(ENDINGS) for path in folder.rglob("*"))


def _bring_in_preferences(data: Path, out: Path, reading: dict[str, Any]) -> Path:
    """A folder of preference records; a file or dataset of another format is brought in first."""
    from rlaif.data.rows import HubData, source_of
    from rlaif.pipeline.single_step import Request, run_step

    if data.is_dir() and not _holds_dataset(data):
        return data
    source = source_of(str(data), reading.pop("dataset_split"), reading.pop("dataset_config", None))
    inputs = {}
    if isinstance(source, HubData):
        reading["dataset"], reading["dataset_split"] = source.name, source.split
        if source.config is not None:
            reading["dataset_config"] = source.config
    else:
        reading["path"] = str(source.resolve())
        inputs["file"] = str(source)
    settings = ["type=preferences", *(f"{key}={json.dumps(v)}" for key, v in reading.items())]
    made = run_step(
        Request("load", out / "preferences", settings, inputs=inputs), progress_of(True)
    )
    left_out = {k: n for k, n in made["counts"].items() if k != "preferences" and n}
    if left_out:
        said = ", ".join(f"{name}: {count}" for name, count in left_out.items())
        click.echo(f"{data}: left out or lost: {said}", err=True)
    return out / "preferences"


@click.command()
@click.argument("preferences", type=FILE)
@click.option(
    "--judgements",
    multiple=True,
    type=FILE,
    help="Judgements of the individual answers, a folder from `rlaif judge`; repeatable.",
)
@FROM
@COLUMNS
@SPLIT
@CONFIG
@click.option(
    "--on-error",
    type=click.Choice(["skip", "fail"]),
    help="What to do with a row that cannot be read, or that the chat template refuses "
    "[default: fail].",
)
@MODEL
@step_options
def distill(
    preferences: Path,
    judgements: tuple[Path, ...],
    on_error: str | None,
    model: str,
    out: Path,
    settings: tuple[str, ...],
    seed: int,
    quiet: bool,
    as_json: bool,
    **reading: Any,
) -> None:
    """Distil PREFERENCES into a reward model.

    PREFERENCES is a file in any format of docs/data.md, a dataset id on the hub, or a folder from
    `rlaif pair`. --set takes the keys of a distill step, such as method, learning_rate or
    margin. The model is in OUT/model: an AutoModelForSequenceClassification, a judge of kind
    reward_model, and a reward.
    """
    chosen = () if on_error is None else (f"on_error={on_error}",)
    reading["on_error"] = on_error
    data = _bring_in_preferences(preferences, out, reading_of(reading))
    inputs = {"preferences/0": str(data)}
    inputs |= {f"judgements/{i}": str(path) for i, path in enumerate(judgements)}
    file_step(
        "distill",
        as_json,
        quiet,
        out=out,
        settings=(*chosen, *settings),
        models={"start": model},
        inputs=inputs,
        seed=seed,
    )


@click.command()
@click.argument("models", nargs=-1, required=True, type=FILE)
@click.option("--out", type=FILE, required=True, help="Folder to write.")
@JSON
def average(models: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Average the weights of several MODELS.

    The members need a common starting point; the result costs one model to serve. Train them with
    different data orders (--seed) or learning rates. Reward models also need the same head to start
    from: run `distill --set method=linear` first, and start each member from its model.
    """
    from rlaif.train.average import average as averaged

    found = averaged(models, out)
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"{found['tensors']} weights of {found['models']} models averaged in {out}")
