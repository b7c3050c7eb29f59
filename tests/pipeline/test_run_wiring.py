"""What a run's records, forecast and single steps are made from, where seeds, arms, prices and
files differ in every place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.models import ModelSpec
from rlaif.config.steps import EvaluateStep, LabelStep, SampleStep
from rlaif.core.errors import ConfigError
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Completion, Preference, Prompt, make_prompt
from rlaif.core.store import Store
from rlaif.data.sources import PromptSet
from rlaif.engines.base import GenerateRequest, Model, Sampling
from rlaif.judges.base import Call
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.forecast import _estimate_cost
from rlaif.pipeline.lengths import answer_tokens
from rlaif.pipeline.manifest import read_manifest, write_manifest, write_rounds
from rlaif.pipeline.plan.base import JudgeCalls, PlanInputs, Planned, Size
from rlaif.pipeline.rollouts import rollout_rows
from rlaif.pipeline.single_step import Request, _digest_files, _plan_inputs, _plan_step
from rlaif.pipeline.steps import filter as filter_step
from rlaif.pipeline.steps import load
from rlaif.pipeline.steps.context import StepContext

ASKED = [make_prompt([{"role": "user", "content": f"Question {i}?"}]) for i in range(3)]
EXPERIMENT: dict[str, Any] = {
    "name": "run",
    "seeds": [3, 5],
    "rounds": 1,
    "models": {"policy": {"path": "policy"}},
    "prompts": {"path": "p.jsonl"},
    "arms": {"one": {"labels": "human"}, "two": {"labels": "random"}},
    "steps": [
        {"load": {"type": "pairs", "path": "pairs.jsonl"}},
        {"sample": {"id": "draw", "max_new_tokens": 5}},
        {"label": {}},
        {"train": {}},
        {"evaluate": {"id": "ev"}},
    ],
}


def inputs_of(folder: Path, **keys: Any) -> PlanInputs:
    return PlanInputs(
        Experiment.model_validate(EXPERIMENT | keys),
        folder / "experiment.yaml",
        {},
        None,
        PromptSet(ASKED[:2], ASKED[2:], 0),
        {},
        {"policy": "weights:p"},
    )


def test_the_rounds_of_every_seed_and_arm_are_read_from_their_own_steps(tmp_path: Path) -> None:
    inputs, store = inputs_of(tmp_path), Store(tmp_path / "run")
    store.prepare()
    plan, words = [], {}
    policy = ModelSpec(path="policy")
    both = ("one", "two")
    for seed in (3, 5):
        for number, arms in ((0, both), (1, ("one",)), (1, ("two",))):
            name = f"{seed}{number}{arms[0]}"
            model = Model(f"k{name}", "M0" if not number else f"M1 of {name}", policy)
            models = {"policy": model}
            place: Any = (seed, number)
            if number:
                said = {"labels": "human", "flip": None}
                label = Planned(
                    f"l{name}", "label", "label", *place, LabelStep(), options=said, arms=arms
                )
                store.step(label.hash).finish({"counts": {"preferences": len(plan)}}, None)
                plan.append(label)
            step = EvaluateStep(id="ev")
            given = {f"labels/{name}": f"l{name}"}
            one = Planned(f"e{name}", "evaluate", "ev", *place, step, given, models, arms=arms)
            words[one.hash] = float(10 * len(plan))
            interval = {"mean": words[one.hash], "low": None, "high": None, "n": 4}
            row = {"metrics": {"length/words": interval}, "deltas": {}, "counts": {}}
            folder = store.step(one.hash)
            folder.append("evaluation", [row])
            folder.finish({"counts": {"prompts": 1}}, None)
            plan.append(one)
    records = write_rounds(inputs, plan, store)
    found = [
        (r.seed, r.arm, r.round, r.policy_in, r.policy_out, r.metrics["metrics"]) for r in records
    ]
    assert [row[:5] for row in found] == [
        (seed, arm, number, "M0", "M0" if not number else f"M1 of {seed}1{arm}")
        for seed in (3, 5)
        for arm in both
        for number in (0, 1)
    ]
    hashes = [f"e{s}{n}{a if n else 'one'}" for s in (3, 5) for a in both for n in (0, 1)]
    assert [row[5]["length/words"]["mean"] for row in found] == [words[h] for h in hashes]
    made = {(r.seed, r.arm): r.counts for r in records if r.round}
    assert made == {
        (3, "one"): {"label.preferences": 1},
        (3, "two"): {"label.preferences": 3},
        (5, "one"): {"label.preferences": 6},
        (5, "two"): {"label.preferences": 8},
    }
    write_manifest(store, inputs, plan)
    manifest = read_manifest(store.root)
    assert (manifest["seeds"], list(manifest["arms"])) == ([3, 5], ["one", "two"])
    assert manifest["arms"]["two"]["labels"] == "random"
    counted = (manifest["prompts"]["train"], manifest["prompts"]["heldout"])
    assert (counted, manifest["models"]) == ((2, 1), {"policy": "weights:p"})
    (step,) = [s for s in manifest["steps"] if s["hash"] == "e51two"]
    assert step == {
        "hash": "e51two",
        "kind": "evaluate",
        "id": "ev",
        "arms": ["two"],
        "seed": 5,
        "round": 1,
        "stage": "main",
        "number": 0,
        "does": ["0 held-out prompts, 1 answer to each"],
        "settings": [],
        "inputs": {"labels/51two": "l51two"},
        "models": {"policy": ["M1 of 51two", "k51two"]},
    }


def test_rollouts_are_shown_under_the_seed_arm_and_gates_of_their_own_training(
    tmp_path: Path,
) -> None:
    store, steps = Store(tmp_path), []
    for place, (seed, arm, number, name) in enumerate(
        [(3, "one", 1, "first"), (5, "two", 2, "second")]
    ):
        digest = f"{place}" * 24
        work = store.step(digest).path / "work"
        work.mkdir(parents=True)
        rows = [
            {"step": 1, "rollout": 1, "reward": 0.25 + place, "kl_reference": 3.0, "loss": 9.0},
            {"step": 2, "rollout": 2, "reward": 0.5 + place, "kl_reference": 6.0, "loss": 9.0},
        ]
        (work / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        about = {"seed": seed, "arms": [arm], "round": number, "id": name}
        steps.append({**about, "kind": "train", "hash": digest})
    gates = {"first": {"kl": {"warn": 2, "stop": 9}}, "second": {"kl": {"warn": 5}}}
    config = {"steps": [{"train": {"id": n, "gates": g}} for n, g in gates.items()]}
    found = rollout_rows(store, steps, config)
    keys = ("seed", "arms", "round", "id")
    assert [[row[key] for key in keys] for row in found] == [  # type: ignore[literal-required]
        [3, ["one"], 1, "first"],
        [5, ["two"], 2, "second"],
    ]
    rewards = [[figures["reward"] for _, figures in row["points"]] for row in found]
    assert rewards == [[0.25, 0.5], [1.25, 1.5]]
    assert [row["limits"]["kl"]["warn"] for row in found] == [[2.0], [5.0]]
    assert [row["limits"]["kl"]["stop"] for row in found] == [[9.0], []]
    assert [row["reached"] for row in found] == [
        ["gates.kl.warn (2 or more) was reached in 2 of 2 rollouts, first in rollout 1"],
        ["gates.kl.warn (5 or more) was reached in 1 of 2 rollouts, first in rollout 2"],
    ]


@dataclass
class Asking:
    """A judge whose question is the prompt and both answers, and who notes the seed."""

    seen: list[Any] = field(default_factory=list)

    def calls(self, prompt: Prompt, completions: Sequence[Completion], seed: int) -> list[Call]:
        self.seen.append((seed, [len(c.text) for c in completions]))
        text = prompt.question + "".join(c.text for c in completions)
        turns: Any = [{"role": "user", "content": text}]
        request = GenerateRequest("r", turns, Sampling())
        return [Call("c", prompt, tuple(completions), request=request), Call("d", prompt, ())]


def test_costs_are_those_of_each_models_own_price(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path)
    spec: Any = {"path": "m", "engine": "openai", "base_url": "http://127.0.0.1:9/v1"}
    priced = [
        Model(name, name, ModelSpec(**spec, price=price))
        for name, price in (
            ("cheap", {"input": 2e6, "output": 3e6}),
            ("dear", {"input": 5e6, "output": 7e6}),
        )
    ]
    free = Model("free", "free", ModelSpec(**spec))
    cheap, dear = priced
    sample = Planned("h", "sample", "draw", 9, 1, SampleStep(), models={"by": dear})
    # A question has 11 bytes, which are 2.75 tokens: 8 calls read 22.
    assert _estimate_cost(inputs, sample, Size(8, 8, 70), 1) == (22 * 5 + 70 * 7, True)
    # An answer has a token at least.
    assert _estimate_cost(inputs, sample, Size(8, 8, 0), 1) == (22 * 5 + 8 * 7, True)
    judge: Any = Asking()
    read = {"completions/0": "one", "completions/1": "two", "preferences/0": "h"}
    train = Planned("t", "train", "t", 9, 1, EvaluateStep(), inputs=read, models={})
    known = {
        name: Planned(name, "sample", name, 9, 1, SampleStep(max_new_tokens=tokens))
        for name, tokens in (("one", 5), ("two", 3), ("else", 90))
    }
    longest = answer_tokens(train, known)
    asks = (
        JudgeCalls(judge, {"by": cheap}, 4, 4, 10),
        JudgeCalls(judge, {"by": free}, 6, 6, 20),
        JudgeCalls(judge, {"by": dear}, 2, 2, 30),
    )
    # Two answers of the 5 tokens that the step `one` may write: 51 bytes, 12.75 tokens.
    wanted = (51 * 2 + 10 * 3) + (round(25.5) * 5 + 30 * 7)
    assert _estimate_cost(inputs, train, Size(12, 12, 60, asks), longest) == (wanted, True)
    assert judge.seen == [(9, [20, 20])] * 6
    mixed = JudgeCalls(judge, {"by": free, "critic": dear}, 2, 2, 30)
    size = Size(12, 12, 60, (asks[0], mixed))
    assert _estimate_cost(inputs, train, size, longest) == (51 * 2 + 10 * 3, False)


def written(folder: Path, name: str, rows: Sequence[Any]) -> str:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_single_step_reads_each_file_in_the_part_that_it_was_given_for(tmp_path: Path) -> None:
    files = {name: written(tmp_path, name, [{"of": name}]) for name in ("new", "old", "a", "b")}
    digest = {name: _digest_files(Path(path)) for name, path in files.items()}
    prompts = Path(written(tmp_path, "prompts", [{"prompt": f"Question {i}?"} for i in range(2)]))

    def plan(kind: str, given: dict[str, str], *settings: str, seed: int = 9) -> Planned:
        inputs = {role: files[name] for role, name in given.items()}
        request = Request(kind, tmp_path / "out", settings, prompts, inputs=inputs, seed=seed)
        return _plan_step(request, _plan_inputs(request))

    given = {"completions/0": "new", "judgements/j": "a", "judgements/k": "b", "initial/j": "old"}
    paired = plan("pair", given, "standardise=initial", "weights={j: 2.0}")
    assert paired.inputs == {
        "judgements/j": digest["a"],
        "judgements/k": digest["b"],
        "completions/0": digest["new"],
        "initial/j": digest["old"],
    }
    assert (paired.seed, paired.step.weights, len(paired.prompts)) == (9, {"j": 2.0}, 2)
    assert (
        plan("pair", given, "standardise=initial", "weights={j: 2.0}", seed=4).hash != paired.hash
    )
    given = {
        "completions": "new",
        "judgements/j": "a",
        "initial/completions": "old",
        "initial/judgements/j": "b",
    }
    measured = plan("evaluate", given, "n=3")
    assert measured.inputs == {role: digest[name] for role, name in given.items()}
    assert (measured.seed, measured.step.n, measured.step.against) == (9, 3, ["initial"])
    alone = plan("evaluate", {"completions": "new", "judgements/j": "a"})
    assert alone.inputs == {"completions": digest["new"], "judgements/j": digest["a"]}
    # Ratings and tokens of the answers are found through the pairs.
    given = {"preferences/0": "new", "completions/0": "old", "judgements/j": "a"}
    trained = plan("train", given, "method=dpo", "beta=0.3")
    assert trained.inputs == {"preferences/0": digest["new"]}
    assert trained.options["completions"] == [digest["old"]]
    assert trained.options["judgements"] == [digest["a"]]
    assert (trained.step.beta, trained.seed) == (0.3, 9)


def context(
    folder: Path, planned: Planned, prompts: Sequence[Prompt] = ASKED, **inputs: Any
) -> StepContext:
    store = Store(folder / "run")
    made: Any = (planned, store.step(planned.hash), store, inputs_of(folder))
    by_id = {p.prompt_id: p for p in prompts}
    return StepContext(*made, by_id, None, QuietProgress())  # type: ignore[arg-type]


def test_loaded_preferences_are_of_the_steps_round_with_each_sides_own_score(
    tmp_path: Path,
) -> None:
    rows = [
        {"q": "Which?", "one": "Bad.", "two": "Good.", "s1": 2.0, "s2": 7.0},
        {"q": "Which one?", "one": "Best.", "two": "Worst.", "s1": 9.0, "s2": 1.0},
        {"q": "Both?", "one": "Same.", "two": "Equal.", "s1": 4.0, "s2": 4.0},
        {"q": "None?", "one": "Only.", "s1": 4.0, "s2": 5.0},
    ]
    columns = {
        "prompt": "q",
        "first": "one",
        "second": "two",
        "first_score": "s1",
        "second_score": "s2",
    }
    path = written(tmp_path, "pairs", rows)
    keys: Any = {"type": "preferences", "path": path, "columns": columns, "on_error": "skip"}
    step = load.LoadStep.model_validate(keys)
    run = context(tmp_path, Planned("h", "load", "load", 7, 3, step))
    assert load.run(run)["counts"] == {"preferences": 2, "tied": 1, "skipped": 1}
    found = list(run.folder.records(Preference))
    first, second = (
        p for text in ("Which?", "Which one?") for p in found if p.prompt[-1]["content"] == text
    )
    assert (first.chosen[0]["content"], first.rejected[0]["content"]) == ("Good.", "Bad.")
    assert (first.score_chosen, first.score_rejected, first.margin) == (7.0, 2.0, 5.0)
    assert (second.chosen[0]["content"], second.rejected[0]["content"]) == ("Best.", "Worst.")
    assert (second.score_chosen, second.score_rejected, second.margin) == (9.0, 1.0, 8.0)
    assert {p.round for p in found} == {3}
    failing = load.LoadStep.model_validate(keys | {"on_error": "fail"})
    with pytest.raises(ConfigError):
        load.run(context(tmp_path, Planned("i", "load", "load", 7, 3, failing)))


def test_filters_read_their_own_files_and_say_what_each_refused(tmp_path: Path) -> None:
    texts = [
        "A plain answer.",
        "It says purple here.",
        "It says orange.",
        "You ask: Question 2?",
        "That is quite another thing.",
    ]
    turns: list[Any] = [[{"role": "assistant", "content": text}] for text in texts]
    made = [
        Completion(f"k{i}", ASKED[i % 2].prompt_id, 0, turn, "m", "w", {}, "stop")
        for i, turn in enumerate(turns)
    ]
    (tmp_path / "first.txt").write_text("# orange\npurple\n")
    (tmp_path / "second.txt").write_text("orange\n")
    written(tmp_path, "eval", [{"prompt": "Is it quite another thing?"}])
    against = {"against": ["heldout", "eval.jsonl"], "of": "answers", "n": 2, "share": 0.4}
    filters = [
        {"kind": "lexicon", "path": "first.txt"},
        {"kind": "contamination", **against},
        {"kind": "lexicon", "path": "second.txt"},
    ]
    step = filter_step.FilterStep.model_validate({"records": "completions", "filters": filters})
    sources = {"completions/0": "c", "completions/1": "d"}
    run = context(tmp_path, Planned("h", "filter", "kept", 7, 3, step, sources))
    run.store.step("c").append("completions", made[:2])
    run.store.step("d").append("completions", made[2:])
    summary = filter_step.run(run)
    assert summary["counts"] == {"completions": 1, "refused": 4}
    assert [c.completion_id for c in run.folder.records(Completion)] == ["k0"]
    refused = {row["id"]: (row["why"], row["detail"]) for row in run.folder.rows("refused")}
    assert refused == {
        "k1": ("listed words", "purple"),
        "k2": ("listed words", "orange"),
        "k3": ("heldout", "Question 2?"),
        "k4": ("eval.jsonl", "Is it quite another thing?"),
    }
    assert [(stage["came"], stage["left"]) for stage in summary["funnel"]] == [
        (5, 4),
        (4, 2),
        (2, 1),
    ]
