"""One benchmark: read pairs, judge them, measure, and write what was found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from rlaif.bench.entrants import Entrant, find_entrants
from rlaif.bench.judging import Judged, attack_pairs, judge_pairs
from rlaif.compare import bias, calibration
from rlaif.compare.agreement import sign_test
from rlaif.compare.judge_figures import (
    compare_judges,
    flip_interval,
    joint_votes,
    judge_intervals,
    outcomes,
    subset_intervals,
)
from rlaif.compare.verdicts import Verdict, VerdictTable, verdict_table
from rlaif.config import ModelSpec
from rlaif.data.labelled import LabelledPair
from rlaif.engines.build import EnginePool
from rlaif.errors import ConfigError
from rlaif.judges.attacks import ATTACKS
from rlaif.records import content_hash
from rlaif.steps.context import Engines, Progress
from rlaif.store import Store, write_atomic
from rlaif.yamlio import suggest


@dataclass(frozen=True)
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
    resamples: int = 1000


def run_bench(
    request: BenchRequest, pairs: Sequence[LabelledPair], progress: Progress
) -> dict[str, Any]:
    """Everything that was measured, JSON-ready; also kept in `out` as bench.json.

    The judgements are kept there too: a second run asks nothing and gives the same to the last
    digit. Raises RlaifError.
    """
    entrants = find_entrants(request.judges, request.model, request.constitution, request.baselines)
    attacks = _attacks(request.attacks)
    shown = [p.presented(request.seed) for p in _limited(pairs, request.limit)]
    store = Store(request.out)
    store.prepare()
    with store.locked():
        engines = EnginePool(store)
        try:
            bench = _Bench(request, shown, store, engines, progress)
            tables = {e.judge.id: bench.judge(e) for e in entrants}
            rows = {e.judge.id: bench.row(e, tables[e.judge.id], attacks) for e in entrants}
        finally:
            progress.finish()
            engines.close()
        result = {
            "pairs": _about(request.name, shown),
            "settings": {"seed": request.seed, "resamples": request.resamples, "level": 0.95},
            "judges": rows,
            **_together(entrants, tables, request),
        }
        write_atomic(request.out / "bench.json", json.dumps(result, indent=1, ensure_ascii=False))
    return result


def _attacks(names: Sequence[str]) -> list[str]:
    unknown = [n for n in names if n != "all" and n not in ATTACKS]
    if unknown:
        known = ["all", *ATTACKS]
        raise ConfigError(f"--attack {unknown[0]}: no such attack{suggest(unknown[0], known)}")
    return list(ATTACKS) if "all" in names else list(dict.fromkeys(names))


def _limited(pairs: Sequence[LabelledPair], limit: int | None) -> list[LabelledPair]:
    """The first `limit` by the hash of their ids, in the order of the file: the same each time,
    and no run of neighbours."""
    if limit is None or limit >= len(pairs):
        return list(pairs)
    places = sorted(range(len(pairs)), key=lambda i: (content_hash("limit", pairs[i].pair_id), i))
    return [pairs[i] for i in sorted(places[:limit])]


def _about(name: str, pairs: Sequence[LabelledPair]) -> dict[str, Any]:
    return {
        "name": name,
        "n": len(pairs),
        "prompts": len({p.prompt.prompt_id for p in pairs}),
        "label_ties": sum(p.label == 0.5 for p in pairs),
        "unlabelled": sum(p.label is None for p in pairs),
        "subsets": dict(sorted(Counter(p.subset for p in pairs if p.subset).items())),
    }


class _Bench:
    """What judging and measuring one judge after another share."""

    def __init__(
        self,
        request: BenchRequest,
        pairs: Sequence[LabelledPair],
        store: Store,
        engines: Engines,
        progress: Progress,
    ):
        self.request = request
        self.pairs = pairs
        self.store = store
        self.engines = engines
        self.progress = progress
        self._clean: dict[str, tuple[list[Verdict], Judged]] = {}

    def _ask(
        self,
        entrant: Entrant,
        pairs: Sequence[LabelledPair],
        seed: int,
        known: Judged | None = None,
    ) -> tuple[list[Verdict], Judged]:
        return judge_pairs(entrant, pairs, seed, self.store, self.engines, self.progress, known)

    def judge(self, entrant: Entrant) -> VerdictTable:
        """The judge's verdicts on every pair, once per repeat."""
        seed = self.request.seed
        runs = [self._ask(entrant, self.pairs, seed + k) for k in range(self.request.repeats)]
        self._clean[entrant.judge.id] = runs[0]
        label = entrant.model.label if entrant.model is not None else None
        author = self.request.author or label
        return verdict_table(self.pairs, [verdicts for verdicts, _ in runs], author)

    def row(self, entrant: Entrant, table: VerdictTable, attacks: Sequence[str]) -> dict[str, Any]:
        """All that is said of one judge."""
        seed, resamples = self.request.seed, self.request.resamples
        found = {n: i.to_json() for n, i in judge_intervals(table, seed, resamples).items()}
        headline = found.pop("agreement", None)
        counts = bias.slots(table.as_first, table.as_second)
        prob, outcome, _ = outcomes(table)
        missing = int(np.isnan(table.prob).sum())
        valued = int((~np.isnan(table.prob) & ~np.isnan(table.label)).sum())
        used = headline["n"] if headline is not None else 0
        return {
            "kind": entrant.kind,
            "model": entrant.model.label if entrant.model is not None else None,
            "baseline": entrant.baseline,
            "agreement": headline["mean"] if headline is not None else None,
            "low": headline["low"] if headline is not None else None,
            "high": headline["high"] if headline is not None else None,
            "n": used,
            "ties": valued - used,
            "tie_rule": "excluded",
            "missing": missing,
            **found,
            "slot_p": sign_test(counts.first, counts.second) if counts.total else None,
            "reliability": [
                {"prob": b.prob, "share": b.share, "n": b.count}
                for b in calibration.reliability(prob, outcome)
            ],
            "subsets": {
                subset: {name: i.to_json() for name, i in part.items()}
                for subset, part in subset_intervals(table, seed, resamples).items()
            },
            "attacks": self._attacked(entrant, table, attacks),
        }

    def _attacked(
        self, entrant: Entrant, table: VerdictTable, attacks: Sequence[str]
    ) -> dict[str, Any]:
        """How often each attack on the answer found worse makes it the better one."""
        request, found = self.request, {}
        verdicts, judged = self._clean[entrant.judge.id]
        for name in attacks:
            attacked = attack_pairs(ATTACKS[name], self.pairs, verdicts, request.seed)
            said, _ = self._ask(entrant, list(attacked.values()), request.seed, judged)
            after = [float("nan")] * len(self.pairs)
            for place, one in zip(attacked, said, strict=True):
                after[place] = float("nan") if one.prob is None else one.prob
            interval = flip_interval(table, after, request.seed, request.resamples)
            found[name] = interval.to_json() if interval is not None else None
        return found


def _together(
    entrants: Sequence[Entrant], tables: Mapping[str, VerdictTable], request: BenchRequest
) -> dict[str, Any]:
    """Each two judges compared, and how many independent votes the asked ones are worth."""
    compared = []
    for first, second in combinations(tables, 2):
        found = compare_judges(tables[first], tables[second], request.seed, request.resamples)
        if found is not None:
            compared.append({"first": first, "second": second, **found})
    asked = {e.judge.id: tables[e.judge.id] for e in entrants if not e.baseline}
    votes = joint_votes(asked, request.seed, request.resamples) if len(asked) > 1 else None
    return {
        "comparisons": compared,
        "effective_votes": None if votes is None else {"judges": list(asked), **votes.to_json()},
    }
