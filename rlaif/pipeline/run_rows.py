"""Rows of a run's report, made from its manifest and its store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import yaml

from rlaif.constitution.model import Constitution
from rlaif.core.records import RoundRecord, to_json
from rlaif.core.store import Store
from rlaif.pipeline.constitutions import hash_constitution
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.steps.arena import RESULT as ARENA
from rlaif.pipeline.steps.bench import RESULT
from rlaif.pipeline.steps.evaluate import OF_SET
from rlaif.report.view import ArenaRow, BenchRow, HeldOutRow, LineageRow, RoundRow, StepRow


def pair_rows(
    rows: Iterable[dict[str, Any]], manifest: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The run's pairs, each with the name that the page lists it under."""
    staged = len(manifest.get("stages", ())) > 1
    for row in rows:
        if row["chosen"] and row["rejected"]:
            # One stage trains one model a round, which its pairs are listed under.
            label = f"M{row['round']}" if not staged else f"{row['step']}, {row['run_stage']}"
            yield row | {"seed": row["run_seed"], "arm": row["run_arms"], "label": label}


def held_out_answers(
    manifest: Mapping[str, Any], store: Store, point_of: Callable[[Mapping[str, Any]], int]
) -> Iterator[tuple[HeldOutRow, dict[str, Any]]]:
    """The evaluated models' answers, and which model gave each at which point of the page. Answers
    that several evaluations look at, as all of one stage after another do at M0's, come once."""
    seen: set[str] = set()
    for step in manifest["steps"]:
        if step["kind"] == "evaluate":
            own = [h for n, h in step["inputs"].items() if _is_own_answers(n) and h not in seen]
            seen.update(own)
            completions = chain(*(store.step(h).rows("completions") for h in own))
            policy = step["models"]["policy"][0]
            # M0 and a policy that all arms share belong to none of them.
            shared = len(step["arms"]) == max(len(manifest["arms"]), 1)
            model = policy if shared else f"{policy} {' '.join(step['arms'])}"
            for completion in completions:
                row: HeldOutRow = {
                    "seed": step["seed"],
                    "round": point_of(step),
                    "model": model,
                    "prompt_id": completion["prompt_id"],
                    "completion_id": completion["completion_id"],
                }
                yield row, completion


def list_lineage(manifest: Mapping[str, Any], store: Store) -> list[LineageRow]:
    """The models, judges, constitutions and prompts of a run, with what identifies each."""
    rows: list[LineageRow] = [
        {"kind": "model", "name": name, "hash": key, "detail": "given"}
        for name, key in manifest["models"].items()
    ]
    for step in manifest["steps"]:
        if "made" in step["models"]:
            marker = store.step(step["hash"]).done() or {}
            others = {r: m[0] for r, m in step["models"].items() if r != "made"}
            made = step["models"]["made"][0]
            arms = f", arm {' '.join(step['arms'])}" if manifest["arms"] else ""
            name = f"{made} (seed {step['seed']}{arms})"
            digest = marker.get("weights_hash", "not trained yet")
            taught = f", taught by {others['teacher']}," if "teacher" in others else ""
            detail = f"trained from {others.get('start')}{taught} by step {step['hash']}"
            if step["kind"] == "choose":
                detail = f"the best of {', '.join(others.values())} by step {step['hash']}"
            if step["kind"] == "average":
                members = marker.get("members", others.values())
                detail = f"averaged from {', '.join(members)} by step {step['hash']}"
            rows.append({"kind": "model", "name": name, "hash": digest, "detail": detail})
    rows += [
        {
            "kind": "judge",
            "name": name,
            "hash": digest,
            "detail": "options, template, principles",
        }
        for name, digest in _judge_hashes(manifest).items()
    ]
    held = {"": manifest["constitution"], **manifest.get("constitutions", {})}
    for whose, row in held.items():
        if row:
            constitution = Constitution.model_validate(row)
            count = f"{len(constitution.principles)} principles"
            said = [f"version {constitution.version}", count, *filter(None, [whose])]
            digest = hash_constitution(constitution)
            name, detail = constitution.name, ", ".join(said)
            rows.append({"kind": "constitution", "name": name, "hash": digest, "detail": detail})
    prompts = manifest["prompts"]
    detail = f"{prompts['train']} for training, {prompts['heldout']} held out"
    rows.append({"kind": "prompts", "name": "prompts", "hash": prompts["hash"], "detail": detail})
    return rows


def _judge_hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The judges by name, those that an arm has in another form under `NAME (arm ARM)`."""
    found: dict[str, str] = dict(manifest["judges"])
    for arm, judges in manifest.get("arm_judges", {}).items():
        found |= {f"{name} (arm {arm})": digest for name, digest in judges.items()}
    return found


def bench_rows(manifest: Mapping[str, Any], store: Store) -> list[BenchRow]:
    """What the finished benches measured. A model is called what it is called now: its name is in
    no hash, so that the record does not have it."""
    return [
        {
            "seed": step["seed"],
            "arms": step["arms"],
            "round": step["round"],
            "id": step["id"],
            "result": result,
            "models": {place: label for place, (label, _) in step["models"].items()},
        }
        for step in manifest["steps"]
        if step["kind"] == "bench" and store.step(step["hash"]).done() is not None
        for result in store.step(step["hash"]).read(RESULT)
    ]


def arena_rows(manifest: Mapping[str, Any], store: Store) -> list[ArenaRow]:
    """What the finished arenas found."""
    return [
        {
            "seed": step["seed"],
            "arms": step["arms"],
            "round": step["round"],
            "id": step["id"],
            "result": result,
        }
        for step in manifest["steps"]
        if step["kind"] == "arena" and store.step(step["hash"]).done() is not None
        for result in store.step(step["hash"]).read(ARENA)
    ]


def make_round_row(record: RoundRecord) -> RoundRow:
    """An evaluation as the page shows it."""
    row = to_json(record)
    wanted = ("arm", "seed", "round", "step", "policy_in", "policy_out", "counts", "metrics")
    found = {key: row[key] for key in wanted}
    return found | {"label": record.policy_out}  # type: ignore[return-value]


def settings_of(experiment: Experiment) -> dict[str, dict[str, str]]:
    """The paths and values that each arm sets, where any does."""
    return {
        name: {
            path: yaml.safe_dump(value, default_flow_style=True, width=200).split("\n")[0]
            for path, value in arm.set.items()
        }
        for name, arm in experiment.arms.items()
        if any(arm.set for arm in experiment.arms.values())
    }


def _is_own_answers(name: str) -> bool:
    """Whether an evaluation's input has the evaluated model's answers, to any set of prompts."""
    return "/" not in name and name.rpartition(OF_SET)[2] == "completions"


def report_step(step: Mapping[str, Any]) -> StepRow:
    """A step of a run's status as the page shows it."""
    return {
        "seed": step["seed"],
        "arms": step["arms"],
        "round": step["round"],
        "id": step["id"],
        "kind": step["kind"],
        "hash": step["hash"],
        "seconds": step["seconds"],
        "counts": step["counts"],
        "cost": step["cost"],
        "estimated_cost": step["estimated_cost"],
        "errors": step["errors"],
        "notes": step["notes"],
        "kernels": step["kernels"],
    }
