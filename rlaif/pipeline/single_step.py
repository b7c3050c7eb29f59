"""One step at a time, on files: what `rlaif sample|judge|pair|train|evaluate` do.

The same step code as in an experiment, with folders of records in place of a run folder. An output
folder is resumable like any step, and refuses to mix two different requests.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlaif.config.arms import MAIN
from rlaif.config.models import RESERVED_MODELS, ModelSpec, thinking_of
from rlaif.config.paths import apply_changes, read_setting
from rlaif.config.steps import EvaluateStep, LoadStep, PairStep, SampleStep
from rlaif.constitution.model import load_constitution
from rlaif.core.errors import ConfigError
from rlaif.core.records import Prompt, R, content_hash, from_json, to_json
from rlaif.core.resources import find
from rlaif.core.rowindex import HeldIndex, Index
from rlaif.core.store import (
    FILES,
    StepFolder,
    Store,
    explain_os_errors,
    make_folder,
    name_step,
    read_json,
    write_atomic,
    write_jsonl,
)
from rlaif.core.yamlio import load_yaml, validate
from rlaif.data.given import holds_answers, holds_records, read_given
from rlaif.data.loaded import record_of
from rlaif.data.rows import jsonl_rows, rows_hash, source_rows
from rlaif.data.sources import PromptSet, every_prompt, loaded_source
from rlaif.data.turns import brief
from rlaif.engines.base import Model
from rlaif.engines.build import EnginePool
from rlaif.engines.model_folders import COPIES
from rlaif.engines.remote.meter import FILE as METERS
from rlaif.engines.remote.meter import kept_meters
from rlaif.judges.build import build_judge
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.plan.base import PlanInputs, Planned, Walk
from rlaif.pipeline.prepare import model_key
from rlaif.pipeline.steps import step_module
from rlaif.pipeline.steps.context import Progress, StepContext
from rlaif.pipeline.system_prompts import render_system_prompt

POLICY = {"path": "builtin/smollm2-135m-instruct"}


class Records(StepFolder):
    """Records to read: a step's folder, one plain JSONL file of them, or anyone's answers beside
    their prompts."""

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Every row, wherever it lies. Raises ConfigError for a plain file without any, StoreError
        where a step's folder is not what the step left."""
        if self.marker.exists():
            yield from super().rows(name)
            return
        if name == "completions" and holds_answers(self.path):
            yield from map(to_json, read_given(self.path).completions)
            return
        path = self.path / f"{name}.jsonl" if self.path.is_dir() else self.path
        place = None
        for place, row in jsonl_rows(path):
            yield _check_row(name, row, place)
        if place is None:
            raise ConfigError(f"there are no {name} in this file", path)

    def records(self, kind: type[R]) -> Iterator[R]:
        """Every record of a kind, wherever it lies."""
        if self.marker.exists():
            return super().records(kind)
        return (from_json(kind, row) for row in self.rows(FILES[kind]))

    def index(self, name: str, key: str) -> Index:
        """Every row by key; those of a plain file, which may be packed, are held."""
        if self.marker.exists():
            return super().index(name, key)
        rows = self.read(name)
        return HeldIndex(lambda: rows, key)


KINDS = {name: kind for kind, name in FILES.items()}
"""The record that each file holds."""


def _check_row(name: str, row: dict[str, Any], place: str) -> dict[str, Any]:
    """A row of a plain file. Raises ConfigError where it is no record of its kind."""
    if name in KINDS:
        record_of(KINDS[name], row, place)
    return row


class FileStore(Store):
    """A store of records that lie wherever the user says: `places` has their paths by hash."""

    def __init__(self, out: Path, places: Mapping[str, Path]):
        super().__init__(out)
        self.places = places

    def step(self, input_hash: str) -> StepFolder:
        """The records with this hash."""
        return Records(self.places[input_hash])

    def model_path(self, train_hash: str) -> Path:
        """A train command writes its model into the output folder."""
        return self.root / "model"


@dataclass(frozen=True)
class Request:
    """What one step command was asked. `inputs` are record folders or files by role; `judges` give
    the rewards of on-policy training."""

    kind: str
    out: Path
    settings: Sequence[str] = ()
    prompts: Path | None = None
    constitution: str | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    judges: Sequence[Mapping[str, str]] = ()
    seed: int = 0


def run_step(request: Request, progress: Progress) -> dict[str, Any]:
    """Run one step into `request.out`; its summary. Raises RlaifError."""
    if request.kind == "evaluate":
        request = replace(request, inputs=_share_judgements(request.inputs))
    inputs = _plan_inputs(request)
    prompts = {p.prompt_id: p for p in inputs.prompts.every()}
    places = {_digest_files(Path(path)): Path(path) for path in request.inputs.values()}
    store = FileStore(request.out, places)
    _check_same_prompts(request)
    if request.prompts is not None:
        _check_prompts(request, prompts)
    planned = _plan_step(request, inputs)
    folder = StepFolder(request.out)
    make_folder(request.out)
    with name_step(request.kind, request.out), explain_os_errors(request.out):
        _same_request(request, planned)
        finished = folder.done()
        if finished is not None:
            return {**finished, "reused": True}
        folder.repair()
        pool = EnginePool(store)
        try:
            context = StepContext(planned, folder, store, inputs, prompts, pool, progress)
            with pool.account.meters.kept_in(folder.path):
                summary = step_module(request.kind).run(context)
        finally:
            progress.finish()
            pool.close()
        shutil.rmtree(store.root / COPIES, ignore_errors=True)
        if request.kind == "sample":
            write_jsonl(request.out / "prompts.json", [to_json(p) for p in prompts.values()])
        made = store.model_path(planned.hash) if planned.makes_model else None
        summary |= kept_meters(folder.path)
        return folder.finish({**summary, "kind": request.kind, "hash": planned.hash}, made)


def _plan_inputs(request: Request) -> PlanInputs:
    """An experiment of this step alone. The command's model is its policy; every other model that
    the step or a judge asks is known by its path."""
    changes = [read_setting(setting) for setting in request.settings]
    options = apply_changes({}, {}, changes)[0]
    for role in ("reference", "teacher"):
        if role in request.models:
            options[role] = request.models[role]
    data = {
        "name": f"rlaif {request.kind}",
        "seed": request.seed,
        "models": {"policy": POLICY},
        "prompts": {"path": "prompts"},
        "judges": [dict(judge) for judge in request.judges],
        "steps": [{request.kind: options}],
    }
    experiment = validate(Experiment, data, {}, f"rlaif {request.kind}")
    constitution = None
    if request.constitution is not None:
        constitution = load_constitution(find(request.constitution))
    thinking = thinking_of(named_spec(name)[1] for name in request.models.values())
    others = experiment.all_judges()
    judges = {n: build_judge(s, constitution, None, thinking, others) for n, s in others.items()}
    own = request.models.get("by", request.models.get("start"))
    named = {name for judge in experiment.all_judges().values() for name in judge.asks().values()}
    named = {*named, *request.models.values()} - RESERVED_MODELS
    specs = {"policy": experiment.models["policy"] if own is None else named_spec(own)[1]}
    specs |= {name: named_spec(name)[1] for name in sorted(named)}
    keys = {name: model_key(spec, True) for name, spec in specs.items() if name != "policy"}
    # Where no model is asked, none is fetched.
    keys["policy"] = "none" if own is None else keys[own]
    files = {}
    step = experiment.entries[0].step
    templates = step.templates if isinstance(step, SampleStep) else []
    if isinstance(step, LoadStep):
        source = loaded_source(step, experiment.loaded_name(step), None)
        files[experiment.loaded_name(step) or ""] = rows_hash(source_rows(source))
    return PlanInputs(
        experiment.model_copy(update={"models": specs}),
        Path(f"rlaif {request.kind}"),
        {},
        constitution,
        _load_prompts(request),
        judges,
        keys,
        files,
        system_prompts={n: render_system_prompt(n, constitution, None) for n in templates},
    )


def _plan_step(request: Request, inputs: PlanInputs) -> Planned:
    """The step as the planner of experiments plans it, after steps that stand for the files."""
    step = inputs.experiment.entries[0].step
    walk = Walk(inputs, request.seed)
    prompts = tuple(sorted(p.prompt_id for p in inputs.prompts.every()))
    given: dict[str, Planned] = {}
    for role, path in request.inputs.items():
        name = role.rpartition("/")[2]
        digest = _digest_files(Path(path))
        planned = Planned(digest, "load", name, request.seed, 0, step, prompts=prompts)
        given[role] = walk.add(planned)
    below = {role: p.hash for role, p in given.items() if not role.startswith("preferences/")}
    for role, planned in given.items():
        kind, _, name = role.rpartition("/")
        if kind == "completions":
            walk.completions[name] = planned
        elif kind == "judgements":
            walk.judgements[name] = planned
        elif kind == "initial":
            walk.by_id[name, 1] = planned
        elif kind == "preferences":
            walk.preferences.append(replace(planned, inputs=below))
    if isinstance(step, EvaluateStep):
        # The last round's policy is not given.
        step = step.model_copy(update={"against": ["initial"]})
        _give_answers(walk, step, {role: planned.hash for role, planned in given.items()})
    if isinstance(step, PairStep) and (step.form != "score" or step.candidates is not None):
        raise ConfigError(
            "pair: `candidates`, pairs by origin and pairs of judgements name the steps of an "
            "experiment: write one, and `rlaif run` it"
        )
    if isinstance(step, PairStep) and not walk.judgements and step.strategy != "reference":
        raise ConfigError("pair: no JUDGEMENTS were given; only `strategy=reference` needs none")
    step_module(request.kind).plan(walk, 0, step)
    return walk.done[-1]


def _give_answers(walk: Walk, step: EvaluateStep, given: Mapping[str, str]) -> None:
    """What evaluations are measured on is given: the new answers, and those to compare with."""
    old = {n.removeprefix("initial/"): h for n, h in given.items() if n.startswith("initial/")}
    new = {n: h for n, h in given.items() if not n.startswith("initial/")}
    known = {walk.initial.key: old or new}
    if old:
        walk.policy = replace(walk.policy, key="the new answers")
        known[walk.policy.key] = new
    walk.evaluations[step.id, MAIN] = known
    # M0's own figures are not asked for.
    walk.started.add(step.id)


def _check_prompts(request: Request, prompts: Mapping[str, Prompt]) -> None:
    """Raises ConfigError for completions of prompts that were not given."""
    for role, path in request.inputs.items():
        if "completions" in role.split("/"):
            rows = Records(Path(path)).rows("completions")
            strange = next((r["prompt_id"] for r in rows if r["prompt_id"] not in prompts), None)
            if strange is not None:
                raise ConfigError(
                    f"its completions of prompt {strange} cannot be used, since this is none of "
                    f"the prompts in {request.prompts}. Give the prompts that were answered with "
                    "--prompts.",
                    path,
                )


def _check_same_prompts(request: Request) -> None:
    """Raises ConfigError where two files of answers are compared that answer different prompts."""
    paths = [Path(p) for r, p in request.inputs.items() if "completions" in r.split("/")]
    files = [path for path in paths if holds_answers(path)]
    if len(files) < 2:
        return
    questions = [{p.prompt_id: p.question for p in read_given(path).prompts} for path in files]
    for own, other in ((1, 0), (0, 1)):
        alone = sorted(questions[own].keys() - questions[other].keys())
        if alone:
            raise ConfigError(
                f"{len(alone)} of its {len(questions[own])} prompts are not answered in "
                f"{files[other]}, the first of them {brief(questions[own][alone[0]])}; both files "
                "must answer the same prompts",
                files[own],
            )


def _share_judgements(inputs: Mapping[str, str]) -> dict[str, str]:
    """The inputs of an evaluation: where judgements are of the answers to compare with as well, as
    `rlaif judge --against` makes them, they count for these too."""
    found = dict(inputs)
    against = found.get("initial/completions")
    if against is None or any(role.startswith("initial/judgements/") for role in found):
        return found
    ids = {row["completion_id"] for row in Records(Path(against)).rows("completions")}
    for role, path in inputs.items():
        if role.startswith("judgements/"):
            rows = Records(Path(path)).rows("judgements")
            # A comparison has both sides, and is the first one's.
            if any(row["subject"] in ids and len(row["shown"]) == 1 for row in rows):
                found[f"initial/{role}"] = path
    return found


def _load_prompts(request: Request) -> PromptSet:
    """The prompts of a file, or those kept beside the completions that are judged."""
    answers = [Path(p) for role, p in request.inputs.items() if "completions" in role.split("/")]
    own = request.prompts if request.prompts in answers else None
    if own is not None and holds_answers(own):
        given = read_given(own).prompts
    elif own is not None and holds_records(own):
        raise ConfigError(
            "its records do not say what was asked; name the prompts with --prompts", own
        )
    else:
        given = read_prompts(request.prompts)
    return PromptSet([], given, 0) if request.kind == "evaluate" else PromptSet(given, [], 0)


def read_prompts(folder: Path | None) -> list[Prompt]:
    """All prompts of a file, or those that `rlaif sample` left in its folder; none without one.
    Raises ConfigError."""
    if folder is None:
        return []
    if folder.is_dir():
        kept = folder / "prompts.json"
        if not kept.exists():
            raise ConfigError("no prompts.json in this folder; name the prompts file", folder)
        Records(folder).done()
        try:
            lines = kept.read_text(encoding="utf-8", errors="surrogatepass").split("\n")
            return [from_json(Prompt, json.loads(line)) for line in lines if line]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ConfigError("damaged; make the completions again", kept) from None
    return every_prompt(folder)


@contextmanager
def asking(folder: Path) -> Iterator[tuple[Store, EnginePool]]:
    """A folder for what models say and for the meters of servers, locked, and engines to ask; both
    are freed at the end."""
    store = Store(folder)
    store.prepare()
    pool = EnginePool(store)
    try:
        with explain_os_errors(folder), store.locked(), pool.account.meters.kept_in(folder):
            yield store, pool
    finally:
        pool.close()


def named_model(name: str) -> Model:
    """The model that `--model` names: builtin/NAME, a folder, a hub id, or a YAML file with a
    model's keys as in an experiment (`path`, `engine`, ...). Raises ConfigError."""
    called, spec = named_spec(name)
    return Model(model_key(spec, True), called, spec)


def named_spec(name: str) -> tuple[str, ModelSpec]:
    """What a command's model is called, and its keys: of builtin/NAME, a folder, a hub id, or a
    YAML file of keys."""
    if not name.endswith((".yaml", ".yml")):
        return Path(name).name, ModelSpec(path=name)
    path = find(name)
    data, lines = load_yaml(path)
    spec = validate(ModelSpec, data, lines, path)
    if spec.script is not None:
        spec = spec.model_copy(update={"script": str(find(spec.script, path))})
    return path.stem, spec


def _digest_files(path: Path) -> str:
    if not path.exists():
        raise ConfigError("no such file or folder", path)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    return content_hash([hashlib.sha256(f.read_bytes()).hexdigest() for f in files])


def _same_request(request: Request, planned: Planned) -> None:
    """Raise ConfigError where the folder holds what another request made."""
    out = request.out
    path = out / "request.json"
    known = read_json(path)
    # Requests that failed before they made anything leave folders with these files at most.
    begun = any(e.is_file() and e.name not in (path.name, METERS) for e in out.rglob("*"))
    if begun and known is not None and known.get("hash") != planned.hash:
        raise ConfigError(
            "this folder holds the output of another request (other inputs or settings, or a "
            "version of rlaif that gives another output). Choose another --out, or delete it.",
            out,
        )
    content = {"hash": planned.hash, "kind": planned.kind, "inputs": dict(request.inputs)}
    step = planned.step.model_dump(mode="json", by_alias=True)
    write_atomic(path, json.dumps(content | {"step": step}, indent=1))
