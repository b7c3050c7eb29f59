"""What is said of judges on labelled pairs, JSON-ready: each one's figures, and all compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from rlaif.core.labelled import LabelledPair
from rlaif.metrics import agreement
from rlaif.metrics.agreement import sign_test
from rlaif.metrics.judge_figures import (
    calibration_figures,
    compare_judges,
    joint_votes,
    judge_intervals,
    reliability_points,
    subset_intervals,
)
from rlaif.metrics.verdicts import VerdictTable


def describe_pairs(name: str, pairs: Sequence[LabelledPair]) -> dict[str, Any]:
    """How many pairs there are, of how many prompts and which subsets."""
    return {
        "name": name,
        "n": len(pairs),
        "prompts": len({p.prompt.prompt_id for p in pairs}),
        "label_ties": sum(p.label == 0.5 for p in pairs),
        "unlabelled": sum(p.label is None for p in pairs),
        "subsets": dict(sorted(Counter(p.subset for p in pairs if p.subset).items())),
    }


def measure_table(table: VerdictTable, seed: int) -> dict[str, Any]:
    """The headline agreement flat, every other figure by name, and what has no interval."""
    found = {n: i.to_json() for n, i in judge_intervals(table).items()}
    headline = found.pop("agreement", None)
    used = int((agreement.is_decided(table.prob) & agreement.is_decided(table.label)).sum())
    both = ~np.isnan(table.prob) & ~np.isnan(table.label)
    won = agreement.same_slot(table.as_first, table.as_second)
    first, second = int((won == 1).sum()), int((won == -1).sum())
    ends = headline or {"mean": None, "low": None, "high": None}
    return {
        "agreement": ends["mean"],
        "low": ends["low"],
        "high": ends["high"],
        "n": used,
        "ties": int(both.sum()) - used,
        "tie_rule": "excluded",
        "missing": int(np.isnan(table.prob).sum()),
        **found,
        **calibration_figures(table, seed),
        "slot_p": None if np.isnan(won).all() else sign_test(first, second),
        "reliability": reliability_points(table),
    }


def measure_subsets(table: VerdictTable) -> dict[str, Any]:
    """Some figures within each subset."""
    return {
        subset: {name: i.to_json() for name, i in part.items()}
        for subset, part in subset_intervals(table).items()
    }


def compare_all(tables: Mapping[str, VerdictTable], asked: Collection[str]) -> dict[str, Any]:
    """Each two judges compared, and how many independent votes those in `asked` are worth."""
    compared = []
    for first, second in combinations(tables, 2):
        found = compare_judges(tables[first], tables[second])
        if found is not None:
            compared.append({"first": first, "second": second, **found})
    own = {name: table for name, table in tables.items() if name in asked}
    votes = joint_votes(own) if len(own) > 1 else None
    return {
        "comparisons": compared,
        "effective_votes": None if votes is None else {"judges": list(own), **votes.to_json()},
    }
