"""Rewards reach the optimiser as they are: terms, what normalises them, and, from a real reward
model through whole trainings, that its offset and scale change nothing where they must not."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file

from rlaif.config.methods import METHODS
from rlaif.config.rewards import RewardTerm, names_of, terms_of
from rlaif.core.errors import ConfigError, RlaifError, StoreError
from rlaif.core.store import Store
from rlaif.kernels.heads import GatedHead, HeadConfig, save_head
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.forecast import forecast
from rlaif.pipeline.plan.base import Known
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.steps import step_module
from rlaif.train import on_policy
from rlaif.train.losses.policy import group_advantages
from rlaif.train.rewards import Moments, fit_reference, reward_metrics, summed, updated
from rlaif.train.rollout import Answer, Group
from tests.support.on_policy import collector, learn, low_tokens, options_of


def term(**keys):
    return RewardTerm.model_validate({"judge": "r", **keys})


def group(*values, not_for=()):
    answers = tuple(
        Answer([1], [], v if isinstance(v, tuple) else (v,), True, idle=frozenset(not_for))
        for v in values
    )
    return Group("p", [1], answers)


def total(groups, terms, moments=None):
    return summed(groups, terms, moments or {})


# --- terms ------------------------------------------------------------------------------------


def test_terms_are_summed_with_weights_of_any_sign_and_clipped_before():
    terms = [term(weight=2.0, clip=3.0), term(judge="cost", weight=-0.5)]
    found = total([group((10.0, 4.0), (-1.0, -2.0), (-7.0, 0.0))], terms)
    assert found == [[2 * 3 - 2.0, -2 + 1.0, -6.0]]


def test_values_are_clipped_on_both_sides_once_they_are_normalised():
    terms = [term(weight=2.0, clip=1.5, normalise="running")]
    moments = {"r": Moments(3, 10.0, 8.0)}
    # (value - 10) / 2, between -1.5 and 1.5, twice.
    found = total([group(0.0, 8.0, 11.0, 99.0)], terms, moments)
    assert found == [[-3.0, -2.0, 1.0, 3.0]]


def test_the_term_with_the_fewest_values_is_named(tmp_path):
    terms = [term(judge=name, normalise="reference") for name in ("full", "few", "half")]
    draw = [group(*[(1.0, 1.0 if n < 1 else None, 1.0 if n < 2 else None) for n in range(4)])]
    with pytest.raises(RlaifError, match=r"value of 'few', and 16 of 64 have one"):
        fit_reference(lambda number: draw, terms, tmp_path, False)


def test_what_is_missing_stays_missing_and_a_term_for_other_prompts_adds_nothing():
    terms = [term(), term(judge="other")]
    rows = [group((1.0, None), (None, 2.0), (1.0, 2.0)), group((1.0, None), not_for={1})]
    assert total(rows, terms) == [[None, None, 3.0], [1.0]]


def test_judges_with_weights_are_the_mean_of_their_scores():
    terms = terms_of({"a": 3.0, "b": 1.0})
    assert [t.value for t in terms] == ["score", "score"]
    assert total([group((0.2, 1.0), (0.4, None))], terms) == [[pytest.approx(0.4), None]]


def test_within_a_group_equal_values_are_exactly_nothing_and_others_have_deviation_one():
    terms = [term(normalise="group")]
    found = total([group(20.0, 20.0 + 4e-6, None), group(5.0, 7.0), group(3.0)], terms)
    half = 1 / math.sqrt(2)
    assert found == [[0.0, 0.0, None], [pytest.approx(-half), pytest.approx(half)], [0.0]]


def stratified(*rows):
    """A group of (verdict, reward) each, whose second term compares within the first."""
    answers = tuple(
        Answer([1], [], row, True, strata={} if row[0] is None else {1: row[0]}) for row in rows
    )
    return Group("p", [1], answers)


def test_a_verifier_comes_first_and_ranges_are_within_its_verdicts():
    """HERO, arXiv 2510.07242: alpha = beta = .05."""
    terms = [term(), term(judge="model", weight=0.05, normalise="range", within="r")]
    rows = [(0.0, 1.0), (1.0, 2.0), (0.0, 3.0), (1.0, 6.0), (1.0, 4.0)]
    [found] = total([stratified(*rows)], terms)
    assert found == pytest.approx([-0.05, 0.95, 0.05, 1.05, 1.0])
    # A monotone rescaling of the model changes nothing, and one answer alone is in the middle.
    [again] = total([stratified(*((v, 20 - 3 + 7 * m) for v, m in rows))], terms)
    assert again == pytest.approx(found)
    assert total([stratified((0.0, 9.0), (1.0, 2.0), (1.0, 2.0))], terms) == [[0.0, 1.0, 1.0]]


def test_deviations_are_within_strata_and_the_missing_is_in_none():
    terms = [term(judge="v", weight=0), term(normalise="group", within="v")]
    half = 1 / math.sqrt(2)
    rows = [(0.0, 1.0), (0.0, 5.0), (1.0, 100.0), (1.0, 300.0), (0.0, None)]
    [found] = total([stratified(*rows)], terms)
    assert found == [*map(pytest.approx, (-half, half, -half, half)), None]


def test_answers_without_a_reward_are_in_no_group_mean_and_no_running_moment():
    terms = [term(normalise="group"), term(judge="other")]
    half = 1 / math.sqrt(2)
    [found] = total([group((1.0, 0.0), (3.0, 0.0), (1e9, None))], terms)
    assert found == [pytest.approx(-half), pytest.approx(half), None]
    running = [term(normalise="running"), term(judge="other")]
    moments = updated({}, [group((1.0, 0.0), (3.0, 0.0), (1e9, None))], running)
    assert (moments["r"].count, moments["r"].mean) == (2, 2.0)


def test_weight_0_is_logged_and_decides_nothing():
    terms = [term(), term(judge="gold", weight=0)]
    rows = [group((1.0, None), (3.0, 5.0))]
    assert total(rows, terms) == [[1.0, 3.0]]
    assert reward_metrics(rows, terms, {}) == {
        "value/r": 2.0,
        "missing/r": 0.0,
        "counts/r": 1.0,
        "contribution/r": 2.0,
        "value/gold": 5.0,
        "missing/gold": 0.5,
        "counts/gold": 1.0,
        "contribution/gold": 0.0,
    }


def test_metrics_are_of_the_answers_that_a_term_is_for():
    terms = [term(weight=-2.0), term(judge="s")]
    answers = (
        Answer([1], [], (None, 1.0), True, idle=frozenset({0})),
        Answer([1], [], (4.0, 3.0), True),
        Answer([1], [], (None, 5.0), True),
    )
    found = reward_metrics([Group("p", [1], answers)], terms, {})
    assert (found["value/r"], found["missing/r"]) == (4.0, 0.5)
    assert found["counts/r"] == pytest.approx(2 / 3)
    # The third answer has no reward.
    assert (found["contribution/r"], found["contribution/s"]) == (-4.0, 2.0)


def test_terms_normalised_by_group_and_scaled_by_the_batch_are_gdpo():
    """arXiv 2601.05242: GRPO sees no difference between sums that differ by 1 and by 2."""
    rows = [group((0.0, 0.0), (1.0, 0.0)), group((0.0, 0.0), (1.0, 1.0))]
    of_two = torch.tensor([0, 0, 1, 1])

    def advantages(normalise, scale):
        terms = [term(normalise=normalise), term(judge="s", normalise=normalise)]
        rewards = torch.tensor([x for own in total(rows, terms) for x in own]).double()
        return group_advantages(rewards, of_two, scale).tolist()

    half = 1 / math.sqrt(2)
    assert advantages("none", "std") == pytest.approx([-half, half, -half, half], abs=1e-3)
    wanted = [-0.547723, 0.547723, -1.095445, 1.095445]
    assert advantages("group", "batch") == pytest.approx(wanted, abs=1e-6)


def test_running_moments_are_those_of_all_values_so_far_and_stay_in_fp64():
    terms = [term(normalise="running"), term(judge="x")]
    first = updated({}, [group((1e6, 0.0), (1e6 + 1, 0.0)), group((1e6 + 2, 0.0))], terms)
    both = updated(first, [group((1e6 + 3, 0.0), (None, 0.0))], terms)
    assert list(both) == ["r"]
    assert (both["r"].count, both["r"].mean) == (4, 1e6 + 1.5)
    assert both["r"].spread == pytest.approx(math.sqrt(5 / 3), rel=1e-9)
    rows = total([group((1e6 + 1.5, 7.0))], terms, both)
    assert rows == [[7.0]]


@pytest.mark.parametrize("values", [[0.0] * 64, [20.0, 20.0 + 1e-6] * 32, [3.0]])
def test_a_spread_of_nothing_is_not_divided_by(values):
    moments = Moments().joined(values)
    assert moments.spread == 1.0
    assert moments.standardised(moments.mean + 1) == pytest.approx(1.0)


def test_terms_of_one_judge_are_told_apart():
    assert names_of([term(), term(judge="x"), term(value="score")]) == ["r/1", "x", "r/3"]


@pytest.mark.parametrize(
    ("rewards", "keys", "message"),
    [
        ([], {}, "at least 1"),
        ({}, {}, "at least 1"),
        ([{"judge": "r", "weight": 0}], {}, "nothing is rewarded"),
        ([{"judge": "r", "weight": float("inf")}], {}, "finite"),
        ([{"judge": "r", "when": {}}], {}, "tags"),
        ([{"judge": "r", "clip": 0}], {}, "greater than 0"),
        ([{"judge": "r", "normalise": "group"}], {"method": "ppo"}, "raise n"),
        ({"r": -1}, {}, "greater than 0"),
    ],
)
def test_terms_that_make_no_sense_are_refused(rewards, keys, message):
    keys = {"method": "grpo", "rewards": rewards, **keys}
    with pytest.raises(ValidationError, match=message):
        METHODS[keys["method"]].model_validate(keys)


# --- normalising, stored and resumed ----------------------------------------------------------

TERMS = [
    {"judge": "r", "normalise": "running"},
    {"judge": "s", "weight": -0.3, "normalise": "reference"},
]


def two(ids):
    return 20 + 3 * low_tokens(ids), float(len(ids))


def stop_after(share):
    def stop(progress):
        if progress.step > share * progress.total_steps:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("share", [0.0, pytest.param(0.3, marks=pytest.mark.slow), 0.6])
def test_a_killed_training_goes_on_with_the_same_moments_and_ends_in_the_same_bits(
    tmp_path, make_model, share
):
    """Killed before the first checkpoint, and after others."""
    options = options_of("grpo", rewards=TERMS, rollouts=4, checkpoint_every=2)
    folder, drawn = make_model(0), []
    real = collector(folder, options, two)

    def collect(number, model):
        drawn.append(number)
        return real(number, model)

    whole = learn(folder, tmp_path / "a", options, collect=collect)
    # 24 answers at once: three draws are 64 or more.
    assert drawn == [-1, -2, -3, 0, 1, 2, 3]
    stored = json.loads((tmp_path / "a/work/reference_rewards.json").read_text())["terms"]
    assert stored.keys() == {"s"} and stored["s"]["count"] == 72
    assert whole.metrics["first_normal_mean/s"] == whole.metrics["last_normal_mean/s"]
    assert whole.metrics["first_normal_mean/r"] != whole.metrics["last_normal_mean/r"]
    with pytest.raises(KeyboardInterrupt):
        learn(folder, tmp_path / "b", options, collect=collect, progress=stop_after(share))
    drawn.clear()
    again = learn(folder, tmp_path / "b", options, collect=collect)
    assert min(drawn) >= 0
    assert again.metrics == whole.metrics
    one, other = (load_file(tmp_path / f"{x}/out/masters/model.safetensors") for x in "ab")
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_the_start_policys_rewards_cannot_be_measured_later(tmp_path, make_model):
    options = options_of("grpo", rewards=TERMS, rollouts=3, checkpoint_every=1)
    collect = collector(make_model(0), options, two)
    with pytest.raises(KeyboardInterrupt):
        learn(make_model(0), tmp_path, options, collect=collect, progress=stop_after(0.5))
    path = tmp_path / "work/reference_rewards.json"
    kept = path.read_text()
    path.write_text(kept.replace("count", "cuont"))
    with pytest.raises(StoreError, match=r"reference_rewards.json.*Delete the folder"):
        learn(make_model(0), tmp_path, options, collect=collect)
    path.unlink()
    with pytest.raises(StoreError, match=r"missing.*Delete the folder"):
        learn(make_model(0), tmp_path, options, collect=collect)


def test_too_few_values_of_the_start_policy_say_so(tmp_path, make_model):
    options = options_of("rloo", rewards=TERMS, rollouts=1, batch_size=1, n=2, max_new_tokens=2)
    collect = collector(make_model(0), options, lambda ids: (1.0, None))
    with pytest.raises(RlaifError, match=r"needs 64 answers .*value of 's', and 0 of 32 have one"):
        learn(make_model(0), tmp_path, options, collect=collect)
    assert not (tmp_path / "work/reference_rewards.json").exists()


# --- a reward model with another offset and scale ----------------------------------------------


@pytest.fixture(scope="module")
def reward_models(make_model, tokenizer, tmp_path_factory):
    """Folders of one reward model, and of the same with +20, and then times 3 as well."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    base = tmp_path_factory.mktemp("rewards") / "base"
    config = LlamaConfig.from_pretrained(make_model(1), num_labels=1)
    torch.manual_seed(1)
    LlamaForSequenceClassification(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    body = json.loads((base / "config.json").read_text()) | {"reward_position": "last"}
    (base / "config.json").write_text(json.dumps(body))
    weight = 0.05 * torch.randn(1, config.hidden_size)
    made = {}
    for name, scale, offset in (("base", 1, 0), ("offset", 1, 20), ("both", 3, 20)):
        head = GatedHead(HeadConfig("gated", config.hidden_size, ("good",)))
        with torch.no_grad():
            head.weight.copy_(scale * weight)
            head.offset.fill_(offset)
        folder = base.with_name(f"rm-{name}")
        shutil.copytree(base, folder)
        save_head(head, folder)
        made[name] = folder
    return made


def trained(path, out, monkeypatch):
    """The weights of a run's policy, the advantages of every rollout, and its rows of metrics."""
    seen = []
    real = on_policy.add_advantages

    def spy(rollout, options, beta):
        real(rollout, options, beta)
        seen.append(torch.cat(rollout.advantages))

    with monkeypatch.context() as patched:
        patched.setattr(on_policy, "add_advantages", spy)
        run_experiment(path, out)
    weights = load_file(next(out.glob("models/*/masters/model.safetensors")))
    work = next(out.glob("steps/*/work"))
    rows = [json.loads(x) for x in (work / "metrics.jsonl").read_text().splitlines()]
    return weights, seen, rows


def judged_by(write_experiment, folder, policy, model, **train):
    keys = {
        "rollouts": 2,
        "batch_size": 2,
        "n": 4,
        "max_new_tokens": 8,
        "learning_rate": 1e-4,
        "warmup_ratio": 0.0,
        "precision": "fp32",
        **train,
    }
    models = {
        "policy": {"path": str(policy), "dtype": "float32"},
        "rm": {"path": str(model), "dtype": "float32"},
    }
    return write_experiment(
        folder,
        policy,
        models=models,
        judges=[{"id": "reward", "kind": "reward_model", "by": "rm"}, {"id": "c", "kind": "rules"}],
        steps=[{"train": keys}],
        rounds=1,
    )


def largest(one, other):
    return max(float((one[n] - other[n]).abs().max()) for n in one)


@pytest.mark.parametrize(
    ("changed", "train"),
    [
        pytest.param("both", {"method": "grpo"}, id="grpo"),
        pytest.param("offset", {"method": "rloo"}, id="rloo"),
        pytest.param(
            *("offset", {"method": "grpo", "scale": "none"}), id="dr_grpo", marks=pytest.mark.slow
        ),
        pytest.param("both", {"method": "ppo", "normalise": "reference"}, id="ppo"),
    ],
)
def test_offset_and_scale_of_a_reward_model_change_nothing(
    tmp_path, make_model, reward_models, write_experiment, monkeypatch, changed, train
):
    train = dict(train)
    reward = {"judge": "reward", "normalise": train.pop("normalise", "none")}
    found = {}
    for name in ("base", changed):
        path = judged_by(
            write_experiment,
            tmp_path / name,
            make_model(0),
            reward_models[name],
            rewards=[reward],
            **train,
        )
        found[name] = trained(path, tmp_path / name / "run", monkeypatch)
    (one, first, rows), (other, second, moved) = found["base"], found[changed]
    # The reward itself did move, far beyond where a sigmoid still tells answers apart.
    gap = moved[0]["value/reward"] - rows[0]["value/reward"]
    assert moved[0]["value/reward"] > 15 and gap > 15
    assert len(first) == 2 and first[0].abs().max() > 0.02
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    start = load_file(make_model(0) / "model.safetensors")
    assert largest({n: one[n] for n in start}, {n: t.float() for n, t in start.items()}) > 1e-4
    assert largest(one, other) < 1e-5


def test_by_the_sigmoid_alone_a_large_offset_leaves_nothing(
    tmp_path, make_model, reward_models, write_experiment, monkeypatch
):
    """The old form of `rewards` keeps its meaning: the mean of scores on [0, 1]."""
    path = judged_by(
        write_experiment,
        tmp_path,
        make_model(0),
        reward_models["offset"],
        method="grpo",
        rewards={"reward": 1.0},
    )
    _, seen, rows = trained(path, tmp_path / "run", monkeypatch)
    assert rows[0]["flat_groups"] == 1.0 and rows[0]["reward"] == pytest.approx(1.0)
    assert not any(advantages.any() for advantages in seen)


# --- in experiments ----------------------------------------------------------------------------


def tagged(folder):
    """Prompts of two kinds; the last three are held out."""
    rows = [
        {"prompt": f"Say {i}", "tags": ["even" if i % 2 == 0 else "odd"], "source": f"s{i % 3}"}
        for i in range(12)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_terms_in_an_experiment_ask_judges_about_their_prompts_alone(
    tmp_path, make_model, reward_models, write_experiment
):
    rewards = [
        {"judge": "reward", "normalise": "reference", "when": {"tags": ["even"]}},
        {"judge": "c", "weight": -2},
        {"judge": "reward", "value": "score", "when": {"tags": ["odd"], "source": ["s0", "s1"]}},
    ]
    keys = {"method": "rloo", "batch_size": 6, "rollouts": 1, "rewards": rewards}
    path = judged_by(write_experiment, tmp_path, make_model(0), reward_models["offset"], **keys)
    tagged(tmp_path)
    run_experiment(path, tmp_path / "run")
    (step,) = (tmp_path / "run/steps").iterdir()

    def rows(name):
        return [json.loads(x) for x in (step / f"{name}.jsonl").read_text().split("\n") if x]

    made = {row["completion_id"]: row for row in rows("completions")}
    drawn = [r for r in made.values() if "start, draw" in r["model"]]
    prompts = {
        p["prompt_id"]: p
        for x in (tmp_path / "run/prompts.jsonl").read_text().splitlines()
        for p in [json.loads(x)]
    }
    assert len(drawn) >= 64
    assert all("even" in prompts[r["prompt_id"]]["tags"] for r in drawn)
    said = rows("judgements")
    assert {made[j["subject"]]["model"] for j in said if j["judge"] == "c"} == {"M1, rollout 1"}
    asked = {made[j["subject"]]["prompt_id"] for j in said if j["judge"] == "reward"}
    for name in asked:
        prompt = prompts[name]
        assert prompt["tags"] == ["even"] or prompt["source"] in ("s0", "s1")
    raw = [j["raw_value"] for j in said if j["judge"] == "reward"]
    assert all(value > 15 for value in raw)
    assert all(j["raw_value"] is None for j in said if j["judge"] == "c")
    summary = json.loads((step / "done.json").read_text())["summary"]
    assert summary["last_value/reward/1"] > 15 and 0 < summary["last_value/reward/3"] <= 1


def planned_of(write_experiment, folder, policy, model, **keys):
    inputs = prepare(judged_by(write_experiment, folder, policy, model, **keys), fetch=False)
    return inputs, make_plan(inputs)[-1]


def test_what_hashes_cover(tmp_path, make_model, reward_models, write_experiment):
    def digest(rewards, **keys):
        keys |= {"method": "grpo", "rewards": rewards}
        model = reward_models["base"]
        return planned_of(write_experiment, tmp_path, make_model(0), model, **keys)[1].hash

    old = digest({"reward": 1.0})
    assert digest({"reward": 1.0}, gates={"kl": {"stop": 9}}) == old
    # Rollbacks change what is trained, and so does where there are checkpoints to go back to; how
    # often it may be done only ends a training.
    back = digest({"reward": 1.0}, gates={"kl": {"rollback": 9}})
    assert len({old, back, digest({"reward": 1.0}, gates={"kl": {"rollback": 8}})}) == 3
    assert digest({"reward": 1.0}, gates={"kl": {"rollback": 9, "warn": 3}}) == back
    assert digest({"reward": 1.0}, gates={"kl": {"rollback": 9}, "max_rollbacks": 1}) == back
    assert digest({"reward": 1.0}, gates={"kl": {"rollback": 9}}, checkpoint_every=2) != back
    assert digest({"reward": 1.0}, checkpoint_every=2) == old
    assert len({old, digest([{"judge": "reward"}]), digest([{"judge": "reward", "clip": 5}])}) == 3
    # Without gates the keys of a step are those that it always had.
    step = METHODS["grpo"].model_validate({"method": "grpo", "rewards": {"r": 1}})
    dumped = step.model_dump(mode="json")
    assert dumped["rewards"] == {"r": 1.0} and not {"gates", "terms"} & dumped.keys()


def test_answers_of_the_start_policy_are_forecast(
    tmp_path, make_model, reward_models, write_experiment
):
    found = {}
    for normalise in ("none", "reference"):
        rewards = [{"judge": "reward", "normalise": normalise}, {"judge": "c"}]
        inputs, _ = planned_of(
            write_experiment,
            tmp_path,
            make_model(0),
            reward_models["base"],
            method="grpo",
            rewards=rewards,
        )
        (found[normalise],) = forecast(inputs, Store(tmp_path / "run"))
    prompts = len(inputs.prompts.train)
    draws = -(-64 // (4 * min(16, prompts)))
    more = draws * min(16, prompts) * 4
    assert more >= 64
    # Each is sampled, and judged by the one judge that is fitted.
    assert found["reference"].calls - found["none"].calls == 2 * more
    assert found["reference"].units == found["none"].units


def test_a_judge_that_is_not_fitted_is_not_asked_about_more_answers(
    tmp_path, make_model, reward_models, write_experiment
):
    asked = {}
    for normalise in ("none", "reference"):
        rewards = [{"judge": "reward", "normalise": normalise}, {"judge": "c"}]
        keys = {"method": "grpo", "rewards": rewards}
        model = reward_models["base"]
        path = judged_by(write_experiment, tmp_path, make_model(0), model, **keys)
        data = yaml.safe_load(path.read_text())
        data["judges"][1] |= {"kind": "reward_model", "by": "rm"}
        path.write_text(yaml.safe_dump(data))
        inputs = prepare(path)
        [planned] = make_plan(inputs)
        sizes = step_module("train").size(inputs, planned, Known()).judges
        asked[normalise] = {size.judge.id: size.calls for size in sizes}
    assert asked["reference"]["reward"] > asked["none"]["reward"]
    assert asked["reference"]["c"] == asked["none"]["c"] > 0


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([{"judge": "rewrd"}], r"'rewrd' is no judge; did you mean 'reward'"),
        ([{"judge": "c", "value": "raw"}], r"judge 'c' gives scores on \[0, 1\] and no raw value"),
        ([{"judge": "c", "when": {"tags": ["evne"]}}], r"none of the 9 training.*'even', 'odd'"),
        ([{"judge": "c", "valeu": "raw"}], r"unknown key .*valeu.*did you mean 'value'"),
        ([{"judge": "c", "when": {"tag": ["even"]}}], r"unknown key .*tag.*did you mean 'tags'"),
    ],
)
def test_terms_that_cannot_be_are_refused_before_anything_runs(
    tmp_path, make_model, reward_models, write_experiment, rewards, message
):
    path = judged_by(
        write_experiment,
        tmp_path,
        make_model(0),
        reward_models["base"],
        method="grpo",
        rewards=rewards,
    )
    tagged(tmp_path)
    with pytest.raises(ConfigError, match=message) as error:
        run_experiment(path, tmp_path / "run")
    assert "experiment.yaml:" in str(error.value)
