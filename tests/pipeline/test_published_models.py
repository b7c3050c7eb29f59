"""Published methods that make a model of models, at a tiny size: what each makes, from what."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from rlaif.core.errors import RlaifError
from rlaif.core.store import Store
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.explain.plan import explain_file
from rlaif.pipeline.forecast import forecast
from rlaif.pipeline.manifest import read_manifest
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.runs import Run
from rlaif.report.flow_text import render_text
from tests.pipeline.test_published import (
    EVALUATE,
    SAMPLE,
    TRAIN,
    Write,
    evaluated,
    trained,
    write,
)

__all__ = ["write"]

FRESH = {**TRAIN, "n": 2, "rollouts": 2, "max_new_tokens": 5}


def test_llama_3(write: Write, tmp_path: Path) -> None:
    reward = {"id": "rm", "from": "initial", "uses": ["prefs@*"], "batch_size": 2}
    dpo = {**TRAIN, "from": "sft", "uses": ["prefs"], "nll_weight": 0.2, "train_on_eos": False}
    path = write(
        judges=[
            {"id": "ai", "kind": "pairwise", "by": "previous"},
            {"id": "reward", "kind": "reward_model", "by": "rm"},
            {"id": "gold", "kind": "rules"},
        ],
        stages=[
            {
                "id": "seed",
                "steps": [
                    {"load": {"id": "demos", "type": "demonstrations", "path": "ift.jsonl"}},
                    {"train": {"id": "seed_sft", "method": "sft", "uses": ["demos"], **TRAIN}},
                ],
            },
            {
                "id": "align",
                "rounds": 2,
                "steps": [
                    {"sample": {**SAMPLE, "id": "compared"}},
                    {"judge": "ai"},
                    {"pair": {"id": "prefs", "uses": ["ai"]}},
                    {"distill": {**reward, "centre": 0, "precision": "fp32"}},
                    {"sample": {**SAMPLE, "id": "answers", "n": 3}},
                    {"judge": "reward"},
                    {"filter": {"id": "best", "records": "completions", "uses": ["answers"],
                                "filters": [{"kind": "best", "by": "reward", "k": 1}]}},
                    {"train": {"id": "sft", "method": "sft", "from": "initial",
                               "uses": ["best@*", "demos"], **TRAIN}},
                    {"train": {"id": "dpo_a", **dpo}},
                    {"train": {"id": "dpo_b", **dpo, "learning_rate": 5e-4}},
                    {"average": {"id": "model", "models": ["dpo_a", "dpo_b"]}},
                    {"evaluate": EVALUATE},
                ],
            },
        ],
    )  # fmt: skip
    run = tmp_path / "run"
    run_experiment(path, run)
    assert trained(run) == [
        ("seed_sft", "M0", "seed_sft"),
        *(
            row
            for n in (1, 2)
            for row in [
                ("rm", "M0", f"rm@{n}"),
                ("sft", "M0", f"sft@{n}"),
                ("dpo_a", f"sft@{n}", f"dpo_a@{n}"),
                ("dpo_b", f"sft@{n}", f"dpo_b@{n}"),
            ]
        ),
    ]
    steps = read_manifest(run)["steps"]
    models = [s["models"] for s in steps if s["kind"] == "average"]
    assert [{role: label for role, (label, _) in m.items()} for m in models] == [
        {"member/1": f"dpo_a@{n}", "member/2": f"dpo_b@{n}", "made": f"model@{n}"} for n in (1, 2)
    ]
    by = [s["models"]["by"][0] for s in steps if s["id"] == "compared"]
    assert by == ["seed_sft", "model@1"]
    assert [row[4:6] for row in evaluated(run) if row[3]] == [
        ("seed_sft", "model@1"),
        ("model@1", "model@2"),
    ]
    # Of each prompt's three answers the best one is learned from, in all rounds so far.
    kept_answers = [Store(run).step(s["hash"]).done() or {} for s in steps if s["id"] == "best"]
    assert [done["counts"]["completions"] for done in kept_answers] == [2, 2]
    # The reward model of round 2 learns from the pairs of both rounds.
    assert [len(s["inputs"]) for s in steps if s["id"] == "rm"] == [1, 2]


DISTILLING = [
    {
        "id": "make_teacher",
        "steps": [
            {"train": {**FRESH, "id": "teacher", "policy": False, "method": "grpo",
                       "rewards": {"gold": 1}, "learning_rate": 1e-2}},
        ],
    },
    {
        "id": "distil",
        "steps": [
            {"train": {**FRESH, "id": "student", "method": "on_policy_distillation",
                       "teacher": "teacher", "rollouts": 3, "checkpoint_every": 1}},
            {"evaluate": {**EVALUATE, "against": ["initial", "teacher"]}},
        ],
    },
]  # fmt: skip


def test_on_policy_distillation(write: Write, tmp_path: Path) -> None:
    path = write(stages=DISTILLING)
    run = tmp_path / "run"
    inputs = prepare(path)
    plan = {p.id: p for p in make_plan(inputs)}
    sizes = {row.id: row for row in forecast(inputs, Store(run))}
    run_experiment(path, run)
    assert trained(run) == [("teacher", "M0", "teacher"), ("student", "M0", "student")]
    (end,) = [row for row in evaluated(run) if row[3]]
    assert end[4:] == ("M0", "student", ["initial", "teacher"]) or end[5] == "student"
    folder = Store(run).step(plan["student"].hash)
    answers = list(folder.rows("completions"))
    # No judge and no teacher's answer: as many calls as there are answers of its own.
    assert sizes["student"].calls == len(answers) == 3 * 2 * 2
    assert not list(folder.rows("judgements"))
    assert {a["model"] for a in answers} == {f"student, rollout {n}" for n in (1, 2, 3)}
    done = folder.done() or {}
    assert done["summary"]["first_kl_teacher"] != 0 and "first_reward" not in done["summary"]
    card = (run / "models" / plan["student"].hash / "README.md").read_text()
    assert "| teacher | teacher (`train:" in card
    assert "compared with its teacher's probabilities" in card
    said = " ".join(render_text(explain_file(path)).split())
    assert "on_policy_distillation" in said and "3 rollouts of 2 prompts, 2 answers to each" in said
    flow = explain_file(path)
    names = {node.name: node.id for stage in flow.stages for node in stage.nodes}
    edges = {(names[e.source], names[e.target], e.what) for e in flow.edges if e.model}
    assert ("teacher", "student", "teacher") in edges
    (row,) = [r for r in Run(run).view().rollouts if r["id"] == "student"]
    assert [("kl_teacher" in known, "reward" in known) for _, known in row["points"]] == [
        (True, False)
    ] * 3
    detail = {row["name"]: row["detail"] for row in Run(run).view().lineage}
    assert "taught by teacher" in detail["student (seed 0)"]


def test_a_held_out_prompt_of_a_teacher_is_found(write: Write, tmp_path: Path) -> None:
    """The student was never shown it; the model that taught it was."""
    prompts = [json.loads(x) for x in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    rows = [{"prompt": p["prompt"], "completion": "Yes."} for p in prompts]
    (tmp_path / "ift.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sft = {"id": "taught", "method": "sft", "uses": ["demos"], "policy": False, **TRAIN}
    for last in (
        {"train": {**FRESH, "method": "on_policy_distillation", "teacher": "taught"}},
        {"average": {"models": ["initial", "taught"]}},
    ):
        demos = {"load": {"id": "demos", "type": "demonstrations", "path": "ift.jsonl"}}
        path = write(steps=[demos, {"train": sft}, last, {"evaluate": EVALUATE}])
        with pytest.raises(RlaifError, match="is held out and was trained on: 'taught'"):
            run_experiment(path, tmp_path / "run")


def test_given_answers_are_learned_from_in_their_share(write: Write, tmp_path: Path) -> None:
    demos = {"load": {"id": "demos", "type": "demonstrations", "path": "ift.jsonl"}}
    taught = {"id": "taught", "method": "sft", "uses": ["demos"], "policy": False, **TRAIN}
    student = {
        **FRESH, "id": "student", "method": "on_policy_distillation", "teacher": "taught",
        "divergence": "jsd", "given": 0.5, "rollouts": 4, "uses": ["demos"],
    }  # fmt: skip
    path = write(steps=[demos, {"train": taught}, {"train": student}, {"evaluate": EVALUATE}])
    run = tmp_path / "run"
    inputs = prepare(path)
    sizes = {row.id: row for row in forecast(inputs, Store(run))}
    plan = {p.id: p for p in make_plan(inputs)}
    run_experiment(path, run)
    folder = Store(run).step(plan["student"].hash)
    sampled = Counter(a["model"] for a in folder.rows("completions"))
    assert sampled == {f"student, rollout {n}": 4 for n in (1, 3)}
    assert sizes["student"].calls == 8 and sizes["student"].units == 2 * 4 + 2 * 2
    assert (folder.done() or {})["counts"]["demonstrations"] == 4
    said = " ".join(render_text(explain_file(path)).split())
    assert "2 rollouts of given answers" in said
