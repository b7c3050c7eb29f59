"""Experiments with filters of what judges and people say, and with revisions."""

from __future__ import annotations

from typing import Any

from tests.pipeline.plan.bases import ANSWERS, SAMPLE, SERVED, experiment

GRADES = [
    {"judge": {"id": name, "kind": "additive", "by": by}}
    for name, by in {"a": "policy", "c": "other"}.items()
]
LOADED_PAIRS = [
    {"load": {"id": "given", "type": "pairs", "path": "table.jsonl"}},
    {"load": {"id": "fewer", "type": "pairs", "path": "rows.jsonl"}},
]


def _judged(records: str, wanted: dict[str, Any], *before: Any, **keys: Any) -> dict[str, Any]:
    last = {"filter": {"records": records, "filters": [wanted], "uses": keys.pop("uses", None)}}
    return experiment(models=SERVED, steps=[*before, last], **keys)


_OF_PAIRS = {"prompts": {"holdout": 2}, "uses": ["a"]}
_GRADED_PAIRS = [
    *LOADED_PAIRS,
    {"judge": GRADES[0]["judge"] | {"uses": ["given", "fewer"], "samples": 3, "temperature": 0.7}},
    {"judge": GRADES[1]["judge"] | {"uses": ["given", "fewer"]}},
]
REVISED = {"temperature": 1.0, "max_new_tokens": 12}
JUDGED: dict[str, dict[str, Any]] = {
    "filter best": _judged("completions", {"kind": "best", "by": "a"}, ANSWERS, *GRADES),
    "filter score": _judged(
        "completions", {"kind": "score", "by": "a", "least": 0.5}, ANSWERS, *GRADES
    ),
    "filter agrees": _judged(
        "judgements", {"kind": "agrees", "with": "given"}, *_GRADED_PAIRS, **_OF_PAIRS
    ),
    "filter balance": _judged(
        "judgements", {"kind": "balance", "by": "score"}, *_GRADED_PAIRS, **_OF_PAIRS
    ),
    "revise": experiment(
        models=SERVED, constitution="revised.yaml", steps=[ANSWERS, {"revise": REVISED}]
    ),
    "revise twice": experiment(
        models=SERVED,
        constitution="revised.yaml",
        steps=[
            {"sample": SAMPLE | {"id": "first", "n": 1}},
            {"sample": SAMPLE | {"id": "second"}},
            {"revise": REVISED | {"uses": ["first", "second"]}},
            {"judge": {"kind": "longer", "uses": ["first", "second"]}},
        ],
    ),
}
