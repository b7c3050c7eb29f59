"""Run an experiment: read it, plan it, run what is missing, and say what happened."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Protocol

from rlaif.compare.diagnostics import AlarmLimits, RoundMetrics, find_alarms
from rlaif.compare.words import self_judge_words
from rlaif.config import RESERVED_MODELS, Experiment, ModelSpec, load_experiment, resolved_yaml
from rlaif.constitution import Constitution, load_constitution, principle_hash
from rlaif.data.sources import load_prompts
from rlaif.engines.build import REMOTE, EnginePool, known_capabilities, server_key
from rlaif.engines.builtin import locate, resolve, weights_hash
from rlaif.errors import ConfigError, GateStopped
from rlaif.judges.build import build_judge
from rlaif.plan import PlanInputs, Planned, make_plan
from rlaif.records import Prompt, RoundRecord, content_hash, from_json, to_json
from rlaif.resources import find
from rlaif.steps.context import Progress, StepContext
from rlaif.store import FORMAT, Store, explain_os_errors, read_json, write_atomic, write_jsonl

STEPS = {
    "sample": "rlaif.steps.sample",
    "load": "rlaif.steps.load",
    "judge": "rlaif.steps.judge",
    "pair": "rlaif.steps.pair",
    "distill": "rlaif.steps.train",
    "train": "rlaif.steps.train",
    "logprobs": "rlaif.steps.logprobs",
    "evaluate": "rlaif.steps.evaluate",
}
TRAINED = ("distill", "train")
"""Kinds of steps that make a model."""


class StepProgress(Progress, Protocol):
    """Progress that also hears which step begins."""

    def begin_step(self, title: str) -> None:
        """A step begins."""
        ...


@dataclass(frozen=True)
class RunResult:
    """What `run_experiment` did: how many steps ran and how many were found finished."""

    out: Path
    ran: int
    reused: int
    rounds: list[RoundRecord]


def prepare(path: Path, overrides: Sequence[str] = (), fetch: bool = True) -> PlanInputs:
    """Everything a plan needs. With `fetch` false nothing is downloaded or converted: a model that
    is not on disk yet gets a placeholder identity. Raises ConfigError, EngineError."""
    experiment, lines = load_experiment(path, overrides)
    experiment = _with_scripts(experiment, path)
    constitution = _constitution(experiment, path)
    judges = {
        name: build_judge(spec, constitution, path)
        for name, spec in experiment.all_judges().items()
    }
    keys = model_keys(experiment, fetch)
    _check_roles(experiment, keys)
    inputs = PlanInputs(
        experiment,
        path,
        lines,
        constitution,
        load_prompts(experiment.prompts, path),
        judges,
        keys,
        _file_hashes(experiment, path),
    )
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


def _constitution(experiment: Experiment, path: Path) -> Constitution | None:
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
            known = name in RESERVED_MODELS or name in keys
            if not known and ("/" in name or Path(name).exists()):
                keys[name] = model_key(policy.model_copy(update={"path": name}), fetch)
    return keys


def model_key(spec: ModelSpec, fetch: bool) -> str:
    """The identity of a model's weights, script or plug-in; `fetch` may bring weights here."""
    if spec.engine == "fake":
        script = Path(spec.script).read_text(encoding="utf-8") if spec.script else ""
        return "fake:" + content_hash(script)
    if spec.engine in REMOTE:
        if fetch:
            # Here and not when the judge's turn comes, hours later.
            server_key(spec)
        return f"server:{spec.base_url}:{spec.path}"
    if ":" in spec.engine and locate(spec.path) is None:
        # A plug-in's path need not be a folder of weights.
        return f"plugin:{spec.engine}:{spec.path}"
    folder = resolve(spec.path) if fetch else locate(spec.path)
    return f"weights:{weights_hash(folder)}" if folder else f"not here yet:{spec.path}"


def _check_roles(experiment: Experiment, keys: Mapping[str, str]) -> None:
    """Labeller, proxy and gold judge must be different weights (METHODS 0: never silently one)."""
    if experiment.allow_same_weights:
        return
    seen: dict[str, str] = {}
    for name, spec in experiment.models.items():
        if spec.role in ("labeller", "proxy", "gold"):
            other = seen.setdefault(keys[name], name)
            if other != name:
                raise ConfigError(
                    f"models {other!r} and {name!r} have different roles and the same weights. "
                    "Name different models, or set `allow_same_weights: true`."
                )


def _file_hashes(experiment: Experiment, path: Path) -> dict[str, str]:
    names = [e.load.path for e in experiment.steps if e.load is not None]
    return {name: _file_hash(find(name, path)) for name in names}


def _file_hash(path: Path) -> str:
    """The hash of a file's bytes, or of all names and files in a folder."""
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    inside = sorted(p for p in path.rglob("*") if p.is_file())
    return content_hash([[str(p.relative_to(path)), _file_hash(p)] for p in inside])


def _check_capabilities(inputs: PlanInputs) -> None:
    for index, entry in enumerate(inputs.experiment.steps):
        if entry.judge is None:
            continue
        name = getattr(entry.judge, "by", "policy")
        spec = inputs.experiment.models.get("policy" if name in RESERVED_MODELS else name)
        lacking = inputs.judges[entry.judge.id].needs
        known = known_capabilities(spec) if spec is not None else None
        # What a hub id holds is known once it is fetched; the judge step looks again.
        if spec is not None and known is not None and lacking - known:
            raise inputs.fail(
                index, f"judge needs {sorted(lacking - known)}, which engine {spec.engine!r} lacks"
            )


def run_experiment(
    path: Path,
    out: Path,
    overrides: Sequence[str] = (),
    progress: StepProgress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> RunResult:
    """Run an experiment into the run folder `out`, or go on with it.

    Finished steps are found by the hash of their inputs and not run again. Raises RlaifError.
    """
    from rlaif.progress import QuietProgress

    progress = progress or QuietProgress()
    store = Store(out)
    store.prepare()
    with store.locked():
        inputs = prepare(path, overrides)
        plan = make_plan(inputs)
        missing = unfinished(plan, store)
        _check_space(store, plan, missing)
        _write_manifest(store, inputs, plan)
        if inputs.prompts.duplicates:
            say(f"{inputs.prompts.duplicates} duplicate prompts left out")
        pool = EnginePool(store, budget=inputs.experiment.budget)
        try:
            for planned in plan:
                if planned.hash in missing:
                    _run_step(planned, inputs, store, pool, progress)
                if planned.kind == "evaluate":
                    rounds = write_rounds(inputs, plan, store)
                    _gate(inputs.experiment, rounds, planned)
                if planned.kind in TRAINED:
                    _drop_masters(inputs.experiment, plan, planned, store)
        finally:
            progress.finish()
            pool.close()
        rounds = write_rounds(inputs, plan, store)
    return RunResult(out, len(missing), len(plan) - len(missing), rounds)


def unfinished(plan: Sequence[Planned], store: Store) -> set[str]:
    """The hashes of the steps that must run.

    A finished train step runs again when an unfinished one starts from its fp32 masters and these
    were not kept: starting from the bf16 export would give other weights.
    """
    missing = {p.hash for p in plan if store.step(p.hash).done() is None}
    for planned in reversed(plan):
        if planned.kind not in TRAINED or planned.hash not in missing:
            continue
        for role in ("start", "reference"):
            model = planned.models.get(role)
            if model is not None and model.train_hash is not None:
                masters = store.model_path(model.train_hash) / "masters"
                if not masters.is_dir():
                    missing.add(model.train_hash)
    return missing


def _run_step(
    planned: Planned, inputs: PlanInputs, store: Store, pool: EnginePool, progress: StepProgress
) -> None:
    folder = store.step(planned.hash)
    prompts: dict[str, Prompt] = {
        p.prompt_id: p for p in [*inputs.prompts.train, *inputs.prompts.heldout]
    }
    seed = f"seed {planned.seed}, " if len(inputs.experiment.all_seeds) > 1 else ""
    progress.begin_step(f"[{seed}round {planned.round}] {planned.id}")
    began = time.monotonic()
    with explain_os_errors(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.repair()
        context = StepContext(planned, folder, store, inputs, prompts, pool, progress)
        summary = import_module(STEPS[planned.kind]).run(context)
        summary |= {
            "hash": planned.hash,
            "kind": planned.kind,
            "id": planned.id,
            "inputs": planned.inputs,
            "seconds": round(time.monotonic() - began, 3),
        }
        if remote := pool.account.take():
            summary["remote"] = remote
        folder.finish(summary)
    progress.finish()


def _check_space(store: Store, plan: Sequence[Planned], missing: set[str]) -> None:
    """Refuse to start what the disk cannot hold.

    A train step leaves a bf16 export (2 bytes a parameter) and keeps, at its largest, fp32 masters
    of two rounds and a checkpoint of weights and both Adam moments (5 x 4 bytes).
    """
    trains = [p for p in plan if p.kind in TRAINED and p.hash in missing]
    if not trains:
        return
    folder = resolve(trains[0].models["start"].spec.path)
    parameters = sum(f.stat().st_size for f in folder.glob("*.safetensors")) // 2
    store.need_space(parameters * (2 * len(trains) + 20))


def _gate(experiment: Experiment, rounds: Sequence[RoundRecord], planned: Planned) -> None:
    if experiment.alarms.on_alarm != "stop":
        return
    # A round counts when the last of its evaluations is there.
    rows = [r for r in rounds if r.seed == planned.seed and r.round == planned.round]
    fired = [a for r in rows for a in r.metrics["alarms"] if a["severity"] == "alarm"]
    if fired:
        raise GateStopped(
            f"stopped after round {planned.round} (alarms.on_alarm: stop):\n"
            + "\n".join(f"  {a['message']}" for a in fired)
            + "\nEverything computed is kept. Change the experiment, or set "
            "`alarms.on_alarm: continue`, and run again."
        )


def _drop_masters(
    experiment: Experiment, plan: Sequence[Planned], trained: Planned, store: Store
) -> None:
    """Delete the fp32 masters that no later train step starts from (retention.masters: last)."""
    if experiment.retention.masters == "all":
        return
    position = next(i for i, p in enumerate(plan) if p.hash == trained.hash)
    later = [p for p in plan[position + 1 :] if p.kind in TRAINED]
    wanted = {m.train_hash for p in later for role, m in p.models.items() if role != "made"}
    last = {p.models["made"].train_hash for p in _last_trains(plan)}
    for planned in plan[: position + 1]:
        if planned.kind in TRAINED and planned.hash not in wanted | last | {trained.hash}:
            shutil.rmtree(store.model_path(planned.hash) / "masters", ignore_errors=True)


def _last_trains(plan: Sequence[Planned]) -> list[Planned]:
    last: dict[int, Planned] = {}
    for planned in plan:
        if planned.kind == "train":
            last[planned.seed] = planned
    return list(last.values())


def write_rounds(inputs: PlanInputs, plan: Sequence[Planned], store: Store) -> list[RoundRecord]:
    """Derive rounds.jsonl from the finished evaluations: metrics, differences, alarms, words."""
    records: list[RoundRecord] = []
    limits = AlarmLimits(**inputs.experiment.alarms.model_dump(exclude={"on_alarm"}))
    for seed in inputs.experiment.all_seeds:
        history: list[RoundMetrics] = []
        for planned in _evaluations(plan, seed):
            folder = store.step(planned.hash)
            if folder.done() is None:
                break
            row = folder.read("evaluation")[0]
            history.append({"metrics": row["metrics"], "deltas": row["deltas"]})
            records.append(_round_record(inputs, plan, planned, store, history, limits))
    write_jsonl(store.root / "rounds.jsonl", [to_json(r) for r in records])
    return records


def _evaluations(plan: Sequence[Planned], seed: int) -> list[Planned]:
    """The last evaluation of each round of one seed, by round."""
    last = {p.round: p for p in plan if p.kind == "evaluate" and p.seed == seed}
    return [last[number] for number in sorted(last)]


def _round_record(
    inputs: PlanInputs,
    plan: Sequence[Planned],
    planned: Planned,
    store: Store,
    history: list[RoundMetrics],
    limits: AlarmLimits,
) -> RoundRecord:
    counts: dict[str, int] = {}
    for step in plan:
        if step.seed == planned.seed and step.round == planned.round and step.kind != "evaluate":
            marker = store.step(step.hash).done()
            for name, count in (marker or {}).get("counts", {}).items():
                counts[f"{step.id}.{name}"] = count
    moving = [
        name
        for name, spec in inputs.experiment.all_judges().items()
        if inputs.judges[name].needs and getattr(spec, "by", None) in RESERVED_MODELS
    ]
    words = [w for name in moving for w in self_judge_words(name, history)]
    return RoundRecord(
        arm="main",
        seed=planned.seed,
        round=planned.round,
        policy_in="M0" if planned.round < 2 else f"M{planned.round - 1}",
        policy_out=planned.models["policy"].label,
        config_hash=content_hash(resolved_yaml(inputs.experiment)),
        counts=counts,
        metrics={
            **history[-1],
            "alarms": [a.to_json() for a in find_alarms(history, limits)],
            "words": words,
        },
    )


def _write_manifest(store: Store, inputs: PlanInputs, plan: Sequence[Planned]) -> None:
    """config.yaml and manifest.json: what was asked, on what, and which output is whose."""
    write_atomic(store.root / "config.yaml", resolved_yaml(inputs.experiment))
    constitution = inputs.constitution
    manifest = {
        "format": FORMAT,
        "name": inputs.experiment.name,
        "experiment": inputs.path.name,
        "versions": _versions(),
        "python": sys.version.split()[0],
        "hardware": {"machine": platform.machine(), "system": platform.system()},
        "git": _git_state(inputs.path),
        "seeds": inputs.experiment.all_seeds,
        "models": dict(inputs.keys),
        "constitution": constitution.model_dump(mode="json") if constitution else None,
        "constitution_hash": content_hash([principle_hash(p) for p in constitution.principles])
        if constitution
        else None,
        "judges": {name: j.judge_hash for name, j in inputs.judges.items()},
        "prompts": {
            "train": len(inputs.prompts.train),
            "heldout": len(inputs.prompts.heldout),
            "hash": content_hash(sorted(p.prompt_id for p in inputs.prompts.train)),
        },
        "steps": [
            {
                "hash": p.hash,
                "kind": p.kind,
                "id": p.id,
                "arm": "main",
                "seed": p.seed,
                "round": p.round,
                "inputs": p.inputs,
                "models": {role: [m.label, m.key] for role, m in p.models.items()},
            }
            for p in plan
        ],
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    write_atomic(store.root / "manifest.json", text)
    prompts = [*inputs.prompts.train, *inputs.prompts.heldout]
    write_jsonl(store.root / "prompts.jsonl", [to_json(p) for p in prompts])


def _versions() -> dict[str, str]:
    found = {}
    for name in ("rlaif", "torch", "transformers", "peft", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _git_state(path: Path) -> dict[str, Any] | None:
    """The commit of the checkout that holds the experiment file, when there is one."""
    command = ["git", "-C", str(path.resolve().parent)]
    try:
        head = subprocess.run(
            [*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
        status = subprocess.run(
            [*command, "status", "--porcelain"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": head.stdout.strip(), "clean": not status.stdout.strip()}


def read_rounds(root: Path) -> list[RoundRecord]:
    """The round records of a run folder, as they stand."""
    path = root / "rounds.jsonl"
    if not path.exists():
        return []
    # Not splitlines: a text may hold a separator that it would cut at.
    lines = path.read_text(encoding="utf-8", errors="surrogatepass").split("\n")
    return [from_json(RoundRecord, json.loads(line)) for line in lines if line]


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a run folder. Raises ConfigError when it is none."""
    manifest: dict[str, Any] | None = read_json(root / "manifest.json")
    if manifest is None:
        raise ConfigError(f"{root} is not a run folder (no manifest.json in it)")
    if manifest.get("format") != FORMAT:
        raise ConfigError(f"{root} has run format {manifest.get('format')}; expected {FORMAT}")
    return manifest
