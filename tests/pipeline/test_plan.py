"""The plan: an edit changes the hashes of exactly the steps whose output it can change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.constitution.model import Constitution
from rlaif.core.errors import ConfigError
from rlaif.core.records import make_prompt
from rlaif.core.yamlio import load_yaml, validate
from rlaif.data.sources import PromptSet
from rlaif.judges.build import build_judge
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.plan.base import PlanInputs, Planned, round_prompts
from rlaif.pipeline.plan.unroll import make_plan

RULES: dict[str, Any] = {
    "name": "rules",
    "version": "1",
    "principles": [
        {
            "id": "brief",
            "text": "Be brief.",
            "check": {"rule": "word_limits", "params": {"min": 1, "max": 9}},
        },
        {"id": "kind", "text": "The answer is kind."},
    ],
}
BASE: dict[str, Any] = {
    "name": "plan",
    "seed": 4,
    "models": {"policy": {"path": "policy"}, "other": {"path": "other"}},
    "prompts": {"path": "p.jsonl", "holdout": 3},
    "rounds": 3,
    "steps": [
        {"sample": {"n": 2}},
        {"judge": {"id": "checks", "kind": "rules"}},
        {"judge": {"id": "self", "kind": "yes_no", "by": "policy", "principles": ["kind"]}},
        {"pair": {}},
        {"train": {"beta": 0.1}},
        {"evaluate": {}},
    ],
}
PROMPTS = [make_prompt([{"role": "user", "content": f"Question {i}?"}]) for i in range(10)]
Edit = Callable[[dict[str, Any], dict[str, Any]], None]


def planned(
    folder: Path, edit: Edit | None = None, prompts: PromptSet | None = None
) -> list[Planned]:
    data, rules = copy.deepcopy(BASE), copy.deepcopy(RULES)
    if edit is not None:
        edit(data, rules)
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    loaded, lines = load_yaml(path)
    experiment = validate(Experiment, loaded, lines, path)
    constitution = Constitution.model_validate(rules)
    judges = {n: build_judge(s, constitution, path) for n, s in experiment.all_judges().items()}
    keys = {name: f"weights:{spec.path}" for name, spec in experiment.models.items()}
    found = prompts or PromptSet(PROMPTS[3:], PROMPTS[:3], 0)
    files = {e.load.path: f"hash of {e.load.path}" for e in experiment.entries if e.load}
    return make_plan(PlanInputs(experiment, path, lines, constitution, found, judges, keys, files))


def hashes(plan: list[Planned]) -> dict[tuple[int, str, str], str]:
    """(round, kind, id) -> hash; in a plan of one seed each is there once."""
    found = {(p.round, p.kind, p.id): p.hash for p in plan}
    assert len(found) == len(plan)
    return found


def changed(folder: Path, edit: Edit) -> set[tuple[int, str, str]]:
    """The steps whose hash an edit changes; it must leave the steps themselves the same."""
    before, after = hashes(planned(folder)), hashes(planned(folder, edit))
    assert set(before) == set(after)
    return {name for name in before if before[name] != after[name]}


def everything(folder: Path) -> set[tuple[int, str, str]]:
    return set(hashes(planned(folder)))


def refusal(folder: Path, edit: Edit) -> str:
    with pytest.raises(ConfigError) as caught:
        planned(folder, edit)
    return str(caught.value)


def step(data: dict[str, Any], kind: str, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = [s[kind] for s in data["steps"] if kind in s][number]
    return found


def test_order_and_inputs(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    seen: set[str] = set()
    made: set[str] = set()
    for item in plan:
        assert set(item.inputs.values()) <= seen
        used = {m.train_hash for role, m in item.models.items() if role != "made"}
        assert used - {None} <= made
        seen.add(item.hash)
        if item.kind == "train":
            made.add(item.hash)
    trains = [p for p in plan if p.kind == "train"]
    assert [t.models["made"].label for t in trains] == ["M1", "M2", "M3"]
    assert [t.models["start"].label for t in trains] == ["M0", "M1", "M2"]
    samples = [p for p in plan if p.kind == "sample" and p.models["by"].label == "M1"]
    assert samples and all(s.sources == {trains[0].hash} for s in samples)
    assert trains[0].sources == set(trains[0].inputs.values())
    assert [t.models["reference"].key for t in trains] == [t.models["start"].key for t in trains]


def test_the_same_experiment_has_the_same_plan(tmp_path: Path) -> None:
    assert planned(tmp_path) == planned(tmp_path)


def test_beta_keeps_everything_before_the_first_train_step(tmp_path: Path) -> None:
    def edit(data: Any, rules: Any) -> None:
        step(data, "train")["beta"] = 0.2

    kept = everything(tmp_path) - changed(tmp_path, edit)
    every = everything(tmp_path)
    before = {n for n in every if n[0] == 0}
    before |= {n for n in every if n[0] == 1 and n[2] in ("sample", "checks", "self", "pair")}
    assert kept == before


def test_a_principles_text_keeps_samples_and_changes_its_judge_onward(tmp_path: Path) -> None:
    def edit(data: Any, rules: Any) -> None:
        rules["principles"][1]["text"] = "The answer is friendly."

    kept = everything(tmp_path) - changed(tmp_path, edit)
    assert kept == {
        (0, "sample", "evaluate.sample"),
        (0, "judge", "evaluate.checks"),
        (0, "logprobs", "evaluate.logprobs"),
        (1, "sample", "sample"),
        (1, "judge", "checks"),
    }


def test_a_checks_parameter_changes_the_program_alone(tmp_path: Path) -> None:
    def edit(data: Any, rules: Any) -> None:
        rules["principles"][0]["check"]["params"]["max"] = 8

    kept = everything(tmp_path) - changed(tmp_path, edit)
    assert (1, "judge", "self") in kept
    assert (1, "judge", "checks") not in kept
    assert (1, "pair", "pair") not in kept


def test_a_principles_weight_changes_the_pairs_and_no_judgement(tmp_path: Path) -> None:
    def edit(data: Any, rules: Any) -> None:
        rules["principles"][1]["weight"] = 3

    lost = changed(tmp_path, edit)
    # Evaluations combine principles too, so M0's is counted anew, from the same judgements.
    assert {n for n in lost if n[0] == 0} == {(0, "evaluate", "evaluate")}
    kept = {n for n in everything(tmp_path) - lost if n[0] == 1}
    assert kept == {(1, "sample", "sample"), (1, "judge", "checks"), (1, "judge", "self")}
    assert {n for n in everything(tmp_path) if n[0] > 1} <= lost


@pytest.mark.parametrize(
    "edit",
    [
        lambda data, rules: data.update(description="Something else."),
        lambda data, rules: data.update(name="renamed"),
        lambda data, rules: rules.update(description="Something else.", version="2"),
        lambda data, rules: step(data, "train").update(checkpoint_every=3),
        lambda data, rules: data.update(retention={"masters": "all"}),
        lambda data, rules: data.update(alarms={"kl_budget": 3}),
        lambda data, rules: rules["principles"].reverse(),
        lambda data, rules: data["models"]["other"].update(path="elsewhere"),
        lambda data, rules: data["models"]["policy"].update(role="labeller"),
    ],
)
def test_what_cannot_change_an_output_changes_nothing(tmp_path: Path, edit: Edit) -> None:
    assert changed(tmp_path, edit) == set()


def test_comments_change_nothing(tmp_path: Path) -> None:
    before = planned(tmp_path)
    path = tmp_path / "experiment.yaml"
    path.write_text("# a comment\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    loaded, lines = load_yaml(path)
    assert validate(Experiment, loaded, lines, path) == Experiment.model_validate(BASE)
    assert planned(tmp_path) == before


@pytest.mark.parametrize(
    "edit",
    [
        lambda data, rules: data.update(seed=5),
        lambda data, rules: data["models"]["policy"].update(path="another"),
        lambda data, rules: data["models"]["policy"].update(system_prompt="drop"),
    ],
)
def test_what_changes_every_answer_changes_every_step(tmp_path: Path, edit: Edit) -> None:
    assert changed(tmp_path, edit) == everything(tmp_path)


def test_rounds_can_be_added(tmp_path: Path) -> None:
    longer = hashes(planned(tmp_path, lambda data, rules: data.update(rounds=5)))
    assert hashes(planned(tmp_path)).items() <= longer.items()


def test_seeds_share_a_plan_with_each_alone(tmp_path: Path) -> None:
    def both(data: Any, rules: Any) -> None:
        del data["seed"]
        data["seeds"] = [4, 5]

    alone = {p.hash for p in planned(tmp_path)}
    five = {p.hash for p in planned(tmp_path, lambda data, rules: data.update(seed=5))}
    assert {p.hash for p in planned(tmp_path, both)} == alone | five
    assert not alone & five


def test_the_order_of_the_prompts_changes_nothing(tmp_path: Path) -> None:
    turned = PromptSet(PROMPTS[:2:-1], PROMPTS[2::-1], 0)
    assert hashes(planned(tmp_path)) == hashes(planned(tmp_path, prompts=turned))


def test_a_prompts_tags_and_reference_change_its_judgements(tmp_path: Path) -> None:
    # `applies_when` reads the tags and templates show the reference; neither is in the prompt's id.
    content: Any = [{"role": "user", "content": "Question 5?"}]
    tagged = [make_prompt(content, "", ["sensitive"]) if p == PROMPTS[5] else p for p in PROMPTS]
    assert tagged != PROMPTS
    before = hashes(planned(tmp_path))
    after = hashes(planned(tmp_path, prompts=PromptSet(tagged[3:], tagged[:3], 0)))
    assert before[1, "sample", "sample"] == after[1, "sample", "sample"]
    assert before[1, "judge", "checks"] != after[1, "judge", "checks"]
    assert before[1, "judge", "self"] != after[1, "judge", "self"]
    assert before[0, "judge", "evaluate.self"] == after[0, "judge", "evaluate.self"]


def test_a_prompts_tags_and_reference_change_what_filters_leave(tmp_path: Path) -> None:
    def edit(data: Any, rules: Any) -> None:
        kept = {"records": "completions", "filters": [{"kind": "truncated"}]}
        data["steps"].insert(1, {"filter": kept})

    content: Any = [{"role": "user", "content": "Question 5?"}]
    told = [make_prompt(content, "", [], "Five.") if p == PROMPTS[5] else p for p in PROMPTS]
    before = hashes(planned(tmp_path, edit))
    after = hashes(planned(tmp_path, edit, PromptSet(told[3:], told[:3], 0)))
    assert before[1, "sample", "sample"] == after[1, "sample", "sample"]
    assert before[1, "filter", "filter"] != after[1, "filter", "filter"]


def test_a_policy_is_measured_without_what_its_samples_are_told(tmp_path: Path) -> None:
    def edit(data: Any, rules: Any) -> None:
        step(data, "sample")["system_prompt"] = "Be brief."

    before, after = hashes(planned(tmp_path)), hashes(planned(tmp_path, edit))
    assert before[1, "sample", "sample"] != after[1, "sample", "sample"]
    assert before[0, "sample", "evaluate.sample"] == after[0, "sample", "evaluate.sample"]


def test_each_round_has_a_window_of_the_prompts() -> None:
    ids = sorted(p.prompt_id for p in PROMPTS)
    assert round_prompts(PROMPTS, None, 1, 1) == ids
    assert round_prompts(PROMPTS, 99, 1, 2) == ids
    windows = [round_prompts(PROMPTS, 4, 1, number) for number in (1, 2, 3)]
    assert all(len(set(w)) == 4 for w in windows)
    assert not set(windows[0]) & set(windows[1])
    assert set().union(*windows) == set(ids)
    assert windows[0] == round_prompts(PROMPTS[::-1], 4, 1, 1)
    assert windows[0] != round_prompts(PROMPTS, 4, 2, 1)


def test_an_evaluation_never_asks_a_moving_judge(tmp_path: Path) -> None:
    for item in planned(tmp_path):
        if item.kind == "judge" and item.id == "evaluate.self":
            assert item.models["by"].label == "M0"
        elif item.kind == "judge" and item.id == "self":
            assert item.models["by"].label == f"M{item.round - 1}"
        elif item.id == "evaluate.drift.self":
            assert item.models["by"].label == f"M{item.round}"


def test_uses_of_all_rounds(tmp_path: Path) -> None:
    def edit(data: Any, rules: Any) -> None:
        step(data, "train")["uses"] = ["pair@*"]

    plan = planned(tmp_path, edit)
    pairs = [p.hash for p in plan if p.kind == "pair"]
    used = [list(p.inputs.values()) for p in plan if p.kind == "train"]
    assert used == [pairs[:1], pairs[:2], pairs[:3]]


def test_uses_of_one_round_and_of_none_yet(tmp_path: Path) -> None:
    def edit(data: Any, rules: Any) -> None:
        step(data, "train")["uses"] = ["pair@1", "pair"]

    plan = planned(tmp_path, edit)
    pairs = [p.hash for p in plan if p.kind == "pair"]
    used = [list(p.inputs.values()) for p in plan if p.kind == "train"]
    assert used == [[pairs[0]], [pairs[0], pairs[1]], [pairs[0], pairs[2]]]


def test_loaded_preferences_join_the_pairs(tmp_path: Path) -> None:
    def edit(data: Any, rules: Any) -> None:
        data["steps"].insert(4, {"load": {"type": "preferences", "path": "human.jsonl"}})

    plan = planned(tmp_path, edit)
    train = next(p for p in plan if p.kind == "train")
    kinds = {p.hash: p.kind for p in plan}
    assert [kinds[h] for h in train.inputs.values()] == ["pair", "load"]


def test_reference_and_start_by_name(tmp_path: Path) -> None:
    def edit(data: Any, rules: Any) -> None:
        step(data, "train").update({"from": "initial", "reference": "other"})

    for train in (p for p in planned(tmp_path, edit) if p.kind == "train"):
        assert train.models["start"].label == "M0"
        assert train.models["reference"].key == "weights:other"


@pytest.mark.parametrize("position", range(5))
def test_a_list_without_what_a_step_needs_is_refused(tmp_path: Path, position: int) -> None:
    def edit(data: Any, rules: Any) -> None:
        del data["steps"][:position]
        if position == 1:
            data["steps"] = data["steps"][:1]

    words = [
        None,
        "has no completions",
        "has no completions",
        "has no judgements",
        "no preferences",
    ]
    if words[position] is None:
        assert planned(tmp_path, edit)
    else:
        message = refusal(tmp_path, edit)
        assert words[position] in message
        assert f"{tmp_path / 'experiment.yaml'}:" in message


def line_of(folder: Path, text: str) -> int:
    lines = (folder / "experiment.yaml").read_text(encoding="utf-8").splitlines()
    return next(i for i, line in enumerate(lines, 1) if text in line)


@pytest.mark.parametrize(
    ("kind", "key", "value", "words"),
    [
        ("sample", "by", "polcy", "did you mean 'policy'?"),
        ("judge", "by", "othr", "did you mean 'other'?"),
        ("train", "reference", "initail", "did you mean 'initial'?"),
        ("train", "from", "nowhere", "is no model"),
        ("train", "uses", ["pear"], "did you mean 'pair'?"),
        ("train", "uses", ["pair@9"], "names no earlier pair, label, filter or load step"),
        ("train", "uses", ["self"], "names no earlier pair, label, filter or load step"),
        ("pair", "uses", ["chicks"], "did you mean 'checks'?"),
        ("pair", "weights", {"chekcs": 1}, "did you mean 'checks'?"),
        ("pair", "weights", {"checks": 0}, "every weight is 0"),
        ("pair", "consistency", "chekcs", "did you mean 'checks'?"),
        ("evaluate", "judges", ["slf"], "did you mean 'self'?"),
    ],
)
def test_unknown_names_are_refused_with_the_line(
    tmp_path: Path, kind: str, key: str, value: Any, words: str
) -> None:
    def edit(data: Any, rules: Any) -> None:
        step(data, kind, 1 if kind == "judge" else 0)[key] = value

    message = refusal(tmp_path, edit)
    line = line_of(tmp_path, f"    {key}:")
    assert message.startswith(f"{tmp_path / 'experiment.yaml'}:{line} (step ")
    assert words in message


@pytest.mark.parametrize("pair", [{"weights": {"self": 1}}, {"uses": ["self"]}])
def test_a_judge_of_consistency_chooses_nothing(tmp_path: Path, pair: dict[str, Any]) -> None:
    def edit(data: Any, rules: Any) -> None:
        step(data, "pair").update(pair, consistency="self")

    assert "give it no weight" in refusal(tmp_path, edit)


def test_earlier_is_the_model_of_the_round_before(tmp_path: Path) -> None:
    def edit(data: Any, rules: Any) -> None:
        step(data, "judge", 1)["by"] = "earlier"

    plan = planned(tmp_path, edit)
    asked = [p.models["by"].label for p in plan if p.kind == "judge" and p.id == "self"]
    assert asked == ["M0", "M0", "M1"]


def test_a_scripted_model_cannot_be_trained(tmp_path: Path) -> None:
    def edit(data: Any, rules: Any) -> None:
        data["models"]["policy"]["engine"] = "fake"

    assert "cannot be trained" in refusal(tmp_path, edit)


def test_two_evaluations_may_differ_in_what_they_measure(tmp_path: Path) -> None:
    def edit(data: Any, rules: Any) -> None:
        data["steps"].append({"evaluate": {"id": "long", "n": 2, "judges": ["checks"]}})

    plan = planned(tmp_path, edit)
    last = {p.id: p for p in plan if p.kind == "evaluate" and p.round == 3}
    assert "judgements/self" in last["evaluate"].inputs
    assert "judgements/self" not in last["long"].inputs
    assert last["evaluate"].inputs["completions"] != last["long"].inputs["completions"]


def test_an_evaluation_between_two_train_steps(tmp_path: Path) -> None:
    def edit(data: Any, rules: Any) -> None:
        data["steps"].append({"train": {"id": "more", "method": "sft"}})

    plan = planned(tmp_path, edit)
    second = next(p for p in plan if p.kind == "evaluate" and p.round == 2)
    previous = next(p for p in plan if p.hash == second.inputs["previous/completions"])
    last = next(p for p in plan if p.id == "more" and p.round == 1)
    assert previous.models["by"].train_hash == last.hash


def test_a_reward_model_goes_on_from_its_own_last_round_or_begins_anew(tmp_path: Path) -> None:
    def continued(data: dict[str, Any], rules: dict[str, Any]) -> None:
        step = {"id": "reward", "from": "reward", "uses": ["pair@*"], "replay": 0.5}
        data["steps"].insert(4, {"distill": step})

    def anew(data: dict[str, Any], rules: dict[str, Any]) -> None:
        step = {"id": "reward", "from": "initial", "uses": ["pair@*"], "method": "ordinal"}
        data["steps"].insert(4, {"distill": step})

    for edit, starts in (
        (continued, ["M0", "reward1", "reward2"]),
        (anew, ["M0", "M0", "M0"]),
    ):
        steps = [p for p in planned(tmp_path, edit) if p.kind == "distill"]
        assert [p.models["start"].label for p in steps] == starts
        assert [p.models["made"].label for p in steps] == ["reward1", "reward2", "reward3"]
        assert [len(p.inputs) for p in steps] == [1, 2, 3]
        # Ratings of the answers of every pair step that is used.
        assert [len(p.options["judgements"]) for p in steps] == [2, 4, 6]
        assert len({p.hash for p in steps}) == 3


def test_a_reward_model_of_filtered_pairs_finds_the_ratings_of_their_answers(
    tmp_path: Path,
) -> None:
    def edit(data: dict[str, Any], rules: dict[str, Any]) -> None:
        clean = {"filters": [{"kind": "duplicates", "of": "prompt"}]}
        distilled = {"distill": {"id": "reward", "method": "ordinal"}}
        data["steps"][4:4] = [{"filter": clean}, distilled]

    plan = planned(tmp_path, edit)
    judged = {p.hash for p in plan if p.kind == "judge"}
    (first, *_) = [p for p in plan if p.kind == "distill"]
    (source,) = first.inputs.values()
    assert next(p.kind for p in plan if p.hash == source) == "filter"
    assert len(first.options["judgements"]) == 2 and set(first.options["judgements"]) <= judged


def test_the_source_of_a_prompt_counts_where_a_reward_term_asks_for_it(tmp_path: Path) -> None:
    def trained(when: dict[str, Any], source: str) -> str:
        def edit(data: dict[str, Any], rules: dict[str, Any]) -> None:
            term = {"judge": "checks"} | when
            step = {"method": "grpo", "n": 2, "batch_size": 2, "rewards": [term]}
            data |= {"rounds": 1, "judges": [{"id": "checks", "kind": "rules"}]}
            data["steps"] = [{"train": step}]

        texts = [f"Question {i}?" for i in range(4)]
        web = [make_prompt([{"role": "user", "content": text}], "web") for text in texts]
        other = make_prompt([{"role": "user", "content": "Another?"}], source)
        prompts = PromptSet([*web[1:], other], web[:1], 0)
        (step,) = planned(tmp_path, edit, prompts)
        return step.hash

    asked = {"when": {"source": ["web"]}}
    assert trained(asked, "web") != trained(asked, "book")
    assert trained({}, "web") == trained({}, "book")
