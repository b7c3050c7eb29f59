"""Small experiments that together hold every kind of spec, and where in them each kind stands."""

from __future__ import annotations

from typing import Any

Path = tuple[str | int, ...]
TINY = {"path": "@tiny", "dtype": "float32", "device": "cpu"}
FAR = {"path": "m", "engine": "openai", "base_url": "@url", "cache": False}
CLASSES = [{"id": "names", "text": "It names one."}, {"id": "refuses", "text": "It does not."}]
TABLES = [
    {"tags": ["fruit"], "rewards": {"names": 1.0, "refuses": 0.0}},
    {"rewards": {"names": 0.2, "refuses": 0.8}},
]
ITEMS = [
    {"text": "It names a fruit."},
    {"text": "It is short.", "check": "word_limits", "params": {"min": 1, "max": 3}},
]
READ = {"pattern": r"verdict:\W*(rude|plain|kind)", "values": {"rude": 0, "plain": 1, "kind": 2}}
SCHEMA = {"type": "object", "properties": {"score": {"type": "string"}}}
JURORS = [{"kind": "yes_no", "by": "policy"}, {"kind": "rating", "id": "r", "by": "policy"}]
JUDGES: dict[str, dict[str, Any]] = {
    kind: {"kind": kind}
    for kind in (
        *("rules", "yes_no", "rating", "direct", "critique", "prometheus", "additive"),
        *("pairwise", "constitutional", "prometheus_pair", "ultrafeedback", "implicit_reward"),
        *("longer", "first", "random", "overlap", "perplexity"),
    )
}
JUDGES |= {
    "template": {
        "kind": "template",
        "template": "prompts/judges/template_example.j2",
        "parse": READ,
        "scale": [0, 2],
    },
    "rbrm": {"kind": "rbrm", "classes": CLASSES, "tables": TABLES},
    "rbr": {"kind": "rbr", "weights": "weights.yaml"},
    "rubric": {"kind": "rubric", "items": ITEMS},
    "rubric_generate": {"kind": "rubric", "generate": {"most": 3}},
    "reward_model": {"kind": "reward_model", "by": "rewards"},
    "reward_ensemble": {"kind": "reward_ensemble", "members": ["rewards", "rivals"]},
    "meta": {"kind": "meta", "judge": {"kind": "additive", "by": "policy", "samples": 2}},
    "jury": {"kind": "jury", "of": JURORS},
    "custom": {"kind": "tests.plan.own:Length"},
}
NO_BY = {"rules", "longer", "first", "random", "overlap", "reward_model", "reward_ensemble", "jury"}
JUDGES = {
    name: spec if name in NO_BY else spec | {"by": "policy"} for name, spec in JUDGES.items()
}
LOCAL = ("reward_model", "reward_ensemble", "implicit_reward", "perplexity")
"""Kinds of judges that a server cannot answer."""
FIRST_CUT = {"kind": "rule", "rule": "word_limits", "params": {"min": 1, "max": 4}}


def experiment(**keys: Any) -> dict[str, Any]:
    """An experiment with the keys that all here have."""
    return {
        "name": "sweep",
        "seed": 3,
        "models": {"policy": TINY},
        "constitution": "constitution.yaml",
        "prompts": {"path": "prompts.jsonl", "holdout": 2},
    } | keys


def judged(name: str) -> dict[str, Any]:
    """Answers, those among them that are short, and a judge."""
    models: dict[str, Any] = {"policy": FAR, "other": FAR | {"path": "other"}}
    if name in LOCAL:
        more = ("rewards", "rivals")
        models = {"policy": TINY, "other": TINY | {"path": "@small"}}
        models |= {n: TINY | {"path": f"@{n}"} for n in more if name.startswith("reward")}
    steps = [
        {"load": {"type": "completions", "path": "answers.jsonl"}},
        {"filter": {"records": "completions", "filters": [FIRST_CUT]}},
        {"judge": JUDGES[name]},
    ]
    return experiment(models=models, steps=steps)


BASES: dict[str, dict[str, Any]] = {f"judge {name}": judged(name) for name in JUDGES}
JUDGE: Path = ("steps", 2, "judge")
PLACES: dict[str, tuple[str, Path]] = {
    "RulesJudge": ("judge rules", JUDGE),
    "YesNoJudge": ("judge yes_no", JUDGE),
    "RatingJudge": ("judge rating", JUDGE),
    "DirectJudge": ("judge direct", JUDGE),
    "CritiqueJudge": ("judge critique", JUDGE),
    "PrometheusJudge": ("judge prometheus", JUDGE),
    "AdditiveJudge": ("judge additive", JUDGE),
    "PairwiseJudge": ("judge pairwise", JUDGE),
    "ConstitutionalJudge": ("judge constitutional", JUDGE),
    "PrometheusPairJudge": ("judge prometheus_pair", JUDGE),
    "TemplateJudge": ("judge template", JUDGE),
    "UltraFeedbackJudge": ("judge ultrafeedback", JUDGE),
    "RbrmJudge": ("judge rbrm", JUDGE),
    "RbrJudge": ("judge rbr", JUDGE),
    "RubricJudge": ("judge rubric", JUDGE),
    "RewardModelJudge": ("judge reward_model", JUDGE),
    "RewardEnsembleJudge": ("judge reward_ensemble", JUDGE),
    "ImplicitRewardJudge": ("judge implicit_reward", JUDGE),
    "MetaJudge": ("judge meta", JUDGE),
    "JuryJudge": ("judge jury", JUDGE),
    "LongerJudge": ("judge longer", JUDGE),
    "FirstJudge": ("judge first", JUDGE),
    "RandomJudge": ("judge random", JUDGE),
    "OverlapJudge": ("judge overlap", JUDGE),
    "PerplexityJudge": ("judge perplexity", JUDGE),
    "CustomJudge": ("judge custom", JUDGE),
    "ParseSpec": ("judge template", (*JUDGE, "parse")),
    "RubricClass": ("judge rbrm", (*JUDGE, "classes", 0)),
    "RewardTable": ("judge rbrm", (*JUDGE, "tables", 0)),
    "RubricItem": ("judge rubric", (*JUDGE, "items", 0)),
    "RubricWriting": ("judge rubric_generate", (*JUDGE, "generate")),
}
