"""Small experiments that together hold every kind of spec."""

from __future__ import annotations

from typing import Any

TINY = {"path": "@tiny", "dtype": "float32", "device": "cpu"}
FAR = {"path": "m", "engine": "openai", "base_url": "@url", "cache": False, "prefill": True}
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
    "custom": {"kind": "tests.pipeline.plan.own:Length"},
}
NO_BY = {"rules", "longer", "first", "random", "overlap", "reward_model", "reward_ensemble", "jury"}
JUDGES = {name: spec if name in NO_BY else spec | {"by": "policy"} for name, spec in JUDGES.items()}
LOCAL = ("reward_model", "reward_ensemble", "implicit_reward", "perplexity")
"""Kinds of judges that a server cannot answer."""
CHECKED = {"rule": "word_limits", "params": {"min": 1, "max": 1}}
FIRST_CUT = {"kind": "rule", "rule": "word_limits", "params": {"min": 1, "max": 6}}


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
        models = {"policy": TINY, "other": TINY | {"path": "@small"}}
    if name.startswith("reward"):
        models |= {n: TINY | {"path": f"@{n}"} for n in ("rewards", "rivals")}
        models["third"] = TINY | {"path": "@rivals", "dtype": "bfloat16"}
    steps = [
        {"load": {"type": "completions", "path": "answers.jsonl"}},
        {"filter": {"records": "completions", "filters": [FIRST_CUT]}},
        {"judge": JUDGES[name]},
    ]
    return experiment(models=models, steps=steps)


BASES: dict[str, dict[str, Any]] = {f"judge {name}": judged(name) for name in JUDGES}

TRAINING = {"learning_rate": 1e-3, "batch_size": 2, "precision": "fp32"}
PAIRS = {"load": {"id": "pairs", "type": "preferences", "path": "pairs.jsonl"}}
MORE = {"load": {"id": "more", "type": "preferences", "path": "more.jsonl"}}
STRICT = {"load": {"type": "preferences", "path": "strict.jsonl"}}
OTHERS = {
    "policy": TINY,
    "other": TINY | {"path": "@small"},
    "strict": TINY | {"path": "@strict"},
}
OFFLINE: dict[str, dict[str, Any]] = {
    name: {"method": name}
    for name in (
        *("sft", "dpo", "robust", "ipo", "hinge", "apo_zero", "nca", "kto", "slic", "simpo"),
        "orpo",
    )
}
DISTILLED: dict[str, dict[str, Any]] = {
    "bradley_terry": {},
    "k_wise": {"batch_size": 2},
    "cost": {},
    "conditional": {"conditions": {"human": "Be human.", "rlaif": "Be a model."}},
    "linear": {},
    "ordinal": {"objective": None},
    "multi_objective": {"gate_steps": 3, "gate_width": 4, "gate_batch": 4},
    "quantile": {"gate_steps": 3, "gate_width": 4, "gate_batch": 4, "quantiles": 3},
}
FITTED = ("linear", "ordinal", "multi_objective", "quantile")


def trained(kind: str, spec: dict[str, Any], *loads: Any) -> dict[str, Any]:
    """A training on loaded preferences."""
    keys = {"precision": "fp32"} if spec.get("method") in FITTED else TRAINING
    return experiment(models=OTHERS, steps=[*loads, {kind: keys | spec}])


for name, spec in OFFLINE.items():
    BASES[f"train {name}"] = trained("train", spec, PAIRS, MORE)
    BASES[f"strict {name}"] = trained("train", spec | {"from": "strict"}, PAIRS, STRICT)
for name, spec in DISTILLED.items():
    spec = spec | {"method": name}
    BASES[f"train {name}"] = trained("distill", spec, PAIRS, MORE)
    BASES[f"strict {name}"] = trained("distill", spec | {"from": "strict"}, PAIRS, STRICT)
ON_POLICY: dict[str, dict[str, Any]] = {
    "grpo": {"n": 2},
    "rloo": {"n": 2},
    "ppo": {"n": 2, "epochs": 2},
    "gspo": {"n": 2, "sync_every": 1, "epochs": 2},
    "cispo": {"n": 2, "epochs": 2},
    "reinforce": {"n": 2},
    "reinforce_pp": {"n": 2, "epochs": 2},
    "sppo": {"n": 2},
    "quark": {"n": 2, "quantiles": 2},
    "online_dpo": {"n": 2},
}
STARTS = {"from": "strict", "reference": "strict"}
ROLLED = {"rollouts": 2, "batch_size": 2, "max_new_tokens": 6, "rewards": [{"judge": "rm"}]}
for name, spec in ON_POLICY.items():
    BASES[f"train {name}"] = experiment(
        models=OTHERS | {n: TINY | {"path": f"@{n}"} for n in ("rewards", "rivals")},
        judges=[
            {"id": "rm", "kind": "reward_model", "by": "rewards"},
            {"id": "rival", "kind": "reward_model", "by": "rivals"},
        ],
        steps=[PAIRS, MORE, {"train": TRAINING | ROLLED | spec | {"method": name}}],
    )
    BASES[f"strict {name}"] = BASES[f"train {name}"] | {
        "prompts": {"path": "strict_prompts.jsonl", "holdout": 2},
        "steps": [PAIRS, MORE, {"train": TRAINING | ROLLED | spec | {"method": name} | STARTS}],
    }
ANSWERS = {"load": {"type": "completions", "path": "answers.jsonl"}}
SERVED = {"policy": FAR, "other": FAR | {"path": "other"}}
SAMPLE: dict[str, Any] = {"n": 2, "temperature": 1.0, "max_new_tokens": 12}
POOL = [{"by": "policy"}, {"by": "other"}]
DRAWN = {"texts": {"kind": ["Be kind."], "brief": ["Be brief."]}}
CHARACTER = {"template": "prompts/generate/character.j2"}
BASES |= {
    "sample": experiment(models=SERVED, steps=[{"sample": SAMPLE}]),
    "pool": experiment(models=SERVED, steps=[{"sample": SAMPLE | {"pool": POOL}}]),
    "principles": experiment(models=SERVED, steps=[{"sample": SAMPLE | {"principles": DRAWN}}]),
    "told": experiment(models=SERVED, steps=[{"sample": SAMPLE | {"system_prompt": CHARACTER}}]),
    "pair": experiment(
        models=SERVED,
        rounds=2,
        steps=[
            {"load": {"type": "completions", "path": "answers.jsonl"}},
            {"judge": {"id": "a", "kind": "direct", "by": "policy"}},
            {
                "judge": JUDGES["template"]
                | {
                    "id": "b",
                    "parse": {"pattern": "(?i)verdict: (r|p)", "values": {"r": 0, "p": 2}},
                }
            },
            {"judge": {"id": "c", "kind": "yes_no", "by": "policy"}},
            {"pair": {"strategy": "all", "uses": ["a", "b", "c"]}},
        ],
    ),
    "label": experiment(
        models=SERVED,
        prompts={"holdout": 2},
        steps=[
            {"load": {"id": "given", "type": "pairs", "path": "table.jsonl"}},
            {"judge": {"id": "a", "kind": "direct", "by": "policy"}},
            {"judge": {"id": "c", "kind": "yes_no", "by": "policy"}},
            {"label": {}},
        ],
    ),
    "load": experiment(
        models=SERVED, steps=[{"load": {"type": "preferences", "path": "table.jsonl"}}]
    ),
    "evaluate": experiment(
        models=OTHERS,
        rounds=2,
        judges=[{"id": "checks", "kind": "rules"}, {"id": "terms", "kind": "overlap"}],
        steps=[
            PAIRS,
            {"train": TRAINING | {"method": "sft", "learning_rate": 0.05}},
            {"evaluate": {"max_new_tokens": 8, "temperature": 1.0}},
        ],
    ),
    "dataset": experiment(models=SERVED, steps=[PAIRS, MORE], dataset={}),
}
BASES["pair dataset"] = BASES["pair"] | {"dataset": {}}
BASES["pairs filter"] = experiment(
    models=SERVED,
    steps=[
        PAIRS,
        ANSWERS,
        {"filter": {"records": "completions", "filters": [{"kind": "duplicates"}]}},
    ],
)
BASES["arms"] = BASES["label"] | {"arms": {"human": {"labels": "human"}, "ai": {"labels": "ai"}}}

FILTERS: dict[str, dict[str, Any]] = {
    "rule": FIRST_CUT,
    "truncated": {},
    "duplicates": {},
    "near_duplicates": {"of": "answers", "threshold": 0.9, "shingle": 2},
    "contamination": {"of": "prompt", "against": ["items.jsonl"], "n": 30},
    "private": {"of": "answers"},
    "lexicon": {"of": "answers", "path": "abuse.txt"},
}
for name, spec in FILTERS.items():
    BASES[f"filter {name}"] = experiment(
        models=SERVED,
        steps=[
            ANSWERS,
            {"filter": {"records": "completions", "filters": [spec | {"kind": name}]}},
        ],
    )
COMPARED = {
    "prompt": "prompt",
    "first": "one",
    "second": "two",
    "label": "winner",
    "labels": {"first": "one", "second": "two"},
}
BASES |= {
    "columns": experiment(
        models=SERVED,
        steps=[{"load": {"type": "preferences", "path": "table.jsonl", "columns": COMPARED}}],
    ),
    "check": BASES["evaluate"]
    | {
        "steps": [
            PAIRS,
            {"train": TRAINING | {"method": "sft", "learning_rate": 0.05}},
            {"evaluate": {"max_new_tokens": 8, "checks": [{"id": "w", **CHECKED}]}},
        ]
    },
    "evaluate quark": BASES["train quark"]
    | {
        "steps": [
            {"train": TRAINING | ROLLED | {"method": "quark", "keep_tokens": True}},
            {"evaluate": {"max_new_tokens": 8, "temperature": 1.0}},
        ]
    },
    "lora": trained("train", {"method": "sft", "lora": {"r": 2}}, PAIRS),
    "term": BASES["train grpo"]
    | {
        "steps": [
            {
                "train": TRAINING
                | ROLLED
                | {"method": "grpo", "n": 2, "rewards": [{"judge": "rm"}, {"judge": "rival"}]}
            }
        ]
    },
}
