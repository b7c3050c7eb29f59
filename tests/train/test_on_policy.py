"""On-policy training on a tiny model: every algorithm learns what is rewarded, in the store and
outside of it, and an interrupted run ends in the same bits."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from rlaif.config.methods import METHODS
from rlaif.core.errors import EngineError, RlaifError
from rlaif.pipeline.experiment import run_experiment
from rlaif.train import parallel
from rlaif.train import run as run_module
from rlaif.train.loading import load_module
from rlaif.train.loop import TrainJob, make_optimizer, optimiser_step
from rlaif.train.model import prepare
from rlaif.train.on_policy import _learn_rollout, add_critic
from rlaif.train.policy_tasks import OnlinePairs, PolicyTask
from rlaif.train.preference import SftTask
from rlaif.train.rewards import summed
from rlaif.train.rollout import add_advantages, measure
from rlaif.train.tokenise import Example
from tests.support.on_policy import LEARN, collector, learn, low_tokens, options_of

CPU = torch.device("cpu")
COSTS = [{"judge": "harm", "limit": 0.1, "higher": "worse"}]
VARIANTS = (
    *("grpo_dr", "grpo_dapo", "ppo_separate", "cispo", "reinforce", "reinforce_pp_group"),
    "quark",
)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in VARIANTS)) for n in LEARN]
)
def test_every_algorithm_learns_what_is_rewarded(tmp_path, make_model, name):
    metrics = learn(make_model(0), tmp_path, options_of(name)).metrics
    rows = [json.loads(x) for x in (tmp_path / "work/metrics.jsonl").read_text().splitlines()]
    late = [row["reward"] for row in rows[-len(rows) // 4 :]]
    assert sum(late) / len(late) > metrics["first_reward"] + 0.15
    assert (tmp_path / "out/model.safetensors").exists()
    names = load_file(tmp_path / "out/masters/model.safetensors").keys()
    assert not any(n.startswith(("critic.", "value_head.")) for n in names)
    if name.startswith("ppo"):
        assert metrics["last_value_loss"] < metrics["first_value_loss"]


def test_a_reward_that_says_nothing_moves_nothing(tmp_path, make_model):
    options = options_of("grpo", beta=0.0, rollouts=2)
    learn(make_model(0), tmp_path, options, reward=lambda ids: 0.5)
    before = dict(load_module(make_model(0), CPU).named_parameters())
    after = load_file(tmp_path / "out/masters/model.safetensors")
    assert all(torch.equal(after[n], before[n]) for n in after)


def test_the_first_step_is_on_policy(tmp_path, make_model):
    options = options_of("ppo", rollouts=1, sync_every=1, epochs=1)
    metrics = learn(make_model(0), tmp_path, options).metrics
    assert metrics["first_ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    # What is watched of the answers is a mean over them.
    assert metrics["last_distance/r"] == (options.n - 1) / 2
    assert metrics["first_clip_fraction"] == 0.0
    assert metrics["first_approx_kl"] == pytest.approx(0.0, abs=1e-9)
    assert metrics["first_kl_reference"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["first_logprob_gap"] < 1e-5


@pytest.mark.parametrize("lora", [None, {"r": 4}])
@pytest.mark.parametrize("name", ["grpo", "ppo_separate"])
def test_interrupted_and_resumed_ends_in_the_same_bits(tmp_path, make_model, name, lora):
    options = options_of(name, rollouts=4, checkpoint_every=2, lora=lora)
    learn(make_model(0), tmp_path / "a", options)

    def stop(progress):
        if progress.step > 0.7 * progress.total_steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(make_model(0), tmp_path / "b", options, progress=stop)
    assert list((tmp_path / "b/work").glob("checkpoint-*"))
    seen = []
    real = collector(make_model(0), options, low_tokens)

    def counting(number, model):
        seen.append(number)
        return real(number, model)

    learn(make_model(0), tmp_path / "b", options, collect=counting)
    assert seen == [2, 3]
    one, two = (load_file(tmp_path / f"{x}/out/masters/model.safetensors") for x in "ab")
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_a_training_is_resumed_while_its_critic_warms_up(tmp_path, make_model):
    """The checkpoint is of the eighth of sixteen steps, the first nine of which are the critic's:
    it holds the start's weights, and no moments of them."""
    options = options_of("ppo", rollouts=4, checkpoint_every=2, critic_warmup=9)
    learn(make_model(0), tmp_path / "a", options)

    def stop(progress):
        if progress.step == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(make_model(0), tmp_path / "b", options, progress=stop)
    (saved,) = (tmp_path / "b/work").glob("checkpoint-*")
    start = load_module(make_model(0), CPU).state_dict()
    held = load_file(next(saved.rglob("weights.safetensors")))
    weights = {n: w for n, w in held.items() if n in start}
    assert weights and all(torch.equal(w, start[n].float()) for n, w in weights.items())
    learn(make_model(0), tmp_path / "b", options)
    one, two = (load_file(tmp_path / f"{x}/out/masters/model.safetensors") for x in "ab")
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert any(not torch.equal(w, start[n].float()) for n, w in one.items() if n in start)


def test_a_rollout_without_pairs_is_in_the_curves_and_changes_nothing(tmp_path, make_model):
    """Rollout 2 ties everywhere, rollout 3 in all groups but one: of its two steps one is left."""
    keys = {"n": 2, "batch_size": 1, "sync_every": 2, "rollouts": 4, "checkpoint_every": 1}
    options = options_of("online_dpo", **keys, weight_decay=0.1, schedule="linear")
    folder = make_model(0)

    def collect(number, model):
        groups = collector(folder, options, lambda ids: 0.5)(number, model)
        kept = {0: 2, 1: 0, 2: 1, 3: 2}[number]
        return [
            replace(g, answers=tuple(replace(a, values=(i,)) for i, a in enumerate(g.answers)))
            if place < kept
            else g
            for place, g in enumerate(groups)
        ]

    def stop_at(rollout):
        def stop(progress):
            if progress.metrics["rollout"] == rollout:
                raise KeyboardInterrupt

        return stop

    def rows(name):
        lines = (tmp_path / name / "work/metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(x).items() if k != "timing"} for x in lines]

    whole = learn(folder, tmp_path / "a", options, collect=collect)
    assert [(r["step"], r["rollout"], r["pairs"]) for r in rows("a")] == [
        *[(1, 1, 2), (2, 1, 2), (3, 2, 0), (5, 3, 1), (7, 4, 2), (8, 4, 2)]
    ]
    tied = rows("a")[2]
    assert (tied["reward"], tied["flat_groups"]) == (0.5, 1.0)
    assert not {"loss", "learning_rate"} & tied.keys()
    assert whole.steps == 5
    assert whole.metrics["mean_pairs"] == 9 / 6
    rates = [r["learning_rate"] for r in rows("a") if "learning_rate" in r]
    assert rates == [pytest.approx(1e-2 * (8 - s) / 8) for s in (0, 1, 4, 6, 7)]
    for rollout in (2, 3, 4):
        name = f"b{rollout}"
        with pytest.raises(KeyboardInterrupt):
            learn(folder, tmp_path / name, options, collect=collect, progress=stop_at(rollout))
        resumed = learn(folder, tmp_path / name, options, collect=collect)
        assert rows(name) == rows("a")
        assert (resumed.steps, resumed.metrics) == (whole.steps, whole.metrics)
        one, two = (load_file(tmp_path / x / "out/masters/model.safetensors") for x in ("a", name))
        assert all(torch.equal(one[n], two[n]) for n in one)


def test_ties_in_every_rollout_leave_the_model_as_it_was(tmp_path, make_model):
    options = options_of("online_dpo", rollouts=2, weight_decay=0.1)
    outcome = learn(make_model(0), tmp_path, options, reward=lambda ids: 0.5)
    assert outcome.steps == 0
    before = dict(load_module(make_model(0), CPU).named_parameters())
    after = load_file(tmp_path / "out/masters/model.safetensors")
    assert all(torch.equal(after[n], before[n]) for n in after)


def test_missing_rewards_teach_nothing_and_none_at_all_stops(tmp_path, make_model):
    options = options_of("grpo", rollouts=1, beta=0.0)
    folder = make_model(0)
    model = prepare(load_module(folder, CPU), CPU, torch.float32)
    groups = collector(folder, options, lambda ids: None if ids[0] % 2 else float(ids[0]))(0, model)
    rollout = measure(model, groups, summed(groups, options.terms, {}), options, None, None)
    add_advantages(rollout, options, 0.0)
    for number, group in enumerate(groups):
        parts = torch.split(rollout.advantages[number], rollout.lengths(number))
        for answer, part in zip(group.answers, parts, strict=True):
            assert answer.values[0] is not None or not part.any()
    task = PolicyTask(rollout, options, 0.0)
    kept = sum(a.values[0] is not None for g in groups for a in g.answers)
    assert task.total(range(len(groups))).sequences == kept
    with pytest.raises(RlaifError, match="no answer has a reward"):
        learn(folder, tmp_path, options, reward=lambda ids: None)


def test_the_result_does_not_depend_on_the_micro_batches(make_model):
    options = options_of("grpo", reduction="sequence")
    folder = make_model(0)
    model = prepare(load_module(folder, CPU), CPU, torch.float32)
    groups = collector(folder, options, low_tokens)(0, model)
    reference = prepare(load_module(make_model(1), CPU), CPU, torch.float32, trainable=False)
    rollout = measure(model, groups, summed(groups, options.terms, {}), options, reference, None)
    add_advantages(rollout, options, 0.04)
    task = PolicyTask(rollout, options, 0.04)
    whole = range(len(groups))
    total = task.total(whole)
    one, _, _ = task.loss(model, whole, total, 0)
    parts = [task.loss(model, [i], total, 0)[0] for i in whole]
    joined = sum(float(p.detach()) for p in parts)
    assert float(one.detach()) == pytest.approx(joined, abs=1e-6)


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_the_metrics_do_not_depend_on_the_micro_batches(tmp_path, make_model, name):
    options = options_of(name, batch_size=4, sync_every=1, epochs=2, beta=0.04, learning_rate=1e-9)
    folder = make_model(0)
    reference = prepare(load_module(make_model(1), CPU), CPU, torch.float32, trainable=False)
    sizes, found, batch = {}, [], [[[0, 1, 2, 3]], [[0], [1, 2], [3]]]
    for micros in batch:
        model = prepare(load_module(folder, CPU), CPU, torch.float32)
        groups = collector(folder, options, lambda ids: None if ids[0] % 3 else low_tokens(ids))(
            0, model
        )
        critic = add_critic(model, None) if name == "ppo" else None
        rollout = measure(
            model, groups, summed(groups, options.terms, {}), options, reference, critic
        )
        for number, old in enumerate(rollout.old):
            sizes.setdefault(number, torch.linspace(-0.2, 0.3, len(old)))
            rollout.old[number] = old + sizes[number]
        add_advantages(rollout, options, 0.04)
        ptx = [Example(f"x{i}", f"x{i}", [1, 2], ([i + 3] * (i + 1), [9])) for i in range(4)]
        task = PolicyTask(rollout, options, 0.04, critic, ptx if name == "ppo" else ())
        task.options = options.model_copy(update={"ptx_weight": 0.5} if name == "ppo" else {})
        optimizer = make_optimizer(model, options)
        found.append(optimiser_step(task, model, optimizer, micros, task.options, 0, 1, tmp_path))
    one, two = found
    assert one.keys() == two.keys() >= {"ratio_min", "ratio_max", "weight_min", "weight_max"}
    for key in one.keys() - {"timing"}:
        assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-6), key
    gaps = torch.cat([sizes[i] for i in range(4)])
    assert one["ratio_min"] == pytest.approx(float((-gaps).exp().min()), rel=1e-4)
    assert one["ratio_max"] == pytest.approx(float((-gaps).exp().max()), rel=1e-4)


@pytest.mark.parametrize("name", ["grpo", "ppo", "rloo"])
@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_the_entropy_is_that_of_the_models_own_distribution(tmp_path, make_model, name, lora):
    options = options_of(
        name, batch_size=2, sync_every=1, epochs=1, temperature=0.7, importance="none"
    )
    model = prepare(load_module(make_model(0), CPU), CPU, torch.float32, options.lora)
    groups = collector(make_model(0), options, low_tokens)(0, model)
    critic = add_critic(model, None) if name == "ppo" else None
    rollout = measure(model, groups, summed(groups, options.terms, {}), options, None, critic)
    add_advantages(rollout, options, 0.0)
    task = PolicyTask(rollout, options, 0.0, critic)
    _, sums, _ = task.loss(model, [0, 1], task.total([0, 1]), 0)
    own = []
    for group in groups:
        for answer in group.answers:
            ids = torch.tensor([[*group.prompt_ids, *answer.ids]])
            with torch.no_grad(), model.generating() as module:
                logits = module(ids).logits[0, len(group.prompt_ids) - 1 : -1] / 0.7
            own.append(torch.distributions.Categorical(logits=logits).entropy())
    amount, weight = sums["entropy"]
    assert weight == len(torch.cat(own))
    assert amount / weight == pytest.approx(float(torch.cat(own).mean()), rel=1e-4)


@pytest.mark.parametrize(("floor", "cut"), [(0.0, 0.0), (0.5, 0.25)])
def test_the_importance_floor_leaves_out_what_the_trainer_finds_unlikely(make_model, floor, cut):
    keys = {"importance": "mask_token", "importance_floor": floor, "importance_cap": 5.0}
    options = options_of("grpo", n=4, beta=0.0, **keys)
    model = prepare(load_module(make_model(0), CPU), CPU, torch.float32)
    groups = collector(make_model(0), options, low_tokens)(0, model)
    # The first of the four answers of each group: the sampler says ten times more likely.
    groups = [
        replace(
            g,
            answers=tuple(
                replace(
                    a, ids=a.ids[:1], logprobs=[a.logprobs[0] + (math.log(10) if i == 0 else 0)]
                )
                for i, a in enumerate(g.answers)
            ),
        )
        for g in groups
    ]
    rollout = measure(model, groups, summed(groups, options.terms, {}), options, None, None)
    add_advantages(rollout, options, 0.0)
    task = PolicyTask(rollout, options, 0.0)
    _, sums, _ = task.loss(model, [0, 1, 2, 3], task.total([0, 1, 2, 3]), 0)
    amount, weight = sums["weight_cut_fraction"]
    assert amount / weight == pytest.approx(cut)
    assert sums["weight_min"][0] == pytest.approx(0.1, rel=1e-3)


def test_extremes_are_joined_over_processes(tmp_path, make_model, monkeypatch):
    class Measured(SftTask):
        def loss(self, model, micro, total, step):
            loss, sums, tokens = super().loss(model, micro, total, step)
            return loss, sums | {"ratio_min": (0.9, 1.0), "ratio_max": (1.1, 1.0)}, tokens

    other = {"ratio_min": (0.5, 1.0), "ratio_max": (1.05, 1.0)}
    monkeypatch.setattr(parallel, "gather", lambda value: [value, (other, 0, 0.0)])
    model = prepare(load_module(make_model(0), CPU), CPU, torch.float32)
    options = METHODS["sft"].model_validate({"method": "sft"})
    task = Measured([Example("e", "p", [1, 2], ([3, 4],))])
    row = optimiser_step(
        task, model, make_optimizer(model, options), [[0]], options, 0, 1, tmp_path
    )
    assert (row["ratio_min"], row["ratio_max"]) == (0.5, 1.1)


def test_unfinished_answers_can_be_masked_or_punished(make_model):
    folder = make_model(0)
    model = prepare(load_module(folder, CPU), CPU, torch.float32)
    plain = options_of("grpo", beta=0.0)
    groups = collector(folder, plain, low_tokens)(0, model)
    ended = [a.ended for g in groups for a in g.answers]
    assert not all(ended)
    changed = options_of("grpo", beta=0.0, mask_truncated=True, missing_eos_penalty=0.5)
    rollout = measure(model, groups, summed(groups, changed.terms, {}), changed, None, None)
    base = measure(model, groups, summed(groups, plain.terms, {}), plain, None, None)
    assert torch.cat(rollout.active).tolist() == ended
    gap = torch.cat(base.rewards) - torch.cat(rollout.rewards)
    torch.testing.assert_close(gap, torch.tensor([0.0 if e else 0.5 for e in ended]).double())


def test_adaptive_kl_moves_beta(tmp_path, make_model):
    options = options_of("ppo", rollouts=3, kl_target=1e-6, kl_horizon=100.0, beta=0.1)
    learn(make_model(0), tmp_path, options)
    rows = [json.loads(line) for line in (tmp_path / "work/metrics.jsonl").read_text().splitlines()]
    first, *later = {row["rollout"]: row for row in rows}.values()
    assert first["beta"] == 0.1 != later[0]["beta"]
    # Each rollout, of 24 answers, moves it from where the one before left it.
    for before, row in zip((first, *later), later, strict=False):
        moved = options.next_beta(before["beta"], before["kl_reference"], 24)
        assert row["beta"] == pytest.approx(moved)
    assert all(math.isfinite(row["loss"]) for row in rows)


def test_a_critic_of_its_own_is_trained_and_not_exported(make_model):
    model = prepare(load_module(make_model(0), CPU), CPU, torch.float32)
    own = prepare(load_module(make_model(1), CPU), CPU, torch.float32)
    names = set(model.masters)
    critic = add_critic(model, own, costs=2)
    added = set(model.masters) - names
    assert {"value_head.weight", "value_head.bias"} < added
    assert any(name.startswith("critic.") for name in added)
    layout = model.layout([([1, 2], [[3, 4, 5]])])
    values = critic.values(layout, None)
    # Of the reward and of two costs.
    assert values.shape == (3, 3)
    assert not values.any()


def test_a_reference_of_another_vocabulary_is_refused_before_any_computing(
    tmp_path, make_model, other_vocabulary, monkeypatch
):
    folder = make_model(0)
    plain = learn(folder, tmp_path / "a", options_of("grpo", rollouts=1), reference=make_model(1))
    assert plain.steps == 1
    without = options_of("grpo", rollouts=1, beta=0.0)
    assert learn(folder, tmp_path / "b", without, reference=other_vocabulary).steps == 1
    monkeypatch.setattr(run_module, "load_module", None)
    with pytest.raises(RlaifError, match=r"another vocabulary.*same tokenizer"):
        learn(folder, tmp_path / "c", options_of("grpo"), reference=other_vocabulary)


@pytest.mark.parametrize("loaded", [0, 1, 2])
def test_a_model_that_does_not_fit_says_what_to_change(tmp_path, make_model, monkeypatch, loaded):
    """The policy, the critic and the reference are loaded in this order."""
    real, seen = load_module, []

    def load(*arguments):
        seen.append(arguments)
        if len(seen) > loaded:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(*arguments)

    monkeypatch.setattr(run_module, "load_module", load)
    with pytest.raises(EngineError, match=r"ran out of memory.*max_new_tokens"):
        learn(make_model(0), tmp_path, options_of("ppo_separate"))


def test_in_an_experiment_rollouts_and_rewards_are_records(tmp_path, tiny_model, write_experiment):
    train = {
        "method": "grpo",
        "rewards": {"checks": 1.0},
        "rollouts": 2,
        "batch_size": 2,
        "n": 2,
        "max_new_tokens": 8,
        "learning_rate": 1e-4,
        "precision": "fp32",
        "checkpoint_every": 1,
    }
    path = write_experiment(
        tmp_path / "files",
        tiny_model,
        judges=[{"id": "checks", "kind": "rules"}],
        steps=[{"train": train}, {"evaluate": {"resamples": 50}}],
        rounds=1,
    )
    first = run_experiment(path, tmp_path / "run")
    assert first.rounds[-1].round == 1
    step = next(s for s in (tmp_path / "run/steps").iterdir() if (s / "work").is_dir())
    rows = [json.loads(x) for x in (step / "completions.jsonl").read_text().split("\n") if x]
    assert len(rows) == 2 * 2 * 2
    verdicts = [json.loads(x) for x in (step / "judgements.jsonl").read_text().split("\n") if x]
    assert {v["subject"] for v in verdicts} == {r["completion_id"] for r in rows}
    assert run_experiment(path, tmp_path / "run").ran == 0
    # A kill after the first rollout: its answers are used again and the bits are the same.
    done = json.loads((step / "done.json").read_text())
    again = tmp_path / "again"
    run_experiment(path, again)
    other = again / "steps" / step.name
    assert json.loads((other / "done.json").read_text())["weights_hash"] == done["weights_hash"]


def test_rounds_sample_the_same_prompts_with_other_random_numbers(
    tmp_path, tiny_model, write_experiment
):
    train = {"method": "grpo", "rewards": {"checks": 1.0}, "rollouts": 1, "n": 2}
    train |= {"batch_size": 2, "max_new_tokens": 4, "precision": "fp32"}
    path = write_experiment(
        tmp_path / "files",
        tiny_model,
        judges=[{"id": "checks", "kind": "rules"}],
        prompts={"path": "prompts.jsonl", "holdout": 3, "limit": 2},
        steps=[{"train": train}],
    )
    run_experiment(path, tmp_path / "run")
    made = [
        json.loads(line)
        for file in (tmp_path / "run/steps").glob("*/completions.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert len(made) == 2 * 2 * 2 and len({row["prompt_id"] for row in made}) == 2
    assert len({row["sampling"]["seed"] for row in made}) == len(made)


def with_long_prompts(write_experiment, folder, model, train, lengths):
    train = {
        "method": "grpo",
        "rewards": {"checks": 1.0},
        "rollouts": 4,
        "batch_size": 2,
        "n": 2,
        "max_new_tokens": 4,
        "precision": "fp32",
        **train,
    }
    path = write_experiment(
        folder,
        model,
        judges=[{"id": "checks", "kind": "rules"}],
        steps=[{"train": train}],
        rounds=1,
        prompts={"path": "prompts.jsonl", "holdout": 1},
    )
    rows = [{"prompt": "Say " + f"x{i} " * n} for i, n in enumerate(lengths)]
    rows.append({"prompt": "held out", "split": "test"})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("limit", [{}, {"max_length": 64}])
def test_prompts_that_leave_no_room_are_left_out_and_counted(
    tmp_path, tiny_model, write_experiment, limit
):
    lengths = [1, 2, 3, *[600 if not limit else 60] * 4]
    path = with_long_prompts(write_experiment, tmp_path / "files", tiny_model, limit, lengths)
    run_experiment(path, tmp_path / "run")
    step = next(s for s in (tmp_path / "run/steps").iterdir() if (s / "work").is_dir())
    rows = [json.loads(x) for x in (step / "completions.jsonl").read_text().split("\n") if x]
    assert len(rows) == 4 * 2 * 2
    assert {row["error"] for row in rows} == {None}
    assert json.loads((step / "done.json").read_text())["counts"]["overlong_prompts"] == 4


@pytest.mark.parametrize(
    ("train", "lengths", "message"),
    [
        ({"overlong": "refuse"}, [1, 2, 600], "has .* tokens.*context .512.*overlong: skip"),
        ({}, [1, 600, 600], "needs 2 prompts.*there are 1; 2 more are over 508 tokens"),
    ],
)
def test_prompts_that_leave_no_room_are_refused_before_any_sampling(
    tmp_path, tiny_model, write_experiment, train, lengths, message
):
    path = with_long_prompts(write_experiment, tmp_path / "files", tiny_model, train, lengths)
    with pytest.raises(RlaifError, match=message):
        run_experiment(path, tmp_path / "run")


def test_rewards_must_be_judges(tmp_path, tiny_model, write_experiment):
    train = {"method": "rloo", "rewards": {"chekcs": 1.0}}
    path = write_experiment(
        tmp_path / "files",
        tiny_model,
        judges=[{"id": "checks", "kind": "rules"}],
        steps=[{"train": train}],
    )
    with pytest.raises(RlaifError, match=r"'chekcs' is no judge.*checks"):
        run_experiment(path, tmp_path / "run")


def test_the_pretraining_mix_goes_through_all_preferences_and_is_normalised_by_the_batch(
    make_model,
):
    options = options_of("ppo", sync_every=1, epochs=1, ptx_weight=0.5)
    folder = make_model(0)
    model = prepare(load_module(folder, CPU), CPU, torch.float32)
    groups = collector(folder, options, low_tokens)(0, model)
    critic = add_critic(model, None)
    rollout = measure(model, groups, summed(groups, options.terms, {}), options, None, critic)
    add_advantages(rollout, options, 0.0)
    ptx = [Example(f"x{i}", f"x{i}", [1, 2], ([i + 3] * (i + 1), [9])) for i in range(5)]
    seen = []
    for number in range(3):
        task = PolicyTask(rollout, options, 0.0, critic, ptx, number)
        seen += [task._mixed_example(i).example_id for i in range(len(groups))]
    assert set(seen) == {e.example_id for e in ptx}
    without = PolicyTask(rollout, options_of("ppo", sync_every=1, epochs=1), 0.0, critic)
    task = PolicyTask(rollout, options, 0.0, critic, ptx, 1)
    whole = range(len(groups))
    total = task.total(whole)
    added = task.loss(model, whole, total, 0)[0] - without.loss(model, whole, total, 0)[0]
    parts = sum(
        float((task.loss(model, [i], total, 0)[0] - without.loss(model, [i], total, 0)[0]).detach())
        for i in whole
    )
    chosen = [task._mixed_example(i) for i in whole]
    layout = model.layout([(e.prompt_ids, e.completions[:1]) for e in chosen])
    nll = -float(model.token_logprobs(layout).mean().detach())
    assert float(added.detach()) == pytest.approx(0.5 * nll, rel=1e-4)
    assert parts == pytest.approx(0.5 * nll, rel=1e-4)


@pytest.mark.parametrize(
    ("method", "keys", "message"),
    [
        ("grpo", {"temperature": 0.7}, "importance"),
        ("grpo", {"two_sided": 1.1}, "two_sided"),
        ("grpo", {"lora": {"dropout": 0.1}}, "dropout"),
        ("grpo", {"sharding": "full", "processes": 1}, "set `processes` above 1"),
        ("grpo", {"n": 1}, "n"),
        ("ppo", {"kl_target": 6.0, "beta": 0.0}, "kl_target"),
        ("grpo", {"importance_floor": 3.0}, "below importance_cap"),
        ("grpo", {"overlong": "truncate_left"}, "skip or refuse"),
        ("grpo", {"max_new_tokens": 1024}, "raise max_length"),
        ("rloo", {"train_on_eos": False}, "train_on_eos"),
        ("ppo", {"uses": ["pair"]}, "ptx_weight"),
        ("ppo", {"critic_warmup": 3, "weight_decay": 0.1}, "would shrink it"),
        ("ppo", {"critic_warmup": 4, "rollouts": 1}, "would never learn"),
        ("ppo", {"resample": 1}, "resample"),
        *(
            (name, {"resample": 1, "costs": COSTS}, "their costs may differ")
            for name in ("grpo", "gspo", "cispo")
        ),
        ("reinforce", {"costs": COSTS}, "costs"),
        ("gspo", {"reduction": "token"}, "reduction"),
        ("gspo", {"n": 1}, "n"),
        ("reinforce", {"beta": 1.5}, "beta"),
        ("reinforce_pp", {"baseline": "group"}, "raise n, or take none"),
        ("reinforce_pp", {"baseline": "group", "n": 2, "gamma": 0.9}, "leave it out"),
        ("sppo", {"importance": "mask_token"}, "importance"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(method, keys, message):
    mixed = {"ptx_weight": 1.0, "train_on_eos": False, "uses": ["pair"]}
    METHODS["ppo"].model_validate({"method": "ppo", "rewards": {"r": 1}, **mixed})
    with pytest.raises(ValidationError, match=message):
        METHODS[method].model_validate({"method": method, "rewards": {"r": 1}, **keys})


def test_an_answer_without_a_reward_is_neither_the_best_nor_the_worst(make_model):
    options = options_of("online_dpo", n=3, batch_size=1)
    folder = make_model(0)
    model = prepare(load_module(folder, CPU), CPU, torch.float32)
    [group] = collector(folder, options, low_tokens)(0, model)
    rewards = (0.4, None, 0.9)
    answers = tuple(
        replace(a, values=(r,), ids=[i])
        for i, (a, r) in enumerate(zip(group.answers, rewards, strict=True))
    )
    groups = [replace(group, answers=answers)]
    rewarded = summed(groups, options.terms, {})
    rollout = measure(model, groups, rewarded, options, None, None)
    [pair] = OnlinePairs(rollout, options).examples
    assert pair.completions == ([2], [0])


def test_each_rollout_is_learned_from_in_an_order_of_its_own(tmp_path, make_model):
    folder = make_model(0)
    options = options_of("grpo", batch_size=1, sync_every=8)

    class Recorder:
        def __init__(self):
            self.examples = [Example(f"e{i}", f"e{i}", [1, 2], ([3],)) for i in range(8)]

        def total(self, batch):
            return 1.0

        def loss(self, model, micro, total, step):
            seen.extend(micro)
            layout = model.layout([self.examples[i].branches for i in micro])
            return 0.0 * model.token_logprobs(layout).sum(), {}, layout.tokens

    model = prepare(load_module(folder, CPU), CPU, torch.float32)
    optimizer = make_optimizer(model, options)
    job = TrainJob(options, folder, tmp_path / "out", tmp_path, 0, CPU)
    orders = []
    for number in (0, 1, 0):
        seen = []
        assert len(list(_learn_rollout(job, Recorder(), model, optimizer, number, {}))) == 8
        orders.append(seen)
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[1]) == list(range(8))
