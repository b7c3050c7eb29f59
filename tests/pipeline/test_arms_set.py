"""Arms over any key and sweeps: what they share, what measures them all, and what is refused."""

from __future__ import annotations

from collections import Counter
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

FILE = """\
name: arms
models: {policy: {path: builtin/smollm2-135m-instruct}}
constitution: constitutions/concise_helper.yaml
prompts: {path: prompts.jsonl, holdout: 2}
judges:
  - {id: by_a, kind: rules, constitution: constitutions/concise_helper.yaml}
  - {id: by_b, kind: rules, constitution: constitutions/brevity_only.yaml}
  - {id: labels, kind: rules}
rounds: 2
steps:
  - sample: {n: 2, prompts: 3}
  - judge: labels
  - pair: {}
  - train: {id: dpo}
  - evaluate: {judges: [by_a, by_b]}
"""
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(KEY=VALUE)`: the file above with other keys, beside its prompts."""
    lines = "".join(f'{{"prompt": "Question number {n}?"}}\n' for n in range(14))
    (tmp_path / "prompts.jsonl").write_text(lines)

    def write_file(**keys: Any) -> Path:
        path = tmp_path / "experiment.yaml"
        path.write_text(FILE + (yaml.safe_dump(keys, sort_keys=False) if keys else ""))
        return path

    return write_file


def planned(path: Path, *overrides: str) -> list[Planned]:
    return make_plan(prepare(path, overrides, fetch=False))


def fault(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        planned(path, *overrides)
    return str(error.value)


def counts(plan: list[Planned]) -> Counter[str]:
    """How many steps of each id that the file names there are."""
    return Counter(p.id for p in plan if "." not in p.id)


def of_arm(plan: list[Planned], arm: str, name: str, number: int = 1) -> Planned:
    (found,) = [p for p in plan if (p.id, p.number) == (name, number) and arm in p.arms and p.round]
    return found


def test_arms_share_what_is_alike_and_part_where_they_differ(write: Write) -> None:
    plan = planned(write(arms={"a": {}, "b": {"set": {"steps.dpo.beta": 0.3}}}))
    # Round 1 parts at the training; from then on everything is of one arm.
    assert counts(plan) == {
        "sample": 3, "labels": 3, "pair": 3, "dpo": 4, "evaluate": 5
    }  # fmt: skip
    assert of_arm(plan, "a", "sample").arms == ("a", "b")
    assert [of_arm(plan, arm, "dpo").step.beta for arm in "ab"] == [0.1, 0.3]
    alone = planned(write())
    assert {p.hash for p in alone} < {p.hash for p in plan}


def test_a_constitution_changes_who_labels_and_not_who_measures(write: Write) -> None:
    other = {"set": {"constitution": "constitutions/brevity_only.yaml"}}
    plan = planned(write(arms={"a": {}, "b": other}))
    assert counts(plan)["sample"] == 3 and counts(plan)["labels"] == 4
    judges = {arm: of_arm(plan, arm, "labels").judges["labels"] for arm in "ab"}
    assert judges["a"].judge_hash != judges["b"].judge_hash
    weights = {arm: of_arm(plan, arm, "pair").options["principle_weights"] for arm in "ab"}
    assert weights["a"] != weights["b"]
    assert {f"by_a/{name}" for name in weights["a"] if "/" not in name} <= weights["a"].keys()
    evaluations = [of_arm(plan, arm, "evaluate") for arm in "ab"]
    assert evaluations[0].options == evaluations[1].options
    measured = {
        arm: {p.id: p.judges[p.step.id].judge_hash for p in plan
              if p.kind == "judge" and arm in p.arms and p.id.startswith("evaluate.by")}
        for arm in "ab"
    }  # fmt: skip
    assert measured["a"] == measured["b"] and len(measured["a"]) == 2


def test_a_sweep_is_a_grid_times_the_arms_and_the_seeds(write: Write) -> None:
    sweep = {"steps.dpo.beta": [0.1, 0.2], "steps.dpo.learning_rate": [1e-6, 2e-6]}
    path = write(
        sweep=sweep, arms={"x": {}, "y": {"set": {"steps.pair.min_margin": 0.1}}}, seeds=[3, 4]
    )
    names = load_experiment(path)[0].arm_names
    assert names == [
        f"{arm}-beta={beta},learning_rate={rate}"
        for arm in "xy"
        for beta in ("0.1", "0.2")
        for rate in ("1.0e-06", "2.0e-06")
    ]
    plan = planned(path)
    first = [p for p in plan if p.number == 1 and p.round == 1]
    # Of two seeds: one sample and judge for all, a pair for each of x and y, a training of each.
    assert Counter(p.id for p in first if "." not in p.id) == {
        "sample": 2, "labels": 2, "pair": 4, "dpo": 16, "evaluate": 16
    }  # fmt: skip
    alone = write(sweep={"constitution": ["constitutions/concise_helper.yaml",
                                          "constitutions/brevity_only.yaml"]})  # fmt: skip
    assert load_experiment(alone)[0].arm_names == [
        "constitution=concise_helper", "constitution=brevity_only"
    ]  # fmt: skip


def test_a_swept_training_can_be_run_again_from_the_kept_file(write: Write) -> None:
    path = write(sweep={"steps.dpo.beta": [0.1, 0.2]})
    kept = path.parent / "kept.yaml"
    kept.write_text(resolved_yaml(load_experiment(path)[0]))
    assert [p.hash for p in planned(kept)] == [p.hash for p in planned(path)]
    assert "sweep" not in yaml.safe_load(kept.read_text())


def test_an_arm_of_the_file_means_all_that_a_sweep_makes_of_it(write: Write) -> None:
    arms = {"x": {}, "x-wide": {"set": {"steps.pair.min_margin": 0.1}}}
    path = write(sweep={"steps.dpo.beta": [0.1, 0.2]}, arms=arms)
    text, last = path.read_text(), "  - evaluate: {judges: [by_a, by_b]}\n"
    path.write_text(text.replace(last, f"{last}  - sample: {{id: more}}\n    arms: [x]\n"))
    plan = planned(path)
    more = {arm for p in plan if p.id == "more" for arm in p.arms}
    assert more == {"x-beta=0.1", "x-beta=0.2"}
    kept = path.parent / "kept.yaml"
    kept.write_text(resolved_yaml(load_experiment(path)[0]))
    assert [(p.hash, p.arms) for p in planned(kept)] == [(p.hash, p.arms) for p in plan]
    path.write_text(path.read_text().replace("arms: [x]", "arms: [y]"))
    line = path.read_text().splitlines().index("    arms: [y]") + 1
    assert f"{path}:{line} (step more): arms: 'y' is no arm" in fault(path)


def test_an_arm_that_a_round_names_is_one_of_the_sweep_too(write: Write) -> None:
    path = write(sweep={"steps.dpo.beta": [0.1, 0.2]}, arms={"x": {}, "y": {}})
    text = path.read_text().replace("rounds: 2\n", "").replace("steps:\n", "", 1)
    head, steps = text.split("  - sample:", 1)
    lines, rest = f"  - sample:{steps}".split("sweep:", 1)
    more = "  - filter: {id: thin, filters: [{kind: duplicates}]}\n    arms: [x]\n"
    lines = lines.replace("  - train", f"{more}  - train")
    inner = "".join(f"    {line}\n" for line in lines.splitlines())
    stages = "stages:\n  - id: main\n    rounds: 2\n    at: {2: {steps.sample.n: 3}}\n"
    path.write_text(f"{head}{stages}    steps:\n{inner}sweep:{rest}")
    plan = planned(path)
    thin = {(arm, p.number) for p in plan if p.id == "thin" for arm in p.arms}
    assert thin == {(f"x-beta={beta}", number) for beta in (0.1, 0.2) for number in (1, 2)}
    assert {p.step.n for p in plan if p.id == "sample" and p.number == 2} == {3}


def test_what_the_command_line_sets_whole_is_no_arms_any_more(write: Write) -> None:
    path = write(
        arms={"a": {"set": {"steps.dpo.beta": 0.2, "steps.pair.min_margin": 0.1}}, "b": {}}
    )
    overrides = ["steps.dpo={id: dpo, beta: 0.7}"]
    plan = planned(path, *overrides)
    kept = path.parent / "kept.yaml"
    kept.write_text(resolved_yaml(load_experiment(path, overrides)[0]))
    assert yaml.safe_load(kept.read_text())["arms"]["a"]["set"] == {"steps.pair.min_margin": 0.1}
    assert [p.hash for p in planned(kept)] == [p.hash for p in plan]


def test_later_changes_win(write: Write) -> None:
    path = write(
        arms={"a": {"set": {"steps.dpo.beta": 0.2}}, "b": {}},
        profiles={"big": {"steps.dpo.beta": 0.4, "steps.dpo.epochs": 3}},
    )

    def trained(profile: str | None, *overrides: str) -> list[tuple[float, int]]:
        plan = make_plan(prepare(path, overrides, fetch=False, profile=profile))
        return [(s.beta, s.epochs) for s in (of_arm(plan, arm, "dpo").step for arm in "ab")]

    assert trained(None) == [(0.2, 1), (0.1, 1)]
    assert trained("big") == [(0.2, 3), (0.4, 3)]
    assert trained("big", "steps.dpo.beta=0.7", "steps.pair.max_pairs=2") == [(0.7, 3), (0.7, 3)]
    # A run folder keeps the file as it was run.
    overrides = ["steps.dpo.beta=0.7"]
    kept = path.parent / "kept.yaml"
    kept.write_text(resolved_yaml(load_experiment(path, overrides)[0]))
    assert [p.hash for p in planned(kept)] == [p.hash for p in planned(path, *overrides)]


def test_an_arm_may_leave_out_replace_and_split_steps(write: Write) -> None:
    plan = planned(
        write(
            arms={
                "base": {},
                "ipo": {"set": {"steps.dpo": {"method": "ipo", "beta": 0.5}}},
                "two": {"set": {"steps.pair": [{"pair": {"id": "first", "min_margin": 0.5}},
                                               {"filter": {"filters": [{"kind": "duplicates"}]}}]}},
            }
        )
    )  # fmt: skip
    assert [of_arm(plan, arm, "dpo").step.method for arm in ("base", "ipo", "two")] == [
        "dpo", "ipo", "dpo"
    ]  # fmt: skip
    assert of_arm(plan, "two", "dpo").inputs["preferences/0"] == of_arm(plan, "two", "filter").hash
    assert of_arm(plan, "base", "sample").arms == ("base", "ipo", "two")


def test_a_step_of_some_arms(write: Write, tmp_path: Path) -> None:
    path = write(arms={"a": {}, "b": {}})
    text = path.read_text().replace(
        "  - pair: {}\n",
        "  - pair: {}\n  - filter: {id: thin, filters: [{kind: duplicates}]}\n    arms: [b]\n",
    ).replace("{id: dpo}", '{id: dpo, uses: [pair, "thin?"]}')  # fmt: skip
    path.write_text(text)
    plan = planned(path)
    used = {arm: of_arm(plan, arm, "dpo").inputs.values() for arm in "ab"}
    assert [len(hashes) for hashes in used.values()] == [1, 2]
    path.write_text(text.replace('"thin?"', "thin"))
    said = fault(path)
    assert (
        "step 'thin' is not in arm a" in said and '"thin?"' in said and "experiment.yaml:" in said
    )


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ({"set": {"steps.evaluate.n": 2}}, "evaluate evaluate measures all arms"),
        ({"set": {"prompts.holdout": 3}}, "`prompts` measures all arms"),
        ({"set": {"seed": 3}}, "`seed` measures all arms"),
        ({"set": {"judges.by_a.constitution": "constitutions/brevity_only.yaml"}}, "judge by_a"),
        ({"set": {"steps.dpo.betta": 2}}, "betta"),
        ({"set": {"steps.nobody.beta": 2}}, "no step is called 'nobody'"),
        ({"set": {"steps.dpo": None}}, "arm b trains nothing, and others do"),
        ({"flip": 0.5}, "`flip` turns labels round"),
        ({"sets": {}}, "sets"),
        ({"set": {"steps.dpo.reference": "nobody"}}, "arm b: reference: 'nobody' is no model"),
        ({"set": {"constitution": "nowhere.yaml"}}, "arm b: "),
    ],
)
def test_what_an_arm_may_not_do(write: Write, arm: dict[str, Any], words: str) -> None:
    said = fault(write(arms={"a": {}, "b": arm}))
    assert words in said
    # A file that is not there, and an arm as a whole, stand in no line.
    assert "experiment.yaml:" in said or words.startswith("arm b: ") or "trains" in words


def test_a_judge_that_differs_between_arms_judges_none_of_them_alone(write: Write) -> None:
    path = write(arms={"a": {}, "b": {"set": {"steps.dpo.beta": 0.4}}})
    text = path.read_text().replace(
        "judges: [by_a, by_b]}", "judges: [by_a, by_b, own], judged_by: sft}"
    )
    text = text.replace(
        "  - {id: labels", "  - {id: own, kind: yes_no, by: policy}\n  - {id: labels"
    )
    first = "- id: first\n  steps:\n  - sample: {n: 2}\n  - judge: labels\n  - pair: {}\n"
    first += "  - train: {id: sft, method: sft}\n"
    loop = "- id: main\n  rounds: 2\n  steps:\n"
    stages = text.replace("rounds: 2\nsteps:\n", f"stages:\n{first}{loop}")
    path.write_text(stages)
    plan = planned(path)
    assert len({p.models["by"].key for p in plan if p.id == "evaluate.own"}) == 1
    path.write_text(stages.replace("steps.dpo.beta: 0.4", "steps.sft.epochs: 2"))
    assert "'sft' is another model in each arm" in fault(path)


def test_arms_of_several_base_models_are_compared_with_their_own(
    write: Write, tiny_model: Path
) -> None:
    plan = planned(write(arms={"a": {}, "b": {"set": {"models.policy.path": str(tiny_model)}}}))
    starts = {arm: of_arm(plan, arm, "dpo").models["start"].key for arm in "ab"}
    assert starts["a"] != starts["b"]
    assert {arm: of_arm(plan, arm, "evaluate").models["initial"].key for arm in "ab"} == starts


def test_arms_of_several_base_models_are_judged_by_one(write: Write, tiny_model: Path) -> None:
    path = write(arms={"a": {}, "b": {"set": {"models.policy.path": str(tiny_model)}}})
    text = path.read_text().replace("judges: [by_a, by_b]}", "judges: [by_a, own]}")
    own = "  - {id: own, kind: yes_no, by: policy}\n"
    path.write_text(text.replace("  - {id: labels", f"{own}  - {{id: labels"))
    plan = planned(path)
    asked = {p.models["by"].key for p in plan if p.id == "evaluate.own"}
    assert asked == {of_arm(plan, "a", "evaluate").models["initial"].key}


def test_a_judge_that_evaluates_by_default_is_the_same_in_each_arm(write: Write) -> None:
    own = {"judges.labels.constitution": "constitutions/brevity_only.yaml"}
    path = write(arms={"a": {}, "b": {"set": own}})
    named = path.read_text()
    assert planned(path)
    path.write_text(named.replace("evaluate: {judges: [by_a, by_b]}", "evaluate: {}"))
    assert "judge labels measures all arms" in fault(path)


def test_a_sweeps_value_wins_over_the_arms_own(write: Write) -> None:
    arms = {"x": {"set": {"steps.dpo.beta": 0.9}}}
    plan = planned(write(sweep={"steps.dpo.beta": [0.1, 0.2]}, arms=arms))
    betas = {arm: of_arm(plan, arm, "dpo").step.beta for arm in ("x-beta=0.1", "x-beta=0.2")}
    assert betas == {"x-beta=0.1": 0.1, "x-beta=0.2": 0.2}


def test_the_arms_are_compared_by_the_files_weights_whatever_the_first_one_sets(
    write: Write,
) -> None:
    other = {"set": {"constitution": "constitutions/brevity_only.yaml"}}
    plan = planned(write(arms={"a": other, "b": {}}))
    own = [of_arm(plan, arm, "pair").options["principle_weights"] for arm in "ab"]
    compared = [p for p in plan if p.kind == "compare"]
    assert len(compared) == 2 and own[0] != own[1]
    assert all(p.options["principle_weights"] == own[1] for p in compared)


def test_a_bench_measures_the_files_form_of_a_judge_in_every_arm(
    write: Write, tmp_path: Path
) -> None:
    pairs = "".join(
        f'{{"prompt": "Which {n}?", "chosen": "The {n}th.", "rejected": "No."}}\n' for n in range(6)
    )
    (tmp_path / "labelled.jsonl").write_text(pairs)
    other = {"set": {"constitution": "constitutions/brevity_only.yaml"}}
    path = write(arms={"a": {}, "b": other})
    last = "  - evaluate: {judges: [by_a, by_b]}\n"
    bench = "  - load: {id: labelled, type: pairs, path: labelled.jsonl}\n"
    bench += "  - bench: {judges: [labels], pairs: labelled}\n"
    text = path.read_text().replace(
        "prompts: {path: prompts.jsonl, holdout: 2}", "prompts: {holdout: 2}"
    )
    path.write_text(text.replace(last, last + bench))
    plan = planned(path)
    labels = [of_arm(plan, arm, "labels").judges["labels"].judge_hash for arm in "ab"]
    (measured,) = {p.judges["labels"].judge_hash for p in plan if p.id == "bench.labels.0"}
    assert labels[0] != labels[1] and measured == labels[0]


def test_arms_whose_stages_draw_fewer_prompts_go_on_where_the_files_end(write: Write) -> None:
    path = write(arms={"a": {}, "b": {"set": {"steps.sample.prompts": 1}}})
    text = path.read_text().replace(
        "rounds: 2\nsteps:\n", "stages:\n- id: first\n  rounds: 2\n  steps:\n"
    )
    second = "- id: second\n  steps:\n  - sample: {id: later, n: 2, prompts: 4}\n"
    path.write_text(text.replace("arms:\n", f"{second}arms:\n", 1))
    plan = planned(path)
    assert [len(of_arm(plan, arm, "sample").prompts) for arm in "ab"] == [3, 1]
    later = [of_arm(plan, arm, "later").prompts for arm in "ab"]
    assert later[0] == later[1]
    drawn = {p for number in (1, 2) for p in of_arm(plan, "a", "sample", number).prompts}
    assert not drawn & set(later[1])
