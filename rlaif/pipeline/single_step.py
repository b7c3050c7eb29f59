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
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from rlaif.config.base import apply_override
from rlaif.config.models import RESERVED_MODELS, ModelSpec, thinking_of
from rlaif.config.on_policy import OnPolicyTrain
from rlaif.config.steps import LoadStep, PairStep
from rlaif.constitution.model import load_constitution
from rlaif.core.errors import ConfigError
from rlaif.core.records import Prompt, R, content_hash, from_json, to_json
from rlaif.core.resources import find
from rlaif.core.rowfiles import HeldIndex, Index
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
from rlaif.core.yamlio import load_yaml, suggest, validate
from rlaif.data.loaded import record_of
from rlaif.data.rows import jsonl_rows, rows_hash, source_rows
from rlaif.data.sources import PromptSet, every_prompt, loaded_source
from rlaif.engines.base import Model
from rlaif.engines.build import EnginePool
from rlaif.engines.local.adapters import COPIES
from rlaif.engines.remote.meter import FILE as METERS
from rlaif.engines.remote.meter import kept_meters
from rlaif.judges.build import build_judge
from rlaif.judges.specs import JudgeBase
from rlaif.pipeline.experiment import STEPS, TRAINED
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.plan import PlanInputs, Planned
from rlaif.pipeline.plan.base import VERSIONS, step_hash
from rlaif.pipeline.plan.steps import pair_fault
from rlaif.pipeline.plan.training import terms_fault
from rlaif.pipeline.prepare import model_key
from rlaif.pipeline.steps.context import Progress, StepContext

POLICY = {"path": "builtin/smollm2-135m-instruct"}


class Records(StepFolder):
    """Records to read: a step's folder, or one plain JSONL file of them."""

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Every row, wherever it lies. Raises ConfigError for a plain file without any, StoreError
        where a step's folder is not what the step left."""
        if self.marker.exists():
            yield from super().rows(name)
            return
        path = self.path / f"{name}.jsonl" if self.path.is_dir() else self.path
        place = None
        for place, row in jsonl_rows(path):
            yield _checked(name, row, place)
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


def _checked(name: str, row: dict[str, Any], place: str) -> dict[str, Any]:
    """A row of a plain file. Raises ConfigError where it is no record of its kind."""
    if name in KINDS:
        record_of(KINDS[name], row, place)
    return row


class FileStore(Store):
    """A store in which the name of a step is the path of its records."""

    def __init__(self, out: Path):
        super().__init__(out)

    def step(self, input_hash: str) -> StepFolder:
        """The records at this path."""
        return Records(Path(input_hash))

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
    inputs = _plan_inputs(request)
    step = inputs.experiment.steps[0].step
    prompts = {p.prompt_id: p for p in inputs.prompts.train}
    models = {role: named_model(path) for role, path in request.models.items()}
    if isinstance(step, JudgeBase):
        models |= _other_models(step, models["by"])
    if isinstance(step, PairStep):
        _check_pair(step, request.inputs)
    if isinstance(step, OnPolicyTrain):
        _check_terms(step, inputs)
    store = FileStore(request.out)
    planned = _planned(request, inputs, step, models, prompts)
    folder = StepFolder(request.out)
    if request.prompts is not None:
        _check_prompts(request, store, prompts)
    make_folder(request.out)
    with name_step(request.kind, request.out), explain_os_errors(request.out):
        _same_request(request.out, planned)
        finished = folder.done()
        if finished is not None:
            return {**finished, "reused": True}
        folder.repair()
        pool = EnginePool(store)
        try:
            context = StepContext(planned, folder, store, inputs, prompts, pool, progress)
            with pool.account.meters.kept_in(folder.path):
                summary = import_module(STEPS[request.kind]).run(context)
        finally:
            progress.finish()
            pool.close()
        shutil.rmtree(store.root / COPIES, ignore_errors=True)
        if request.kind == "sample":
            write_jsonl(request.out / "prompts.json", [to_json(p) for p in prompts.values()])
        made = store.model_path(planned.hash) if request.kind in TRAINED else None
        summary |= kept_meters(folder.path)
        return folder.finish({**summary, "kind": request.kind, "hash": planned.hash}, made)


def _check_prompts(request: Request, store: Store, prompts: Mapping[str, Prompt]) -> None:
    """Raises ConfigError for completions of prompts that were not given."""
    for role, path in request.inputs.items():
        if "completions" in role.split("/"):
            rows = store.step(path).rows("completions")
            strange = next((r["prompt_id"] for r in rows if r["prompt_id"] not in prompts), None)
            if strange is not None:
                raise ConfigError(
                    f"its completions of prompt {strange} cannot be used, since this is none of "
                    f"the prompts in {request.prompts}. Give the prompts that were answered with "
                    "--prompts.",
                    path,
                )


def _check_pair(step: PairStep, inputs: Mapping[str, str]) -> None:
    judges = {role.split("/", 1)[1] for role in inputs if role.startswith("judgements/")}
    if step.strategy == "reference":
        return
    if not judges:
        raise ConfigError("pair: no JUDGEMENTS were given; only `strategy=reference` needs none")
    fault = pair_fault(step, judges)
    if fault is not None:
        raise ConfigError(f"pair: {fault[0]}: {fault[1]}")


def _check_terms(step: OnPolicyTrain, inputs: PlanInputs) -> None:
    """Raises ConfigError where the rewards name another judge than those of --reward, or have a
    term that cannot be."""
    unknown = next((name for name in step.reward_judges if name not in inputs.judges), None)
    fault = terms_fault(step, inputs.judges, inputs.prompts.train) if unknown is None else None
    if unknown is not None:
        fault = f"rewards: {unknown!r} is no judge{suggest(unknown, sorted(inputs.judges))}"
    if fault is not None:
        raise ConfigError(f"train: {fault}")


def _plan_inputs(request: Request) -> PlanInputs:
    options: dict[str, Any] = {}
    for setting in request.settings:
        apply_override(options, setting)
    data = {
        "name": f"rlaif {request.kind}",
        "models": {"policy": POLICY},
        "prompts": {"path": "prompts"},
        "judges": [dict(judge) for judge in request.judges],
        "steps": [{request.kind: options}],
    }
    experiment = validate(Experiment, data, {}, f"rlaif {request.kind}")
    constitution = None
    if request.constitution is not None:
        constitution = load_constitution(find(request.constitution))
    here = Path(f"rlaif {request.kind}")
    thinking = thinking_of(_named_spec(name)[1] for name in request.models.values())
    judges = {
        n: build_judge(s, constitution, None, thinking) for n, s in experiment.all_judges().items()
    }
    return PlanInputs(experiment, here, {}, constitution, _prompts(request), judges, {})


def _prompts(request: Request) -> PromptSet:
    """The prompts of a file, or those kept beside the completions that are judged."""
    if request.prompts is None:
        return PromptSet([], [], 0)
    folder = request.prompts
    if folder.is_dir():
        kept = folder / "prompts.json"
        if not kept.exists():
            raise ConfigError("no prompts.json in this folder; name the prompts file", folder)
        Records(folder).done()
        try:
            lines = kept.read_text(encoding="utf-8", errors="surrogatepass").split("\n")
            prompts = [from_json(Prompt, json.loads(line)) for line in lines if line]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ConfigError("damaged; make the completions again", kept) from None
        return PromptSet(prompts, [], 0)
    return PromptSet(every_prompt(folder), [], 0)


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
    called, spec = _named_spec(name)
    return Model(model_key(spec, True), called, spec)


def _named_spec(name: str) -> tuple[str, ModelSpec]:
    if not name.endswith((".yaml", ".yml")):
        return Path(name).name, ModelSpec(path=name)
    path = find(name)
    data, lines = load_yaml(path)
    spec = validate(ModelSpec, data, lines, path)
    if spec.script is not None:
        spec = spec.model_copy(update={"script": str(find(spec.script, path))})
    return path.stem, spec


def _other_models(judge: JudgeBase, by: Model) -> dict[str, Model]:
    """The models of a judge that asks several: by path, or the command's model."""
    return {
        role: by if name in RESERVED_MODELS else named_model(name)
        for role, name in judge.asks().items()
        if role != "by"
    }


def _planned(
    request: Request,
    inputs: PlanInputs,
    step: Any,
    models: dict[str, Model],
    prompts: Mapping[str, Prompt],
) -> Planned:
    judges = {name: judge.judge_hash for name, judge in inputs.judges.items()}
    weights = (
        {p.id: p.weight for p in inputs.constitution.principles} if inputs.constitution else {}
    )
    if request.kind in TRAINED:
        models = {**models, "made": Model("made", "trained", models["start"].spec)}
    texts = {role: _digest(Path(path)) for role, path in request.inputs.items()}
    if isinstance(step, LoadStep) and step.dataset is not None:
        source = loaded_source(step, inputs.experiment.loaded_name(step), None)
        texts["dataset"] = rows_hash(source_rows(source))
    digest = step_hash(
        request.kind,
        step.model_dump(mode="json", by_alias=True, exclude={"gates"}),
        {role: m.identity() for role, m in models.items()},
        texts,
        sorted([p.prompt_id, p.tags, p.reference] for p in prompts.values()),
        judges,
        weights,
        request.seed,
        *_on_policy_parts(step, prompts),
    )
    options = {
        "sampling_seed": str(request.seed),
        "principle_weights": weights,
        **{
            kind: [path for role, path in request.inputs.items() if role.startswith(kind)]
            for kind in ("completions", "judgements")
        },
    }
    return Planned(
        digest,
        request.kind,
        step.id,
        request.seed,
        0,
        step,
        dict(request.inputs),
        models,
        tuple(sorted(prompts)),
        options,
    )


def _on_policy_parts(step: Any, prompts: Mapping[str, Prompt]) -> list[Any]:
    """What decides an on-policy training besides."""
    if not isinstance(step, OnPolicyTrain):
        return []
    conditions = any(term.when is not None for term in step.terms)
    sources = sorted([p.prompt_id, p.source] for p in prompts.values()) if conditions else []
    return [VERSIONS["on_policy"], sources]


def _digest(path: Path) -> str:
    if not path.exists():
        raise ConfigError("no such file or folder", path)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    return content_hash([hashlib.sha256(f.read_bytes()).hexdigest() for f in files])


def _same_request(out: Path, planned: Planned) -> None:
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
    content = {"hash": planned.hash, "kind": planned.kind, "inputs": planned.inputs}
    step = planned.step.model_dump(mode="json", by_alias=True)
    write_atomic(path, json.dumps(content | {"step": step}, indent=1))
