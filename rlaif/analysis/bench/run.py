"""One benchmark: read pairs, judge them, measure, and write what was found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlaif.analysis.bench.attacking import measure_attack, plan_attacks
from rlaif.analysis.bench.entrants import Entrant, find_entrants
from rlaif.analysis.bench.judging import Workplace, judge_pairs
from rlaif.analysis.bench.mistakes import FILE as MISTAKES
from rlaif.analysis.bench.mistakes import find_mistakes
from rlaif.config.models import ModelSpec
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import content_hash
from rlaif.core.store import write_atomic, write_jsonl
from rlaif.core.yamlio import suggest
from rlaif.judges.attacks import ATTACKS
from rlaif.judges.questions import judgement_notes
from rlaif.metrics.judge_tables import (
    compare_all,
    describe_pairs,
    measure_subsets,
    measure_table,
)
from rlaif.metrics.verdicts import VerdictTable, total_cost, verdict_table
from rlaif.pipeline.experiment import StepProgress
from rlaif.pipeline.judged_pairs import count_failures
from rlaif.pipeline.single_step import asking
from rlaif.pipeline.steps.context import keep_commonest


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """What is measured, and how. `repeats` is how often each judge judges every pair, for its
    consistency with itself; `author` is the name under which its own answers appear in the pairs
    (its model's name where None)."""

    name: str
    judges: Sequence[str]
    out: Path
    model: ModelSpec
    constitution: str | None = None
    baselines: bool = True
    attacks: Sequence[str] = ()
    limit: int | None = None
    repeats: int = 1
    author: str | None = None
    seed: int = 0


def run_bench(
    request: BenchRequest, pairs: Sequence[LabelledPair], progress: StepProgress
) -> dict[str, Any]:
    """Everything that was measured, JSON-ready; also kept in `out` as bench.json. The pairs that
    each judge got wrong are kept in mistakes.jsonl.

    The judgements are kept there too: a second run asks nothing and gives the same to the last
    digit. Raises RlaifError.
    """
    entrants = find_entrants(request.judges, request.model, request.constitution, request.baselines)
    if not entrants:
        fault = "no judge was named; give --judge, or leave the baselines in"
        raise ConfigError(f"judge-bench: {fault}")
    if not pairs:
        raise ConfigError(f"{request.name}: no labelled pair in it")
    attacks = _choose_attacks(request.attacks)
    shown = [p.presented(request.seed) for p in _limit_pairs(pairs, request.limit)]
    with asking(request.out) as (store, engines):
        try:
            work = Workplace(store, engines, progress)
            wrong: list[dict[str, Any]] = []
            measured = {
                e.judge.id: _measure_judge(request, work, e, shown, attacks, wrong)
                for e in entrants
            }
            asked = engines.account.meters.summaries()
        finally:
            progress.finish()
        result = {
            "pairs": describe_pairs(request.name, shown),
            "settings": {"seed": request.seed, "level": 0.95, "repeats": request.repeats},
            "judges": {name: row for name, (_, row) in measured.items()},
            "uncounted": {
                name: {"answers": row["uncounted"], "estimated_cost": row["estimated_cost"]}
                for name, row in asked.items()
                if row["uncounted"] or row["estimated_cost"]
            },
            **compare_all(
                {name: t for name, (t, _) in measured.items()},
                [e.judge.id for e in entrants if not e.baseline],
            ),
        }
        write_jsonl(request.out / MISTAKES, wrong)
        write_atomic(request.out / "bench.json", json.dumps(result, indent=1, ensure_ascii=False))
    return result


def _choose_attacks(names: Sequence[str]) -> list[str]:
    unknown = [n for n in names if n != "all" and n not in ATTACKS]
    if unknown:
        known = ["all", *ATTACKS]
        raise ConfigError(f"--attack {unknown[0]}: no such attack{suggest(unknown[0], known)}")
    return list(ATTACKS) if "all" in names else list(dict.fromkeys(names))


def _limit_pairs(pairs: Sequence[LabelledPair], limit: int | None) -> list[LabelledPair]:
    """The first `limit` by the hash of their ids, in the order of the file: the same each time,
    and no run of neighbours."""
    if limit is None or limit >= len(pairs):
        return list(pairs)
    places = sorted(range(len(pairs)), key=lambda i: (content_hash("limit", pairs[i].pair_id), i))
    return [pairs[i] for i in sorted(places[:limit])]


def _measure_judge(
    request: BenchRequest,
    work: Workplace,
    entrant: Entrant,
    pairs: Sequence[LabelledPair],
    attacks: Sequence[str],
    wrong: list[dict[str, Any]],
) -> tuple[VerdictTable, dict[str, Any]]:
    """One judge's verdicts, and all that is said of them; its mistakes are added to `wrong`."""
    seed = request.seed
    runs = [judge_pairs(work, entrant, pairs, seed + k) for k in range(request.repeats)]
    author = request.author or entrant.label
    wrong += find_mistakes(entrant.judge.id, pairs, runs[0], work.store)
    table = verdict_table(pairs, [run.verdicts for run in runs], author)
    attacked = {
        one.name: measure_attack(
            entrant,
            one,
            pairs,
            runs[0],
            lambda changed, known: judge_pairs(work, entrant, changed, seed, known),
            seed,
        )
        for one in plan_attacks(entrant.judge, attacks)
    }
    return table, {
        "kind": entrant.kind,
        "model": entrant.label,
        "baseline": entrant.baseline,
        **measure_table(table, seed),
        "subsets": measure_subsets(table),
        "notes": judgement_notes(entrant.judge.id, runs[0].judgements),
        "attacks": {name: found for name, (found, _) in attacked.items()},
        "total": asdict(total_cost([*(r.cost for r in runs), *(c for _, c in attacked.values())])),
        "wall_seconds_per_pair": runs[0].wall / runs[0].asked if runs[0].wall else None,
        "failures": keep_commonest(count_failures(j for run in runs for j in run.judgements)),
    }
