"""Two rounds of three models whose answers and verdicts are planted: who is asked what, and what
each round's figures compare. Planning, pairing, evaluating and the round records are the real ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.constitution.model import Constitution
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Completion, Judgement, Preference, content_hash, make_prompt
from rlaif.core.store import Store
from rlaif.core.yamlio import load_yaml, validate
from rlaif.data.sources import PromptSet
from rlaif.judges.build import build_judge
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.manifest import write_rounds
from rlaif.pipeline.plan.base import PlanInputs, Planned, round_prompts
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.steps import evaluate, pair
from rlaif.pipeline.steps.context import StepContext

PROMPTS = [make_prompt([{"role": "user", "content": f"Question {i}?"}]) for i in range(7)]
HELD_OUT, TRAINED_ON = PROMPTS[:2], PROMPTS[2:]
EXPERIMENT: dict[str, Any] = {
    "name": "wiring",
    "seed": 4,
    "models": {"policy": {"path": "policy"}, "other": {"path": "other"}},
    "prompts": {"path": "p.jsonl", "holdout": 2},
    "rounds": 2,
    "steps": [
        {"sample": {"n": 2, "prompts": 2}},
        {"judge": {"id": "self", "kind": "yes_no", "by": "policy", "principles": ["kind"]}},
        {"judge": {"id": "frozen", "kind": "yes_no", "by": "initial", "principles": ["kind"]}},
        {"judge": {"id": "given", "kind": "yes_no", "by": "other", "principles": ["kind"]}},
        {"pair": {"weights": {"self": 1.0}}},
        {"train": {}},
        {"evaluate": {"resamples": 50}},
    ],
}
# What each model writes, in words; what the judge `self` says of it when it is asked of each model.
WORDS = {"M0": 1, "M1": 4, "M2": 9}
SELF = {
    "M0": {"M0": 0.2, "M1": 0.5, "M2": 0.875},
    "M1": {"M0": 0.3, "M1": 0.6},
    "M2": {"M0": 0.05},
}
OTHER = {"M0": 0.9, "M1": 0.8, "M2": 0.3}
LOGPROB = {"M0": -1.0, "M1": -2.0, "M2": -5.0}


@dataclass
class Run:
    plan: list[Planned]
    inputs: PlanInputs
    store: Store

    def of(self, kind: str, number: int) -> list[Planned]:
        return [p for p in self.plan if p.kind == kind and p.round == number]

    def row(self, number: int) -> dict[str, Any]:
        (planned,) = self.of("evaluate", number)
        (row,) = self.store.step(planned.hash).read("evaluation")
        return dict(row)


def run(folder: Path, **evaluation: Any) -> Run:
    """Every step of the plan in order: answers and verdicts are planted, and nothing is trained."""
    path = folder / "experiment.yaml"
    steps = [*EXPERIMENT["steps"][:-1], {"evaluate": {"resamples": 50, **evaluation}}]
    path.write_text(yaml.safe_dump(EXPERIMENT | {"steps": steps}, sort_keys=False))
    loaded, lines = load_yaml(path)
    experiment = validate(Experiment, loaded, lines, path)
    rules = {"name": "r", "version": "1", "principles": [{"id": "kind", "text": "It is kind."}]}
    constitution = Constitution.model_validate(rules)
    judges = {n: build_judge(s, constitution, path) for n, s in experiment.all_judges().items()}
    keys = {name: f"weights of {name}" for name in experiment.models}
    prompts = PromptSet(TRAINED_ON, HELD_OUT, 0)
    inputs = PlanInputs(experiment, path, lines, constitution, prompts, judges, keys)
    made = Run(make_plan(inputs), inputs, Store(folder / "run"))
    for planned in made.plan:
        carry_out(made, planned)
    return made


def carry_out(made: Run, planned: Planned) -> None:
    folder = made.store.step(planned.hash)
    context = StepContext(
        planned,
        folder,
        made.store,
        made.inputs,
        {p.prompt_id: p for p in PROMPTS},
        None,  # type: ignore[arg-type]
        QuietProgress(),
    )
    summary: dict[str, Any] = {"counts": {"planted": 1}}
    if planned.kind == "sample":
        folder.append("completions", answers(planned))
    elif planned.kind == "judge":
        folder.append("judgements", judged(planned, context.completions()))
    elif planned.kind == "logprobs":
        rows = [
            {"completion_id": c.completion_id, "logprob": LOGPROB[c.model] * 2, "tokens": 2}
            for c in context.completions()
        ]
        folder.append("logprobs", rows)
    elif planned.kind == "pair":
        summary = pair.run(context)
    elif planned.kind == "evaluate":
        summary = evaluate.run(context)
    folder.finish(summary | {"hash": planned.hash, "kind": planned.kind}, None)


def answers(planned: Planned) -> list[Completion]:
    author = planned.models["by"].label
    made = []
    for prompt_id in planned.prompts:
        for index in range(planned.step.n):
            name = "k_" + content_hash(planned.hash, prompt_id, index)
            text = " ".join(["word"] * WORDS[author] + ["more"] * index)
            turns: Any = [{"role": "assistant", "content": text}]
            ids = list(range(WORDS[author]))
            row = Completion(
                name,
                prompt_id,
                index,
                turns,
                author,
                "w",
                {},
                "stop",
                ids,
                [-0.5, -0.5],
                digest=text,
            )
            made.append(row)
    return made


def judged(planned: Planned, completions: list[Completion]) -> list[Judgement]:
    """The second answer to a prompt is a little worse to everybody."""
    asked = planned.models["by"].label
    made = []
    for c in completions:
        if planned.prompts and c.prompt_id not in planned.prompts:
            continue
        score = OTHER[c.model] if asked == "other" else SELF[asked][c.model]
        name = f"{planned.hash}_{c.completion_id}"
        who = ("completion", [c.completion_id], c.completion_id, planned.step.id, asked, "model")
        made.append(
            Judgement(
                f"j_{name}",
                f"c_{name}",
                c.prompt_id,
                *who,  # type: ignore[arg-type]
                "kind",
                "ok",
                score - 0.125 * c.sample_index,
            )
        )
    return made


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("wiring"))


def means(intervals: dict[str, Any], *names: str) -> list[float]:
    return [intervals[name]["mean"] for name in names]


def test_each_round_is_compared_with_the_first_model_and_the_last_one(done: Run) -> None:
    names = "score/self", "score/given", "length/words"
    assert means(done.row(0)["metrics"], *names) == pytest.approx([0.2, 0.9, 1.0])
    assert done.row(0)["deltas"] == {}
    first, second = done.row(1), done.row(2)
    assert means(first["metrics"], *names) == pytest.approx([0.5, 0.8, 4.0])
    assert first["deltas"].keys() == second["deltas"].keys() == {"initial", "previous"}
    for against in ("initial", "previous"):
        assert means(first["deltas"][against], *names) == pytest.approx([0.3, -0.1, 3.0])
    assert means(second["metrics"], *names) == pytest.approx([0.875, 0.3, 9.0])
    assert means(second["deltas"]["initial"], *names) == pytest.approx([0.675, -0.6, 8.0])
    assert means(second["deltas"]["previous"], *names) == pytest.approx([0.375, -0.5, 5.0])
    # Under M0 the answers of M2 have -5 nats a token, and M0's own -1; -1/2 under their own model.
    names = "loglik/initial", "kl/initial", "kl_per_token/initial", "entropy"
    assert means(second["metrics"], *names) == pytest.approx([-5.0, 9.0, 4.5, 0.5])
    assert means(second["deltas"]["initial"], "loglik/initial") == pytest.approx([-4.0])


def test_drift_is_the_moved_judge_less_the_frozen_one(done: Run) -> None:
    """M1 gives M0's answers 0.3 and M2 0.05 where M0 itself gives 0.2."""
    assert "drift/self" not in done.row(0)["metrics"]
    assert means(done.row(1)["metrics"], "drift/self") == pytest.approx([0.1])
    assert means(done.row(2)["metrics"], "drift/self") == pytest.approx([-0.15])
    drifts = {name for n in range(3) for name in done.row(n)["metrics"] if name.startswith("drift")}
    assert drifts == {"drift/self"}


def test_an_evaluation_asks_the_frozen_judge_and_a_round_the_moving_one(done: Run) -> None:
    asked: dict[str, list[str]] = {}
    for planned in done.plan:
        if planned.kind == "judge":
            asked.setdefault(planned.id, []).append(planned.models["by"].label)
    assert asked == {
        "evaluate.self": ["M0", "M0", "M0"],
        "evaluate.frozen": ["M0", "M0", "M0"],
        "evaluate.given": ["other", "other", "other"],
        "self": ["M0", "M1"],
        "frozen": ["M0", "M0"],
        "given": ["other", "other"],
        "evaluate.drift.self": ["M1", "M2"],
    }
    # What the answers of every model are measured under.
    scored = [p.models["by"].label for p in done.plan if p.kind == "logprobs"]
    assert scored == ["M0", "M0", "M0"]


def test_a_round_samples_trains_and_pairs_with_the_model_before_it(done: Run) -> None:
    windows = [round_prompts(TRAINED_ON, 2, 4, number) for number in (1, 2)]
    assert not set(windows[0]) & set(windows[1])
    for number, policy, made in ((1, "M0", "M1"), (2, "M1", "M2")):
        sample = next(p for p in done.of("sample", number) if p.id == "sample")
        assert sample.models["by"].label == policy
        assert list(sample.prompts) == windows[number - 1]
        (train,) = done.of("train", number)
        labels = {role: model.label for role, model in train.models.items()}
        assert labels == {"start": policy, "reference": policy, "made": made}
        (paired,) = done.of("pair", number)
        rows = list(done.store.step(paired.hash).records(Preference))
        assert sorted(p.prompt_id for p in rows) == windows[number - 1]
        assert {p.round for p in rows} == {number}
        # By the judge of that round, which is the policy.
        assert [p.score_chosen for p in rows] == pytest.approx([SELF[policy][policy]] * 2)
        held = next(p for p in done.of("sample", number) if p.id == "evaluate.sample")
        assert held.models["by"].label == made
        assert set(held.prompts) == {p.prompt_id for p in HELD_OUT}


def test_the_rounds_diagnostics_are_of_its_own_samples_and_pairs(done: Run) -> None:
    found = done.row(2)["metrics"]
    names = "pairs/margin", "pairs/unpaired_prompts", "samples/score/self", "samples/zero_variance"
    assert means(found, *names) == pytest.approx([0.125, 0.0, 0.5375, 0.0])
    # The second answer is worse, and a word longer.
    assert means(found, "pairs/length_gap") == [-1.0]
    assert found["pairs/margin"]["n"] == 2
    assert not any(name.startswith(("pairs/", "samples/")) for name in done.row(0)["metrics"])


def test_the_round_records_say_which_model_went_in_and_which_came_out(done: Run) -> None:
    records = write_rounds(done.inputs, done.plan, done.store)
    assert [(r.round, r.policy_in, r.policy_out) for r in records] == [
        (0, "M0", "M0"),
        (1, "M0", "M1"),
        (2, "M1", "M2"),
    ]
    assert records[2].metrics["deltas"] == done.row(2)["deltas"]
    assert records[2].counts["pair.preferences"] == 2
    assert "pair.preferences" not in records[0].counts


def test_an_evaluation_compares_with_those_that_it_names(tmp_path: Path) -> None:
    made = run(tmp_path, against=["previous"], judges=["given"])
    row = made.row(2)
    assert row["deltas"].keys() == {"previous"}
    assert means(row["deltas"]["previous"], "score/given") == pytest.approx([-0.5])
    assert "score/self" not in row["metrics"]
    asked = {p.id for p in made.plan if p.kind == "judge" and p.id.startswith("evaluate")}
    assert asked == {"evaluate.given"}
    (tmp_path / "first").mkdir()
    made = run(tmp_path / "first", against=["initial"], judges=["given"])
    assert made.row(2)["deltas"].keys() == {"initial"}
    (planned,) = made.of("evaluate", 2)
    assert not any(name.startswith("previous/") for name in planned.inputs)
