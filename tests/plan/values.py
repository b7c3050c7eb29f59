"""A second valid value of every key. A key of a parent class counts for all of its children that
say nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """Another value of a key. `given` are keys beside it in both experiments, `also` in the second
    one alone; a key that is ... is left out. `base` is another experiment than the class has."""

    value: Any
    given: dict[str, Any] = field(default_factory=dict)
    also: dict[str, Any] = field(default_factory=dict)
    base: tuple[str, tuple[str | int, ...]] | None = None


@dataclass(frozen=True)
class Refused:
    """A key that a class has of its parent and that takes no other value."""

    value: Any


COT = {"cot": True}
WRITTEN = {"verdict": "written"}
SAMPLED = {"temperature": 0.7}
JUDGE_VALUES: dict[str, dict[str, Any]] = {
    "JudgeBase": {
        "id": "else",
        "principles": ["useful"],
        "uses": ["load"],
        "reasoning": "strip",
    },
    "ModelJudge": {"by": "other", "template": "own.j2"},
    "VerdictJudge": {"abstain_labels": ["x"], "min_label_mass": 0.95},
    "WritingJudge": {
        "samples": Case(2, SAMPLED),
        "temperature": 0.5,
        "max_new_tokens": 5,
        "structured": True,
    },
    "LabelJudge": {
        "cot": True,
        "samples": Case(2, COT | SAMPLED),
        "temperature": Case(0.5, COT),
        "max_new_tokens": Case(5, COT),
    },
}
COMPARING = {
    "order": "fixed",
    "verdict": "written",
    "first_labels": ["x"],
    "second_labels": ["y"],
    "tie_labels": ["C"],
    "soft": False,
    "clamp": [0.45, 0.55],
    "draw": "one",
    "preamble": "detailed",
    "shots": 1,
    "cot": True,
    "structured": Case(True, WRITTEN),
}
YES_NO = {"yes_labels": ["x"], "no_labels": ["y"]}
EXPECTED = {
    "min_label_mass": Case(0.95, {"expected": True}),
    "expected": True,
    "structured": True,
}
JUDGE_VALUES |= {
    "RulesJudge": {"principles": ["brief"]},
    "YesNoJudge": YES_NO,
    "_Rating": {"scale": [1, 4], "cot": Case(True, {"expected": True}), **EXPECTED},
    "_Comparing": COMPARING,
    "ConstitutionalJudge": {"draw": "each"},
    "RbrmJudge": {
        "classes": [{"id": "names", "text": "Else."}, {"id": "refuses", "text": "It does not."}],
        "tables": [{"rewards": {"names": 0.3, "refuses": 0.6}}],
        "soft": False,
    },
}
VALUES: dict[str, dict[str, Any]] = {**JUDGE_VALUES}
VALUES |= {
    "CritiqueJudge": {
        "expected": Case(False, also={"cot": False}),
        "cot": False,
        "structured": Case(True, {"expected": False, "cot": False}),
        "min_label_mass": 0.95,
    },
    "DirectJudge": {
        "expected": False,
        "samples": Case(2, {"cot": True} | SAMPLED),
        "temperature": Case(0.5, {"cot": True}),
        "max_new_tokens": Case(5, {"cot": True}),
        "structured": Case(True, {"expected": False}),
        "cot": True,
        "min_label_mass": 0.95,
        "scale": [1, 7],
    },
    "AdditiveJudge": EXPECTED | {"samples": 2},
    "UltraFeedbackJudge": EXPECTED | {"aspects": ["honesty"], "order": "fixed"},
    "PrometheusPairJudge": {
        "verdict": "labels",
        "cot": Case(True, {"verdict": "labels"}),
        "min_label_mass": Case(0.95, {"verdict": "labels"}),
        "samples": Case(2, SAMPLED),
        "temperature": 0.5,
        "max_new_tokens": 5,
    },
    "TemplateJudge": {
        "parse": {"pattern": r"verdict:\W*(rude|plain|kind)", "values": {"rude": 2, "plain": 0}},
        "scale": [0, 4],
        "per_principle": True,
        "structured": Refused(True),
        "min_label_mass": Refused(0.5),
    },
    "RbrJudge": YES_NO | {"weights": "weights2.yaml"},
    "RubricJudge": YES_NO
    | {
        "items": [{"text": "Other items."}],
        "items_file": Case("items.jsonl", also={"items": ...}),
        "generate": Case({"most": 2}, also={"items": ...}),
        "aggregate": Case("implicit", {"items": [{"text": "It names a fruit."}]}),
        "category_weights": Case(
            {"essential": 1.0, "important": 5.0, "optional": 1.0, "pitfall": 1.0},
            {"items": [{"text": "a", "category": "important"}, {"text": "b"}]},
        ),
    },
    "BaselineJudge": {"principles": Refused(["useful"])},
    "RewardModelJudge": {
        "principles": Refused(["useful"]),
        "reasoning": "strip","by": "rivals", "condition": "Be safe."},
    "RewardEnsembleJudge": {
        "principles": Refused(["useful"]),
        "members": ["rewards", "rivals", "@rivals"],
        "combine": "worst",
        "penalty": Case(3.0, {"combine": "uncertainty"}),
        "standardise": {"rewards": [0.5, 2.0], "rivals": [0.0, 1.0]},
    },
    "ImplicitRewardJudge": {
        "principles": Refused(["useful"]),
        "by": "other",
        "reference": Case("other", {"by": "policy"}),
        "beta": 0.4,
        "per_token": True,
    },
    "MetaJudge": {
        "judge": {"kind": "additive", "by": "policy", "samples": 3},
        "first_labels": ["x"],
        "second_labels": ["y"],
    },
    "JuryJudge": {
        "of": [{"kind": "yes_no", "by": "policy"}],
        "principles": Refused(["useful"]),
        "pool": "vote",
        "weights": {"yes_no": 3.0},
        "accuracy": {"yes_no": 0.9, "r": 0.6},
        "missing": "drop",
    },
    "PerplexityJudge": {"by": "other"},
    "CustomJudge": {"kind": "tests.plan.own:Other", "options": {"tone": "dry"}},
    "ParseSpec": {
        "pattern": r"Verdict: (r)",
        "json_schema": Case({"type": "object"}, also={"pattern": ...}),
        "field": Case("verdict", {"pattern": ..., "json_schema": {"type": "object"}}),
        "values": {"rude": 2, "plain": 1, "kind": 0},
    },
    "RubricClass": {
        "id": Case("refuses"),
        "text": "It gives one.",
    },
    "RewardTable": {"tags": ["other"], "rewards": {"names": 0.9, "refuses": 0.2}},
    "RubricItem": {
        "text": "It names a bean.",
        "category": "pitfall",
        "weight": 4.0,
        "check": Case("word_limits", also={"params": {"min": 1, "max": 3}}),
        "params": Case({"min": 2, "max": 5}, {"check": "word_limits", "params": {"min": 1, "max": 3}}),
    },
    "RubricWriting": {
        "most": 1,
        "max_new_tokens": 9,
        "template": "own.j2",
        "structured": True,
    },
}
UNHASHED: dict[str, str] = {}
"""Keys that are in no hash, and why."""
ELSEWHERE: dict[str, str] = {}
"""Keys whose effect is none on what is made, or cannot be had here: why, and what looks at it."""
