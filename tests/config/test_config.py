"""The experiment file: faults named with their line, overrides, defaults, the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from rlaif.config.arms import Arms, ArmSpec, describe_labels, labellers_of
from rlaif.config.filters import FilterSet, FilterStep
from rlaif.config.paths import apply_changes, read_setting
from rlaif.config.prompts import FileSource, PromptMix, PromptSetSpec, PromptsSpec, TopicsSource
from rlaif.core.errors import ConfigError
from rlaif.core.resources import shipped_root
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.manifest import resolved_yaml
from rlaif.pipeline.reading import experiment_schema, load_experiment

HEAD = """\
name: test
models:
  policy: {path: somewhere}
prompts: {path: p.jsonl}
steps:
"""
SHIPPED = sorted((shipped_root() / "experiments").glob("*.yaml"))


def written(folder: Path, text: str) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_experiment(written(folder, text))
    return str(caught.value)


def name_of(step: str) -> str:
    """The id of a step that is not given one."""
    ((kind, body),) = yaml.safe_load(step).items()
    return str(body["kind"] if kind == "judge" else kind)


@pytest.mark.parametrize(
    ("step", "wrong", "right"),
    [
        ("sample: {max_new_token: 5}", "max_new_token", "max_new_tokens"),
        ("load: {type: preferences, path: x, pth: y}", "pth", "path"),
        ("judge: {kind: rules, principle: [a]}", "principle", "principles"),
        ("judge: {kind: yes_no, yes_label: [a]}", "yes_label", "yes_labels"),
        ("judge: {kind: rating, scales: [1, 2]}", "scales", "scale"),
        ("judge: {kind: additive, sample: 3}", "sample", "samples"),
        ("judge: {kind: pairwise, ordr: both}", "ordr", "order"),
        ("judge: {kind: template, template: x, parse: {patern: x}}", "patern", "pattern"),
        ("judge: {kind: 'a.b:C', option: {}}", "option", "options"),
        ("pair: {stratgy: all}", "stratgy", "strategy"),
        ("train: {bata: 0.2}", "bata", "beta"),
        ("train: {lora: {rr: 4, alpha: 2, target_module: x}}", "target_module", "target_modules"),
        ("evaluate: {agianst: [initial]}", "agianst", "against"),
    ],
)
def test_unknown_keys_are_named_with_the_nearest_known_and_the_line(
    tmp_path: Path, step: str, wrong: str, right: str
) -> None:
    message = refusal(tmp_path, HEAD + "  - sample: {id: first}\n  - " + step + "\n")
    line = next(x for x in message.splitlines() if f"{wrong}'" in x)
    assert f"{tmp_path / 'experiment.yaml'}:7 (step {name_of(step)}): unknown key" in line
    assert f"did you mean '{right}'?" in line


def test_unknown_top_level_key_and_step_kind(tmp_path: Path) -> None:
    message = refusal(tmp_path, HEAD + "  - sampel: {n: 2}\nround: 2\n")
    assert (
        "experiment.yaml:6 (step sampel): unknown key 'steps.0.sampel'; did you mean 'sample'?"
        in message
    )
    assert "experiment.yaml:7: unknown key 'round'; did you mean 'rounds'?" in message


def test_unknown_judge_kind(tmp_path: Path) -> None:
    message = refusal(tmp_path, HEAD + "  - judge: {kind: yesno}\n")
    assert "experiment.yaml:6" in message
    assert "`kind` must be rules, yes_no, rating" in message
    assert message.endswith("(got 'yesno'); did you mean 'yes_no'?")


def test_a_value_of_several_types_is_one_fault(tmp_path: Path) -> None:
    head = HEAD.replace("somewhere", "somewhere, engine: fak")
    message = refusal(tmp_path, head + "  - sample\n")
    first, second = message.splitlines()
    assert "models.policy.engine: Input should be 'hf', " in first
    assert ", or: String should match" in first
    assert first.endswith("(got 'fak')")
    assert second.endswith("steps.0: expected a mapping (key: value) (got 'sample')")


def test_a_key_given_twice(tmp_path: Path) -> None:
    message = refusal(tmp_path, HEAD + "  - train: {beta: 0.1}\nseed: 1\nseed: 2\n")
    assert message.endswith("experiment.yaml:8: key 'seed' is given twice")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("- a\n- b\n", "expected a mapping"),
        ("just words\n", "expected a mapping"),
        ("a: [1, 2\nb: 3\n", "not valid YAML"),
        ("a: 'open\n", "not valid YAML"),
        ("a: \x07\n", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("a: &x [*x]\n", "not valid YAML"),
        ("? [1, 2]\n: 3\n", "not valid YAML"),
        ("day: 2024-13-41\n", "not valid YAML"),
    ],
)
def test_what_is_no_experiment_at_all(tmp_path: Path, text: str, words: str) -> None:
    message = refusal(tmp_path, text)
    assert words in message
    assert str(tmp_path / "experiment.yaml") in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_experiment(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="this is a folder"):
        load_experiment(tmp_path)
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: café".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_experiment(path)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (HEAD + "  - train: {beta: 0}\n", 6, "steps.0.train.beta"),
        (HEAD + "  - sample: {n: many}\n", 6, "many"),
        (HEAD + "  - sample: {}\n    pair: {}\n", 6, "each step is one key"),
        (HEAD + "  - train: {micro_batch_tokens: 0}\n", 6, "micro_batch_tokens"),
        (HEAD + "  - judge: {kind: rating, samples: 2}\n", 6, "greedy samples"),
        (HEAD + "  - sample: {}\n  - sample: {}\n", 7, "step ids must differ"),
        (HEAD + "  - sample: {id: 1st}\n", 6, "1st"),
        (HEAD.replace("policy:", "initial:") + "  - sample: {}\n", 2, "must name a `policy`"),
        (HEAD + "  - sample: {}\nseed: 1\nseeds: [1]\n", 8, "not both"),
        (HEAD + "  - sample: {}\nseeds: [1, 1]\n", 7, "different numbers"),
        (HEAD.replace("path: p.jsonl", "holdout: 3") + "  - sample: {}\n", 4, "needs a `path`"),
        ("name: x\nsteps: []\n", 2, "steps"),
    ],
)
def test_wrong_values_are_named_with_their_line(
    tmp_path: Path, text: str, line: int | None, words: str
) -> None:
    message = refusal(tmp_path, text)
    place = rf"experiment\.yaml:{line}( \((step|judge) [^)]+\))?: " if line else r"experiment\.yaml"
    assert any(words in found and re.search(place, found) for found in message.splitlines())


def test_every_fault_is_listed(tmp_path: Path) -> None:
    message = refusal(tmp_path, HEAD + "  - train: {bata: 1, epochs: 0}\nsed: 4\n")
    assert len(message.splitlines()) == 3


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    assert "'models' is missing" in refusal(tmp_path, HEAD.replace("models:", "modles:"))


def overridden(*overrides: str) -> Experiment:
    data: dict[str, Any] = {
        "name": "test",
        "models": {"policy": {"path": "x"}},
        "prompts": {"path": "p"},
        "steps": [
            {"sample": {"n": 2}},
            {"judge": {"id": "one", "kind": "rules"}},
            {"judge": {"id": "two", "kind": "rules"}},
            {"pair": None},
            {"train": {"beta": 0.1}},
        ],
    }
    changed, _, _ = apply_changes(data, {}, [read_setting(text) for text in overrides])
    return Experiment.model_validate(changed)


def test_overrides_by_kind_id_and_position() -> None:
    experiment = overridden(
        "rounds=3",
        "steps.sample.n=5",
        "steps.two.principles=[a, b]",
        "steps.4.train.beta=0.3",
        "steps.pair.min_margin=0.2",
        "alarms.kl_budget=12",
        "models.labeller={path: y}",
    )
    assert experiment.rounds == 3
    steps = [entry.step for entry in experiment.steps]
    assert steps[0].n == 5  # type: ignore[union-attr]
    assert experiment.all_judges()["two"].principles == ["a", "b"]
    assert experiment.all_judges()["one"].principles is None
    assert steps[3].min_margin == 0.2  # type: ignore[union-attr]
    assert steps[4].beta == 0.3  # type: ignore[union-attr]
    assert experiment.alarms.kl_budget == 12
    assert experiment.models["labeller"].path == "y"


def test_a_number_that_yaml_reads_as_text(tmp_path: Path) -> None:
    step = overridden("steps.train.learning_rate=1e-5").steps[4].step
    assert step.learning_rate == 1e-5
    path = written(tmp_path, HEAD + "  - train: {learning_rate: 1e-5}\n")
    experiment, _ = load_experiment(path)
    assert experiment.steps[0].step.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps.judge.principles=[a]", "2 steps are called 'judge'"),
        ("steps.trian.beta=1", "no step is called 'trian'"),
        ("steps.9.train.beta=1", "no step is called '9'"),
        ("rounds", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("name.x=3", "'"),
        ("rounds=[1", "not valid YAML"),
        ("steps.sample.n.x=3", "nothing can be set"),
    ],
)
def test_overrides_that_fit_nothing(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        overridden(override)
    assert f"--set {override}" in str(caught.value)
    assert words in str(caught.value)


def test_an_override_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, HEAD + "  - train: {}\n")
    with pytest.raises(ConfigError, match="did you mean 'beta'"):
        load_experiment(path, ["steps.train.bata=1"])


@cache
def validator() -> jsonschema.Draft202012Validator:
    """That of experiments, which takes seconds to make."""
    schema = json.loads(experiment_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_experiments_fit_the_model_and_the_schema(path: Path) -> None:
    validator().validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    experiment, _ = load_experiment(path, ["data=pairs.jsonl"])
    validator().validate(yaml.safe_load(resolved_yaml(experiment)))


def test_there_are_shipped_experiments() -> None:
    assert "quickstart" in {path.stem for path in SHIPPED}


def test_the_schema_refuses_what_the_model_refuses() -> None:
    data = yaml.safe_load(HEAD + "  - train: {bata: 1}\n")
    assert not validator().is_valid(data)
    assert validator().is_valid(yaml.safe_load(HEAD + "  - train: {beta: 1, from: initial}\n"))


ANY_NUMBER = (
    *(f"EpisodeJudge.properties.{end}" for end in ("low", "high")),
    *(f"NumberSpec.properties.{end}" for end in ("low", "high")),
    "LabelValues",
    "ParseSpec",
    "CostDistill.properties.safe_at",
    "scale",
    "standardise",
    "$defs.Gate.",
    "$defs.RewardTerm.properties.weight",
    "$defs.CostTerm.properties.limit",
)
"""Where a number has no least value: what a label is called or worth, and both ends of a range."""


def unbounded(schema: Any, place: str) -> Iterator[str]:
    """The places of the numbers in a schema that may be as low as one likes."""
    if isinstance(schema, list):
        schema = dict(enumerate(schema))
    elif not isinstance(schema, dict):
        return
    bounded = {"minimum", "exclusiveMinimum"} & schema.keys()
    if schema.get("type") in ("integer", "number") and not bounded:
        yield place
    for key, value in schema.items():
        yield from unbounded(value, f"{place}.{key}")


def test_every_number_of_an_experiment_has_a_least_value() -> None:
    found = unbounded(json.loads(experiment_schema()), "")
    assert [place for place in found if not any(name in place for name in ANY_NUMBER)] == []


@pytest.mark.parametrize("extra", ["seed: 4\n", "seeds: [4, 5]\n", ""])
def test_the_resolved_experiment_reads_back_the_same(tmp_path: Path, extra: str) -> None:
    text = HEAD + "  - sample:\n  - judge: {kind: rules}\n  - train: {from: initial}\n" + extra
    experiment, _ = load_experiment(written(tmp_path, text))
    again, _ = load_experiment(written(tmp_path, resolved_yaml(experiment)))
    assert again.all_seeds == experiment.all_seeds
    assert [e.step for e in again.steps] == [e.step for e in experiment.steps]
    assert resolved_yaml(again) == resolved_yaml(experiment)


STEPS = "  - judge: {kind: rules, id: checks}\n  - evaluate:\n"


def test_a_file_that_says_how_often_a_bootstrap_drew_still_loads(tmp_path: Path) -> None:
    plain = load_experiment(written(tmp_path, HEAD + STEPS))[0]
    old = HEAD + STEPS + "      resamples: 500\n"
    assert load_experiment(written(tmp_path, old))[0] == plain
    assert (
        load_experiment(tmp_path / "experiment.yaml", ["steps.evaluate.resamples=20"])[0] == plain
    )


def test_primary_metrics_are_named_or_those_of_the_judges_that_label(tmp_path: Path) -> None:
    plain = load_experiment(written(tmp_path, HEAD + STEPS))[0]
    assert (plain.primary, plain.trained_judges) == (None, ["checks"])
    # Left out it changes no hash, and the run folder's file says nothing of it.
    assert "primary" not in resolved_yaml(plain)
    named = "primary: [score/checks, check/terms, reward_accuracy/human]\n"
    found = load_experiment(written(tmp_path, named + HEAD + STEPS))[0]
    assert found.primary == ["score/checks", "check/terms", "reward_accuracy/human"]
    again = written(tmp_path, resolved_yaml(found))
    assert load_experiment(again)[0] == found


@pytest.mark.parametrize(
    ("primary", "words"),
    [
        ("[score/chekcs]", "'score/chekcs' is of no judge (judges: checks)"),
        ("[win_rate/nobody]", "'win_rate/nobody' is of no judge"),
        ("[quality]", "'quality' is no metric of held-out answers, such as score/JUDGE"),
        ("[check/]", "'check/' is no metric"),
        ("[]", "at least 1"),
    ],
)
def test_primary_metrics_that_cannot_be_are_refused(
    tmp_path: Path, primary: str, words: str
) -> None:
    assert words in refusal(tmp_path, f"primary: {primary}\n" + HEAD + STEPS)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_a_run_folder_keeps_of_an_experiment_reads_back(path: Path, tmp_path: Path) -> None:
    """Every default is written out in it, also beside keys that forbid others."""
    found = load_experiment(path, ["data=pairs.jsonl"])[0].model_copy(update={"profiles": {}})
    assert load_experiment(written(tmp_path, resolved_yaml(found)))[0] == found


def test_a_pool_reads_back(tmp_path: Path) -> None:
    pool = "  - sample: {n: 2, pool: [{by: policy}, {by: policy}]}\n"
    found = load_experiment(written(tmp_path, HEAD + pool))[0]
    assert load_experiment(written(tmp_path, resolved_yaml(found)))[0] == found


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("pair: {strategy: all, min_margin: 0.1}", "`min_margin` has no effect"),
        ("pair: {consistency_mean: true}", "`consistency_mean` has no effect"),
        ("judge: {kind: prometheus_pair, soft: false}", "`soft` has no effect"),
        (
            "train: {method: grpo, rewards: {r: 1}, importance: none, importance_cap: 2}",
            "`importance_cap` has no effect",
        ),
        (
            "train: {method: online_dpo, rewards: {r: 1}, importance_floor: 0.1}",
            "`importance_floor` has no effect",
        ),
    ],
)
def test_a_key_without_an_effect_is_refused(tmp_path: Path, step: str, words: str) -> None:
    assert words in refusal(tmp_path, HEAD + f"  - {step}\n")


@pytest.mark.parametrize("rewards", ["{r: 1}", "[{judge: r, when: {tags: [x]}}]"])
def test_the_judges_of_rewards_are_those_that_a_policy_is_trained_on(
    tmp_path: Path, rewards: str
) -> None:
    steps = "  - judge: {kind: yes_no}\n  - train: {method: grpo, rewards: " + rewards + "}\n"
    experiment, _ = load_experiment(written(tmp_path, HEAD + steps))
    assert experiment.trained_judges == ["yes_no", "r"]


ALL_FILTERS: list[dict[str, Any]] = [
    {"kind": "lexicon", "path": "words.txt"},
    {"kind": "contamination", "against": ["z.jsonl", "heldout", "a.jsonl"]},
    {"kind": "contamination", "of": "answers", "against": ["a.jsonl"]},
    {"kind": "semantic_duplicates", "model": "mine"},
    {"kind": "semantic_duplicates", "of": "answers", "model": "mine"},
    {"kind": "duplicates"},
]


def test_the_files_and_models_of_filters_are_named_once() -> None:
    wanted = FilterSet.model_validate({"filters": ALL_FILTERS})
    # The held-out prompts are no file.
    assert wanted.files() == ["a.jsonl", "words.txt", "z.jsonl"]
    assert wanted.models() == ["mine"]


@pytest.mark.parametrize(
    ("wanted", "fits", "message"),
    [
        ({"kind": "truncated"}, "completions", "do not say how an answer ended"),
        ({"kind": "best", "by": "j"}, "completions", "best: judges score answers"),
        ({"kind": "score", "by": "j", "least": 0.5}, "completions", "score: judges score answers"),
        ({"kind": "agrees", "with": "l"}, "judgements", "are compared with judgements"),
        ({"kind": "balance", "by": "score"}, "judgements", "have no 'score' to balance by"),
    ],
)
def test_a_filter_is_of_the_records_that_have_what_it_looks_at(
    wanted: dict[str, Any], fits: str, message: str
) -> None:
    for records in ("completions", "preferences", "judgements"):
        keys = {"records": records, "filters": [wanted]}
        if records == fits:
            assert FilterStep.model_validate(keys).filters[0].kind == wanted["kind"]
        else:
            with pytest.raises(ValidationError, match=message):
                FilterStep.model_validate(keys)


def test_a_filter_by_a_rule_checks_the_rules_parameters() -> None:
    rule = {"kind": "rule", "rule": "word_limits"}
    with pytest.raises(ValidationError, match="'max' is missing"):
        FilterSet.model_validate({"filters": [rule | {"params": {"min": 1}}]})
    FilterSet.model_validate({"filters": [rule | {"params": {"min": 1, "max": 2}}]})


def test_prompts_come_from_one_place() -> None:
    for keys in ({}, {"path": "p", "dataset": "d"}):
        with pytest.raises(ValidationError, match="give `path` or `dataset`"):
            FileSource.model_validate({"id": "a", "kind": "file"} | keys)
    with pytest.raises(ValidationError, match="give one of `path`, `dataset`"):
        PromptsSpec.model_validate({"path": "p", "dataset": "d"})
    with pytest.raises(ValidationError, match="`environment` and `episodes`"):
        PromptsSpec.model_validate({"episodes": 3})
    with pytest.raises(ValidationError, match="a set of prompts needs one of `path`, `dataset`"):
        PromptSetSpec()
    # Of the first set some are held out, and of further ones none.
    assert (PromptsSpec(path="p").holdout, PromptSetSpec(path="p").holdout) == (64, 0)
    assert PromptsSpec(limit=3).from_pairs and not PromptsSpec(dataset="d").from_pairs


def test_requests_are_about_topics_or_of_personas() -> None:
    source: dict[str, Any] = {"id": "a", "kind": "topics", "count": 2}
    for keys in ({"topics": ["x"]}, {"personas": ["y"]}):
        TopicsSource.model_validate(source | keys)
    with pytest.raises(ValidationError, match="`topics`, `personas` or both"):
        TopicsSource.model_validate(source)
    given = {"id": "b", "kind": "file", "path": "p"}
    mix = PromptMix.model_validate({"sources": [given, source | {"topics": ["x"]}]})
    assert [one.id for one in mix.written] == ["a"]


def arms_of(value: Any) -> dict[str, ArmSpec]:
    return TypeAdapter(Arms).validate_python(value)


def test_an_arm_of_several_numbers_keeps_its_other_keys() -> None:
    made = arms_of({"a": {"labels": "ai", "flip": 0.25, "labels_used": [5, 9]}})
    assert made == {
        f"a-{count}": ArmSpec(labels="ai", flip=0.25, labels_used=count) for count in (5, 9)
    }


def test_short_forms_of_arms_say_who_labels() -> None:
    made = arms_of(["human", {"flipped": 0.25}, {"x": {"labels": {"ai": 1.0}}}])
    assert made == {
        "human": ArmSpec(labels="human"),
        "flipped": ArmSpec(labels="human", flip=0.25),
        "x": ArmSpec(labels="ai"),
    }
    assert made["x"].labels == "ai"
    with pytest.raises(ValidationError, match="no arm that needs no more words"):
        arms_of({"flipped": True})
    with pytest.raises(ValidationError, match="say whose, with `labels`"):
        arms_of({"x": {"flip": 0.0}})


def test_shares_of_labels_sum_to_one_and_are_said_in_percent() -> None:
    shares = {"human": 0.7, "ai": 0.2, "random": 0.1}
    assert arms_of({"x": {"labels": shares}})["x"].labels == shares
    with pytest.raises(ValidationError, match="must sum to 1"):
        arms_of({"x": {"labels": {"human": 0.7, "ai": 0.299}}})
    assert describe_labels(shares) == "human 70%, ai 20%, random 10%"
    assert describe_labels("ai") == "ai"
    assert (labellers_of(shares), labellers_of("ai")) == (["human", "ai", "random"], ["ai"])


def test_an_arm_differs_in_its_labels_by_who_says_them_or_how_many() -> None:
    assert ArmSpec(labels="ai").labelled and ArmSpec(labels_used=3).labelled
    assert not ArmSpec(set={"steps.train.beta": 1}).labelled
