"""`average`: what is in the model, who chose it, and what is refused before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rlaif.core.errors import ConfigError, EngineError, RlaifError
from rlaif.core.store import Store
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.explain.plan import explain_file
from rlaif.pipeline.forecast import forecast
from rlaif.pipeline.manifest import read_manifest, read_rounds
from rlaif.pipeline.plan.base import Planned
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.remarks import list_remarks
from rlaif.pipeline.runs import Run
from rlaif.pipeline.steps import choose
from rlaif.pipeline.steps.average import Means

TRAIN = {"method": "sft", "learning_rate": 5e-3, "batch_size": 2, "precision": "fp32"}
EVALUATE = {"evaluate": {"judges": ["gold"], "max_new_tokens": 5}}
Write = Callable[..., Path]


def trained(name: str, **keys: Any) -> dict[str, Any]:
    """A model from M0, by demonstrations."""
    return {"train": {"id": name, "from": "initial", "uses": ["demos"], **TRAIN, **keys}}


DEMOS = {"load": {"id": "demos", "type": "demonstrations", "path": "demos.jsonl"}}
THREE = [DEMOS, trained("a"), trained("b", learning_rate=2e-2), trained("c", epochs=2)]
GREEDY = {"id": "soup", "models": ["a", "b", "c"], "method": "greedy", "by": "gold"}


@pytest.fixture
def write(tmp_path: Path, small_model: Path) -> Write:
    """`write(STEPS, KEY=VALUE)`: an experiment of the tiny model."""
    prompts = "".join(f'{{"prompt": "Question number {n}?"}}\n' for n in range(12))
    (tmp_path / "prompts.jsonl").write_text(prompts)
    demos = [{"prompt": f"How is {n}?", "completion": f"It is {n}."} for n in range(4)]
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in demos))

    def write_file(steps: list[Any], **keys: Any) -> Path:
        whole = {
            "name": "average",
            "models": {"policy": {"path": str(small_model), "dtype": "float32"}},
            "constitution": "constitutions/concise_helper.yaml",
            "prompts": {"path": "prompts.jsonl", "holdout": 2, "validation": 4},
            "judges": [{"id": "gold", "kind": "rules"}],
            "steps": steps,
        }
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(whole | keys, sort_keys=False))
        return path

    return write_file


def made(run: Path, name: str) -> Path:
    """The folder of the model that a step made."""
    (step,) = [s for s in read_manifest(run)["steps"] if s["id"] == name]
    return run / "models" / step["hash"]


def masters(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "masters/model.safetensors")


def test_the_mean_is_of_the_masters_and_training_goes_on_from_it(
    write: Write, tmp_path: Path
) -> None:
    mean = {"id": "mean", "models": ["a", "b"], "weights": {"a": 3, "b": 1}}
    later = trained("later", **{"from": "mean"})
    steps = [*THREE[:3], {"average": mean}, later, EVALUATE]
    run = tmp_path / "run"
    run_experiment(write(steps, retention={"masters": "all"}), run)
    a, b, found = (masters(made(run, name)) for name in ("a", "b", "mean"))
    # The tiny model's head is its embedding, which is there once.
    assert "lm_head.weight" not in found and found.keys() == a.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, 0.75 * a[name] + 0.25 * b[name])
    assert any(not torch.equal(value, a[name]) for name, value in found.items())
    written = load_file(made(run, "mean") / "model.safetensors")
    assert all(torch.equal(found[n].to(torch.bfloat16), w) for n, w in written.items())
    manifest = read_manifest(run)
    starts = {s["id"]: s["models"]["start"][0] for s in manifest["steps"] if "start" in s["models"]}
    assert starts["later"] == "mean"
    (last,) = [r for r in read_rounds(run) if r.round]
    assert last.policy_out == "later"
    lineage = {row["name"]: row["detail"] for row in Run(run).view().lineage}
    assert lineage["mean (seed 0)"].startswith("averaged from a, b by step")
    card = (made(run, "mean") / "README.md").read_text()
    assert "| a | 0.75 |" in card and "| b | 0.25 |" in card
    flow = explain_file(run.parent / "experiment.yaml")
    names = {node.name: node.id for stage in flow.stages for node in stage.nodes}
    edges = [(names[e.source], names[e.target], e.what) for e in flow.edges if e.model]
    assert ("a", "mean", "member") in edges and ("b", "mean", "member") in edges
    assert ("mean", "later", "start") in edges


def test_halfway_on_the_sphere(write: Write, tmp_path: Path) -> None:
    steps = [*THREE[:3], {"average": {"id": "mid", "models": ["a", "b"], "method": "slerp"}}]
    run = tmp_path / "run"
    run_experiment(write(steps, retention={"masters": "all"}), run)
    a, b, found = (masters(made(run, name)) for name in ("a", "b", "mid"))
    bent = 0
    for name, value in found.items():
        one, other = a[name].double(), b[name].double()
        middle = (one + other) / 2
        cosine = float((one * other).sum() / one.norm() / other.norm())
        if cosine < 0.9995:
            bent += 1
            angle = torch.arccos(torch.tensor(cosine)) / 2
            wanted = torch.sin(angle) / torch.sin(2 * angle) * (one + other)
            torch.testing.assert_close(value, wanted.float(), rtol=1e-5, atol=1e-7)
        else:
            torch.testing.assert_close(value, middle.float())
    assert bent > 0


def test_the_mean_of_adapters_is_that_of_what_they_add(write: Write, tmp_path: Path) -> None:
    """Of B A, not of B and of A: every member is merged first."""
    lora = {"r": 2, "export": "adapter"}
    steps = [
        DEMOS,
        trained("a", lora=lora, learning_rate=0.05),
        trained("b", lora=lora, learning_rate=0.1),
        {"average": {"models": ["a", "b"]}},
        EVALUATE,
    ]
    run = tmp_path / "run"
    run_experiment(write(steps), run)
    files = [load_file(made(run, n) / "adapter_model.safetensors") for n in ("a", "b")]
    scale = json.loads((made(run, "a") / "adapter_config.json").read_text())["lora_alpha"] / 2
    start = load_file(Path(prepare(tmp_path / "experiment.yaml").experiment.models["policy"].path)
                      / "model.safetensors")  # fmt: skip
    found = masters(made(run, "average"))
    name = "model.layers.0.mlp.up_proj"
    key = f"base_model.model.{name}.lora_%s.weight"
    added = [f[key % "B"] @ f[key % "A"] * scale for f in files]
    wanted = start[f"{name}.weight"].float() + (added[0] + added[1]) / 2
    torch.testing.assert_close(found[f"{name}.weight"], wanted, rtol=1e-4, atol=1e-6)
    factors = [sum(f[key % n] for f in files) / 2 for n in "BA"]
    wrong = factors[0] @ factors[1] * scale
    assert not torch.allclose((added[0] + added[1]) / 2, wrong, rtol=1e-2, atol=1e-5)


def test_an_average_of_reward_models_judges(write: Write, tmp_path: Path) -> None:
    pairs = [
        {"prompt": f"Which {n}?", "chosen": f"The {n}th.", "rejected": "No."} for n in range(4)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    keys = {"learning_rate": 1e-3, "batch_size": 2, "precision": "fp32", "uses": ["pairs"]}
    steps = [
        {"load": {"id": "pairs", "type": "preferences", "path": "pairs.jsonl"}},
        {"distill": {"id": "one", "from": "initial", **keys}},
        {"distill": {"id": "two", "from": "initial", **keys, "epochs": 2}},
        {"average": {"id": "warm", "models": ["one", "two"], "policy": False}},
        {"sample": {"n": 2, "prompts": 2, "max_new_tokens": 5}},
        {"judge": {"id": "reward", "kind": "reward_model", "by": "warm"}},
        {"pair": {}},
        {"train": {**TRAIN, "method": "dpo"}},
    ]
    run = tmp_path / "run"
    run_experiment(write(steps, retention={"masters": "all"}), run)
    one, two, found = (masters(made(run, name)) for name in ("one", "two", "warm"))
    torch.testing.assert_close(
        found["score.weight"], (one["score.weight"] + two["score.weight"]) / 2
    )
    (judge,) = [s for s in read_manifest(run)["steps"] if s["id"] == "reward"]
    assert judge["models"]["by"][0] == "warm"
    assert "text-classification" in (made(run, "warm") / "README.md").read_text()


QUARTERS = st.integers(0, 4).map(lambda n: n / 4)
MEANS = st.lists(st.one_of(st.none(), QUARTERS), min_size=2, max_size=5)


@given(MEANS, st.lists(QUARTERS, min_size=4, max_size=4))
# The third lowers the soup of two, and not below the best member.
@example([0.25, 0.0, 0.0], [0.75, 0.5, 0.0, 0.0])
def test_a_greedy_soup_never_falls_below_its_best_member(
    members: list[float | None], drawn: list[float]
) -> None:
    soups: list[float] = []
    for number in range(len(members) - 1):
        means = Means(tuple(members), tuple(soups))
        tried = means.tried()
        # What is kept stays, and the next one in the order comes on top.
        assert tried[: len(means.kept())] == means.kept()
        assert tried[len(means.kept()) :] == means.order[number + 1 : number + 2]
        soups.append(drawn[number])
    end = Means(tuple(members), tuple(soups))
    kept = end.kept()
    known = [mean for mean in members if mean is not None]
    assert bool(kept) == bool(known)
    if kept:
        assert members[kept[0]] == max(known) and end.best() == kept[:1]
        reached = max(known)
        for member, mean in zip(end.order[1:], soups, strict=False):
            assert (member in kept) == (mean >= reached)
            reached = mean if mean >= reached else reached


def script_means(
    monkeypatch: pytest.MonkeyPatch, plan: list[Planned], means: dict[str, float]
) -> None:
    """Verdicts have these means, by the id of their step; all that follows of them is real."""
    by_hash = {p.hash: means[p.id] for p in plan if p.id in means}
    monkeypatch.setattr(
        "rlaif.pipeline.steps.average.measured_mean",
        lambda folder, by, weights: by_hash[folder.path.name],
    )


def test_a_soup_has_what_the_judge_kept(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run = write([*THREE, {"average": GREEDY}], retention={"masters": "all"}), tmp_path / "run"
    plan = make_plan(prepare(path))
    means = {"soup.1.gold": 0.3, "soup.2.gold": 0.6, "soup.3.gold": 0.2}
    means |= {"soup.soup2.gold": 0.6, "soup.soup3.gold": 0.5}
    script_means(monkeypatch, plan, means)
    run_experiment(path, run)
    # The third made the soup worse.
    kept = ["b", "a"]
    parts = [masters(made(run, name)) for name in kept]
    for name, value in masters(made(run, "soup")).items():
        wanted = torch.stack([part[name] for part in parts]).mean(0)
        torch.testing.assert_close(value, wanted)
    (step,) = [p for p in plan if p.id == "soup"]
    done = Store(run).step(step.hash).done() or {}
    assert done["members"] == kept and done["counts"]["models"] == len(kept)
    # A soup that was tried is not trained on from: it has no masters.
    assert not (made(run, "soup.soup2") / "masters").exists()


def test_a_greedy_soup_is_at_least_its_best_member_on_validation(
    write: Write, tmp_path: Path
) -> None:
    """Everything is real: members and soups are sampled from and judged, as often as forecast."""
    steps = [*THREE, {"average": GREEDY}, EVALUATE]
    path, run = write(steps), tmp_path / "run"
    inputs = prepare(path)
    plan = make_plan(inputs)
    rows_of = {row.id: row for row in forecast(inputs, Store(run), plan)}
    run_experiment(path, run)
    folder = {p.id: Store(run).step(p.hash) for p in plan}
    names = [f"soup.{n}" for n in (1, 2, 3)] + ["soup.soup2", "soup.soup3"]
    for name in names:
        done = folder[f"{name}.sample"].done() or {}
        assert rows_of[f"{name}.sample"].units == done["counts"]["completions"] == 4
    validation = {p.prompt_id for p in inputs.prompts.validation}
    seen = {p.id for p in plan if set(p.prompts) & validation}
    assert seen == {f"{name}.{what}" for name in names for what in ("sample", "gold")}
    summary = (folder["soup"].done() or {})["summary"]
    members = [summary[f"mean_of_{name}"] for name in "abc"]
    reached = max(members)
    for number in (2, 3):
        reached = max(reached, summary[f"mean_of_soup_{number}"])
    # Its own answers, measured anew.
    own = {"method": "best", "by": "gold", "models": ["soup", "a"], "policy": False, "id": "again"}
    run_experiment(write([*THREE, {"average": GREEDY}, {"average": own}, EVALUATE]), run)
    (again,) = [s for s in read_manifest(run)["steps"] if s["id"] == "again"]
    measured = (Store(run).step(again["hash"]).done() or {})["summary"]["mean_of_soup"]
    assert measured == pytest.approx(reached) and measured >= max(members)


def test_the_best_is_the_member_itself(write: Write, tmp_path: Path) -> None:
    best = {"models": ["a", "b"], "method": "best", "by": "gold"}
    run = tmp_path / "run"
    path = write([*THREE[:3], {"average": best}], retention={"masters": "all"})
    run_experiment(path, run)
    plan = {p.id: p for p in make_plan(prepare(path))}
    done = Store(run).step(plan["average"].hash).done() or {}
    (name,) = done["members"]
    assert done["summary"][f"mean_of_{name}"] == max(done["summary"].values())
    for file in ("model.safetensors", "masters/model.safetensors"):
        one, other = load_file(made(run, name) / file), load_file(made(run, "average") / file)
        assert all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"models": ["a"]}, "models"),
        ({"models": ["a", "a"]}, "'a' is named twice"),
        ({"models": ["policy", "c"]}, "'policy' and 'c' are the same model"),
        ({"models": ["a", "nobody"]}, "models: 'nobody' is no model"),
        ({"method": "slerp"}, "`models` names 3"),
        ({"method": "greedy"}, "needs `by`"),
        ({"by": "gold"}, "`by` has no effect with `method: uniform`"),
        ({"method": "best", "by": "two"}, "judge 'two' compares answers"),
        ({"method": "best", "by": "nobody"}, "by: 'nobody' is no judge"),
        ({"weights": {"a": 1, "b": 1}}, "must name the same models"),
        ({"method": "best", "by": "gold", "weights": {"a": 1, "b": 1, "c": 1}}, "no effect"),
        ({"models": ["a", "far"]}, "has no weights here to average"),
    ],
)
def test_what_cannot_be_averaged_is_refused(write: Write, keys: dict[str, Any], words: str) -> None:
    judges = [{"id": "gold", "kind": "rules"}, {"id": "two", "kind": "pairwise", "by": "initial"}]
    path = write(THREE, judges=judges)
    whole = yaml.safe_load(path.read_text())
    far = {"path": "m", "engine": "openai", "base_url": "http://127.0.0.1:9"}
    whole["models"]["far"] = far
    whole["steps"] = [*THREE, {"average": {"models": ["a", "b", "c"], **keys}}]
    path.write_text(yaml.safe_dump(whole))
    with pytest.raises(ConfigError) as error:
        make_plan(prepare(path, fetch=False))
    assert words in str(error.value) and "experiment.yaml:" in str(error.value)


def test_an_average_that_is_left_unused_is_told(write: Write) -> None:
    mean = {"average": {"id": "mean", "models": ["a", "b"]}}
    inputs = prepare(write([*THREE[:3], mean, trained("later", epochs=3), EVALUATE]), fetch=False)
    (said,) = list_remarks(inputs, make_plan(inputs))
    left = "which leaves the policy that average mean made just before unused"
    assert said.startswith(f"train later: it starts from `initial`, {left}")
    later = trained("later", **{"from": "policy"})
    inputs = prepare(write([*THREE[:3], mean, later, EVALUATE]), fetch=False)
    assert not list_remarks(inputs, make_plan(inputs))


def test_there_must_be_prompts_for_validation(write: Write) -> None:
    path = write([*THREE, {"average": GREEDY}], prompts={"path": "prompts.jsonl", "holdout": 2})
    with pytest.raises(ConfigError, match="no prompts of the set 'main' are for validation"):
        make_plan(prepare(path, fetch=False))


def test_members_and_soups_answer_the_validation_prompts_of_their_stage(
    write: Write, tmp_path: Path
) -> None:
    rows = "".join(f'{{"prompt": "Another question {n}?"}}\n' for n in range(6))
    (tmp_path / "other.jsonl").write_text(rows)
    other = {"path": "other.jsonl", "holdout": 1, "validation": 3}
    stage = {"id": "soups", "prompts": "other", "steps": [*THREE, {"average": GREEDY}]}
    path = write([], prompt_sets={"other": other}, stages=[stage])
    whole = yaml.safe_load(path.read_text())
    del whole["steps"]
    path.write_text(yaml.safe_dump(whole))
    inputs = prepare(path, fetch=False)
    seen = {p.id: set(p.prompts) for p in make_plan(inputs) if p.kind == "judge"}
    wanted = {p.prompt_id for p in inputs.sets["other"].validation}
    names = ("1", "2", "3", "soup2", "soup3")
    assert seen == {f"soup.{name}.gold": wanted for name in names}


def test_a_reward_model_is_no_policy(write: Write, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    load = {"load": {"id": "pairs", "type": "preferences", "path": "pairs.jsonl"}}
    rms = [{"distill": {"id": n, "uses": ["pairs"], "from": "initial"}} for n in ("rm", "rm2")]
    rms[1]["distill"]["epochs"] = 2
    for keys, words in (
        ({"models": ["rm", "a"]}, "'rm' is a reward model and 'a' is none"),
        ({"models": ["rm", "rm2"]}, "is no policy: set `policy: false`"),
        ({"models": ["rm", "rm2"], "method": "best", "by": "gold"}, "which answers no prompts"),
    ):
        path = write([load, *THREE, *rms, {"average": keys}])
        with pytest.raises(ConfigError, match=words):
            make_plan(prepare(path, fetch=False))


def test_unlike_models_are_refused_by_their_names(
    write: Write, tmp_path: Path, make_model: Callable[[int], Path]
) -> None:
    path = write([*THREE[:2]])
    whole = yaml.safe_load(path.read_text())
    whole["models"]["small"] = {"path": str(make_model(0)), "dtype": "float32"}
    whole["steps"] = [*THREE[:2], {"average": {"models": ["a", "small"]}}]
    path.write_text(yaml.safe_dump(whole))
    with pytest.raises((ConfigError, EngineError), match="small and a differ in hidden_size"):
        run_experiment(path, tmp_path / "run")


def test_members_without_masters_make_a_model_without(
    write: Write, tmp_path: Path, small_model: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in small_model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    tensors = load_file(small_model / "model.safetensors")
    save_file(
        {n: t * 1.5 for n, t in tensors.items()}, other / "model.safetensors", {"format": "pt"}
    )
    path = write([{"average": {"models": ["initial", str(other)]}}, EVALUATE])
    run = tmp_path / "run"
    run_experiment(path, run)
    assert not (made(run, "average") / "masters").exists()
    found = load_file(made(run, "average") / "model.safetensors")
    for name, value in tensors.items():
        torch.testing.assert_close(found[name], (value.double() * 1.25).to(value.dtype))
    assert (run_experiment(path, run)).ran == 0


def test_a_choice_without_any_value_says_so(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write([*THREE, {"average": GREEDY}])
    monkeypatch.setattr(
        "rlaif.pipeline.steps.average.measured_mean", lambda folder, by, weights: None
    )
    with pytest.raises(RlaifError, match="judge gold gave no value to any answer of the 3 models"):
        run_experiment(path, tmp_path / "run")


def test_choose_and_average_measure_alike(write: Write) -> None:
    """A stage's best round and the best of models are the same answers to the same judge."""
    loop = {
        "id": "loop", "rounds": 2, "until": {"by": "gold", "stops_rising": 2},
        "steps": [DEMOS, {"train": {"id": "t", "uses": ["demos"], **TRAIN}}],
    }  # fmt: skip
    best = {"models": ["t@1", "t@2"], "method": "best", "by": "gold"}
    last = {"id": "last", "steps": [{"average": best}]}
    loop["until"] = None
    path = write([], stages=[loop, last])
    whole = yaml.safe_load(path.read_text())
    del whole["steps"]
    path.write_text(yaml.safe_dump(whole))
    members = [p.hash for p in make_plan(prepare(path)) if p.id.startswith("average.")]
    whole["stages"] = [{**loop, "until": {"by": "gold", "stops_rising": 2}}]
    path.write_text(yaml.safe_dump(whole))
    rounds = [p.hash for p in make_plan(prepare(path)) if p.id.startswith("loop-best.")]
    assert choose.MAKES == "model" and len(members) == 4 and set(members) == set(rounds)


def test_there_are_masters_where_every_member_has_some(write: Write) -> None:
    steps = [*THREE[:3], {"average": {"id": "both", "models": ["a", "b"]}}]
    steps.append({"average": {"id": "half", "models": ["a", "initial"]}})
    steps.append({"average": {"id": "none", "models": ["half", "c"]}})
    steps.insert(3, THREE[3])
    plan = make_plan(prepare(write(steps)))
    masters = {p.id: p.options["masters"] for p in plan if p.kind == "average"}
    assert masters == {"both": True, "half": False, "none": False}
