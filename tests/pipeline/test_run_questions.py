"""Questions about answers that the run itself samples: which there are, what they say, who is
right, and that nothing of it depends on when a run was killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.core.errors import ConfigError
from rlaif.core.records import (
    Completion,
    Judgement,
    Preference,
    Prompt,
    canonical_json,
    from_json,
)
from rlaif.core.store import Store
from rlaif.judges.base import Judge
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.forecast import forecast
from rlaif.pipeline.manifest import read_manifest
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.runs import Run
from rlaif.report.build import build_report

TRAIN = {"learning_rate": 1e-3, "batch_size": 2, "precision": "fp32", "max_length": 2000}
SHORT = {"max_new_tokens": 4}
JUDGES: list[dict[str, Any]] = [
    {"id": "compare", "kind": "pairwise", "by": "policy", "verdict": "written", **SHORT},
    {"id": "points", "kind": "additive", "by": "policy", **SHORT},
    {"id": "verify", "kind": "yes_no", "by": "policy", "principles": ["helpful"]},
    {"id": "right", "kind": "verdict", "of": "compare"},
    {"id": "consistent", "kind": "verdict", "of": "compare", "both_orders": True},
    {"id": "true", "kind": "verdict", "of": "verify"},
]
CONSTITUTION = {
    "name": "own",
    "principles": [
        {"id": "helpful", "text": "Is the answer helpful?"},
        {
            "id": "plain",
            "text": "There is no vowel after an e.",
            "check": {"rule": "forbidden_pattern", "params": {"pattern": "e[aeiou]"}},
        },
    ],
}
ANSWERS = {"id": "answers", "n": 3, "prompts": 3, "max_new_tokens": 20}
MARK = {"id": "marks", "kind": "rules"}
GRPO = {**TRAIN, **SHORT, "method": "grpo", "prompts": "cases", "n": 2, "rollouts": 1}

SEED = 3

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, small_model: Path) -> Write:
    """`write(STEP, ..., KEY=VALUE)`: an experiment of the tiny model."""
    rows = [{"prompt": f"Question number {n}?"} for n in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({**row, "chosen": "A plum.", "rejected": "No."}) + "\n" for row in rows)
    )
    (tmp_path / "constitution.yaml").write_text(yaml.safe_dump(CONSTITUTION))

    def write_file(*steps: dict[str, Any], **keys: Any) -> Path:
        whole = {
            "name": "own-questions",
            "seed": SEED,
            "models": {"policy": {"path": str(small_model), "dtype": "float32"}},
            "constitution": "constitution.yaml",
            "prompts": {"path": "prompts.jsonl", "holdout": 2},
            "judges": JUDGES,
            "steps": list(steps),
        }
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(whole | keys, sort_keys=False))
        return path

    return write_file


def by_id(run: Path) -> dict[str, dict[str, Any]]:
    return {step["id"]: step for step in read_manifest(run)["steps"]}


def records(run: Path, step: str, kind: Any) -> list[Any]:
    return list(Store(run).step(by_id(run)[step]["hash"]).records(kind))


def questions_of(run: Path, step: str = "cases") -> list[Prompt]:
    rows = Store(run).step(by_id(run)[step]["hash"]).rows("questions")
    return [from_json(Prompt, row) for row in rows]


def scores_of(judgements: list[Judgement]) -> dict[str, float]:
    """Each answer's score by a judge with one principle."""
    assert all(j.score is not None for j in judgements)
    return {j.subject: j.score or 0.0 for j in judgements}


def counts(run: Path, step: str) -> dict[str, int]:
    return dict((Store(run).step(by_id(run)[step]["hash"]).done() or {})["counts"])


def asked(judge: Judge, prompt: Prompt, answers: list[Completion]) -> list[Any]:
    """What a judge's model is sent about answers, by call."""
    made = judge.calls(prompt, answers, SEED)
    return [(call, call.request.messages) for call in made if call.request is not None]


def test_pairs_that_the_run_made_are_asked_about(write: Write, tmp_path: Path) -> None:
    path = write(
        {"sample": ANSWERS},
        {"judge": MARK},
        {"pair": {"id": "own", "strategy": "all"}},
        {"questions": {"id": "cases", "judge": "compare"}},
        {"sample": {"id": "tries", "n": 2, "prompts": "cases", **SHORT}},
        {"judge": {"id": "right", "uses": ["tries"]}},
        {"train": {**TRAIN, "id": "cold", "method": "sft", "uses": ["tries"]}},
        {"train": {**GRPO, "id": "j1", "rewards": {"consistent": 1}}},
    )
    run = tmp_path / "run"
    inputs = prepare(path)
    planned = {row.id: row for row in forecast(inputs, Store(run))}
    run_experiment(path, run)
    pairs: list[Preference] = records(run, "own", Preference)
    found = questions_of(run)
    assert pairs and len(found) == 2 * len(pairs) == counts(run, "cases")["questions"]
    # Three prompts, three answers to each, every two of them in both orders: some are ties.
    assert planned["cases"].units == 3 * 3 * 2 and planned["tries"].calls == 3 * 3 * 2 * 2
    assert len(found) <= planned["cases"].units
    judge = inputs.judges["compare"]
    prompts = {p.prompt_id: p for p in inputs.prompts.train}
    answers = {c.completion_id: c for c in records(run, "answers", Completion)}
    right = {}
    for pair in pairs:
        both = [answers[pair.chosen_id], answers[pair.rejected_id]]
        for call, messages in asked(judge, prompts[pair.prompt_id], both):
            right[canonical_json(messages)] = (call.shown[0] is both[0], pair.preference_id)
    assert {canonical_json(q.messages) for q in found} == right.keys()
    groups: dict[str, set[str]] = {}
    for question in found:
        first, pair_id = right[canonical_json(question.messages)]
        assert question.reference == ("1" if first else "2")
        groups.setdefault(question.group or "", set()).add(pair_id)
    assert len(groups) == len(pairs) and all(len(own) == 1 for own in groups.values())
    tries = records(run, "tries", Completion)
    assert {t.prompt_id for t in tries} == {q.prompt_id for q in found}
    assert len(tries) == 2 * len(found) == counts(run, "cold")["completions"]
    marks = records(run, "right", Judgement)
    assert len(marks) == len(tries) and {m.status for m in marks} == {"ok"}
    drawn = {c.prompt_id for c in records(run, "j1", Completion)}
    assert drawn and drawn <= {q.prompt_id for q in found}
    # A run that is read knows them, and a page has them.
    assert Run(run).prompt_records()[found[0].prompt_id].messages == found[0].messages
    assert set(Run(run).prompts.prompt_id) >= {q.prompt_id for q in found}
    assert build_report(Run(run).view(), tmp_path / "page.html").exists()
    again = run_experiment(path, run)
    assert again.ran == 0


def test_a_rule_says_which_answers_are_right_or_better(write: Write, tmp_path: Path) -> None:
    path = write(
        {"sample": ANSWERS},
        {"judge": {**MARK, "principles": ["plain"]}},
        *({"questions": {"id": f"{judge}_cases", "judge": judge, "uses": ["marks"]}}
          for judge in ("verify", "compare", "points")),
        {"sample": {"id": "tries", "n": 1, "prompts": "verify_cases", **SHORT}},
        {"judge": {"id": "true", "uses": ["tries"]}},
        {"train": {**TRAIN, "id": "direct", "method": "sft", "uses": ["verify_cases"]}},
    )  # fmt: skip
    run = tmp_path / "run"
    run_experiment(path, run)
    inputs = prepare(path)
    scores = scores_of(records(run, "marks", Judgement))
    answers: dict[str, list[Completion]] = {}
    for answer in records(run, "answers", Completion):
        answers.setdefault(answer.prompt_id, []).append(answer)
    prompts = {p.prompt_id: p for p in inputs.prompts.train}
    wanted: dict[str, dict[str, str]] = {"verify": {}, "compare": {}}
    for name, own in answers.items():
        for answer in own:
            ((_, messages),) = asked(inputs.judges["verify"], prompts[name], [answer])
            right = "Yes" if scores[answer.completion_id] > 0.5 else "No"
            wanted["verify"][canonical_json(messages)] = right
        for pair in combinations(own, 2):
            first, second = (scores[c.completion_id] for c in pair)
            if first == second:
                continue
            for call, messages in asked(inputs.judges["compare"], prompts[name], list(pair)):
                better = scores[call.shown[0].completion_id] == max(first, second)
                wanted["compare"][canonical_json(messages)] = "1" if better else "2"
    for judge, expected in wanted.items():
        found = questions_of(run, f"{judge}_cases")
        assert {canonical_json(q.messages): q.reference for q in found} == expected
        assert len(set(expected.values())) == 2 and len(found) == len(expected)
    assert {q.group for q in questions_of(run, "verify_cases")} == {None}
    assert counts(run, "direct")["questions"] == len(wanted["verify"])
    # Of a judge of single answers a score stands beside that of the other one.
    points = questions_of(run, "points_cases")
    groups: dict[str | None, list[Prompt]] = {q.group: [] for q in points}
    for question in points:
        groups[question.group].append(question)
    asks = {
        canonical_json(messages): scores[answer.completion_id]
        for name, own in answers.items()
        for answer in own
        for _, messages in asked(inputs.judges["points"], prompts[name], [answer])
    }
    assert groups and None not in groups
    for pair_of in groups.values():
        values = {q.reference: asks[canonical_json(q.messages)] for q in pair_of}
        assert values.keys() == {"higher", "lower"} and values["higher"] > values["lower"]
    marks = records(run, "true", Judgement)
    assert len(marks) == len(wanted["verify"]) and {m.status for m in marks} == {"ok"}


def plan_of(path: Path) -> dict[str, Any]:
    return {planned.id: planned for planned in make_plan(prepare(path, fetch=False))}


def test_what_is_asked_about_decides_the_hash_of_what_draws_from_it(write: Write) -> None:
    def hashes(judge: str = "compare", strategy: str = "all", name: str = "own") -> tuple[str, str]:
        plan = plan_of(
            write(
                {"sample": ANSWERS},
                {"judge": MARK},
                {"pair": {"id": name, "strategy": strategy}},
                {"questions": {"id": "cases", "judge": judge}},
                {"sample": {"id": "tries", "n": 2, "prompts": "cases", **SHORT}},
            )
        )
        return plan["cases"].hash, plan["tries"].hash

    known = hashes()
    assert hashes(name="other") == known == hashes()
    for changed in (hashes(judge="points"), hashes(strategy="margin")):
        assert not set(changed) & set(known)
    # Of best against worst there is one pair of each prompt.
    best = plan_of(
        write(
            {"sample": ANSWERS},
            {"judge": MARK},
            {"pair": {"strategy": "best_vs_worst"}},
            {"questions": {"id": "cases", "judge": "compare"}},
            {"sample": {"id": "tries", "n": 2, "prompts": {"set": "cases", "count": 3}, **SHORT}},
        )
    )
    assert len(best["cases"].prompts) == 3 * 2 and len(best["tries"].prompts) in (2, 4)


def test_each_round_asks_about_its_own_answers(write: Write) -> None:
    path = write(
        {"sample": ANSWERS},
        {"judge": MARK},
        {"pair": {"id": "own", "strategy": "all"}},
        {"questions": {"id": "cases", "judge": "compare"}},
        {"train": {**GRPO, "id": "j1", "rewards": {"consistent": 1}}},
        rounds=2,
    )
    plan = make_plan(prepare(path, fetch=False))
    first, second = (set(p.prompts) for p in plan if p.id == "cases")
    assert not first & second
    assert [set(p.prompts) for p in plan if p.id == "j1"] == [first, second]


ASK = {"questions": {"id": "cases", "judge": "compare"}}


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (
            [{"sample": {"n": 1, "prompts": "cases"}}, ASK],
            "the questions of 'cases' are not made yet",
        ),
        (
            [{"sample": ANSWERS}, {"judge": {"id": "both", "kind": "pairwise", "by": "policy"}},
             {"questions": {"judge": "compare", "uses": ["both"]}}],
            "'both' compares answers: let a `pair` step make pairs",
        ),
        (
            [{"load": {"id": "given", "type": "completions", "path": "given.jsonl"}},
             {"judge": MARK}, {"questions": {"judge": "compare", "uses": ["marks"]}}],
            "'marks' goes back to 'given', whose answers are counted when they are read",
        ),
        (
            [{"load": {"id": "pairs", "type": "pairs", "path": "pairs.jsonl", "prompts": "own"}},
             {"sample": {**ANSWERS, "prompts": "main"}}, {"judge": MARK},
             {"questions": {"judge": "compare", "uses": ["pairs", "marks"]}}],
            "'pairs' loads labelled pairs, and 'marks' does not",
        ),
        (
            [{"sample": ANSWERS}, {"judge": MARK},
             {"questions": {"id": "cases", "judge": "points", "uses": ["marks"]}},
             {"train": {**TRAIN, "method": "sft", "uses": ["cases"]}}],
            "which of two scores is higher is no answer",
        ),
        (
            [{"sample": ANSWERS}, {"judge": MARK},
             {"questions": {"judge": "verify", "uses": ["marks"], "orders": "fixed"}}],
            "is asked about each answer alone, so that no order is shown",
        ),
    ],
    ids=["too early", "comparative", "loaded", "mixed", "scores", "orders"],
)  # fmt: skip
def test_what_cannot_be_asked_about_is_refused(
    write: Write, tmp_path: Path, steps: list[dict[str, Any]], said: str
) -> None:
    (tmp_path / "given.jsonl").write_text("")
    with pytest.raises(ConfigError, match=said):
        plan_of(write(*steps))
