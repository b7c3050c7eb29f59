"""Small experiments that together hold every kind of spec, and where in them each kind stands."""

from __future__ import annotations

from typing import Any

Path = tuple[str | int, ...]
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
    "custom": {"kind": "tests.plan.own:Length"},
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
PLACES |= {
    "SftTrain": ("train sft", ("steps", 2, "train")),
    "DpoTrain": ("train dpo", ("steps", 2, "train")),
    "RobustTrain": ("train robust", ("steps", 2, "train")),
    "IpoTrain": ("train ipo", ("steps", 2, "train")),
    "HingeTrain": ("train hinge", ("steps", 2, "train")),
    "ApoZeroTrain": ("train apo_zero", ("steps", 2, "train")),
    "NcaTrain": ("train nca", ("steps", 2, "train")),
    "KtoTrain": ("train kto", ("steps", 2, "train")),
    "SlicTrain": ("train slic", ("steps", 2, "train")),
    "SimpoTrain": ("train simpo", ("steps", 2, "train")),
    "OrpoTrain": ("train orpo", ("steps", 2, "train")),
    "BradleyTerryDistill": ("train bradley_terry", ("steps", 2, "distill")),
    "KWiseDistill": ("train k_wise", ("steps", 2, "distill")),
    "CostDistill": ("train cost", ("steps", 2, "distill")),
    "ConditionalDistill": ("train conditional", ("steps", 2, "distill")),
    "LinearDistill": ("train linear", ("steps", 2, "distill")),
    "OrdinalDistill": ("train ordinal", ("steps", 2, "distill")),
    "MultiObjectiveDistill": ("train multi_objective", ("steps", 2, "distill")),
    "QuantileDistill": ("train quantile", ("steps", 2, "distill")),
}
ON_POLICY: dict[str, dict[str, Any]] = {
    "grpo": {"n": 2},
    "rloo": {"n": 2},
    "ppo": {"n": 2, "epochs": 2},
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
PLACES |= {
    "GrpoTrain": ("train grpo", ("steps", 2, "train")),
    "RlooTrain": ("train rloo", ("steps", 2, "train")),
    "PpoTrain": ("train ppo", ("steps", 2, "train")),
    "OnlineDpoTrain": ("train online_dpo", ("steps", 2, "train")),
}
ANSWERS = {"load": {"type": "completions", "path": "answers.jsonl"}}
SERVED = {"policy": FAR, "other": FAR | {"path": "other"}}
SAMPLE: dict[str, Any] = {"n": 2, "temperature": 1.0, "max_new_tokens": 12}
POOL = [{"by": "policy"}, {"by": "other"}]
DRAWN = {"texts": {"kind": ["Be kind."], "brief": ["Be brief."]}}
BASES |= {
    "sample": experiment(models=SERVED, steps=[{"sample": SAMPLE}]),
    "pool": experiment(models=SERVED, steps=[{"sample": SAMPLE | {"pool": POOL}}]),
    "principles": experiment(models=SERVED, steps=[{"sample": SAMPLE | {"principles": DRAWN}}]),
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
PLACES |= {
    "SampleStep": ("sample", ("steps", 0, "sample")),
    "PoolMember": ("pool", ("steps", 0, "sample", "pool", 0)),
    "SamplePrinciples": ("principles", ("steps", 0, "sample", "principles")),
    "PairStep": ("pair", ("steps", 4, "pair")),
    "LabelStep": ("label", ("steps", 3, "label")),
    "ArmSpec": ("arms", ("arms", "ai")),
    "LoadStep": ("load", ("steps", 0, "load")),
    "EvaluateStep": ("evaluate", ("steps", 2, "evaluate")),
    "DatasetSpec": ("dataset", ("dataset",)),
}

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
FILTER: Path = ("steps", 1, "filter", "filters", 0)
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
PLACES |= {
    "RuleFilter": ("filter rule", FILTER),
    "TruncatedFilter": ("filter truncated", FILTER),
    "DuplicateFilter": ("filter duplicates", FILTER),
    "NearFilter": ("filter near_duplicates", FILTER),
    "ContaminationFilter": ("filter contamination", FILTER),
    "PrivateFilter": ("filter private", FILTER),
    "LexiconFilter": ("filter lexicon", FILTER),
    "FilterStep": ("filter rule", ("steps", 1, "filter")),
    "LabelColumns": ("columns", ("steps", 0, "load", "columns")),
    "LabelValues": ("columns", ("steps", 0, "load", "columns", "labels")),
    "CheckSpec": ("check", ("steps", 2, "evaluate", "checks", 0)),
    "LoraOptions": ("lora", ("steps", 1, "train", "lora")),
    "RewardTerm": ("term", ("steps", 0, "train", "rewards", 0)),
    "ModelSpec": ("sample", ("models", "policy")),
    "PromptsSpec": ("sample", ("prompts",)),
}
UNSWEPT: dict[str, str] = {
    "Experiment": "its keys are the specs that are swept, and settings of a whole run: "
    "tests/test_experiment.py, tests/test_plan.py",
    "StepEntry": "each of its keys is a kind of step, and has a row of its own",
    "SemanticFilter": "its embedding model is a package: tests/data/test_hygiene.py",
    "Price": "it is in no hash; what is spent is counted: tests/engines/test_meter.py",
    "ApiLimits": "how hard a server is asked: tests/engines/test_openai_run.py",
    "AlarmsConfig": "limits on figures: tests/compare/test_diagnostics.py",
    "Retention": "which weights are kept on the disk: tests/test_experiment.py",
    "Refresh": "whether a model is kept: tests/train/test_refresh.py",
    "Gates": "`OnPolicyTrain.gates` is swept; each figure: tests/train/test_gates.py",
    "Gate": "`OnPolicyTrain.gates` is swept; each limit: tests/train/test_gates.py",
    "ThinkingSpec": "`ModelSpec.thinking` is swept: tests/engines/test_thinking.py",
    "Columns": "`PromptsSpec.columns` is swept: tests/test_sources.py",
    "PromptCondition": "`RewardTerm.when` is swept: tests/train/test_rewards.py",
    "WinnerColumns": "`LabelColumns.winners` is swept: tests/data/test_readers.py",
    "RankedAnswers": "`LabelColumns.ranked` is swept: tests/data/test_readers.py",
}
"""Classes whose keys are not swept one by one, and why. A new class has a place or a reason."""
