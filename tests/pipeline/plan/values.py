"""A second valid value of every key. A key of a parent class counts for all of its children that
say nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlaif.config.dataset import DatasetSpec
from rlaif.config.gates import Gate, Gates
from rlaif.config.models import ApiLimits, Price
from rlaif.pipeline.steps import STEPS
from tests.pipeline.plan.bases import CLASSES, JURORS
from tests.pipeline.plan.places import JUDGE, LOADED


@dataclass(frozen=True)
class Case:
    """Another value of a key. `given` are keys beside it in both experiments, `also` in the second
    one alone; a key that is ... is left out. `base` is another experiment than the class has, in
    whose name `{method}` is the class's own."""

    value: Any
    given: dict[str, Any] = field(default_factory=dict)
    also: dict[str, Any] = field(default_factory=dict)
    base: tuple[str, tuple[str | int, ...]] | None = None
    rounds: int | None = None
    refused: bool = False
    """With the first value the experiment is refused, when it is planned or when it runs."""
    ends: bool = False
    """With the second value the run ends early."""
    strict: bool = False
    """So it is in the base with a prompt that no template renders."""


@dataclass(frozen=True)
class Refused:
    """A key that a class has of its parent and that takes no other value."""

    value: Any


@dataclass(frozen=True)
class Inner:
    """A key that holds specs of classes with rows of their own."""


@dataclass(frozen=True)
class Untried:
    """A key that needs what this test has not, and the test that looks at it instead."""

    test: str


INNER = Inner()
COT = {"cot": True}
REASONS = {"template": "prompts/judges/critique.j2"}
WRITTEN = {"verdict": "written"}
SAMPLED = {"temperature": 0.7}
SILENT = {
    "kind": "template",
    "by": "policy",
    "template": "prompts/judges/template_example.j2",
    "parse": {"pattern": "Verdict: (never)", "values": {"never": 1.0}},
}
"""A juror that no answer suits."""
META_OF = {"kind": "additive", "by": "policy", "samples": 2}
BY_PRINCIPLE = {"template": "own/by_principle_template_example.j2", "per_principle": True}
JUDGE_VALUES: dict[str, dict[str, Any]] = {
    "JudgeBase": {
        "id": "else",
        "principles": ["useful"],
        "constitution": "wording.yaml",
        "uses": ["load"],
        "reasoning": "strip",
    },
    "ModelJudge": {"by": "other"},
    "VerdictJudge": {"abstain_labels": ["x"], "min_label_mass": 0.95},
    "WritingJudge": {
        "samples": Case(2, SAMPLED),
        "temperature": 0.5,
        "max_new_tokens": 5,
        "structured": True,
    },
    "LabelJudge": {
        "structured": Refused(True),
        "cot": True,
        "samples": Case(2, COT | SAMPLED),
        "temperature": Case(0.5, COT),
        "max_new_tokens": Case(5, COT),
    },
}
COMPARING = {
    "template": "own/pairwise.j2",
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
DRAWN = {"battles": 12, "batch": 4}
"""A budget of an arena."""
YES_NO = {"yes_labels": ["x"], "no_labels": ["y"]}
EXPECTED: dict[str, Any] = {
    "min_label_mass": Case(0.95, {"expected": True}),
    "expected": True,
    "structured": True,
}
JUDGE_VALUES |= {
    "RulesJudge": {"principles": ["brief"]},
    "YesNoJudge": YES_NO | {"template": "own/yes_no.j2"},
    "ConstitutionalJudge": {
        "draw": "each",
        "template": "own/constitutional.j2",
        "preamble": Refused("detailed"),
    },
    "RbrmJudge": {
        "template": "own/rbrm.j2",
        "principles": Refused(["useful"]),
        "constitution": Refused("wording.yaml"),
        "structured": Refused(True),
        "classes": [{"id": "names", "text": "Else."}, {"id": "refuses", "text": "It does not."}],
        "tables": [{"rewards": {"names": 0.3, "refuses": 0.6}}],
        "soft": False,
    },
}
VALUES: dict[str, dict[str, Any]] = {**JUDGE_VALUES}
VALUES |= {
    "RatingJudge": {
        "template": "own/rating.j2",
        "scale": [1, 4],
        "cot": Case(True, {"expected": True}),
        **EXPECTED,
    },
    "PairwiseJudge": COMPARING,
    "PrometheusJudge": {"template": "own/prometheus.j2"},
    "CritiqueJudge": {
        "template": "own/critique.j2",
        "expected": Case(False, also={"cot": False}),
        "cot": False,
        "structured": Case(True, {"expected": False, "cot": False}),
        "min_label_mass": 0.95,
    },
    "DirectJudge": {
        "template": "own/direct.j2",
        "expected": False,
        "samples": Case(2, REASONS | COT | SAMPLED),
        "temperature": Case(0.5, REASONS | COT),
        "max_new_tokens": Case(5, REASONS | COT),
        "structured": Case(True, {"expected": False}),
        "cot": Case(True, REASONS),
        "min_label_mass": 0.95,
        "scale": [1, 7],
    },
    "AdditiveJudge": EXPECTED
    | {
        "samples": 2,
        "template": "own/additive.j2",
        "constitution": Case("wording.yaml", {"principles": ["kind"]}),
    },
    "UltraFeedbackJudge": EXPECTED
    | {
        "aspects": ["honesty"],
        "order": "fixed",
        "template": "own/ultrafeedback.j2",
        "principles": Refused(["useful"]),
        "constitution": Refused("wording.yaml"),
    },
    "PrometheusPairJudge": {
        "template": "own/prometheus_pair.j2",
        "shots": Refused(1),
        "preamble": Refused("detailed"),
        "verdict": "labels",
        "soft": Case(False, {"verdict": "labels"}),
        "cot": Case(True, {"verdict": "labels"}),
        "min_label_mass": Case(0.95, {"verdict": "labels"}),
        "samples": Case(2, SAMPLED),
        "temperature": 0.5,
        "max_new_tokens": 5,
    },
    "TemplateJudge": {
        "abstain_labels": Case(["kind"], {"parse": {"pattern": r"Verdict:\W*(\w+)"}}),
        "parse": {"pattern": r"verdict:\W*(rude|plain|kind)", "values": {"rude": 2, "plain": 0}},
        "scale": [0, 4],
        "template": "own/template_example.j2",
        "constitution": Case("wording.yaml", BY_PRINCIPLE),
        "per_principle": Case(True, also={"template": "own/by_principle_template_example.j2"}),
        "principles": Case(["useful"], BY_PRINCIPLE),
        "structured": Refused(True),
        "min_label_mass": Refused(0.5),
    },
    "RbrJudge": YES_NO
    | {
        "weights": "weights2.yaml",
        "template": "own/rbr.j2",
        "constitution": Case("wording.yaml", {"weights": "weights2.yaml"}),
    },
    "RubricJudge": YES_NO
    | {
        "items": [{"text": "Other items."}],
        "template": "own/rubric_item.j2",
        "principles": Refused(["useful"]),
        "constitution": Refused("wording.yaml"),
        "items_file": Case("items.jsonl", also={"items": ...}),
        "generate": Case({"most": 2}, also={"items": ...}),
        "aggregate": Case("implicit", {"items": [{"text": "It names a fruit."}]}),
        "category_weights": Case(
            {"essential": 1.0, "important": 5.0, "optional": 1.0, "pitfall": 1.0},
            {"items": [{"text": "a", "category": "important"}, {"text": "b"}]},
        ),
    },
    "BaselineJudge": {
        "principles": Refused(["useful"]),
        "constitution": Refused("wording.yaml"),
    },
    "RewardModelJudge": {
        "principles": Refused(["useful"]),
        "constitution": Refused("wording.yaml"),
        "reasoning": "strip",
        "by": "rivals",
        "condition": "Be safe.",
    },
    "RewardEnsembleJudge": {
        "principles": Refused(["useful"]),
        "constitution": Refused("wording.yaml"),
        "members": ["rewards", "third"],
        "combine": "worst",
        "penalty": Case(3.0, {"combine": "uncertainty"}),
        "standardise": {"rewards": [0.5, 2.0], "rivals": [0.0, 1.0]},
    },
    "ImplicitRewardJudge": {
        "principles": Refused(["useful"]),
        "constitution": Refused("wording.yaml"),
        "by": "other",
        "reference": Case("other", {"by": "policy"}),
        "beta": Case(0.4, {"by": "other"}),
        "per_token": Case(True, {"by": "other"}),
    },
    "MetaJudge": {
        "template": "own/meta.j2",
        "principles": Refused(["useful"]),
        "constitution": Case("wording.yaml", {"judge": META_OF | {"principles": ["kind"]}}),
        "judge": META_OF | {"samples": 3},
        "first_labels": ["x"],
        "second_labels": ["y"],
    },
    "JudgementsJudge": {
        "template": "own/meta.j2",
        "of": "again",
        "by": "other",
        "principles": Refused(["useful"]),
        "constitution": Refused("wording.yaml"),
        "uses": Case(["self@1"], rounds=2),
        "pick": "highest_variance",
        "first_labels": ["x"],
        "second_labels": ["y"],
    },
    "JuryJudge": {
        "of": [{"kind": "yes_no", "by": "policy"}],
        "principles": Refused(["useful"]),
        "pool": "vote",
        "weights": {"yes_no": 3.0},
        "accuracy": {"yes_no": 0.9, "r": 0.6},
        "missing": Case("drop", {"of": [*JURORS, SILENT]}),
    },
    "VerdictMarkJudge": {
        "of": "scores",
        "both_orders": True,
        "principles": Refused(["useful"]),
        "constitution": Refused("wording.yaml"),
        "uses": ["sample"],
        "reasoning": Untried(
            "tests/judges/test_verdict_marks.py::test_the_thinking_in_an_answer_may_be_left_out"
        ),
    },
    "OverlapJudge": {"reasoning": Case("strip", base=("judge overlap of thoughts", JUDGE))},
    "PerplexityJudge": {"by": "other"},
    "EpisodeJudge": {
        "low": -1.0,
        "high": 3.0,
        "principles": Refused(["useful"]),
        "constitution": Refused("wording.yaml"),
        "uses": ["sample"],
    },
    "EnvironmentSpec": {"max_turns": 3, "role": "tool"},
    "NumberSpec": {
        "low": 5,
        "high": 90,
        "closeness": Untried(
            "tests/environments/test_games.py"
            "::test_the_last_miss_may_be_rewarded_by_how_close_it_is"
        ),
    },
    "RoomsSpec": {"rooms": 2, "lists_commands": False},
    "CustomSpec": {
        "kind": Case(
            "tests.support.environments:Hostile", also={"options": {"answer": "never done"}}
        ),
        "options": {"turns": 1},
    },
    "CustomJudge": {
        "kind": "tests.pipeline.plan.own:Other",
        "options": {"tone": "dry"},
        "template": "own/direct.j2",
    },
    "ParseSpec": {
        "pattern": r"Verdict: (r)",
        "json_schema": Case({"type": "object"}, also={"pattern": ...}),
        "field": Case(
            "verdict",
            {"pattern": ..., "json_schema": {"type": "object"}, "values": {"1": 1}},
        ),
        "values": {"rude": 2, "plain": 1, "kind": 0},
    },
    "RubricClass": {
        "id": Case(
            ...,
            also={
                "classes": [{"id": "calls", "text": "It names one."}, CLASSES[1]],
                "tables": [{"rewards": {"calls": 1.0, "refuses": 0.5}}],
            },
            base=("judge rbrm", ("steps", 2, "judge")),
        ),
        "text": "It gives one.",
    },
    "RewardTable": {"tags": ["other"], "rewards": {"names": 0.9, "refuses": 0.2}},
    "RubricItem": {
        "text": "It names a bean.",
        "category": "pitfall",
        "weight": 4.0,
        "check": Case("word_limits", also={"params": {"min": 1, "max": 3}}),
        "params": Case(
            {"min": 2, "max": 5}, {"check": "word_limits", "params": {"min": 1, "max": 3}}
        ),
    },
    "RubricWriting": {
        "most": 1,
        "max_new_tokens": 9,
        "template": "own/rubric_write.j2",
        "structured": True,
    },
}
OF_SET = {"path": ..., "dataset": "@set"}
JUDGED_LATE: tuple[str, tuple[str | int, ...]] = (
    "judged by the policy",
    ("stages", 1, "steps", 2, "evaluate"),
)
PAIRED_BY_ORIGIN: tuple[str, tuple[str | int, ...]] = ("by origin", ("steps", 2, "pair"))
PAIRED_JUDGEMENTS: tuple[str, tuple[str | int, ...]] = ("judgements", ("steps", 6, "pair"))
LETTERS = list("abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
FAST = {"epochs": 3, "learning_rate": 0.05}
VALUES |= {
    "TextStep": {
        "id": "else",
        "from_": "other",
        "micro_batch_tokens": 64,
        "max_length": 38,
        "overlong": Case("truncate_left", {"max_length": 38}),
        "reasoning": "strip",
        "on_error": Case("skip", strict=True),
        "precision": "bf16",
        "trackers": ["tensorboard"],
        "uses": ["pairs"],
    },
    "TrainStep": {
        "learning_rate": 2e-3,
        "epochs": 2,
        "batch_size": 3,
        "warmup_ratio": 0.5,
        "schedule": "linear",
        "min_lr_ratio": 0.5,
        "weight_decay": 0.5,
        "optimizer": "adamw_8bit",
        "adam_betas": [0.8, 0.99],
        "max_grad_norm": 0.05,
        "gradient_checkpointing": True,
        "train_on_eos": False,
        "lora": {"r": 2},
        "processes": 2,
        "sharding": Case("full", {"processes": 2}),
        "checkpoint_every": 1,
        # Where the next round begins.
        "policy": Case(False, rounds=2),
    },
    "ReferenceTrain": {"reference": "other", "beta": 0.7},
    "SftTrain": {"context": Case("keep", base=("told sft", ("steps", 1, "train")))},
    "DpoTrain": {
        "label_smoothing": 0.2,
        "nll_weight": 0.5,
        "positive_weight": Case(50.0, {"reference": "other"}),
        "length_normalise": True,
    },
    "RobustTrain": {"label_smoothing": 0.3},
    "IpoTrain": {"length_normalise": True},
    "KtoTrain": {"desirable_weight": 2.0, "undesirable_weight": 2.0},
    "SlicTrain": {"margin": 90.0, "nll_weight": 0.5},
    "SimpoTrain": {"beta": 5.0, "gamma": 3.0},
    "OrpoTrain": {"weight": 0.9},
    "DistillStep": {
        "train_on_eos": Refused(False),
        "policy": Refused(False),
        "source_weights": {"human": 3.0},
        "replay": Case(0.3, base=("judged {method}", ("steps", 3, "distill"))),
        "refresh": {"drop": 0.1, "held_out": 0.4},
        "members": Case(2, {"lora": {"r": 2}}),
    },
    "BradleyTerryDistill": {"margin": "score", "centre": 0.5},
    "KWiseDistill": {"centre": 0.5},
    "CostDistill": {"safe_at": 0.2},
    "ConditionalDistill": {
        "conditions": {"human": "Be good.", "rlaif": "Be a model."},
        "gamma": 0.5,
        "penalty": 0.9,
        # The condition's own turn comes on top.
        "max_length": 60,
        "overlong": Case("truncate_left", {"max_length": 60}),
    },
    "FitStep": {
        "source_weights": {"human": 3.0},
        "replay": Case(0.3, base=("judged {method}", ("steps", 3, "distill"))),
        "refresh": {"drop": 0.1, "held_out": 0.4},
    },
    "LinearDistill": {"layers": 1},
    "OrdinalDistill": {
        "levels": 2,
        "source_weights": {"human": 0.0},
        "replay": Case(
            0.3, {"objective": "a/useful"}, base=("judged {method}", ("steps", 3, "distill"))
        ),
        "objective": Case(
            "a/kind", {"objective": "a/useful"}, base=("judged {method}", ("steps", 3, "distill"))
        ),
    },
    "GatedDistill": {
        "objectives": Case(["a/kind"], base=("judged {method}", ("steps", 3, "distill"))),
        "debias": None,
        "gate_layers": Case(1, base=("judged {method}", ("steps", 3, "distill"))),
        "gate_width": 6,
        "gate_temperature": 2.0,
        "gate_steps": 5,
        "gate_batch": 2,
    },
    "QuantileDistill": {"quantiles": 5, "risk": 0.4},
    "RolloutTrain": {
        "prompts": Case(["others"], base=("sets {method}", ("steps", 2, "train"))),
        "gates": {"length": {"warn": 0.5}},
        "rollouts": 3,
        "n": 3,
        "sync_every": 2,
        "lag": Case(1, {"rollouts": 3}),
        "batch_size": 1,
        "temperature": Case(0.7, {"importance": "none"}),
        "max_new_tokens": 5,
        "stop": LETTERS,
        "importance": Case("truncate_token", {"importance_cap": 0.5}),
        "importance_cap": 0.5,
        "importance_floor": 2.0,
        "max_length": 45,
        "overlong": Case("refuse", {"max_length": 45}, ends=True),
        "warmup_ratio": Case(0.5, {"rollouts": 4}),
        "schedule": Case("linear", {"rollouts": 4}),
        "min_lr_ratio": Case(0.5, {"rollouts": 4}),
        "on_error": Case("skip", strict=True),
        "train_on_eos": Refused(False),
        "reasoning": Refused("strip"),
        "uses": Refused(["pairs"]),
        "processes": 2,
    },
    "OnPolicyTrain": {"rewards": [{"judge": "rival"}], "missing_eos_penalty": 3.0},
    "OnPolicyDistillationTrain": {
        "teacher": "strict",
        "divergence": "jsd",
        "beta": Case(0.1, {"divergence": "jsd"}),
        "gamma": 0.5,
        "given": 0.5,
        "train_on_eos": Case(False, {"given": 0.5}),
        "reasoning": Case("strip", {"given": 0.5}),
        "uses": Case(["pairs"], {"given": 0.5}),
    },
    "AverageStep": {
        "id": "else",
        "models": ["one", "other"],
        "method": "slerp",
        "weights": {"one": 3, "two": 1},
        "by": Case("terms", {"method": "best", "by": "checks"}),
        "policy": False,
    },
    "GroupTrain": {
        "kl": Case("k2", {"learning_rate": 0.05, "beta": 0.04}),
        "scale": "none",
        "overlong_buffer": 4,
        "mask_truncated": True,
        # Clamped to their signs, the rewards of a prompt are often equal.
        "resample": Case(2, {"rewards": [{"judge": "rm", "normalise": "running", "clip": 1e-9}]}),
    },
    "ConstrainedTrain": {
        "costs": [{"judge": "rival", "limit": -9.0, "higher": "worse", "start": 5.0}]
    },
    "GrpoTrain": {
        "beta": 0.5,
        "reduction": "sequence",
        "clip_low": Case(0.001, FAST),
        "clip_high": Case(0.001, FAST),
        "two_sided": Case(1.21, {"epochs": 4, "learning_rate": 0.5}),
    },
    "GspoTrain": {
        "epochs": 3,
        "beta": Case(0.5, {"learning_rate": 0.05}),
        "clip_low": Case(0.5, FAST),
        "clip_high": Case(0.5, FAST),
    },
    "CispoTrain": {
        "epochs": 3,
        "beta": Case(0.5, {"learning_rate": 0.05}),
        "clip_low": Case(0.001, FAST),
        "clip_high": Case(0.001, FAST),
    },
    "ReinforceTrain": {
        "beta": 0.5,
        "critic": "head",
        "value_weight": Case(5.0, {"critic": "head"}),
    },
    "ReinforcePpTrain": {
        "epochs": 3,
        "beta": Case(0.5, {"learning_rate": 0.05}),
        "baseline": "group",
        "gamma": 0.5,
        "clip_low": Case(0.001, FAST),
        "clip_high": Case(0.001, FAST),
    },
    "SppoTrain": {
        "importance": Refused("mask_token"),
        "importance_cap": Refused(0.5),
        "importance_floor": Refused(2.0),
    },
    "QuarkTrain": {
        "epochs": 3,
        "beta": 0.5,
        "quantiles": 3,
        "entropy_weight": 0.5,
        "schedule": Case("cosine", {"rollouts": 4}),
        "keep_tokens": True,
        "lag": Refused(1),
        "importance": Refused("mask_token"),
        "importance_cap": Refused(0.5),
        "importance_floor": Refused(2.0),
    },
    "RlooTrain": {"beta": Case(0.5, {"learning_rate": 0.05})},
    "PpoTrain": {
        "beta": Case(0.5, {"learning_rate": 0.05}),
        "kl_target": Case(0.01, {"learning_rate": 0.05, "kl_horizon": 2.0}),
        "kl_horizon": Case(5.0, {"learning_rate": 0.05, "kl_target": 0.01}),
        "gamma": 0.5,
        "lam": 0.5,
        "clip": Case(0.001, {"learning_rate": 0.05}),
        "value_clip": Case(0.001, {"learning_rate": 0.05}),
        "value_weight": 0.9,
        "whiten_rewards": True,
        "critic": "separate",
        "critic_warmup": 1,
        "ptx_weight": 0.5,
        "epochs": 3,
        "train_on_eos": Case(False, {"ptx_weight": 0.5}),
        "reasoning": Case("strip", {"ptx_weight": 0.5}),
        "uses": Case(["pairs"], {"ptx_weight": 0.5}),
    },
    "OnlineDpoTrain": {
        "loss": "hinge",
        "importance": Refused("mask_token"),
        "importance_cap": Refused(0.5),
        "importance_floor": Refused(2.0),
    },
    "SamplingKeys": {
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 5,
        "max_new_tokens": 2,
        "stop": ["e"],
    },
    "SampleStep": {
        "id": "else",
        "n": 3,
        "by": "other",
        "prompts": 2,
        "pool": [{"by": "policy"}, {"by": "other"}],
        "principles": {"texts": {"kind": ["Be kind."]}},
        "system_prompt": "Be brief.",
    },
    "TemplateFile": {"template": "prompts/generate/reflect.j2"},
    "PoolMember": {
        "by": "other",
        "system_prompt": "Be brief.",
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 5,
        "max_new_tokens": 2,
    },
    "SamplePrinciples": {
        "texts": {"kind": ["Be nice."], "brief": ["Be brief."]},
        "default": {"kind": 0.01, "brief": 9.0},
        "shares": {"fruit": {"kind": 0.01, "brief": 9.0}, "other": {"kind": 0.01, "brief": 9.0}},
    },
    "PairStep": {
        "id": "else",
        "strategy": "best_vs_worst",
        "weights": {"a": 1.0, "c": 0.1},
        "min_margin": Case(0.2, {"strategy": "margin"}),
        "missing": "drop",
        "standardise": "initial",
        "consistency": "c",
        "consistency_mean": Case(True, {"consistency": "c"}),
        "max_pairs": 1,
        "tier": Case(0.5, {"strategy": "length_tiered", "tier": 0.0}),
        "max_overlap": Case(0.0, base=("pairs of alike answers", ("steps", 4, "pair"))),
        "source": "mine",
        "balance_lengths": Case(True, base=("pairs of alike answers", ("steps", 4, "pair"))),
        "uses": ["a"],
        "candidates": Case(
            ["own"],
            {"candidates": ["own", "others"]},
            base=("candidates", ("steps", 3, "pair")),
        ),
        "chosen": Case("others", also={"rejected": "own"}, base=PAIRED_BY_ORIGIN),
        "rejected": Case("own", also={"chosen": "others"}, base=PAIRED_BY_ORIGIN),
        "match": Case("all", base=PAIRED_BY_ORIGIN),
        "of": Case("again", also={"better": "third"}, base=PAIRED_JUDGEMENTS),
        "better": Case("rival", base=PAIRED_JUDGEMENTS),
        "pick": Case("highest_variance", base=PAIRED_JUDGEMENTS),
        "max_chars": Case(5, base=PAIRED_JUDGEMENTS),
    },
    "LabelStep": {
        "id": "else",
        "labels": "random",
        "flip": 0.5,
        "labels_used": 3,
        "weights": Case({"a": 1.0, "c": 0.0}, {"labels": "ai"}),
        "human_price": 0.67,
    },
    "ArmSpec": {
        "labels": "random",
        "flip": 0.5,
        "labels_used": 3,
        "set": {"steps.label.weights": {"a": 1.0, "c": 0.0}},
    },
    "LoadStep": {
        "id": "else",
        "type": Case("completions", also={"path": "answers.jsonl"}),
        "path": "rows.jsonl",
        "dataset": Case("@set", {"path": "rows.jsonl"}, also={"path": ...}),
        "dataset_split": Case("late", OF_SET),
        "dataset_config": Case("small", OF_SET),
        "format": Case("pku_safer", {"path": "pku.jsonl"}),
        "columns": {"prompt": "asked", "chosen": "one", "rejected": "two"},
        "on_error": Case("skip", {"path": "odd.jsonl"}, refused=True),
        "prompts": Case("other", {"path": "mixed.jsonl"}),
        "holdout": Case(2, base=("loaded set", LOADED)),
        "source": "mine",
        "engagement": Case(
            {"signal": "clicked", "examination": [1.0]}, {"path": "events.jsonl"}, refused=True
        ),
    },
    "EngagementSpec": {
        "signal": "liked",
        "form": "answers",
        "against": "skipped_above",
        "examination": "position_model",
        "max_weight": 1.5,
        "long_dwell": Case(9.0, {"signal": "dwell", "long_dwell": 5.0}),
        "short_dwell": Case(4.0, {"signal": "dwell", "long_dwell": 9.0, "form": "answers"}),
    },
    "EvaluateStep": {
        "id": "else",
        "model": "other",
        "prompts": Case(["others"], base=JUDGED_LATE),
        "chat_template_kwargs": Case(
            {"quantile": 2}, base=("evaluate quark", ("steps", 1, "evaluate"))
        ),
        "judged_by": Case("begun", base=JUDGED_LATE),
        "against": ["initial"],
        "n": 2,
        "temperature": 0.3,
        "max_new_tokens": 4,
        "judges": ["checks"],
        "checks": [{"id": "done", "rule": "finished_sentence"}],
    },
    "DatasetSpec": {
        "title": "Other",
        "formats": ["verl"],
        "uses": "pairs",
        "test": Case(0.5, {"uses": "pairs"}, base=("many", ("dataset",))),
        "overall": Case("b", {"overall": "a"}, base=("dataset of judges", ("dataset",))),
        "license": "mit",
        "language": ["de"],
        "sources": ["Mine."],
        "limits": ["Many."],
    },
}
LOCAL: tuple[str, tuple[str | int, ...]] = ("judge perplexity", ("models", "policy"))
ASKED: tuple[str, tuple[str | int, ...]] = ("judge direct", ("models", "policy"))
VLLM = "tests/engines/test_vllm_parts.py"
NOT_SERVED = {"base_url": ..., "cache": ..., "prefill": ..., "limits": ...}
FAKE = {"engine": "fake"} | NOT_SERVED
CHOSEN = {
    "chosen": "chosen",
    "rejected": "rejected",
    "first": ...,
    "second": ...,
    "label": ...,
    "labels": ...,
}
OF_PAIRS: tuple[str, tuple[str | int, ...]] = ("label columns", ("steps", 0, "load", "columns"))
RANKED = {"group": "who", "text": "one", "score": "best"}
WINNERS = {"first": "first_won", "second": "second_won"}
VALUES |= {
    "RuleFilter": {
        "of": "prompt",
        "rule": Case("no_refusal", also={"params": {}}),
        "params": {"min": 1, "max": 3},
        "least": 0.1,
    },
    "TruncatedFilter": {"of": Refused("prompt")},
    "DuplicateFilter": {"of": "answers"},
    "NearFilter": {"of": "prompt", "threshold": 0.3, "shingle": Case(1, {"shingle": 3})},
    "ContaminationFilter": {
        "of": "prompt",
        "against": ["leaked2.jsonl"],
        "n": 8,
        "share": 1.0,
    },
    "PrivateFilter": {"of": "prompt", "find": ["email"], "regions": ["DE"]},
    "LexiconFilter": {"of": "prompt", "path": "other_words.txt", "most": 0.9},
    "FilterStep": {
        "id": "else",
        "filters": [{"kind": "duplicates"}],
        "records": Case("preferences", base=("pairs filter", ("steps", 2, "filter"))),
        "uses": Case(["c"], base=("filter agrees", ("steps", 4, "filter"))),
    },
    "ReviseStep": {
        "id": "else",
        "by": "other",
        "times": 2,
        "principles": ["brief"],
        "draw": "all",
        "keep": Case("all", {"times": 2}),
        "template": "own_revise.j2",
        "uses": Case(["first"], base=("revise twice", ("steps", 2, "revise"))),
    },
    "BestFilter": {"by": "c", "k": 2, "per": "all"},
    "ScoreFilter": {"by": "c", "least": 0.8},
    "AgreesFilter": {"with_": Case("fewer", also={"with": ...}), "strict": False},
    "BalanceFilter": {"by": "annotator_id"},
    "LabelColumns": {
        "prompt": "asked",
        "system": "who",
        "chosen": Case("one", CHOSEN),
        "rejected": Case("two", CHOSEN),
        "first": "chosen",
        "second": "rejected",
        "label": "likes",
        "labels": {"first": "two", "second": "one"},
        "winners": Case(WINNERS, also={"label": ..., "labels": ...}),
        "ranked": Case(RANKED, also=dict.fromkeys(("first", "second", "label", "labels"), ...)),
        "strength": Case("best", also={"label": ..., "labels": ...}),
        "first_score": Case("best", {"second_score": "rest", "first_score": "rest"}),
        "second_score": Case("best", {"second_score": "rest", "first_score": "rest"}),
        "margin": "best",
        "subset": Case("who", base=OF_PAIRS),
        "first_author": Case("who", base=OF_PAIRS),
        "second_author": Case("who", base=OF_PAIRS),
        "annotator": Case("who", base=OF_PAIRS),
        "annotator_kind": Case("ai", base=OF_PAIRS),
        "answer": Case("one", base=("load of demonstrations", (*LOADED, "columns"))),
        "text": Case("one", base=("load of texts", (*LOADED, "columns"))),
    },
    "LabelValues": {
        "first": Case("two", also={"second": "one"}),
        "second": Case("one", also={"first": "two"}),
        "tie": Case(["two"], also={"second": "three"}),
    },
    "CheckSpec": {
        "id": "else",
        "rule": Case("no_refusal", also={"params": {}}),
        "params": {"min": 1, "max": 2},
    },
    "LoraOptions": {
        "r": 3,
        "alpha": 4.0,
        "dropout": 0.5,
        "target_modules": ["q_proj"],
        "dora": True,
        "export": "both",
    },
    "RewardTerm": {
        "judge": "rival",
        "weight": -2.0,
        "value": "score",
        "normalise": "group",
        "clip": 0.1,
        "when": {"tags": ["fruit"]},
        "only_if": "rival",
        "within": Case("rival", {"normalise": "group"}),
    },
    "CostTerm": {
        "judge": "rm",
        "limit": -1.0,
        "higher": "better",
        "value": "score",
        "start": 3.0,
        "rate": 0.9,
        "max": 2.0,
        "window": 1,
    },
}
VALUES |= {
    "ModelSpec": {
        "path": "else",
        "engine": Case("fake", also=NOT_SERVED),
        "role": "labeller",
        "dtype": Case("bfloat16", base=LOCAL),
        "device": Case("cpu", {"device": "auto"}, base=LOCAL),
        "batch_tokens": Case(100, base=LOCAL),
        "max_context": Case(60, base=LOCAL),
        "system_prompt": "Be brief.",
        "thinking": {"markers": [["A", "y"]]},
        "system_role": Case("merge", {"system_prompt": "Be brief."}),
        "chat_template_kwargs": {"enable_thinking": False},
        "adapter": Untried(
            "tests/engines/test_adapters.py::test_log_probs_are_those_of_peft_with_the_adapter"
        ),
        "parameters": Case(10**6, base=LOCAL),
        "engine_args": Untried(f"{VLLM}::test_settings_of_the_environment_are_the_users"),
        "gpus": Untried(f"{VLLM}::test_a_model_on_gpus_of_its_own_stays_while_others_train"),
        "start_seconds": Untried(
            f"{VLLM}::test_what_the_server_is_sent_is_part_of_the_models_identity"
        ),
        "script": Case("script.yaml", FAKE),
        "base_url": "@url/other",
        "weights": "new ones",
        "key_env": "PATH",
        "api": Case("completions", {"prefill": False}),
        "price": {"input": 1, "output": 2},
        "limits": {"retries": 1},
        "samples_per_call": 2,
        "prefill": Case(True, {"prefill": False}, base=ASKED, refused=True),
        "top_logprobs": Case(3, base=ASKED),
        "max_tokens_key": "max_completion_tokens",
        "extra_body": {"min_p": 0.1},
        "cache": True,
    },
    "PromptsSpec": {
        "path": "strict_prompts.jsonl",
        "dataset": Case("@set", {"path": "strict_prompts.jsonl"}, also={"path": ...}),
        "dataset_split": Case("late", {"path": ..., "dataset": "@set"}),
        "columns": {"prompt": "reference"},
        "holdout": 3,
        "limit": 2,
        "max_words": 4,
        "validation": 2,
        "environment": INNER,
        "generate": INNER,
        "episodes": Case(6, base=("play number", ("prompts",))),
        "count": Untried(
            "tests/config/test_paths.py::test_made_up_prompts_stand_for_a_dataset_that_is_not_here"
        ),
    },
}
VALUES |= {
    "PromptSetSpec": {
        "path": "still_others.jsonl",
        "dataset": Case("@set", also={"path": ...}),
        "max_words": 7,
    },
    "PromptsOf": {"set": "others", "count": 1},
    "Stage": {
        "id": "else",
        "rounds": 3,
        "prompts": Case("others", base=("staged", ("stages", 1))),
        "arms": Case(["cool"], base=("staged arms", ("stages", 1))),
        "at": {"2": {"steps.sample.n": 3}},
        "until": INNER,
        "steps": INNER,
    },
    "Until": {"by": "terms", "stops_rising": Case(2, {"by": "terms"})},
    "StepEntry": dict.fromkeys(STEPS, INNER)
    | {"when": 2, "arms": Case(["cool"], base=("staged arms", ("stages", 0, "steps", 2)))},
    "Every": {"every": 2},
    "Experiment": {
        "sweep": {"steps.sample.n": [2, 3]},
        "profiles": Untried(
            "tests/config/test_paths.py"
            "::test_a_profile_changes_values_and_replaces_and_leaves_out_steps"
        ),
        "name": Case("else", base=("dataset", ())),
        "description": "In words.",
        "seed": 4,
        "seeds": Case([3, 5], also={"seed": ...}),
        "constitution": Case("other.yaml", base=("judge rules", ())),
        "data": Case("rows.jsonl", base=("load of data", ())),
        "primary": Case(["score/checks"], base=("evaluate", ())),
        "margin": Case(1.0, base=("arms trained", ())),
        "rounds": 2,
        "budget": Case(1e-5, {"budget": 1000.0}, base=("priced", ()), ends=True),
        "allow_same_weights": True,
        "allow_code": True,
        **dict.fromkeys(
            (
                *("models", "prompts", "prompt_sets", "arms", "judges", "stages", "steps"),
                *("dataset", "alarms", "retention"),
            ),
            INNER,
        ),
    },
    "ThinkingSpec": {"markers": [["A", "y"]], "opened": Case(True, {"markers": [["A", "y"]]})},
    "Price": {"input": 3.0, "output": 3.0, "cached_input": 0.5},
    "ApiLimits": {
        "concurrency": 2,
        "retries": 2,
        "connect_seconds": 5.0,
        "read_seconds": 60.0,
        "total_seconds": 300.0,
    },
    "QuestionsStep": {
        "id": "else",
        "judge": "scores",
        "orders": "fixed",
        "uses": ["load"],
    },
    "ArenaStep": {
        "id": "else",
        "models": ["other", "given"],
        "judge": "compare",
        "prompts": "others",
        "split": Case("held_out"),
        "temperature": 0.3,
        "max_new_tokens": 4,
        "battles": 12,
        "pairing": Case("variance", DRAWN),
        "explore": Case(1.0, DRAWN),
        "min_battles": Case(0, DRAWN),
        "batch": Case(1, DRAWN),
        "anchor": "given",
    },
    "BenchStep": {"id": "else", "judges": ["scores"], "pairs": "more", "by": ["other"]},
    "Columns": {
        "prompt": "asked",
        "messages": Case("turns", also={"prompt": ...}),
        "tags": Case("topics", base=("asked and judged", ("prompts", "columns"))),
        "reference": Case("gold", base=("asked and judged", ("prompts", "columns"))),
        "split": "part",
        "group": Case("gold", base=("asked and judged", ("prompts", "columns"))),
    },
    "WinnerColumns": {"first": "first_won", "second": "second_won", "tie": "tied"},
    "RankedAnswers": {
        "answers": Case("answers", also={"group": ...}),
        "group": "who",
        "text": "two",
        "rank": Case("rest", also={"score": ...}),
        "score": "rest",
        "author": "who",
    },
    "PromptCondition": {"tags": ["fruit"], "source": ["a"]},
    "Gates": {
        "flat_groups": {"warn": 0.0},
        "kl": {"warn": 9.0},
        "entropy": {"warn": 90.0},
        "length": {"warn": 0.5},
        "reward_spread": {"warn": 90.0},
        "max_rollbacks": Case(2, {"length": {"rollback": 900.0}}),
    },
    # The start policy itself reaches the limit, so there is nothing to go back to.
    "Gate": {
        "warn": 0.5,
        "rollback": Case(0.5, ends=True),
        "stop": Case(0.5, ends=True),
    },
    "Refresh": {"drop": 0.9, "held_out": 0.3},
}
UNHASHED: dict[str, str] = {
    "Experiment.name": "a name",
    "Experiment.description": "words for readers",
    "Experiment.primary": "what a page claims of finished evaluations",
    "Experiment.margin": "what a page claims of finished evaluations",
    "Experiment.budget": "when a run stops",
    "Experiment.allow_same_weights": "what is refused",
    "Experiment.allow_code": "what is refused",
    **dict.fromkeys(
        (f"{owner.__name__}.{key}" for owner in (Price, ApiLimits) for key in owner.model_fields),
        "what is counted, and how hard a server is asked",
    ),
    **dict.fromkeys(
        (
            f"{owner.__name__}.{key}"
            for owner in (Gate, Gates)
            for key in owner.model_fields
            if key != "rollback"
        ),
        "a gate ends a training or leaves it alone",
    ),
    "ModelSpec.role": "what a model is for: tests/pipeline/test_experiment.py",
    "ModelSpec.device": "where it is computed",
    "ModelSpec.key_env": "who pays",
    "ModelSpec.price": "what is counted",
    "ModelSpec.limits": "how hard a server is asked",
    "ModelSpec.parameters": "how large a model is, in dry runs",
    "ModelSpec.cache": "where answers are looked for first",
    "ModelSpec.prefill": "what a server can do: a judge that needs it is refused without",
    "ModelSpec.max_tokens_key": "how a server calls the limit",
    "FilterStep.id": "a name",
    "TextStep.id": "a name",
    "TextStep.trackers": "where numbers go as well",
    "TrainStep.checkpoint_every": "when a training is saved",
    "RolloutTrain.gates": "a gate ends a training or leaves it alone",
    "SampleStep.id": "a name",
    "AverageStep.id": "a name",
    "ReviseStep.id": "a name",
    "Stage.id": "a name",
    "PairStep.id": "a name",
    "LabelStep.id": "a name",
    "LabelStep.human_price": "what labels cost, in reports",
    "LoadStep.id": "a name",
    "EvaluateStep.id": "a name",
    "QuestionsStep.id": "a name",
    "BenchStep.id": "a name",
    **dict.fromkeys(
        (f"DatasetSpec.{key}" for key in DatasetSpec.model_fields),
        "what is written of finished steps is written anew by every run",
    ),
}
"""Keys that are in no hash, and why."""
SAFETY = "tests/engines/test_openai_safety.py"
LOOP = "tests/train/test_loop.py"
ELSEWHERE: dict[str, str] = {
    "Experiment.allow_same_weights": "tests/pipeline/test_shared_weights.py"
    "::test_labeller_and_gold_judge_must_be_different_weights",
    "Experiment.allow_code": "tests/pipeline/test_allow_code.py"
    "::test_the_key_lets_an_experiment_run_code",
    "ModelSpec.role": "tests/pipeline/test_shared_weights.py"
    "::test_labeller_and_gold_judge_must_be_different_weights",
    "ModelSpec.key_env": f"{SAFETY}::test_a_key_that_is_not_set_is_asked_for",
    "ModelSpec.cache": f"{SAFETY}::test_an_answer_is_paid_once",
    "ModelSpec.weights": "tests/engines/test_openai_answers.py"
    "::test_other_weights_under_the_same_name_are_asked_again",
    "ModelSpec.limits": "tests/engines/test_openai_faults.py"
    "::test_after_the_last_attempt_a_request_fails_with_its_reason",
    "ModelSpec.parameters": "tests/pipeline/test_memory.py"
    "::test_the_memory_is_in_the_table_and_in_json",
    "ModelSpec.batch_tokens": "tests/engines/test_hf.py"
    "::test_done_batches_are_skipped_and_the_rest_is_the_same",
    "ApiLimits.concurrency": "tests/engines/test_openai_stops.py"
    "::test_a_first_wave_is_no_larger_than_the_calls_that_may_be_open",
    "ApiLimits.retries": "tests/engines/test_openai_faults.py"
    "::test_after_the_last_attempt_a_request_fails_with_its_reason",
    "ApiLimits.total_seconds": "tests/engines/test_openai_faults.py::test_a_fault_is_survived",
    **dict.fromkeys(
        ("ApiLimits.connect_seconds", "ApiLimits.read_seconds"),
        "tests/pipeline/plan/test_without_a_run.py::test_a_server_is_waited_for_as_long_as_is_said",
    ),
    "LabelStep.human_price": "tests/pipeline/test_label_shares.py"
    "::test_a_label_costs_what_its_judge_was_asked_for_it",
    "LabelColumns.subset": "tests/pipeline/plan/test_without_a_run.py"
    "::test_a_column_of_subsets_is_read",
    "Gates.max_rollbacks": "tests/train/test_gates.py"
    "::test_rollbacks_are_bounded_and_a_start_that_reaches_the_limit_stops",
    "Refresh.drop": "tests/train/test_refresh.py"
    "::test_a_model_that_did_not_fall_by_so_much_is_kept",
    "TextStep.micro_batch_tokens": f"{LOOP}::test_accumulation_equals_the_whole_batch",
    "TrainStep.gradient_checkpointing": f"{LOOP}::test_interrupted_training_ends_in_the_same_bytes",
    "TrainStep.checkpoint_every": f"{LOOP}::test_interrupted_training_ends_in_the_same_bytes",
    "TrainStep.processes": "tests/train/test_parallel.py::test_two_processes_equal_one",
    "TrainStep.sharding": "tests/train/test_parallel.py::test_two_processes_equal_one",
}
"""Keys whose effect does not show in what a run makes or asks, and the test that sees it."""
NOTHING: dict[str, str] = {
    "Experiment.description": "words for readers of the file",
    "ModelSpec.device": "where it is computed, and only CPUs are here",
    "FirstJudge.reasoning": "it looks at no text",
    "RandomJudge.reasoning": "it looks at no text",
    "EpisodeJudge.reasoning": "it looks at no text",
}
"""Keys whose other value does nothing here, and why."""
