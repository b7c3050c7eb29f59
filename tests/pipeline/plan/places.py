"""Where in which experiment each kind of spec stands."""

from __future__ import annotations

import copy
from typing import Any

from tests.pipeline.plan.bases import (
    BASES,
    DISTILLED,
    FAR,
    FITTED,
    ON_POLICY,
    OTHERS,
    PAIRS,
    ROLLED,
    SAMPLE,
    SERVED,
    TINY,
    TRAINING,
    experiment,
)
from tests.pipeline.plan.bases import (
    MORE as MORE_PAIRS,
)
from tests.pipeline.plan.judged_bases import JUDGED as OF_JUDGED

Path = tuple[str | int, ...]
JUDGE: Path = ("steps", 2, "judge")
FILTER: Path = ("steps", 1, "filter", "filters", 0)
LOADED: Path = ("steps", 0, "load")


def altered(name: str, *changes: tuple[Path, Any]) -> dict[str, Any]:
    """An experiment of `bases` with other values at some places."""
    whole = copy.deepcopy(BASES[name])
    for place, value in changes:
        spec: Any = whole
        for part in place[:-1]:
            spec = spec[part]
        spec[place[-1]] = value
    return whole


def in_turn(data: dict[str, Any]) -> dict[str, Any]:
    """The experiment with servers that are asked one question at a time, so that what comes second
    is the same every time."""
    models = {
        name: spec | {"limits": {"concurrency": 1}} if "base_url" in spec else spec
        for name, spec in data["models"].items()
    }
    return data | {"models": models}


JUDGED = DISTILLED | {"cost": {"safe_at": 0.12}, "conditional": {"conditions": {"rlaif": "Be."}}}


def distilled(method: str, **keys: Any) -> dict[str, Any]:
    """A distillation of what one judge says of fresh answers in two rounds."""
    return experiment(
        models={"policy": TINY, "far": FAR},
        rounds=2,
        steps=[
            {"sample": SAMPLE | {"by": "far", "n": 3}},
            {"judge": {"id": "a", "kind": "direct", "by": "far"}},
            {"pair": {"strategy": "all"}},
            {"distill": {"method": method, "precision": "fp32", "uses": ["pair@*"]} | keys},
        ],
    )


SETS: dict[str, Any] = {"others": {"path": "others.jsonl", "holdout": 2}}
EVALUATED = {"max_new_tokens": 8, "temperature": 1.0}
TRAINED = TRAINING | {"method": "sft", "learning_rate": 0.05}
STAGED = experiment(
    models=SERVED,
    prompt_sets=SETS,
    stages=[
        {
            "id": "begin",
            "rounds": 2,
            "steps": [
                {"sample": SAMPLE | {"prompts": {"set": "main", "count": 2}}},
                {"judge": {"id": "a", "kind": "direct", "by": "other"}},
                {"pair": {"strategy": "all"}},
                {"evaluate": EVALUATED, "when": {"every": 1}},
            ],
        },
        {"id": "end", "steps": [{"sample": SAMPLE | {"prompts": 2}}]},
    ],
)
"""Two stages, of which the second samples once more."""
JUDGED_IN_TRAINING = experiment(
    models={"policy": TINY, "other": TINY | {"path": "@small"}},
    judges=[{"id": "likely", "kind": "perplexity", "by": "policy"}],
    prompt_sets=SETS,
    stages=[
        {"id": "begin", "steps": [PAIRS, {"train": TRAINED | {"id": "begun"}}]},
        {
            "id": "end",
            "steps": [MORE_PAIRS, {"train": TRAINED | {"id": "ended"}}, {"evaluate": EVALUATED}],
        },
    ],
)
"""A policy of two stages, and a judge that is the policy of the moment."""
CHOSEN_ROUND = experiment(
    prompts={"path": "prompts.jsonl", "holdout": 2, "validation": 3},
    judges=[{"id": "checks", "kind": "rules"}, {"id": "terms", "kind": "overlap"}],
    stages=[
        {
            "id": "begin",
            "rounds": 3,
            "until": {"by": "checks"},
            "steps": [PAIRS, {"train": TRAINED}],
        }
    ],
)
"""A stage that ends when its judge's mean no longer rises."""
AVERAGED = experiment(
    models=OTHERS,
    prompts={"path": "prompts.jsonl", "holdout": 2, "validation": 3},
    judges=[{"id": "checks", "kind": "rules"}, {"id": "terms", "kind": "overlap"}],
    steps=[
        PAIRS,
        {"train": TRAINED | {"id": "one", "from": "initial"}},
        {"train": TRAINED | {"id": "two", "from": "initial", "epochs": 2}},
        {"average": {"models": ["one", "two"]}},
        {"train": TRAINED | {"id": "later"}},
    ],
)
"""Two models, what is made of them, and a training that goes on from it."""
DISTILLING = (
    TRAINING
    | {name: key for name, key in ROLLED.items() if name != "rewards"}
    | {"method": "on_policy_distillation", "n": 2, "teacher": "other"}
)
TAUGHT = experiment(models=OTHERS, steps=[PAIRS, MORE_PAIRS, {"train": DISTILLING}])
"""A student that samples, and its teacher."""

WRITES = {"id": "compare", "kind": "pairwise", "by": "policy", "verdict": "written"}
ASKED = experiment(
    models=SERVED,
    prompts={"holdout": 2},
    judges=[WRITES, {"id": "scores", "kind": "rating", "by": "policy"}],
    steps=[
        {"load": {"id": "load", "type": "pairs", "path": "rows.jsonl"}},
        {"load": {"id": "more", "type": "pairs", "path": "table.jsonl"}},
        {"questions": {"judge": "compare"}},
        {"bench": {"judges": ["compare"], "pairs": "load"}},
    ],
)
"""Questions about loaded pairs, and the judge that asks them on the held-out ones."""
MET = experiment(
    models=SERVED,
    prompt_sets=SETS,
    prompts={"path": "prompts.jsonl", "holdout": 4},
    judges=[WRITES, {"id": "longest", "kind": "longer"}],
    steps=[
        {"load": {"id": "given", "type": "completions", "path": "answers.jsonl"}},
        {
            "arena": {
                "models": ["policy", "other", "given"],
                "judge": "longest",
                "split": "all",
                "max_new_tokens": 6,
            }
        },
    ],
)
"""Two models and given answers, which meet."""
MARKED = experiment(
    models=SERVED,
    prompts={"holdout": 2},
    judges=ASKED["judges"],
    steps=[
        {"load": {"id": "load", "type": "pairs", "path": "table.jsonl"}},
        {"questions": {"id": "cases", "judge": "compare"}},
        {"sample": SAMPLE | {"prompts": "cases"}},
        {
            "filter": {
                "records": "completions",
                "filters": [{"kind": "duplicates", "of": "answers"}],
            }
        },
        {"judge": {"id": "mark", "kind": "verdict", "of": "compare"}},
    ],
)
"""Answers to questions, of which a program says whether they are right."""

ANSWERED = {"load": {"type": "completions", "path": "answers.jsonl"}}
SELF = {"kind": "additive", "by": "policy", "samples": 3, "temperature": 0.7}
COMPARED: list[dict[str, Any]] = [
    ANSWERED,
    {"judge": SELF | {"id": "self"}},
    {"judge": SELF | {"id": "again", "samples": 2}},
    {"judge": {"kind": "judgements", "of": "self", "by": "policy"}},
]
"""Judgements of two judges, of which those of one are compared."""
RIVALS: list[dict[str, Any]] = [
    {"judge": {"id": "rival", "kind": "judgements", "of": "self", "by": "other"}},
    {"judge": {"id": "third", "kind": "judgements", "of": "again", "by": "policy"}},
]
BOTH: list[dict[str, Any]] = [
    {"sample": SAMPLE | {"id": "own", "prompts": 4}},
    # A server draws alike with the same seeds, whoever is asked.
    {"sample": SAMPLE | {"id": "others", "system_prompt": "Be odd.", "prompts": 4}},
]
JUDGED_BOTH = {"id": "a", "kind": "direct", "by": "policy", "uses": ["own", "others"]}
TOLD = experiment(
    models={"policy": TINY, "far": FAR},
    steps=[
        {"sample": SAMPLE | {"by": "far", "system_prompt": "Be curious."}},
        {"train": TRAINING | {"method": "sft", "learning_rate": 0.05}},
    ],
)

LETTERS = {"kind": "tests.support.environments:Letters", "options": {"turns": 9}}
PLAYED: dict[str, dict[str, Any]] = {
    "number": {"kind": "number"},
    "rooms": {"kind": "rooms"},
    "letters": LETTERS,
}
PLAYING = {"n": 1, "max_new_tokens": 6, "temperature": 1.0}


def played(environment: dict[str, Any]) -> dict[str, Any]:
    """Episodes of an environment and what they gave."""
    return experiment(
        prompts={"environment": environment | {"max_turns": 2}, "episodes": 4, "holdout": 2},
        steps=[
            {"sample": PLAYING},
            {"judge": {"kind": "rules"}},
            {"judge": {"kind": "episode"}},
        ],
    )


MORE: dict[str, dict[str, Any]] = {
    **{f"play {name}": played(keys) for name, keys in PLAYED.items()},
    "arena": MET,
    "asked pairs": ASKED,
    "marked": MARKED,
    "compared": experiment(models=SERVED, steps=COMPARED),
    "judgements": experiment(
        models=SERVED,
        steps=[*COMPARED, *RIVALS, {"pair": {"of": "self", "better": "judgements"}}],
    ),
    "by origin": experiment(
        models=SERVED, steps=[*BOTH, {"pair": {"chosen": "own", "rejected": "others"}}]
    ),
    "candidates": experiment(
        models=SERVED, steps=[*BOTH, {"judge": JUDGED_BOTH}, {"pair": {"strategy": "all"}}]
    ),
    "told sft": TOLD,
    "staged": STAGED,
    "staged arms": STAGED
    | {"arms": {"plain": {}, "cool": {"set": {"steps.sample.temperature": 0.5}}}},
    "judged by the policy": JUDGED_IN_TRAINING,
    "until": CHOSEN_ROUND,
    "average": AVERAGED,
    "train on_policy_distillation": TAUGHT,
    "strict on_policy_distillation": TAUGHT
    | {
        "prompts": {"path": "strict_prompts.jsonl", "holdout": 2},
        "steps": [PAIRS, MORE_PAIRS, {"train": DISTILLING | {"from": "strict"}}],
    },
    "sets on_policy_distillation": TAUGHT | {"prompt_sets": SETS},
    **{f"sets {method}": BASES[f"train {method}"] | {"prompt_sets": SETS} for method in ON_POLICY},
    "judge overlap of thoughts": altered("judge overlap", ((*LOADED, "path"), "thoughts.jsonl")),
    "all columns": altered("columns", ((*LOADED, "path"), "columns.jsonl")),
    "label columns": altered(
        "columns", ((*LOADED, "path"), "columns.jsonl"), ((*LOADED, "type"), "pairs")
    ),
    "pairs": altered("pair", (("steps", 4, "pair", "missing"), "renormalise")),
    "pairs of alike answers": altered(
        "pair", ((*LOADED, "path"), "alike.jsonl"), (("steps", 4, "pair", "missing"), "renormalise")
    ),
    "dataset of judges": altered("pair dataset", (("steps", 4, "pair", "missing"), "renormalise")),
    "many": altered("dataset", ((*LOADED, "path"), "many.jsonl")),
    "alike": altered("filter near_duplicates", ((*LOADED, "path"), "alike.jsonl")),
    "thoughtful": altered(
        "sample", (("models", "policy", "thinking"), {"markers": [["<think>", "</think>"]]})
    ),
    "priced": altered(
        "sample", *((("models", name, "price"), {"input": 1.0, "output": 2.0}) for name in SERVED)
    ),
    "loaded set": experiment(
        models=SERVED,
        steps=[
            {"load": {"id": "loaded", "type": "prompts", "path": "others.jsonl"}},
            {"sample": SAMPLE | {"prompts": "loaded"}},
        ],
    ),
    "sets of prompts": altered(
        "sample", (("prompt_sets",), SETS), (("steps", 0, "sample", "prompts"), "others")
    ),
    "asked": altered(
        "sample",
        (("prompts",), {"path": "asked.jsonl", "holdout": 2, "columns": {"prompt": "prompt"}}),
    ),
    "asked and judged": altered(
        "judge prometheus",
        (("prompts",), {"path": "asked.jsonl", "holdout": 2, "columns": {"prompt": "prompt"}}),
        ((*LOADED, "path"), "few_answers.jsonl"),
    ),
    "winners": altered(
        "columns",
        (
            LOADED,
            {
                "type": "preferences",
                "path": "columns.jsonl",
                "columns": {
                    "prompt": "prompt",
                    "first": "one",
                    "second": "two",
                    "winners": {"first": "first_sure", "second": "second_sure"},
                },
            },
        ),
    ),
    "ranked": altered(
        "columns",
        (
            LOADED,
            {
                "type": "pairs",
                "path": "columns.jsonl",
                "columns": {
                    "prompt": "prompt",
                    "ranked": {"group": "team", "text": "one", "score": "best"},
                },
            },
        ),
        (("prompts",), {"holdout": 1}),
    ),
    "when": altered(
        "term",
        (
            ("steps", 0, "train", "rewards", 0, "when"),
            {"tags": ["fruit", "other"], "source": ["a", "b"]},
        ),
    ),
    "constrained": altered(
        "term",
        (
            ("steps", 0, "train", "costs"),
            [{"judge": "rival", "limit": -0.5, "higher": "worse", "start": 2.0, "rate": 0.5}],
        ),
    ),
    "gated": altered(
        "term", (("steps", 0, "train", "gates"), {"length": {"warn": 900.0, "stop": 950.0}})
    ),
    "refreshed": altered(
        "train bradley_terry",
        (("steps", 2, "distill", "refresh"), {"drop": 0.1, "held_out": 0.4}),
        (("rounds",), 2),
    ),
    "load of demonstrations": altered(
        "load",
        (
            LOADED,
            {
                "type": "demonstrations",
                "path": "table.jsonl",
                "columns": {"prompt": "prompt", "answer": "chosen"},
            },
        ),
    ),
    "load of texts": altered(
        "load", (LOADED, {"type": "text", "path": "table.jsonl", "columns": {"text": "chosen"}})
    ),
    "load of events": altered(
        "load",
        (
            LOADED,
            {
                "type": "preferences",
                "path": "events.jsonl",
                "engagement": {"signal": "clicked", "examination": [1.0, 0.5]},
            },
        ),
    ),
    "load of data": altered("load", (LOADED, {"type": "preferences"}), (("data",), "table.jsonl")),
    "arms trained": BASES["label"]
    | {
        "models": SERVED | {"policy": TINY, "far": FAR},
        "judges": [{"id": "checks", "kind": "rules"}],
        "steps": [
            {"load": {"id": "given", "type": "pairs", "path": "table.jsonl"}},
            {"judge": {"id": "a", "kind": "direct", "by": "far"}},
            {"label": {}},
            {"train": TRAINING | {"method": "sft", "learning_rate": 0.05}},
            {"evaluate": {"max_new_tokens": 8, "temperature": 1.0}},
        ],
        "arms": {"human": {"labels": "human"}, "ai": {"labels": "ai"}},
    },
    **{
        f"judged {name}": distilled(name, **(TRAINING if name not in FITTED else {}) | spec)
        for name, spec in JUDGED.items()
    },
    "private": altered("filter private", ((*LOADED, "path"), "private.jsonl")),
    "leaked": altered(
        "filter contamination",
        ((*LOADED, "path"), "alike.jsonl"),
        ((*FILTER, "of"), "answers"),
        ((*FILTER, "against"), ["leaked.jsonl"]),
        ((*FILTER, "n"), 3),
    ),
}
"""Experiments of the sweep alone."""
SWEPT = {name: in_turn(data) for name, data in {**BASES, **MORE, **OF_JUDGED}.items()}
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
    "JudgementsJudge": ("compared", ("steps", 3, "judge")),
    "JuryJudge": ("judge jury", JUDGE),
    "LongerJudge": ("judge longer", JUDGE),
    "FirstJudge": ("judge first", JUDGE),
    "RandomJudge": ("judge random", JUDGE),
    "OverlapJudge": ("judge overlap", JUDGE),
    "PerplexityJudge": ("judge perplexity", JUDGE),
    "VerdictMarkJudge": ("marked", ("steps", 4, "judge")),
    "QuestionsStep": ("asked pairs", ("steps", 2, "questions")),
    "BenchStep": ("asked pairs", ("steps", 3, "bench")),
    "EpisodeJudge": ("play letters", ("steps", 2, "judge")),
    "NumberSpec": ("play number", ("prompts", "environment")),
    "RoomsSpec": ("play rooms", ("prompts", "environment")),
    "CustomSpec": ("play letters", ("prompts", "environment")),
    "ArenaStep": ("arena", ("steps", 1, "arena")),
    "CustomJudge": ("judge custom", JUDGE),
    "ParseSpec": ("judge template", (*JUDGE, "parse")),
    "RubricClass": ("judge rbrm", (*JUDGE, "classes", 0)),
    "RewardTable": ("judge rbrm", (*JUDGE, "tables", 0)),
    "RubricItem": ("judge rubric", (*JUDGE, "items", 0)),
    "RubricWriting": ("judge rubric_generate", (*JUDGE, "generate")),
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
    "GrpoTrain": ("train grpo", ("steps", 2, "train")),
    "RlooTrain": ("train rloo", ("steps", 2, "train")),
    "PpoTrain": ("train ppo", ("steps", 2, "train")),
    "GspoTrain": ("train gspo", ("steps", 2, "train")),
    "CispoTrain": ("train cispo", ("steps", 2, "train")),
    "ReinforceTrain": ("train reinforce", ("steps", 2, "train")),
    "ReinforcePpTrain": ("train reinforce_pp", ("steps", 2, "train")),
    "SppoTrain": ("train sppo", ("steps", 2, "train")),
    "QuarkTrain": ("train quark", ("steps", 2, "train")),
    "OnlineDpoTrain": ("train online_dpo", ("steps", 2, "train")),
    "OnPolicyDistillationTrain": ("train on_policy_distillation", ("steps", 2, "train")),
    "AverageStep": ("average", ("steps", 3, "average")),
    "SampleStep": ("sample", ("steps", 0, "sample")),
    "ReviseStep": ("revise", ("steps", 1, "revise")),
    "PoolMember": ("pool", ("steps", 0, "sample", "pool", 0)),
    "TemplateFile": ("told", ("steps", 0, "sample", "system_prompt")),
    "SamplePrinciples": ("principles", ("steps", 0, "sample", "principles")),
    "PairStep": ("pairs", ("steps", 4, "pair")),
    "LabelStep": ("label", ("steps", 3, "label")),
    "ArmSpec": ("arms", ("arms", "ai")),
    "LoadStep": ("load", ("steps", 0, "load")),
    "EvaluateStep": ("evaluate", ("steps", 2, "evaluate")),
    "DatasetSpec": ("dataset", ("dataset",)),
    "RuleFilter": ("filter rule", FILTER),
    "TruncatedFilter": ("filter truncated", FILTER),
    "DuplicateFilter": ("filter duplicates", FILTER),
    "NearFilter": ("alike", FILTER),
    "ContaminationFilter": ("leaked", FILTER),
    "PrivateFilter": ("private", FILTER),
    "LexiconFilter": ("filter lexicon", FILTER),
    "BestFilter": ("filter best", ("steps", 3, "filter", "filters", 0)),
    "ScoreFilter": ("filter score", ("steps", 3, "filter", "filters", 0)),
    "AgreesFilter": ("filter agrees", ("steps", 4, "filter", "filters", 0)),
    "BalanceFilter": ("filter balance", ("steps", 4, "filter", "filters", 0)),
    "FilterStep": ("filter rule", ("steps", 1, "filter")),
    "EngagementSpec": ("load of events", (*LOADED, "engagement")),
    "LabelColumns": ("all columns", ("steps", 0, "load", "columns")),
    "LabelValues": ("all columns", ("steps", 0, "load", "columns", "labels")),
    "CheckSpec": ("check", ("steps", 2, "evaluate", "checks", 0)),
    "LoraOptions": ("lora", ("steps", 1, "train", "lora")),
    "RewardTerm": ("term", ("steps", 0, "train", "rewards", 0)),
    "CostTerm": ("constrained", ("steps", 0, "train", "costs", 0)),
    "Experiment": ("sample", ()),
    "ThinkingSpec": ("thoughtful", ("models", "policy", "thinking")),
    "Price": ("priced", ("models", "policy", "price")),
    "ApiLimits": ("sample", ("models", "policy", "limits")),
    "Columns": ("asked", ("prompts", "columns")),
    "WinnerColumns": ("winners", (*LOADED, "columns", "winners")),
    "RankedAnswers": ("ranked", (*LOADED, "columns", "ranked")),
    "PromptCondition": ("when", ("steps", 0, "train", "rewards", 0, "when")),
    "Gates": ("gated", ("steps", 0, "train", "gates")),
    "Gate": ("gated", ("steps", 0, "train", "gates", "length")),
    "Refresh": ("refreshed", ("steps", 2, "distill", "refresh")),
    "ModelSpec": ("sample", ("models", "policy")),
    "PromptsSpec": ("sample", ("prompts",)),
    "PromptSetSpec": ("sets of prompts", ("prompt_sets", "others")),
    "PromptsOf": ("staged", ("stages", 0, "steps", 0, "sample", "prompts")),
    "Stage": ("staged", ("stages", 0)),
    "Until": ("until", ("stages", 0, "until")),
    "StepEntry": ("staged", ("stages", 0, "steps", 3)),
    "Every": ("staged", ("stages", 0, "steps", 3, "when")),
}
WROTE = "tests/pipeline/test_prompts_wiring.py"
UNSWEPT: dict[str, tuple[str, ...]] = {
    "PromptMix": (
        "tests/pipeline/test_generated_sets.py::test_a_run_writes_its_own_prompts_once",
        "tests/pipeline/test_prompt_generation.py::test_filters_and_a_count_apply_to_all_sources",
    ),
    "FileSource": (
        f"{WROTE}::test_files_are_mixed_by_their_weights_with_their_own_tags_and_references",
        "tests/pipeline/test_generated_sets.py::test_a_dataset_that_is_here_is_counted_and_read",
    ),
    "SelfInstructSource": (
        f"{WROTE}::test_new_instructions_are_shown_seeds_and_what_was_made",
        f"{WROTE}::test_a_call_is_sampled_as_its_source_says_with_a_seed_of_its_own",
        f"{WROTE}::test_a_template_of_ones_own_is_what_is_asked",
        f"{WROTE}::test_the_bounds_of_a_source_are_inclusive",
        "tests/pipeline/test_prompt_generation.py::test_what_is_taken",
    ),
    "MagpieSource": (
        f"{WROTE}::test_magpie_writes_the_users_turn_after_its_system_prompt",
        f"{WROTE}::test_the_longest_answers_decide_which_of_the_written_prompts_are_kept",
        "tests/pipeline/test_prompt_generation.py::test_what_is_taken",
    ),
    "EvolveSource": (
        f"{WROTE}::test_each_given_prompt_is_rewritten_in_turn_by_an_operation_that_its_tag_names",
        "tests/pipeline/test_prompt_generation.py::test_what_is_taken",
    ),
    "TopicsSource": (
        f"{WROTE}::test_every_persona_meets_every_topic",
        "tests/pipeline/test_prompt_generation.py::test_what_is_taken",
    ),
    "SemanticFilter": ("tests/data/test_hygiene.py::test_texts_that_mean_the_same_are_kept_once",),
    "EllmJudge": (
        "tests/judges/test_episodes.py::test_a_turn_is_rewarded_by_its_likest_goal",
        "tests/judges/test_episodes.py::test_real_sentences_of_one_meaning_are_rewarded",
        "tests/judges/test_episodes.py::test_every_key_of_an_ellm_judge_is_in_its_hash",
        "tests/pipeline/test_episodes.py::test_an_ellm_judge_reads_the_episodes_that_its_uses_name",
    ),
    "GymnasiumSpec": (
        "tests/environments/test_games.py::test_a_lake_is_walked_to_the_goal",
        "tests/environments/test_games.py::test_keys_of_gymnasium_reach_what_is_shown",
    ),
    "AlarmsConfig": (
        "tests/pipeline/plan/test_without_a_run.py::test_every_limit_decides",
        "tests/pipeline/test_experiment.py::test_an_alarm_stops_the_run_and_keeps_what_was_computed",
    ),
    "Retention": (
        "tests/pipeline/test_experiment.py::test_masters_that_a_new_round_needs_are_made_again",
    ),
}
"""Classes whose keys are not swept one by one, and the tests that look at them: sources of prompts
are those of a command of their own; an embedding model takes seconds to load; gymnasium need not be
installed; an alarm needs figures that are wrong; and what is kept shows when it is needed again."""
