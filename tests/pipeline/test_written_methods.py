"""Published methods written in the language: every one that has its steps is planned, offline."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from rlaif.core.store import Store
from rlaif.pipeline.explain.plan import explain_file
from rlaif.pipeline.flops import count_flops
from rlaif.pipeline.forecast import forecast
from rlaif.pipeline.memory import Sizes, estimate_memory, planned_device
from rlaif.pipeline.plan.base import Known
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.steps import step_module
from rlaif.report.flow_text import render_text
from tests.pipeline.written_judges import (
    CHARACTER,
    GENRM,
    META_REWARDING,
    OWN_QUESTIONS,
    SELF_REWARDING,
    SELF_TAUGHT,
    SPCT,
)

POLICY = "builtin/smollm2-135m-instruct"
INSTRUCT_GPT = """\
name: instructgpt                    # arXiv 2203.02155
models: {policy: {path: POLICY}}
constitution: constitutions/concise_helper.yaml
prompts: {path: prompts.jsonl, holdout: 4}
judges:
  - {id: reward, kind: reward_model, by: rm}
  - {id: gold, kind: rules}
steps:
  - load: {id: demos, type: demonstrations, path: demos.jsonl}
  - train: {id: sft, method: sft, uses: [demos], epochs: 16}
  - load: {id: comparisons, type: preferences, path: pairs.jsonl}
  - distill: {id: rm, method: k_wise, uses: [comparisons]}
  - load: {id: web, type: text, path: web.jsonl}
  - train:
      id: ppo_ptx
      method: ppo
      batch_size: 4
      reference: sft
      rewards: [{judge: reward, value: raw, normalise: reference}]
      beta: 0.02
      ptx_weight: 27.8
      uses: [web]
  - evaluate: {against: [initial, sft], judges: [gold]}
"""
COOL = """\
name: internlm2-cool                 # arXiv 2403.17297
models: {policy: {path: POLICY}, labeller: {path: POLICY, role: labeller}}
allow_same_weights: true
prompts: {path: prompts.jsonl, holdout: 4}
prompt_sets: {red_team: {path: red.jsonl, holdout: 4}}
judges:
  - {id: ai_help, kind: pairwise, by: labeller, principles: [on_topic]}
  - {id: ai_harm, kind: pairwise, by: labeller, principles: [useful]}
  - {id: help, kind: reward_model, by: rm, condition: Judge how helpful the answer is.}
  - {id: harm, kind: reward_model, by: rm, condition: Judge how harmless the answer is.}
constitution: constitutions/concise_helper.yaml
stages:
  - id: online
    rounds: 3
    steps:
      - sample: {id: answers, n: 4, prompts: 4}
      - judge: ai_help
      - pair: {id: help_pairs, uses: [ai_help], source: help}
      - judge: {id: ai_harm, uses: [answers]}
      - pair: {id: harm_pairs, uses: [ai_harm], source: harm}
      - load: {id: hacks, type: preferences, path: pairs.jsonl, source: hacks}   # the fast path
        when: "2-"
      - distill:
          id: rm
          method: conditional
          from: rm
          uses: ["help_pairs@*", "harm_pairs@*", "hacks?"]
          conditions:
            help: Judge how helpful the answer is.
            harm: Judge how harmless the answer is.
            hacks: Judge how helpful the answer is.
      - train:
          id: ppo
          method: ppo
          batch_size: 4
          rewards: [{judge: help, value: raw}, {judge: harm, value: raw}]
      - evaluate: {prompts: [main, red_team]}
"""
CONSTITUTIONS = """\
name: constitution-a-against-b
seeds: [1, 2, 3]
models: {policy: {path: POLICY}}
constitution: constitutions/concise_helper.yaml
prompts: {path: prompts.jsonl, holdout: 4}
judges:
  - {id: by_a, kind: rules, constitution: constitutions/concise_helper.yaml}
  - {id: by_b, kind: rules, constitution: constitutions/brevity_only.yaml}
arms: {a: {}, b: {set: {constitution: constitutions/brevity_only.yaml}}}
profiles:
  full: {steps.sample.prompts: 9, steps.train.learning_rate: 5.0e-7}
steps:
  - sample: {n: 4, prompts: 8}
  - judge: {id: labels, kind: rules}
  - pair: {}
  - train: {learning_rate: 3.0e-4, batch_size: 4, lora: {r: 16}}
  - evaluate: {judges: [by_a, by_b]}
"""
THREE_ARMS = """\
name: rlaif-three-arms               # arXiv 2309.00267
models: {policy: {path: POLICY}, labeller: {path: POLICY, role: labeller}}
allow_same_weights: true
constitution: constitutions/concise_helper.yaml
prompts: {path: prompts.jsonl, holdout: 4}
judges:
  - {id: ai, kind: pairwise, by: labeller, cot: true}
  - {id: direct, kind: direct, by: labeller}
  - {id: reward, kind: reward_model, by: rm}
  - {id: gold, kind: rules}
arms:
  distilled: {}
  other_rm: {set: {steps.rm.learning_rate: 1.0e-4}}
  direct: {set: {steps.rl.rewards: [{judge: direct}]}}
stages:
  - id: distil
    arms: [distilled, other_rm]
    steps:
      - sample: {n: 2, prompts: 6}
      - judge: ai
      - pair: {}
      - distill: {id: rm}
  - id: rl
    steps:
      - train:
          id: rl
          method: rloo
          batch_size: 4
          rewards: [{judge: reward, value: raw, normalise: reference}]
      - evaluate: {judges: [gold]}
"""
PAIRS = """\
name: pairs-with-prompts-of-their-own
models: {policy: {path: POLICY}}
constitution: constitutions/concise_helper.yaml
prompts: {path: prompts.jsonl, holdout: 4}
judges: [{id: gold, kind: rules}]
stages:
  - id: seed
    steps:
      - load: {id: ranked, type: pairs, path: pairs.jsonl, prompts: own, holdout: 2}
      - label: {}
      - train: {id: first, uses: [label]}
      - load: {id: more, type: prompts, path: red.jsonl, holdout: 3}
  - id: loop
    prompts: more
    steps:
      - sample: {n: 2}
      - judge: gold
      - pair: {}
      - sample: {id: again, n: 2, prompts: {set: ranked, count: 3}}
      - judge: {id: checks, kind: rules}
      - pair: {id: later}
      - train: {id: last, uses: [pair, later]}
      - evaluate: {prompts: [main, more, ranked]}
"""
LLAMA_3 = """\
name: llama3                         # arXiv 2407.21783, labels by a judge
models: {policy: {path: POLICY}, labeller: {path: POLICY, role: labeller}}
allow_same_weights: true
constitution: constitutions/concise_helper.yaml
prompts: {path: prompts.jsonl, holdout: 4, validation: 4}
judges:
  - {id: ai, kind: pairwise, by: labeller}
  - {id: reward, kind: reward_model, by: rm}
  - {id: gold, kind: rules}
stages:
  - id: seed
    steps:
      - load: {id: demos, type: demonstrations, path: demos.jsonl}
      - train: {id: seed_sft, method: sft, uses: [demos]}
  - id: align
    rounds: 6
    steps:
      - sample: {id: compared, n: 2, prompts: 8}
      - judge: ai
      - pair: {id: prefs, uses: [ai]}
      - distill: {id: rm, from: initial, uses: ["prefs@*"], centre: 0}
      - sample: {id: answers, n: 10, prompts: 8}
      - judge: reward
      - filter:
          id: best
          records: completions
          uses: [answers]
          filters: [{kind: best, by: reward, k: 1}]
      - train: {id: sft, method: sft, from: initial, uses: ["best@*", demos]}
      - train:
          id: dpo_a
          from: sft
          uses: [prefs]
          nll_weight: 0.2
          train_on_eos: false
          learning_rate: 1.0e-5
      - train:
          id: dpo_b
          from: sft
          uses: [prefs]
          nll_weight: 0.2
          train_on_eos: false
          learning_rate: 5.0e-6
      - average: {id: model, models: [dpo_a, dpo_b]}
      - evaluate: {judges: [gold]}
"""
DISTILLATION = """\
name: on-policy-distillation
models: {policy: {path: POLICY}}
constitution: constitutions/concise_helper.yaml
prompts: {path: prompts.jsonl, holdout: 4}
judges: [{id: gold, kind: rules}]
stages:
  - id: make_teacher                 # offline there is one model: the teacher is trained here
    steps:
      - train: {id: teacher, policy: false, method: grpo, rewards: {gold: 1}, rollouts: 9, n: 4}
  - id: distil
    steps:
      - train: {id: student, method: on_policy_distillation, teacher: teacher, rollouts: 12, n: 2}
      - evaluate: {against: [initial, teacher], judges: [gold]}
"""
CAI = """\
name: constitutional-ai              # arXiv 2212.08073
models: {policy: {path: POLICY}, pretrained: {path: POLICY}}
constitution: constitutions/harmless.yaml
prompts: {path: prompts.jsonl, holdout: 4}
prompt_sets: {red_team: {path: red.jsonl, holdout: 4}}
judges:
  - {id: ai, kind: constitutional, by: sl, cot: true, clamp: [0.4, 0.6]}
  - {id: pm, kind: reward_model, by: preference_model}
  - {id: checks, kind: rules, constitution: constitutions/concise_helper.yaml}
stages:
  - id: supervised
    steps:
      - sample: {id: drafts, n: 1, prompts: red_team}
      - revise: {id: revisions, by: policy, times: 4, keep: all}
      - sample: {id: helpful, n: 1}
      - train: {id: sl, method: sft, from: pretrained, uses: [revisions, helpful]}
      - evaluate: {prompts: [main, red_team], judges: [checks]}
  - id: rl
    steps:
      - sample: {id: answers, n: 2, prompts: red_team}
      - judge: ai
      - pair: {id: harmless_pairs}
      - load: {id: people, type: preferences, path: pairs.jsonl}
      - distill: {id: preference_model, from: sl, uses: [harmless_pairs, people]}
      - train:
          id: rl
          method: ppo
          prompts: red_team
          batch_size: 4
          rewards: [{judge: pm, value: raw, normalise: reference}]
      - evaluate: {prompts: [main, red_team], against: [initial, sl], judges: [checks]}
"""
J1 = """\
name: j1                             # arXiv 2505.10320: here the judge is the policy
models: {policy: {path: POLICY}}
prompts: {holdout: 3}                # those of the labelled pairs
judges:
  - {id: compare, kind: pairwise, by: policy, verdict: written}
  - {id: right, kind: verdict, of: compare}
  - {id: consistent, kind: verdict, of: compare, both_orders: true}
steps:
  - load: {id: labelled, type: pairs, path: pairs.jsonl}
  - questions: {id: cases, judge: compare, uses: [labelled]}
  - sample: {id: tries, n: 8, prompts: cases, temperature: 1.0}
  - judge: {id: right, uses: [tries]}
  - filter:
      id: correct
      records: completions
      filters: [{kind: score, by: right, least: 1}, {kind: balance, by: reference}]
  - train: {id: cold, method: sft, uses: [correct]}
  - train: {id: j1, method: grpo, prompts: cases, n: 8, rewards: {consistent: 1}}
  - bench: {judges: [compare], pairs: labelled, by: [initial, cold, j1]}
"""
CORRECT = """\
name: correct
principles:
  - id: right_number
    text: The answer gives the number that is right.
    check: {rule: numeric_match}
  - id: correct
    text: The answer solves the problem, and its result is right.
"""
WAITING = {
    "safe RLHF": "`costs`",
}
"""Methods that wait for steps that are not there, by what they lack."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all that the files read."""
    files = {
        "prompts.jsonl": [{"prompt": f"Question number {n}?"} for n in range(40)],
        "red.jsonl": [{"prompt": f"Red question {n}?"} for n in range(40)],
        "demos.jsonl": [{"prompt": f"How is {n}?", "completion": f"It is {n}."} for n in range(4)],
        "web.jsonl": [{"text": f"Once upon a time there were {n} plums."} for n in range(4)],
        "pairs.jsonl": [
            {"prompt": f"Which {n}?", "chosen": f"The {n}th.", "rejected": "No."} for n in range(9)
        ],
    }
    files["problems.jsonl"] = [
        {"prompt": f"What is {n} plus 2?", "reference": str(n + 2)} for n in range(9)
    ]
    for name, lines in files.items():
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "correct.yaml").write_text(CORRECT)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "models"),
    [
        (INSTRUCT_GPT, {"sft": 1, "rm": 1, "ppo_ptx": 1}),
        (COOL, {"rm": 3, "ppo": 3}),
        # One of each arm and seed.
        (CONSTITUTIONS, {"train": 6}),
        (THREE_ARMS, {"rm": 2, "rl": 3}),
        (PAIRS, {"first": 1, "last": 1}),
        (META_REWARDING, {"dpo": 4}),
        (SELF_REWARDING, {"sft": 1, "dpo": 2}),
        (CHARACTER, {"dpo": 1, "final": 1}),
        (
            LLAMA_3,
            {"seed_sft": 1, "rm": 6, "sft": 6, "dpo_a": 6, "dpo_b": 6, "model": 6},
        ),
        (DISTILLATION, {"teacher": 1, "student": 1}),
        (CAI, {"sl": 1, "preference_model": 1, "rl": 1}),
        (J1, {"cold": 1, "j1": 1}),
        (SELF_TAUGHT, {"evaluator": 2}),
        (SPCT, {"cold": 1, "critic_rl": 1}),
        (GENRM, {"genrm": 1, "genrm_cot": 1}),
        (OWN_QUESTIONS, {"evaluator": 2}),
    ],
)
def test_a_method_is_planned(folder: Path, text: str, models: dict[str, int]) -> None:
    path = folder / "experiment.yaml"
    path.write_text(text.replace("POLICY", POLICY))
    plan = make_plan(prepare(path, fetch=False))
    assert Counter(p.id for p in plan if p.makes_model) == models
    if "profiles" in text:
        assert make_plan(prepare(path, fetch=False, profile="full"))


@pytest.mark.parametrize(
    "text",
    [GENRM, OWN_QUESTIONS, SELF_REWARDING, META_REWARDING],
    ids=["genrm", "own questions", "self-rewarding", "meta-rewarding"],
)
def test_the_page_on_judges_that_learn_has_the_file(text: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "judge-training.md").read_text()
    assert f"```yaml\n{text.replace('POLICY', POLICY)}```" in page


def test_pairs_and_prompts_that_are_loaded_are_sets(folder: Path) -> None:
    path = folder / "experiment.yaml"
    path.write_text(PAIRS.replace("POLICY", POLICY))
    inputs = prepare(path, fetch=False)
    plan = make_plan(inputs)
    sizes = {name: (len(one.train), len(one.heldout)) for name, one in inputs.sets.items()}
    assert sizes == {"ranked": (7, 2), "more": (37, 3)}
    pairs, sample, again = (
        next(p for p in plan if p.id == i) for i in ("ranked", "sample", "again")
    )
    own = {p.prompt_id for p in inputs.sets["ranked"].train}
    assert set(pairs.prompts) == own and len(again.prompts) == 3 and set(again.prompts) < own
    assert set(sample.prompts) == {p.prompt_id for p in inputs.sets["more"].train}
    (end,) = [p for p in plan if p.kind == "evaluate" and p.round]
    assert len(end.prompts) == 4 + 3 + 2


def test_the_filters_path_of_a_hack_is_taken_from_the_second_round(folder: Path) -> None:
    path = folder / "experiment.yaml"
    path.write_text(COOL.replace("POLICY", POLICY))
    plan = make_plan(prepare(path, fetch=False))
    read = [len(p.inputs) for p in plan if p.id == "rm"]
    # Two pairs steps a round, all so far, and from round 2 on the pairs of the hack.
    assert read == [2, 5, 7]
    starts = [p.models["start"].label for p in plan if p.id == "rm"]
    assert starts == ["M0", "rm1", "rm2"]


def test_the_policy_of_a_round_of_llama_3_is_the_average(folder: Path) -> None:
    path = folder / "experiment.yaml"
    path.write_text(LLAMA_3.replace("POLICY", POLICY))
    plan = make_plan(prepare(path, fetch=False))
    (second,) = [p for p in plan if p.id == "compared" and p.number == 2]
    assert second.models["by"].label == "model@1"
    (model,) = [p for p in plan if p.id == "model" and p.number == 2]
    members = {role: m.label for role, m in model.models.items()}
    assert members == {"member/1": "dpo_a@2", "member/2": "dpo_b@2", "made": "model@2"}
    evaluated = [p.models["policy"].label for p in plan if p.kind == "evaluate" and p.round]
    assert evaluated == [f"model@{number}" for number in range(1, 7)]


def test_a_distillation_knows_its_teacher_by_what_it_is(folder: Path) -> None:
    path = folder / "experiment.yaml"
    path.write_text(DISTILLATION.replace("POLICY", POLICY))

    def student(text: str = "") -> str:
        own = DISTILLATION.replace("POLICY", POLICY)
        path.write_text(own.replace("rollouts: 9", text) if text else own)
        plan = {p.id: p for p in make_plan(prepare(path, fetch=False))}
        assert plan["student"].models["teacher"].label == "teacher"
        assert plan["evaluate"].models["policy"].label == "student"
        return plan["student"].hash

    assert student() == student() != student("rollouts: 8")


def test_constitutional_ai_learns_from_every_revision_and_the_helpful_answers(
    folder: Path,
) -> None:
    path = folder / "experiment.yaml"
    path.write_text(CAI.replace("POLICY", POLICY))
    inputs = prepare(path, fetch=False)
    plan = {p.id: p for p in make_plan(inputs)}
    assert list(plan["revisions"].inputs.values()) == [plan["drafts"].hash]
    assert plan["revisions"].models["by"].label == "M0"
    read = [plan["revisions"].hash, plan["helpful"].hash]
    assert list(plan["sl"].inputs.values()) == read
    assert plan["sl"].models["start"].label == "pretrained"
    rows = {row.id: row for row in forecast(inputs, Store(folder / "none"))}
    drafts = rows["drafts"].units
    assert (rows["revisions"].units, rows["revisions"].calls) == (4 * drafts, 8 * drafts)


def test_the_best_answers_of_every_round_so_far_are_learned_from(folder: Path) -> None:
    path = folder / "experiment.yaml"
    path.write_text(LLAMA_3.replace("POLICY", POLICY))
    plan = make_plan(prepare(path, fetch=False))
    # The demonstrations of the stage before, and the best of each round.
    assert [len(p.inputs) for p in plan if p.id == "sft"] == [2, 3, 4, 5, 6, 7]
    filters = [p for p in plan if p.id == "best"]
    judged = {p.hash for p in plan if p.id == "reward"}
    assert [{*p.inputs.values()} & judged for p in filters] == [
        {h} for h in (p.inputs["scores/reward/0"] for p in filters)
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CAI, "criticised and written again 4 times, every revision kept; by one of 7 principles"),
        (CAI, "reads revisions (answers), helpful (answers); from pretrained; makes sl"),
        (SELF_REWARDING, "judgements that pass: agrees with ranked, balanced by score"),
        (SELF_REWARDING, "reads self (judgements), ranked (labels)"),
        (LLAMA_3, "completions that pass: best 1 by reward of each prompt"),
        (LLAMA_3, "reads answers (completions), reward (judgements)"),
    ],
    ids=["revise", "trained on", "agrees", "reads labels", "best", "reads scores"],
)
def test_what_a_method_does_is_explained(folder: Path, text: str, said: str) -> None:
    path = folder / "experiment.yaml"
    path.write_text(text.replace("POLICY", POLICY))
    assert said in " ".join(render_text(explain_file(path)).split())


def test_a_teacher_is_held_beside_its_student(folder: Path) -> None:
    path = folder / "experiment.yaml"
    path.write_text(DISTILLATION.replace("POLICY", POLICY))
    inputs = prepare(path, fetch=False)
    plan = make_plan(inputs)
    (student,) = [p for p in plan if p.id == "student"]
    (found,) = estimate_memory(plan, {student.hash}, planned_device(80.0))
    parts = {part.role: part.state for part in found.parts}
    # bf16 weights, beside those of the student with masters, gradients and moments.
    assert parts.keys() == {"start", "teacher"} and parts["start"] == 9 * parts["teacher"]
    steps = {p.hash: p for p in plan}
    size = step_module("train").size(inputs, student, Known())
    both = count_flops(inputs, student, size, steps, Sizes())
    models = {role: m for role, m in student.models.items() if role != "teacher"}
    alone = count_flops(inputs, replace(student, models=models), size, steps, Sizes())
    assert both is not None and alone is not None and both > alone


def test_answers_in_character_are_told_what_the_constitution_says(folder: Path) -> None:
    path = folder / "experiment.yaml"
    path.write_text(CHARACTER.replace("POLICY", POLICY))
    inputs = prepare(path, fetch=False)
    plan = {p.id: p for p in make_plan(inputs)}
    guided, plain = plan["in_character"], plan["plain"]
    assert guided.models["by"].label == "teacher" and guided.prompts == plain.prompts
    assert plain.step.system_prompt is None
    told = guided.step.system_prompt, plan["reflections"].step.system_prompt
    assert told[0] != told[1]
    assert inputs.constitution is not None
    for principle in inputs.constitution.principles:
        assert all(principle.text in text for text in told)
    assert len(plan["reflections"].prompts) == 40
    assert plan["evaluate.sample"].step.system_prompt is None


def test_the_judge_of_meta_rewarding_learns_in_two_rounds(folder: Path) -> None:
    path = folder / "experiment.yaml"
    path.write_text(META_REWARDING.replace("POLICY", POLICY))
    inputs = prepare(path, fetch=False)
    plan = make_plan(inputs)
    names = {p.hash: p.id for p in plan}
    dpo = [p for p in plan if p.id == "dpo"]
    read = [[names[h] for h in p.inputs.values()] for p in dpo]
    assert read == [["actor", "judging"]] * 2 + [["actor"]] * 2
    judging = [p for p in plan if p.id == "judging"]
    assert [p.step.max_chars for p in judging] == [1100, 1000]
    assert [p.models["by"].label for p in plan if p.id == "meta"] == ["M0", "M1"]
    assert [p.step.tier for p in plan if p.id == "actor"] == [0.0, 0.32, 0.32, 0.4]
    # Figures of a round's pairs are of answers; those between judgements are of other texts.
    ends = [p for p in plan if p.kind == "evaluate" and p.round]
    assert {names[h] for p in ends for n, h in p.inputs.items() if "preferences" in n} == {"actor"}
    # 5 prompts, 7 answers, both orders of every two of 11 judgements.
    sizes = {(row.id, row.round): row.calls for row in forecast(inputs, Store(folder), plan)}
    assert sizes["meta", 1] == 5 * 7 * 11 * 10
    path.write_text(
        path.read_text().replace("of: self, by", "of: self, pick: highest_variance, by")
    )
    inputs = prepare(path, fetch=False)
    sizes = {(row.id, row.round): row.calls for row in forecast(inputs, Store(folder))}
    assert sizes["meta", 1] == 5 * 11 * 10


def test_the_pairs_of_character_training_are_by_origin(folder: Path) -> None:
    path = folder / "experiment.yaml"
    path.write_text(CHARACTER.replace("POLICY", POLICY))
    plan = make_plan(prepare(path, fetch=False))
    (pairs,) = [p for p in plan if p.kind == "pair"]
    names = {p.hash: p.id for p in plan}
    assert {name: names[h] for name, h in pairs.inputs.items()} == {
        "chosen/0": "in_character",
        "rejected/0": "plain",
    }
    assert pairs.options["match"] == "index"


def test_revisions_are_paired_with_what_they_revise(folder: Path) -> None:
    path = folder / "experiment.yaml"
    before, _, after = CAI.partition("      - sample: {id: helpful, n: 1}\n")
    pair = "      - pair: {id: better, chosen: revisions, rejected: drafts}\n"
    learn = "      - train: {id: side, policy: false, uses: [better]}\n"
    later = "      - sample: {id: helpful, n: 1}\n"
    path.write_text((before + pair + learn + later + after).replace("POLICY", POLICY))
    plan = {p.id: p for p in make_plan(prepare(path, fetch=False))}
    assert plan["better"].options["match"] == "parent"
    assert list(plan["better"].inputs.values()) == [plan["revisions"].hash, plan["drafts"].hash]
