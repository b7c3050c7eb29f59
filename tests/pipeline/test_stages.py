"""Stages: numbering, names across them, prompt windows, and what a second stage may not disturb."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.core.errors import ConfigError
from rlaif.pipeline.manifest import resolved_yaml
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.reading import load_experiment

BASE: dict[str, Any] = {
    "name": "stages",
    "models": {"policy": {"path": "builtin/smollm2-135m-instruct"}},
    "constitution": "constitutions/concise_helper.yaml",
    "prompts": {"path": "prompts.jsonl", "holdout": 2},
    "judges": [{"id": "gold", "kind": "rules"}],
}
SEED = {
    "id": "seed",
    "steps": [
        {"load": {"id": "ift", "type": "demonstrations", "path": "ift.jsonl"}},
        {"train": {"id": "sft", "method": "sft", "uses": ["ift"]}},
        {"evaluate": {"judges": ["gold"]}},
    ],
}
LOOP = {
    "id": "loop",
    "rounds": 2,
    "steps": [
        {"sample": {"n": 2, "prompts": 3}},
        {"judge": "gold"},
        {"pair": {}},
        {"train": {"id": "dpo"}},
        {"evaluate": {"judges": ["gold"], "against": ["sft", "previous"]}},
    ],
}


VARIANT = {"train": {"id": "variant", "policy": False, "beta": 0.4}}


def changed(stage: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {**stage, **keys}


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(stages=..., KEY=VALUE)`: an experiment beside its prompts and demonstrations."""
    lines = "".join(f'{{"prompt": "Question number {n}?"}}\n' for n in range(14))
    (tmp_path / "prompts.jsonl").write_text(lines)
    (tmp_path / "red.jsonl").write_text(lines.replace("Question", "Red question"))
    said = '{{"prompt": "How is {n}?", "completion": "It is {n}."}}\n'
    (tmp_path / "ift.jsonl").write_text("".join(said.format(n=n) for n in range(4)))

    def write_file(**keys: Any) -> Path:
        path = tmp_path / "experiment.yaml"
        whole = {name: value for name, value in (BASE | keys).items() if value is not None}
        path.write_text(yaml.safe_dump(whole, sort_keys=False))
        return path

    return write_file


def planned(path: Path, *overrides: str) -> list[Planned]:
    return make_plan(prepare(path, overrides, fetch=False))


def own(plan: list[Planned]) -> list[tuple[str, int, int, str]]:
    """Stage, number, round and id of the steps that the file names."""
    return [(p.stage, p.number, p.round, p.id) for p in plan if "." not in p.id]


def step(plan: list[Planned], name: str, number: int = 1, arm: str = "") -> Planned:
    found = [
        p
        for p in plan
        if (p.id, p.number) == (name, number) and p.round > 0 and (not arm or arm in p.arms)
    ]
    assert len(found) == 1, (name, number, [f.id for f in found])
    return found[0]


def fault(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        planned(path, *overrides)
    return str(error.value)


def test_rounds_count_over_the_file_and_within_the_stage(write: Write) -> None:
    plan = planned(write(stages=[SEED, LOOP]))
    names = ("sample", "gold", "pair", "dpo", "evaluate-loop")
    assert own(plan) == [
        ("seed", 0, 0, "evaluate"),
        ("loop", 0, 0, "evaluate-loop"),
        ("seed", 1, 1, "ift"),
        ("seed", 1, 1, "sft"),
        ("seed", 1, 1, "evaluate"),
        *[("loop", number, number + 1, name) for number in (1, 2) for name in names],
    ]


def test_one_stage_is_the_file_without_stages(write: Write) -> None:
    single = planned(write(steps=LOOP["steps"][:4], rounds=2))
    staged = planned(write(stages=[changed(LOOP, steps=LOOP["steps"][:4])]))
    assert [p.hash for p in single] == [p.hash for p in staged]
    labels = [
        [p.models["made"].label for p in plan if p.kind == "train"] for plan in (single, staged)
    ]
    assert labels == [["M1", "M2"], ["M1", "M2"]]


def test_the_second_stage_starts_from_the_first_ones_policy(write: Write) -> None:
    plan = planned(write(stages=[SEED, LOOP]))
    sft, first, second = step(plan, "sft"), step(plan, "dpo"), step(plan, "dpo", 2)
    assert [p.models["made"].label for p in (sft, first, second)] == ["sft", "dpo@1", "dpo@2"]
    assert first.models["start"].train_hash == first.models["reference"].train_hash == sft.hash
    assert second.models["start"].train_hash == first.hash
    assert step(plan, "sample").models["by"].train_hash == sft.hash
    evaluated = step(plan, "evaluate-loop", 2)
    assert evaluated.models["policy"].train_hash == second.hash
    heads = {name.rpartition("/")[0].removesuffix("/judgements") for name in evaluated.inputs}
    assert {"against/sft", "previous", "initial"} <= heads


def test_a_model_goes_by_the_id_of_its_step_and_round(write: Write) -> None:
    last = {
        "id": "last",
        "steps": [
            {"sample": {"n": 2, "prompts": 3, "by": "dpo@1"}},
            {"judge": "gold"},
            {"pair": {}},
            {"train": {"id": "again", "from": "sft", "reference": "dpo", "policy": False}},
            {"train": {"id": "other", "from": "again", "reference": "dpo@1"}},
        ],
    }
    plan = planned(write(stages=[SEED, LOOP, last]))
    again, other = step(plan, "again"), step(plan, "other")
    assert step(plan, "sample-last").models["by"].train_hash == step(plan, "dpo").hash
    assert again.models["start"].train_hash == step(plan, "sft").hash
    assert again.models["reference"].train_hash == step(plan, "dpo", 2).hash
    assert other.models["start"].train_hash == again.hash
    assert other.models["reference"].train_hash == step(plan, "dpo").hash


def test_a_model_beside_the_policy_leaves_it_where_it_was(write: Write) -> None:
    steps = [*LOOP["steps"][:3], VARIANT, *LOOP["steps"][3:]]
    plan = planned(write(stages=[SEED, changed(LOOP, steps=steps)]))
    without = planned(write(stages=[SEED, LOOP]))
    assert step(plan, "dpo", 2).hash == step(without, "dpo", 2).hash
    assert step(plan, "variant").models["start"].train_hash == step(plan, "sft").hash
    assert step(plan, "variant", 2).models["start"].train_hash == step(plan, "dpo").hash


def test_windows_go_on_where_the_widest_before_ended(write: Write) -> None:
    first = changed(LOOP, id="first")
    second = {"id": "second", "steps": [{"sample": {"n": 2, "prompts": 4}}, {"judge": "gold"}]}
    plan = planned(
        write(stages=[SEED, first, second], prompts={"path": "prompts.jsonl", "holdout": 2})
    )
    windows = [set(p.prompts) for p in plan if p.kind == "sample" and "." not in p.id]
    assert [len(w) for w in windows] == [3, 3, 4]
    assert not windows[0] & windows[1] and not windows[2] & (windows[0] | windows[1])
    # An arm that lacks the stage draws the same prompts in the next one.
    arms = planned(
        write(stages=[SEED, changed(first, arms=["a"]), {**second, "steps": [
            *second["steps"], {"pair": {}}, {"train": {"id": "t"}}, {"evaluate": {}}]}],
              arms={"a": {}, "b": {}})
    )  # fmt: skip
    drawn = {tuple(p.prompts) for p in arms if p.id == "sample-second"}
    assert [set(prompts) for prompts in drawn] == [windows[2]]


def test_two_steps_that_would_draw_the_same_answers_draw_others(write: Write) -> None:
    two = [
        {"sample": {"id": "a", "n": 2}},
        {"judge": "gold"},
        {"pair": {}},
        {"train": {"id": "one"}},
    ]
    plan = planned(
        write(
            steps=[
                *two,
                {"sample": {"id": "b", "n": 2, "by": "previous"}},
                {"judge": {"id": "second", "kind": "rules"}},
                {"pair": {"id": "later"}},
                {"train": {"id": "two", "from": "initial"}},
            ]
        )
    )
    a, b = step(plan, "a"), step(plan, "b")
    assert (a.prompts, a.models["by"].key) == (b.prompts, b.models["by"].key)
    assert a.options["sampling_seed"] == "0/1" and b.options["sampling_seed"] == "0/1/b"
    assert a.hash != b.hash


@pytest.mark.parametrize(
    ("uses", "numbers"),
    [("pair", [(2, "pair")]), ("pair@1", [(1, "pair")]), ("pair@*", [(1, "pair"), (2, "pair")]),
     ("pair@last", [(2, "pair")])],
)  # fmt: skip
def test_what_uses_names_in_an_earlier_stage(
    write: Write, uses: str, numbers: list[tuple[int, str]]
) -> None:
    last = {"id": "last", "steps": [{"train": {"id": "late", "uses": [uses]}}]}
    plan = planned(write(stages=[SEED, LOOP, last]))
    by_hash = {p.hash: (p.number, p.id) for p in plan}
    assert [by_hash[h] for h in step(plan, "late").inputs.values()] == numbers


def test_a_stage_begins_with_nothing_but_the_policy(write: Write) -> None:
    last = {"id": "last", "steps": [{"train": {"id": "late"}}]}
    said = fault(write(stages=[SEED, LOOP, last]))
    assert "train has no preferences" in said or "preferences" in said
    assert "experiment.yaml:" in said


def test_a_judge_runs_in_every_stage_by_its_id(write: Write) -> None:
    train = {"train": {"id": "ipo", "method": "ipo"}}
    steps = [*LOOP["steps"][:2], {"pair": {"uses": ["gold"]}}, train]
    other = changed(LOOP, id="other", rounds=1, steps=steps)
    plan = planned(write(stages=[SEED, LOOP, other]))
    judged = [(p.stage, p.number) for p in plan if p.id == "gold"]
    assert judged == [("loop", 1), ("loop", 2), ("other", 1)]
    mine = next(p for p in plan if p.id == "gold" and p.stage == "other")
    assert step(plan, "pair-other").inputs["judgements/gold"] == mine.hash


def test_standardise_looks_at_the_first_round_of_its_own_stage(write: Write) -> None:
    steps = [*LOOP["steps"][:2], {"pair": {"standardise": "initial"}}, *LOOP["steps"][3:]]
    plan = planned(write(stages=[SEED, changed(LOOP, steps=steps)]))
    first = next(p for p in plan if p.id == "gold" and p.number == 1)
    for number in (1, 2):
        assert step(plan, "pair", number).inputs["initial/gold"] == first.hash


def test_prompt_sets_are_apart_and_a_stage_draws_from_its_own(write: Write) -> None:
    sets = {"red": {"path": "red.jsonl", "holdout": 3}}
    loop = changed(LOOP, prompts="red")
    loop["steps"] = [*LOOP["steps"][:4], {"evaluate": {"prompts": ["main", "red"]}}]
    inputs = prepare(write(stages=[SEED, loop], prompt_sets=sets), fetch=False)
    plan = make_plan(inputs)
    red = {p.prompt_id for p in inputs.sets["red"].train}
    assert set(step(plan, "sample").prompts) <= red and len(inputs.sets["red"].heldout) == 3
    evaluation = step(plan, "evaluate-loop", 2)
    assert len(evaluation.prompts) == 5
    names = set(evaluation.inputs)
    assert {"completions", "red:completions", "initial/red:completions"} <= names
    named = changed(
        LOOP, steps=[{"sample": {"prompts": {"set": "red", "count": 2}}}, *LOOP["steps"][1:]]
    )
    plan = planned(write(stages=[SEED, named], prompt_sets=sets))
    assert len(step(plan, "sample").prompts) == 2 and set(step(plan, "sample").prompts) <= red


def test_held_out_in_one_set_is_trained_on_in_none(write: Write, tmp_path: Path) -> None:
    text = (tmp_path / "prompts.jsonl").read_text()
    (tmp_path / "copy.jsonl").write_text(text)
    path = write(stages=[SEED, LOOP], prompt_sets={"copy": {"path": "copy.jsonl", "holdout": 5}})
    inputs = prepare(path, fetch=False)
    kept = {p.prompt_id for one in (inputs.prompts, inputs.sets["copy"]) for p in one.heldout}
    assert not kept & {p.prompt_id for p in [*inputs.prompts.train, *inputs.sets["copy"].train]}
    # Held out are the smallest ids: main's two are among copy's five.
    assert inputs.notes == ("set main: 3 training prompts are held out in another set",)
    assert (len(inputs.prompts.train), len(inputs.sets["copy"].train)) == (9, 9)


def test_values_of_some_rounds(write: Write) -> None:
    at = {"2": {"steps.dpo.beta": 0.7, "steps.sample.n": 3}}
    plan = planned(write(stages=[SEED, changed(LOOP, at=at)]))
    plain = planned(write(stages=[SEED, LOOP]))
    assert [step(plan, "dpo", n).step.beta for n in (1, 2)] == [0.1, 0.7]
    assert [step(plan, "sample", n).step.n for n in (1, 2)] == [2, 3]
    assert step(plan, "dpo").hash == step(plain, "dpo").hash


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ({"3": {"steps.dpo.beta": 0.7}}, "'3' names none of the rounds (1 to 2)"),
        ({"2": {"steps.sft.beta": 0.7}}, "`at` takes values of this stage's steps"),
        ({"2": {"steps.dpo": {"beta": 0.7}}}, "`at` takes values of this stage's steps"),
        ({"2": {"steps.dpo.betta": 0.7}}, "betta"),
        ({"two": {"steps.dpo.beta": 0.7}}, "two"),
    ],
)
def test_values_of_no_rounds_or_steps_are_refused(
    write: Write, at: dict[str, Any], words: str
) -> None:
    said = fault(write(stages=[SEED, changed(LOOP, at=at)]))
    assert words in said and "experiment.yaml:" in said


def test_a_frozen_judge_is_one_that_is_made_once(write: Write) -> None:
    judges = [{"id": "gold", "kind": "rules"}, {"id": "self", "kind": "yes_no", "by": "policy"}]
    loop = changed(LOOP, steps=[*LOOP["steps"][:4], {"evaluate": {"judged_by": "sft"}}])
    plan = planned(write(stages=[SEED, loop], judges=judges))
    verdicts = [p for p in plan if p.id == "evaluate-loop.self"]
    assert {p.models["by"].train_hash for p in verdicts} == {step(plan, "sft").hash}
    # M0, the judge itself before round 1, and the policies of two rounds; M0's are planned once
    # the judge is made.
    assert len({p.hash for p in verdicts}) == 4
    start = next(p for p in plan if p.id == "evaluate-loop" and p.round == 0)
    assert plan.index(start) > plan.index(step(plan, "sft"))
    for name in ("dpo", "policy", "previous", "nobody", "initial2"):
        steps = [*LOOP["steps"][:4], {"evaluate": {"judged_by": name}}]
        said = fault(write(stages=[SEED, changed(LOOP, steps=steps)], judges=judges))
        assert f"judged_by: {name!r}" in said and "experiment.yaml:" in said
    steps = [*LOOP["steps"][:4], {"evaluate": {"judged_by": "dpo@1"}}]
    plan = planned(write(stages=[SEED, changed(LOOP, steps=steps)], judges=judges))
    verdicts = [p for p in plan if p.id == "evaluate-loop.self"]
    assert {p.models["by"].train_hash for p in verdicts} == {step(plan, "dpo").hash}


def test_a_reward_model_that_is_made_once_may_evaluate_where_it_is_named(write: Write) -> None:
    judges = [
        {"id": "gold", "kind": "rules"},
        {"id": "rm_says", "kind": "reward_model", "by": "rm"},
    ]
    first = changed(
        LOOP, id="first", rounds=1, steps=[*LOOP["steps"][:3], {"distill": {"id": "rm"}}]
    )
    for wanted, seen in ((["rm_says"], True), (None, False)):
        last = {"id": "rl", "rounds": 2, "steps": [
            {"train": {"id": "rl", "method": "grpo", "batch_size": 2, "n": 2,
                       "rewards": {"rm_says": 1}}},
            {"evaluate": {"judges": wanted}}]}  # fmt: skip
        plan = planned(write(stages=[first, last], judges=judges))
        found = {p.models["by"].train_hash for p in plan if p.id == "evaluate.rm_says"}
        assert found == ({step(plan, "rm").hash} if seen else set())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"stages": [SEED, SEED]}, "stage ids must differ"),
        ({"stages": [SEED], "steps": SEED["steps"]}, "not both"),
        ({"stages": [SEED], "rounds": 2}, "not both"),
        ({"stages": None}, "give `steps`, or `stages`"),
        ({"stages": [changed(SEED, prompts="red")]}, "'red' is no set of prompts"),
        ({"stages": [changed(SEED, arms=["a"])]}, "'a' is no arm"),
        (
            {"models": {**BASE["models"], "sft": {"path": "m"}}, "stages": [SEED]},
            "'sft' is the name",
        ),
        ({"stages": [SEED, changed(LOOP, steps=[{"train": {"id": "sft"}}])]}, "used twice"),
    ],
)
def test_wrong_stages_are_refused(write: Write, keys: dict[str, Any], words: str) -> None:
    said = fault(write(**keys))
    assert words in said and "experiment.yaml" in said


@pytest.mark.parametrize(
    ("key", "name", "words"),
    [
        ("from", "late", "'late' is not made yet: no step 'late' runs before this one"),
        ("reference", "sft@2", "step 'sft' has made none in that round of its stage"),
        ("from", "nobody", "'nobody' is no model"),
    ],
)
def test_a_model_that_is_not_there_is_named_at_its_step(
    write: Write, key: str, name: str, words: str
) -> None:
    steps = [*LOOP["steps"][:3], {"train": {"id": "dpo", key: name}}, {"train": {"id": "late"}}]
    path = write(stages=[SEED, changed(LOOP, steps=steps)])
    said = fault(path)
    line = 1 + next(
        n for n, text in enumerate(path.read_text().splitlines()) if f"{key}: {name}" in text
    )
    assert words in said and f"experiment.yaml:{line} (step dpo): " in said


def test_the_kept_file_plans_the_same(write: Write) -> None:
    path = write(
        stages=[SEED, changed(LOOP, at={"2": {"steps.dpo.beta": 0.7}})],
        arms={"a": {}, "b": {"set": {"steps.sft.epochs": 2}}},
        prompt_sets={"red": {"path": "red.jsonl", "holdout": 3}},
    )
    before = [p.hash for p in planned(path)]
    kept = path.parent / "kept.yaml"
    kept.write_text(resolved_yaml(load_experiment(path)[0]))
    assert [p.hash for p in planned(kept)] == before


def test_an_evaluation_measures_the_policy_without_what_its_samples_were_told(
    write: Write,
) -> None:
    told = {"sample": {"n": 2, "prompts": 3, "system_prompt": "Be brief.", "temperature": 0.3}}
    plan = planned(write(steps=[told, *LOOP["steps"][1:4], {"evaluate": {}}], rounds=1))
    asked = {p.id: p.step for p in plan if p.kind == "sample"}
    assert asked["sample"].system_prompt == "Be brief."
    measured = [one for name, one in asked.items() if name.startswith("evaluate")]
    assert measured and {(one.system_prompt, one.temperature) for one in measured} == {(None, 0.3)}


def test_loaded_answers_are_judged_anew(write: Write, tmp_path: Path) -> None:
    """Verdicts on other answers do not count for those that a file brings later."""
    rows = {"completion_id": "c", "prompt_id": "p", "sample_index": 0, "messages": [], "model": "m",
            "weights_hash": "w", "sampling": {}, "finish_reason": "stop"}  # fmt: skip
    (tmp_path / "answers.jsonl").write_text(json.dumps(rows) + "\n")
    steps = [
        {"sample": {"n": 2, "prompts": 3}},
        {"judge": "gold"},
        {"pair": {"id": "first"}},
        {"train": {"id": "one"}},
        {"load": {"id": "given", "type": "completions", "path": "answers.jsonl"}},
        {"judge": {"id": "again", "kind": "rules"}},
        {"pair": {"id": "second"}},
        {"train": {"id": "two"}},
    ]
    plan = planned(write(steps=steps, rounds=1))
    second = step(plan, "second").inputs
    assert {n for n in second if n.startswith("judgements/")} == {"judgements/again"}
    assert {n for n in step(plan, "first").inputs if n.startswith("judgements/")} == {
        "judgements/gold"
    }


def test_an_arm_without_a_stage_counts_its_rounds_all_the_same(write: Write) -> None:
    """So that what it does afterwards is the same step as in the other arms."""
    last = {
        "id": "last",
        "steps": [
            {"sample": {"n": 2, "prompts": 3, "by": "initial"}},
            {"judge": "gold"},
            {"pair": {}},
            {"train": {"id": "end", "from": "initial", "reference": "initial"}},
            {"evaluate": {"judges": ["gold"]}},
        ],
    }
    plan = planned(write(stages=[SEED, changed(LOOP, arms=["a"]), last], arms={"a": {}, "b": {}}))
    both = [p for p in plan if p.stage == "last" and p.id in ("sample-last", "pair-last", "end")]
    assert {p.arms for p in both} == {("a", "b")} and {p.round for p in both} == {4}


def test_only_judges_by_the_policy_of_the_moment_drift(write: Write) -> None:
    judges = [
        {"id": name, "kind": "rating", "by": by}
        for name, by in (("now", "policy"), ("then", "initial"), ("last", "previous"))
    ]
    steps = [{"sample": {"n": 2, "prompts": 3}}, *({"judge": judge} for judge in judges)]
    steps += [{"pair": {}}, {"train": {"id": "dpo"}}, {"evaluate": {}}]
    plan = planned(write(steps=steps, rounds=2, judges=None))
    for number in (1, 2):
        made = step(plan, "dpo", number).models["made"]
        drifts = [p for p in plan if "drift" in p.id and p.number == number]
        assert [p.id for p in drifts] == ["evaluate.drift.now"]
        assert drifts[0].models["by"].key == made.key
        inputs = step(plan, "evaluate", number).inputs
        assert {name for name in inputs if name.startswith("drift/")} == {"drift/now"}


def test_what_a_model_wrote_itself_needs_no_pass_for_its_log_probs(write: Write) -> None:
    plan = planned(write(steps=[*LOOP["steps"][:4], {"evaluate": {}}], rounds=2))
    scored = [p for p in plan if p.kind == "logprobs"]
    first = {p.hash for p in plan if p.id == "evaluate.sample" and p.round == 0}
    assert len(scored) == 3 and {p.models["by"].label for p in scored} == {"M0"}
    for one in scored:
        assert one.options["own"] == (set(one.inputs.values()) == first)


def test_held_out_pairs_are_scored_by_the_model_and_by_the_first(
    write: Write, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No."} for n in range(9)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = [
        {"load": {"id": "given", "type": "pairs", "path": "pairs.jsonl"}},
        {"label": {"labels": "human"}},
        {"train": {"id": "dpo"}},
        {"evaluate": {}},
    ]
    plan = planned(write(steps=steps, rounds=1, prompts={"holdout": 3}, judges=None))
    evaluated, trained = step(plan, "evaluate"), step(plan, "dpo")
    by_hash = {p.hash: p for p in plan}
    new = by_hash[evaluated.inputs["pair_logprobs"]]
    old = by_hash[evaluated.inputs["pair_logprobs_initial"]]
    assert new.models["by"].train_hash == trained.hash and old.models["by"].train_hash is None
    assert not new.options["own"] and not old.options["own"]
    assert new.inputs == old.inputs and len(new.prompts) == 3


def test_the_widest_window_of_a_round_counts_once(write: Write) -> None:
    """Two steps of a round draw from the same place, so the next stage goes on after the wider."""
    more = {"sample": {"id": "more", "n": 2, "prompts": 2}}
    second = {"id": "second", "steps": [{"sample": {"n": 2, "prompts": 4}}, {"judge": "gold"}]}
    windows = []
    for steps in (LOOP["steps"], [*LOOP["steps"], more]):
        plan = planned(write(stages=[SEED, changed(LOOP, id="first", steps=steps), second]))
        windows.append(
            {tuple(p.prompts) for p in plan if p.stage == "second" and p.kind == "sample"}
        )
    assert windows[0] == windows[1] and len(windows[0]) == 1


def test_a_drifting_judge_rescores_the_first_of_m0s_answers(write: Write, tmp_path: Path) -> None:
    lines = "".join(f'{{"prompt": "Question number {n}?"}}\n' for n in range(30))
    (tmp_path / "prompts.jsonl").write_text(lines)
    judge = {"judge": {"id": "self", "kind": "rating", "by": "policy"}}
    steps = [{"sample": {"n": 2, "prompts": 3}}, judge, {"pair": {}}, {"train": {"id": "dpo"}},
             {"evaluate": {}}]  # fmt: skip
    prompts = {"path": "prompts.jsonl", "holdout": 20}
    plan = planned(write(steps=steps, rounds=1, judges=None, prompts=prompts))
    measured = step(plan, "evaluate.sample").prompts
    assert len(measured) == 20
    assert step(plan, "evaluate.drift.self").prompts == measured[:16]
    assert step(plan, "evaluate.self").prompts == measured
