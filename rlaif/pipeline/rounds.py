"""rounds.jsonl: what every round did, derived from the finished evaluations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from rlaif.config.experiment import resolved_yaml
from rlaif.config.models import RESERVED_MODELS
from rlaif.core.checksums import sealed, unsealed
from rlaif.core.errors import StoreError
from rlaif.core.records import RoundRecord, content_hash, from_json, to_json
from rlaif.core.store import Store, read_json, write_jsonl
from rlaif.judges.base import roles_of
from rlaif.metrics.decompose import change_sentences
from rlaif.metrics.diagnostics import AlarmLimits, RoundMetrics, find_alarms
from rlaif.metrics.words import self_judge_words
from rlaif.pipeline.plan import PlanInputs, Planned

FILE = "rounds.jsonl"
PLACE = "place"
"""The key of a row that says which of how many it is, so that none can be lost unseen."""
ADVICE = "Run the experiment again: it writes this file anew, and no step."


def write_rounds(inputs: PlanInputs, plan: Sequence[Planned], store: Store) -> list[RoundRecord]:
    """Derive rounds.jsonl from the finished evaluations: metrics, differences, alarms, words."""
    records: list[RoundRecord] = []
    limits = AlarmLimits(**inputs.experiment.alarms.model_dump(exclude={"on_alarm"}))
    chains = product(inputs.experiment.all_seeds, inputs.experiment.arm_names)
    for seed, arm in chains:
        history: list[RoundMetrics] = []
        for planned in _evaluations(plan, seed, arm):
            folder = store.step(planned.hash)
            if folder.done() is None:
                break
            row = folder.read("evaluation")[0]
            history.append({"metrics": row["metrics"], "deltas": row["deltas"]})
            said = change_sentences(row.get("made_of", {}))
            records.append(_round_record(inputs, plan, planned, arm, store, history, limits, said))
    rows = [to_json(r) | {PLACE: [n, len(records)]} for n, r in enumerate(records, 1)]
    write_jsonl(store.root / FILE, [sealed(row) for row in rows])
    return records


def _evaluations(plan: Sequence[Planned], seed: int, arm: str) -> list[Planned]:
    """The last evaluation of each round of one seed and arm, by round."""
    mine = (p for p in plan if p.kind == "evaluate" and p.seed == seed and arm in p.arms)
    last = {p.round: p for p in mine}
    return [last[number] for number in sorted(last)]


def _round_record(
    inputs: PlanInputs,
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
    ]
    words = [w for name in moving for w in self_judge_words(name, history)]
    return RoundRecord(
        arm=arm,
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
            "made_of": made_of,
        },
    )


def read_rounds(root: Path) -> list[RoundRecord]:
    """The round records of a run folder, as they stand. Raises StoreError where the file is not
    what was written."""
    path = root / FILE
    lines = [line for line in path.read_bytes().split(b"\n") if line] if path.exists() else []
    records = [_read(line, place, len(lines), path) for place, line in enumerate(lines, 1)]
    if not records and _has_evaluation(root):
        raise StoreError(f"{path}: missing or empty. {ADVICE}")
    return records


def _read(line: bytes, place: int, count: int, path: Path) -> RoundRecord:
    """The record in line `place` of `count`. Earlier versions wrote neither that nor a checksum."""
    try:
        row = unsealed(
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
