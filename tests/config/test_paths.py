"""A path and a value: the one way in which a file is changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from rlaif.cli import cli
from rlaif.config.base import LATE, Strict, hashed_keys, told
from rlaif.config.models import REMOTE
from rlaif.config.paths import Change, apply_changes, read_changes, read_setting, step_places
from rlaif.config.prompts import Columns, PromptsSpec
from rlaif.core.errors import ConfigError
from rlaif.core.store import Store
from rlaif.core.yamlio import load_yaml
from rlaif.data.sources import provisional_prompts
from rlaif.pipeline.forecast import Forecast, forecast
from rlaif.pipeline.manifest import resolved_yaml
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.reading import load_experiment

SHIPPED = sorted(Path(__file__).parents[2].joinpath("experiments").glob("*.yaml"))

FILE = """\
name: paths
models: {policy: {path: builtin/smollm2-135m-instruct}}
prompts: {path: prompts.jsonl, holdout: 2}
judges:
  - {id: gold, kind: rules}
  - {id: other, kind: rules}
profiles:
  full:
    rounds: 3
    steps.sample.prompts: 1000
    steps.train: {method: ipo, learning_rate: 5e-7}
    steps.second: null
    judges.gold.principles: [a]
  wrong: {steps.train.beta: many}
  nowhere: {steps.trian.beta: 1}
  split:
    steps.first:
      - judge: {id: one, kind: rules}
      - judge: {id: two, kind: rules, principles: 7}
steps:
  - sample: {n: 2}
  - judge: {id: first, kind: rules}
  - judge: {id: second, kind: rules}
  - pair:
  - train: {id: train, beta: 0.2}
  - evaluate: {}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "paths.yaml"
    path.write_text(FILE)
    return path


def changed(*settings: str, data: Any = None) -> dict[str, Any]:
    given = yaml.safe_load(FILE) if data is None else data
    return apply_changes(given, {}, [read_setting(text) for text in settings])[0]


def line_with(text: str, file: str = FILE) -> int:
    return next(n for n, line in enumerate(file.splitlines(), 1) if text in line)


def test_a_profile_changes_values_and_replaces_and_leaves_out_steps(file: Path) -> None:
    plain, full = load_experiment(file)[0], load_experiment(file, profile="full")[0]
    assert (plain.rounds, full.rounds) == (1, 3)
    assert [e.step.id for e in plain.steps][1:3] == ["first", "second"]
    assert [e.step.id for e in full.steps] == ["sample", "first", "pair", "train", "evaluate"]
    assert full.steps[0].step.prompts == 1000 and full.steps[0].step.n == 2
    train = full.steps[3].step
    # The body is replaced: of the old keys the id alone is left.
    assert (train.id, train.method, train.learning_rate) == ("train", "ipo", 5e-7)
    assert train.beta != 0.2
    assert full.all_judges()["gold"].principles == ["a"]
    assert plain.all_judges()["gold"].principles is None


def test_settings_come_after_the_profile(file: Path) -> None:
    experiment, _ = load_experiment(file, ["rounds=7"], "full")
    assert experiment.rounds == 7


def test_a_run_has_one_size(file: Path) -> None:
    full, _ = load_experiment(file, profile="full")
    written = resolved_yaml(full)
    assert "profiles" not in written
    file.write_text(written)
    assert load_experiment(file)[0].steps == full.steps


def test_a_fault_of_a_profile_names_its_line_and_the_steps(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(file, profile="wrong")
    said = str(caught.value)
    assert said.startswith(
        f"{file}:{line_with('wrong:')} (step train, profile wrong steps.train.beta: many"
    )
    assert f"of the step in line {line_with('- train')}" in said
    assert "steps.4.train.beta" in said


def test_a_path_that_leads_nowhere_names_its_line_and_what_is_near(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(file, profile="nowhere")
    said = str(caught.value)
    assert f"{file}:{line_with('nowhere:')}" in said
    assert "no step is called 'trian'; did you mean 'train'?" in said


def test_an_unknown_profile_names_those_that_are_there(file: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'full'"):
        load_experiment(file, profile="ful")
    with pytest.raises(ConfigError, match="no such profile"):
        load_experiment(file, profile="x")


def test_a_step_gives_way_to_several_and_lines_follow(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(file, profile="split")
    said = str(caught.value)
    assert f"{file}:{line_with('id: two')} " in said and "steps.2.judge.principles" in said
    data, lines = load_yaml(file)
    change = Change("steps.first", [{"pair": None}, {"pair": {"id": "p"}}], "here")
    data, lines, _ = apply_changes(data, lines, [change])
    kinds = [place.kind for place in step_places(data)]
    assert kinds == ["sample", "pair", "pair", "judge", "pair", "train", "evaluate"]
    assert lines["steps", 5, "train", "beta"] == line_with("- train")
    assert lines["steps", 3, "judge", "id"] == line_with("id: second")


@pytest.mark.parametrize(
    ("setting", "place", "value"),
    [
        ("steps.0.n=4", ("steps", 0, "sample", "n"), 4),
        ("steps.0.sample.n=4", ("steps", 0, "sample", "n"), 4),
        ("steps.pair.min_margin=0.5", ("steps", 3, "pair", "min_margin"), 0.5),
        ("judges.gold.by=x", ("judges", 0, "by"), "x"),
        ("judges.1.by=x", ("judges", 1, "by"), "x"),
        ("judges.gold={kind: rating}", ("judges", 0), {"id": "gold", "kind": "rating"}),
        ("judges.gold={id: new}", ("judges", 0), {"id": "new"}),
        ("models.policy.path=x", ("models", "policy", "path"), "x"),
        ("models.new={path: x}", ("models", "new"), {"path": "x"}),
        ("alarms.kl_budget=1e1", ("alarms", "kl_budget"), 10.0),
        ("steps.train.lora.r=4", ("steps", 4, "train", "lora"), {"r": 4}),
        ("models.policy.path=a=b", ("models", "policy", "path"), "a=b"),
        (" models.policy.path = 1e-5", ("models", "policy", "path"), 1e-5),
    ],
)
def test_where_a_path_leads(setting: str, place: tuple[Any, ...], value: Any) -> None:
    node: Any = changed(setting)
    for part in place:
        node = node[part]
    assert node == value


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("judges.gould.by=x", "has the id 'gould'; did you mean 'gold'"),
        ("judges.9.by=x", "positions are from 0 to 1"),
        ("judges.2.by=x", "nothing in `judges` has the id '2'"),
        ("steps.6.n=1", "no step is called '6'"),
        ("steps.judge.by=x", "2 steps are called 'judge'"),
        ("steps.train=5", "a step takes a mapping"),
        ("steps.sample.n.x=1", "nothing can be set at 'steps.sample.n.x'"),
    ],
)
def test_paths_that_lead_nowhere(setting: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        changed(setting)
    assert words in str(caught.value) and setting.partition("=")[0] in str(caught.value)


STAGES = {
    "stages": [
        {"id": "sft", "steps": [{"train": {"method": "sft"}}, {"evaluate": None}]},
        {"id": "rl", "steps": [{"judge": "gold"}, {"train": {}}, {"evaluate": {"n": 2}}]},
    ],
    "judges": [{"id": "gold", "kind": "rules"}],
}


def test_a_new_body_of_a_step_leaves_its_rounds_and_arms() -> None:
    data = yaml.safe_load(FILE)
    data["steps"][4] |= {"when": 2, "arms": ["one"]}
    entry = changed("steps.train={method: ipo}", data=data)["steps"][4]
    assert entry == {"train": {"id": "train", "method": "ipo"}, "when": 2, "arms": ["one"]}


def test_ids_across_stages() -> None:
    places = {place.id: place.loc for place in step_places(STAGES)}
    assert list(places) == ["train", "evaluate", "gold", "train-rl", "evaluate-rl"]
    data = changed("steps.train-rl.beta=1", "stages.rl.rounds=2", data=STAGES)
    assert data["stages"][1]["steps"][1] == {"train": {"beta": 1}}
    assert data["stages"][1]["rounds"] == 2
    assert changed("steps.evaluate=null", data=STAGES)["stages"][0]["steps"] == [
        {"train": {"method": "sft"}}
    ]
    data = changed("steps.gold.uses=[answers]", data=STAGES)
    assert data["stages"][1]["steps"][0] == {"judge": {"id": "gold", "uses": ["answers"]}}


def test_an_id_goes_before_a_kind_and_only_an_earlier_stage_takes_one() -> None:
    steps = [{"train": {"id": "judge"}}, {"judge": {"id": None}}, {"judge": "third"}]
    assert [place.id for place in step_places({"steps": steps})] == ["judge", "judge", "third"]
    data = changed("steps.train.beta=1", "steps.third.by=x", data={"steps": steps})
    assert data["steps"][0] == {"train": {"id": "judge", "beta": 1}}
    assert data["steps"][2] == {"judge": {"id": "third", "by": "x"}}
    named = [{"train": {"id": "pair"}}, {"pair": {"id": "other"}}]
    data = changed("steps.pair.beta=1", data={"steps": named})
    assert data["steps"][0] == {"train": {"id": "pair", "beta": 1}}
    twice = {"judges": [{"id": "one"}, {"id": "one"}]}
    with pytest.raises(ConfigError, match="nothing in `judges` has the id 'one'"):
        changed("judges.one.by=x", data=twice)


def test_a_change_is_described_by_who_sets_it_and_how() -> None:
    [given] = read_changes({"steps.train.beta": "1e-5"}, "profile full", ("profiles", "full"))
    assert given == Change(
        "steps.train.beta", 1e-5, "profile full", ("profiles", "full", "steps.train.beta")
    )
    assert given.describe() == "profile full steps.train.beta: 1.0e-05"
    assert read_setting("steps.train.beta=0.2").describe() == "--set steps.train.beta=0.2"


def test_a_secret_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        changed("models.policy.api_key.x.y=sk-1234567890abcdefghij", data={"models": 3})
    assert "sk-1234" not in str(caught.value)


@given(st.lists(st.sampled_from(["steps.first", "steps.second", "steps.pair"]), unique=True))
def test_what_is_given_stays_as_it_is_and_lines_fit_what_is_left(names: list[str]) -> None:
    data = yaml.safe_load(FILE)
    lines = {("steps", i): 100 + i for i in range(6)}
    before = deepcopy(data), dict(lines)
    made, placed, _ = apply_changes(data, lines, [Change(name, None, "here") for name in names])
    assert (data, lines) == before
    ids = ["sample", "first", "second", "pair", "train", "evaluate"]
    left = [n for n, name in enumerate(ids) if f"steps.{name}" not in names]
    assert [place.id for place in step_places(made)] == [ids[n] for n in left]
    assert [placed["steps", n] for n in range(len(left))] == [100 + n for n in left]
    assert len(placed) == len(left)


class Inner(Strict):
    old: int = 1
    new: Annotated[int, LATE] = 2


class Outer(Strict):
    one: Inner = Inner()
    some: list[Inner] = Field([])
    named: dict[str, Inner] = Field({})
    late: Annotated[Inner | None, LATE] = None


def test_late_keys_enter_a_hash_only_where_they_are_set() -> None:
    assert hashed_keys(Outer()) == {"one": {"old": 1}, "some": [], "named": {}}
    whole = Outer(some=[Inner(), Inner(new=3)], named={"a": Inner(old=5)}, late=Inner())
    assert hashed_keys(whole) == {
        "one": {"old": 1},
        "some": [{"old": 1}, {"old": 1, "new": 3}],
        "named": {"a": {"old": 5}},
        "late": {"old": 1},
    }
    assert hashed_keys(whole, exclude={"some", "late"}).keys() == {"one", "named"}
    assert hashed_keys(whole, include={"one"}) == {"one": {"old": 1}}


def test_keys_say_something_with_another_value_than_their_default() -> None:
    keys = ("old", "new")
    assert told(Inner(old=5, new=0), *keys) == ["new", "old"]
    # As a resolved file has them.
    assert told(Inner(old=1, new=2), *keys) == []


def test_the_run_folder_is_named_for_the_profile(file: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(file.parent)
    file.with_name("prompts.jsonl").write_text(
        "".join(f'{{"prompt": "question {n}"}}\n' for n in range(6))
    )
    known = "name: paths\nconstitution: constitutions/concise_helper.yaml\n"
    text = FILE.replace("    judges.gold.principles: [a]\n", "").replace("name: paths\n", known)
    file.write_text(text)
    run = ["run", str(file), "--dry-run", "--profile"]
    said = CliRunner().invoke(cli, [*run, "full"]).output
    assert "runs/paths-full" in said
    plan = json.loads(CliRunner().invoke(cli, [*run, "full", "--json"]).output)
    assert max(step["round"] for step in plan["steps"]) == 3
    with pytest.raises(ConfigError, match="no such profile; known here: full, nowhere"):
        CliRunner().invoke(cli, [*run, "small"], catch_exceptions=False)


PAIRS = "".join(
    json.dumps({"prompt": f"question {n}", "chosen": "yes", "rejected": "no"}) + "\n"
    for n in range(600)
)


MORE_AT_FULL_SIZE = {"meta_rewarding": {"meta", "judging"}}
"""Steps that a small model cannot take, as the header of the experiment says."""


LOADED_TRAININGS = {"rm", "sft", "taught", "train"}


def check_sizes(rows: Sequence[Forecast], plan: Sequence[Planned]) -> None:
    """New tokens of every step that samples, and the time of every step whose models are on devices
    of ours, by parameters and passes at a stated FLOP/s; of what is loaded, it is not known yet."""
    known = [pair for pair in zip(rows, plan, strict=True) if pair[0].units is not None]
    assert any(row.seconds for row, _ in known)
    for row, planned in known:
        assert row.tokens or row.kind not in ("sample", "revise"), row.id
        remote = any(model.spec.engine in REMOTE for model in planned.models.values())
        assert row.seconds is not None or remote, row.id
        assert row.seconds != 0 or row.kind not in ("sample", "train", "distill"), row.id
    trainings = {row.id for row in rows if row.kind in ("train", "distill") and row.units is None}
    assert trainings <= LOADED_TRAININGS, "what else is trained on a file?"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_profile_of_every_shipped_experiment_has_a_plan_without_network(
    path: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "pairs.jsonl").write_text(PAIRS)
    needs = "`data`" in path.read_text()
    settings = [f"data={tmp_path / 'pairs.jsonl'}"] if needs else []
    profiles = yaml.safe_load(path.read_text())["profiles"]
    assert "full" in profiles
    small = make_plan(prepare(path, settings, fetch=False))
    for name in profiles:
        inputs = prepare(path, settings, fetch=False, profile=name)
        full = make_plan(inputs)
        # The method is the same one, at another size.
        names, whole = ([(p.kind, p.id, p.round) for p in plan] for plan in (small, full))
        if path.stem in MORE_AT_FULL_SIZE:
            assert {p.id for p in full} - {p.id for p in small} == MORE_AT_FULL_SIZE[path.stem]
            assert set(names) < set(whole)
        else:
            assert whole == names
        assert not {p.hash for p in full if p.models} & {p.hash for p in small if p.models}
        assert any("meta-llama" in text or "zephyr" in text for text in inputs.provisional)
        check_sizes(forecast(inputs, Store(tmp_path / "none"), full, 4e14), full)


def test_made_up_prompts_stand_for_a_dataset_that_is_not_here(tmp_path: Path) -> None:
    spec = PromptsSpec(dataset="who/knows", holdout=3, count=20, limit=10, max_words=1)
    found = provisional_prompts(spec, "who/knows", 20)
    assert (len(found.train), len(found.heldout)) == (10, 3)
    assert not {p.prompt_id for p in found.train} & {p.prompt_id for p in found.heldout}
    assert found.train[0].reference is None
    named = spec.model_copy(update={"columns": Columns(reference="output")})
    assert all(p.reference for p in provisional_prompts(named, "who/knows", 20).every())
    with pytest.raises(ConfigError, match="count: 2"):
        provisional_prompts(spec, "who/knows", 2)
    with pytest.raises(ValueError, match="only with `dataset`"):
        PromptsSpec(path="x.jsonl", count=3)
