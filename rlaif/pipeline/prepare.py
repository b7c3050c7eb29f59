"""From an experiment's file to all that its plan depends on.

Models that are the same weights under several names are found here. Labeller, proxy and gold judge
must differ, and a judge that is the evaluated model must be called so: otherwise a rising score may
be a model that likes itself (arXiv 2210.10760 on proxy and gold, 2404.13076 on models that favour
their own texts).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from rlaif.config.models import REMOTE, RESERVED_MODELS, ModelSpec, thinking_of
from rlaif.constitution.model import Constitution, load_constitution
from rlaif.core.errors import ConfigError
from rlaif.core.records import content_hash
from rlaif.core.resources import find
from rlaif.core.yamlio import line_of, read_text
from rlaif.data.embed import model_folder
from rlaif.data.readers import read_labelled
from rlaif.data.rows import Source, rows_hash, source_rows
from rlaif.data.sources import (
    PromptSet,
    load_prompts,
    loaded_source,
    provisional_prompts,
    split_prompts,
)
from rlaif.engines.build import known_capabilities, server_key, whole
from rlaif.engines.model_folders import check_weights, locate, model_hash, resolve
from rlaif.judges.base import Judge, roles_of
from rlaif.judges.build import build_judge
from rlaif.judges.common import JudgeBase
from rlaif.pipeline.experiment_file import Experiment, load_experiment
from rlaif.pipeline.plan.base import PlanInputs, no_model, replace_path

ABSENT = "not here yet:"
"""How the identity of a model begins that a dry run does not fetch."""


def prepare(
    path: Path, overrides: Sequence[str] = (), fetch: bool = True, profile: str | None = None
) -> PlanInputs:
    """Everything a plan needs. With `fetch` false nothing is downloaded or converted: a model that
    is not on disk yet gets a placeholder identity, and a dataset whose `count` is given made-up
    prompts; `provisional` names them. Raises ConfigError, EngineError."""
    experiment, lines = load_experiment(path, overrides, profile)
    experiment = _with_scripts(experiment, path)
    constitution = _load_constitution(experiment, path)
    thinking = thinking_of(experiment.models.values())
    judges = {
        name: build_judge(spec, constitution, path, thinking)
        for name, spec in experiment.all_judges().items()
    }
    keys = model_keys(experiment, fetch)
    check_same_weights(experiment, keys, judges)
    spec = experiment.prompts
    made_up = not fetch and spec.count is not None and not Path(spec.dataset or "").exists()
    inputs = PlanInputs(
        experiment,
        path,
        lines,
        constitution,
        provisional_prompts(spec) if made_up else _load_prompts(experiment, path),
        judges,
        keys,
        _file_hashes(experiment, path),
        (
            *([f"{spec.count} made-up prompts in place of {spec.dataset}"] if made_up else []),
            *(
                f"model {name} ({key.removeprefix(ABSENT)}) is not here yet"
                for name, key in keys.items()
                if key.startswith(ABSENT)
            ),
        ),
    )
    _check_judges(inputs)
    _check_capabilities(inputs)
    return inputs


def _with_scripts(experiment: Experiment, path: Path) -> Experiment:
    """The experiment with the fake engines' scripts found where its own file is."""
    models = {
        name: spec.model_copy(update={"script": str(find(spec.script, path))})
        if spec.script
        else spec
        for name, spec in experiment.models.items()
    }
    return experiment.model_copy(update={"models": models})


def _load_constitution(experiment: Experiment, path: Path) -> Constitution | None:
    if experiment.constitution is None:
        return None
    return load_constitution(find(experiment.constitution, path))


def model_keys(experiment: Experiment, fetch: bool) -> dict[str, str]:
    """Model name (or folder in a train step) to the identity of its weights."""
    keys = {name: model_key(spec, fetch) for name, spec in experiment.models.items()}
    policy = experiment.models["policy"]
    for entry in experiment.steps:
        step = entry.train or entry.distill
        if step is None:
            continue
        for name in (step.from_, getattr(step, "reference", "current")):
            # A folder of weights may be named where a model's name is expected.
            known = name in RESERVED_MODELS or name in keys
            if not known and ("/" in name or Path(name).exists()):
                keys[name] = model_key(replace_path(policy, name), fetch)
    return keys


def model_key(spec: ModelSpec, fetch: bool) -> str:
    """The identity of a model's weights, script or plug-in; `fetch` may bring weights here."""
    if spec.engine == "fake":
        script = read_text(Path(spec.script)) if spec.script else ""
        return "fake:" + content_hash(script)
    if spec.engine in REMOTE:
        if fetch:
            # Here and not when the judge's turn comes, hours later.
            server_key(spec)
        said = "" if spec.weights is None else f":{spec.weights}"
        return f"server:{spec.base_url}:{spec.path}{said}"
    if ":" in spec.engine and locate(spec.path) is None:
        # A plug-in's path need not be a folder of weights.
        return f"plugin:{spec.engine}:{spec.path}"
    folder = whole(resolve(spec.path)) if fetch else locate(spec.path)
    if fetch and spec.gpus is not None:
        # Now: GPUs that are not there would show only when the engine starts.
        from rlaif.engines.vllm.vllm_options import visible_gpus

        visible_gpus(spec)
    if folder is None:
        return ABSENT + spec.path
    # A plug-in may keep weights in files of its own kind.
    if ":" not in spec.engine:
        check_weights(folder)
    return f"weights:{model_hash(folder, spec)}"


def _load_prompts(experiment: Experiment, path: Path) -> PromptSet:
    """The prompts that the experiment names, or those of the pairs that it loads."""
    if not experiment.prompts.from_pairs:
        return load_prompts(experiment.prompts, path)
    loads = experiment.pair_loads
    names = [loaded_source(step, experiment.loaded_name(step), path) for step in loads]
    readings = [
        read_labelled(name, step.format, step.columns, step.on_error)
        for name, step in zip(names, experiment.pair_loads, strict=True)
    ]
    prompts = [pair.prompt for reading in readings for pair in reading]
    return split_prompts(experiment.prompts, prompts, ", ".join(map(str, names)))


def _file_hashes(experiment: Experiment, path: Path) -> dict[str, str]:
    loads = [e.load for e in experiment.steps if e.load is not None]
    named = {experiment.loaded_name(step) or "": step for step in loads}
    sources = {name: loaded_source(step, name, path) for name, step in named.items()}
    filters = [e.filter for e in experiment.steps if e.filter is not None]
    sources |= {name: find(name, path) for wanted in filters for name in wanted.files()}
    sources |= {name: model_folder(name, path) for wanted in filters for name in wanted.models()}
    return {name: _source_hash(sources[name]) for name in sorted(sources)}


def _source_hash(source: Source) -> str:
    """The hash of what is read: of a dataset's rows, whichever copy of them the hub gave."""
    return _file_hash(source) if isinstance(source, Path) else rows_hash(source_rows(source))


def _file_hash(path: Path) -> str:
    """The hash of a file's bytes, or of all names and files in a folder."""
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    inside = sorted(p for p in path.rglob("*") if p.is_file())
    return content_hash([[str(p.relative_to(path)), _file_hash(p)] for p in inside])


def _check_judges(inputs: PlanInputs) -> None:
    """Raises ConfigError for a judge of `judges` by a model that is not given and no step makes;
    those of steps are looked at where they stand in the plan."""
    experiment = inputs.experiment
    made = {entry.distill.id for entry in experiment.steps if entry.distill is not None}
    known = RESERVED_MODELS | made | experiment.models.keys() | inputs.keys.keys()
    for index, judge in enumerate(experiment.judges):
        for name in judge.asks().values():
            if name not in known:
                line = line_of(("judges", index, "by"), inputs.lines)
                fault = f"judge {judge.id}: by: {no_model(name, experiment)}"
                raise ConfigError(fault, inputs.path, line)


def _check_capabilities(inputs: PlanInputs) -> None:
    for index, entry in enumerate(inputs.experiment.steps):
        if entry.judge is None:
            continue
        names = entry.judge.asks()
        for role, needs in roles_of(inputs.judges[entry.judge.id]).items():
            name = "policy" if names[role] in RESERVED_MODELS else names[role]
            spec = inputs.experiment.models.get(name)
            known = known_capabilities(spec) if spec is not None else None
            # What a hub id holds is known once it is fetched; the judge step looks again.
            if spec is not None and known is not None and needs - known:
                what = f"judge needs {sorted(needs - known)}, which engine {spec.engine!r} lacks"
                raise inputs.fail(index, what)


KEPT_APART = frozenset({"labeller", "proxy", "gold"})


def weights_names(spec: ModelSpec, key: str) -> frozenset[str]:
    """What a model's weights go by: models that have one of these in common are the same.

    `key` is its identity. A server's weights go by its address and the model's name there, and by
    the hash that `weights` declares, which may be that of a folder here. A script has none.
    """
    if spec.engine == "fake":
        return frozenset()
    if spec.engine not in REMOTE:
        return frozenset({key})
    declared = {f"weights:{spec.weights}"} if spec.weights is not None else set()
    return frozenset({f"server:{(spec.base_url or '').rstrip('/').lower()}:{spec.path}"} | declared)


def check_same_weights(
    experiment: Experiment, keys: Mapping[str, str], judges: Mapping[str, Judge]
) -> None:
    """Refuse roles that are silently one model, and judges that are silently the policy. Raises
    ConfigError, unless the experiment says `allow_same_weights`."""
    for name, spec in experiment.all_judges().items():
        asked = roles_of(judges[name])
        # A judge within may have a `by` that nothing asks.
        silent = [own for role, own in _find_unnamed(spec) if role in asked]
        if silent:
            raise ConfigError(
                f"judge {silent[0]}: `by` does not say which model is asked. Set `by: policy` to "
                "have the policy judge itself, or name another one of `models`."
            )
    if experiment.allow_same_weights:
        return
    names = {n: weights_names(spec, keys[n]) for n, spec in experiment.models.items()}
    _check_roles(experiment, names)
    for judge in experiment.all_judges().values():
        for name in judge.asks().values():
            # A reserved name says openly that the policy judges.
            if name not in RESERVED_MODELS and names.get(name, frozenset()) & names["policy"]:
                raise ConfigError(
                    f"judge {judge.id}: model {name!r} has the policy's own weights. Ask it by the "
                    "name `policy` (or `initial`, the policy before training), name other "
                    "weights, or set `allow_same_weights: true`."
                )


def _check_roles(experiment: Experiment, names: Mapping[str, frozenset[str]]) -> None:
    roles = {n: s.role for n, s in experiment.models.items() if s.role in KEPT_APART}
    for one, other in combinations(roles, 2):
        if roles[one] != roles[other] and names[one] & names[other]:
            raise ConfigError(
                f"models {one!r} and {other!r} have different roles and the same weights. "
                "Name different models, or set `allow_same_weights: true`."
            )


def _find_unnamed(judge: JudgeBase, place: str = "") -> Iterator[tuple[str, str]]:
    """Role and id of each judge, those within `judge` too, whose `by` was left to its default."""
    if "by" in type(judge).model_fields and "by" not in judge.model_fields_set:
        yield f"{place}by", judge.id
    for name, inner in judge.judges_within().items():
        yield from _find_unnamed(inner, f"{place}{name}/")
