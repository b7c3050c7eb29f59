"""GSPO, CISPO, REINFORCE, REINFORCE++ and SPPO: golden numbers worked out by hand from the papers,
and what they do where a rollout is learned from in several steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from rlaif.train.loading import load_module
from rlaif.train.losses.policy import GlobalBatch, clipped_policy_loss, to_tokens, token_reduction
from rlaif.train.losses.preference import PairLogprobs
from rlaif.train.methods.cispo import cispo_loss
from rlaif.train.methods.gspo import gspo_loss
from rlaif.train.methods.sppo import sppo_loss, win_rates
from rlaif.train.model import TrainModel, prepare
from rlaif.train.on_policy import add_critic
from rlaif.train.policy_tasks import OnlinePairs, PolicyTask
from rlaif.train.rollout import Group, Rollout, add_advantages, measure
from tests.train.test_policy_wiring import answer, training

CPU = torch.device("cpu")
approx: Any = pytest.approx


def t(*values: float, **options: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, **options)


def gradient(loss: Tensor, of: Tensor) -> list[float]:
    found: list[float] = torch.autograd.grad(loss, of)[0].tolist()
    return found


# GSPO


def test_the_ratio_of_an_answer_is_the_mean_of_its_tokens() -> None:
    """exp((0.1 - 0.05 + 0.01) / 3) = exp(0.02), which is above 1.0004."""
    ratios = t(0.1, -0.05, 0.01).requires_grad_()
    loss, metrics = gspo_loss(ratios, t(0, 0, 0), t(1, 1, 1), [3])
    assert float(metrics["ratio_mean"]) == approx(1.020201, abs=1e-6)
    assert loss.tolist() == approx([-1.0004] * 3)
    assert float(metrics["clip_fraction"]) == 1.0
    assert gradient(loss.sum(), ratios) == [0.0, 0.0, 0.0]
    # It may fall back: each of the tokens, by a third.
    loss, metrics = gspo_loss(ratios, t(0, 0, 0), t(-1, -1, -1), [3])
    assert float(metrics["clip_fraction"]) == 0.0
    assert gradient(loss.mean(), ratios) == approx([1.020201 / 3] * 3, abs=1e-6)
    squares = (0.1**2 + 0.05**2 + 0.01**2) / 3
    assert float(metrics["approx_kl"]) == approx(squares / 2)


def test_neither_the_order_of_tokens_nor_saying_it_twice_changes_the_ratio() -> None:
    for ratios in ((0.01, 0.1, -0.05), (0.1, -0.05, 0.01) * 2):
        count = len(ratios)
        loss, _ = gspo_loss(t(*ratios), torch.zeros(count), -torch.ones(count), [count])
        assert loss.tolist() == approx([1.020201] * count, abs=1e-6)


def test_the_gradient_is_that_of_the_token_form() -> None:
    """sg[s] pi / sg[pi] of each token (arXiv 2507.18071, eq. 14), where advantages are equal."""
    lengths = [2, 4, 1]
    torch.manual_seed(0)
    logprobs = torch.randn(7, dtype=torch.float64).requires_grad_()
    # Answers that have become likelier by 0.05, less likely by 0.05, and likelier by 0.02 a token.
    old = logprobs.detach() - t(0.02, 0.08, -0.1, 0.0, -0.1, 0.0, 0.02)
    advantages = to_tokens(t(1.5, -0.5, 2.0), lengths)
    total = GlobalBatch(3, 7)
    loss, metrics = gspo_loss(logprobs, old, advantages, lengths, 0.03, 0.03)
    assert 0 < float(metrics["clip_fraction"]) < 1
    means = torch.stack([g.mean() for g in torch.split((logprobs - old).detach(), lengths)])
    tokens = to_tokens(means, lengths) + logprobs - logprobs.detach()
    token_form, same = clipped_policy_loss(tokens, torch.zeros(7), advantages, 0.03, 0.03)
    assert float(same["clip_fraction"]) == float(metrics["clip_fraction"])
    ours, theirs = (token_reduction(x, lengths, "sequence", total) for x in (loss, token_form))
    assert float(ours.detach()) == approx(float(theirs.detach()))
    assert gradient(ours, logprobs) == approx(gradient(theirs, logprobs))


def test_gradcheck_of_gspo() -> None:
    logprobs = t(-1.0, -2.0, -0.5, -0.7).requires_grad_()
    old, advantages = t(-1.1, -1.8, -0.6, -0.6), t(1, 1, -2, -2)

    def mean(x: Tensor) -> Tensor:
        return gspo_loss(x, old, advantages, [2, 2], 0.5, 0.5)[0].mean()

    assert gradcheck(mean, (logprobs,))


# CISPO


@pytest.mark.parametrize(
    ("ratio", "keys", "weight"),
    [
        (6.0, {}, 5.0),
        (6.0, {"clip_high": 0.2}, 1.2),
        (0.01, {}, 0.01),
        (0.01, {"clip_low": 0.2}, 0.8),
        (1.0, {}, 1.0),
    ],
    ids=["above", "tight", "below", "floor", "on policy"],
)
def test_a_bounded_weight_leaves_every_token_its_gradient(
    ratio: float, keys: dict[str, float], weight: float
) -> None:
    logprobs = t(-2.0).requires_grad_()
    old = logprobs.detach() - math.log(ratio)
    for advantage in (1.0, -1.0):
        loss, metrics = cispo_loss(logprobs, old, t(advantage), [1], **keys)
        assert loss.tolist() == approx([2.0 * weight * advantage])
        # Were it a clipped ratio, nothing would be left of it beyond the bound.
        assert gradient(loss.sum(), logprobs) == approx([-weight * advantage])
        assert float(metrics["ratio_mean"]) == approx(ratio)
        assert float(metrics["clip_fraction"]) == float(not math.isclose(weight, ratio))


# REINFORCE and REINFORCE++


def rolled(rewards: list[list[float]], lengths: list[list[int]], **more: Any) -> Rollout:
    """Groups of answers of these lengths, all of whom are learned from unless the reward is NaN."""
    groups = [
        Group(f"p{i}", [9], tuple(answer([1] * n) for n in own)) for i, own in enumerate(lengths)
    ]
    values = [torch.tensor(r, dtype=torch.float64) for r in rewards]
    old = [torch.full((sum(own),), -1.0) for own in lengths]
    given: dict[str, Any] = {"old": old, "active": [~v.isnan() for v in values]} | more
    return Rollout(groups, values, **given)


def advantages_of(rollout: Rollout, method: str, beta: float = 0.0, **keys: Any) -> list[Any]:
    add_advantages(rollout, training(method, **keys), beta)
    return [found.tolist() for found in rollout.advantages]


def test_advantages_are_whitened_over_the_tokens_of_the_rollout() -> None:
    """Rewards 1 of one token and 0 of three: mean 1/4, deviation 1/2 (n - 1)."""
    found = advantages_of(rolled([[1.0], [0.0]], [[1], [3]]), "reinforce_pp")
    assert found == [approx([1.5]), approx([-0.5, -0.5, -0.5])]
    # An answer without a reward is in neither.
    missing = rolled([[1.0], [0.0], [math.nan]], [[1], [3], [2]])
    assert advantages_of(missing, "reinforce_pp") == [*found, [0.0, 0.0]]


def test_the_kl_is_taken_off_the_reward_of_each_token_from_there_on() -> None:
    """k1 is 1, 2 and 1 tenths: rewards -.1, -.2, .9 and returns .6, .7, .9; with a discount of a
    half .25 - .1, .45 - .2 and .9."""
    for gamma, returns in ((1.0, [0.6, 0.7, 0.9]), (0.5, [0.025, 0.25, 0.9])):
        rollout = rolled([[1.0]], [[3]], reference=[torch.tensor([-2.0, -3.0, -2.0])])
        (found,) = advantages_of(rollout, "reinforce_pp", 0.1, gamma=gamma)
        mean = sum(returns) / 3
        spread = math.sqrt(sum((r - mean) ** 2 for r in returns) / 2)
        assert found == approx([(r - mean) / spread for r in returns], abs=1e-5)


def test_the_groups_mean_is_taken_off_before_whitening() -> None:
    groups = rolled([[1.0, 0.0], [1.0, 1.0]], [[1, 1], [1, 1]])
    found = advantages_of(groups, "reinforce_pp", n=2, baseline="group")
    assert found == [approx([1.224745, -1.224745], abs=1e-6), [0.0, 0.0]]
    # One that is missing is in no mean.
    groups = rolled([[1.0, 0.0, math.nan]], [[1, 1, 1]])
    (found,) = advantages_of(groups, "reinforce_pp", n=3, baseline="group")
    assert found == approx([0.707107, -0.707107, 0.0], abs=1e-6)


def test_reinforce_weighs_reward_against_kl_and_takes_the_critics_value_off() -> None:
    """Reward 2 and 4, KL 1 + 2 and 0 nats at a share of 1/4: 1.5 - 0.75 and 3."""
    rollout = rolled(
        [[2.0, 4.0, math.nan]],
        [[2, 1, 1]],
        reference=[torch.tensor([-2.0, -3.0, -1.0, -1.0])],
        values=[torch.tensor([0.5, 0.25, 1.0, 7.0])],
    )
    (found,) = advantages_of(rollout, "reinforce", 0.25, n=3)
    assert found[:3] == approx([0.25, 0.5, 2.0])
    assert rollout.returns is not None
    assert rollout.returns[0][:3].tolist() == approx([0.75, 0.75, 3.0])
    assert rollout.active[0].tolist() == [True, True, False]
    # Errors .25, .5 and 2 against a variance of 1.125 (n).
    assert rollout.metrics["explained_variance"] == approx(1 - (0.0625 + 0.25 + 4) / 3 / 1.125)
    # Of the KL alone.
    rollout.rewards = [torch.tensor([9.0, 9.0, 9.0], dtype=torch.float64)]
    (found,) = advantages_of(rollout, "reinforce", 1.0, n=3)
    assert found[:3] == approx([-3.5, -3.25, -1.0])


def test_any_constant_baseline_has_the_same_mean_gradient() -> None:
    """A bandit of three symbols, enumerated."""
    rewards = t(1.0, 0.0, -2.0)

    def mean_gradient(value: float) -> list[float]:
        logits = t(0.2, -0.4, 0.9).requires_grad_()
        logprobs = logits.log_softmax(0)
        loss, _ = clipped_policy_loss(logprobs, logprobs.detach(), rewards - value, 1.0, math.inf)
        return gradient((logprobs.detach().exp() * loss).sum(), logits)

    assert mean_gradient(5.0) == approx(mean_gradient(0.0))


# SPPO


def test_the_win_rates_of_two_answers_a_reward_of_one_apart() -> None:
    """sigmoid(1) is 0.731059; with itself at a half 0.615529."""
    assert win_rates(t(1.0, 0.0)).tolist() == approx([0.615529, 0.384471], abs=1e-6)
    assert win_rates(t(3.0, 3.0, 3.0)).tolist() == [0.5] * 3
    with_missing = win_rates(t(1.0, math.nan, 0.0)).tolist()
    assert [with_missing[0], with_missing[2]] == approx([0.615529, 0.384471], abs=1e-6)
    assert math.isnan(with_missing[1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=7))
def test_win_rates_sum_to_half_of_the_answers(rewards: list[float]) -> None:
    found, count = win_rates(t(*rewards)), len(rewards)
    assert float(found.sum()) == approx(count / 2)
    assert 1 / (2 * count) - 1e-9 <= float(found.min())
    assert float(found.max()) <= 1 - 1 / (2 * count) + 1e-9


def pairs(chosen: float, rejected: float) -> PairLogprobs:
    ones = torch.ones(1)
    return PairLogprobs(t(chosen), t(rejected), t(-3.0), t(-4.0), ones, ones)


def test_the_loss_is_the_squared_distance_from_the_win_rates() -> None:
    """At the reference and beta 0.001 the targets are 115.529 and -115.529."""
    wins = win_rates(t(1.0, 0.0))[None]
    assert sppo_loss(pairs(-3, -4), wins).tolist() == approx([13347.0], rel=1e-4)
    # Log-ratios 1 and -2, targets 0.231059 and -0.231059.
    wanted = ((1 - 0.231059) ** 2 + (-2 + 0.231059) ** 2) / 2
    assert sppo_loss(pairs(-2, -6), wins, beta=0.5).tolist() == approx([wanted], rel=1e-5)
    exact = pairs(-3 + 0.231059, -4 - 0.231059)
    assert sppo_loss(exact, wins, beta=0.5).tolist() == approx([0.0], abs=1e-9)


@pytest.fixture(scope="module")
def model(make_model: Callable[[int], Path]) -> TrainModel:
    return prepare(load_module(make_model(0), CPU), CPU, torch.float32)


def test_sppo_is_handed_the_win_rates_of_the_best_and_the_worst(model: TrainModel) -> None:
    answers = tuple(answer(ids) for ids in ([1], [2, 3], [4, 5, 6], [7]))
    groups = [Group("p", [9], answers), Group("q", [8], answers[:2])]
    rewards = [t(0.5, math.nan, 0.75, -1.0), t(1.0, 1.0)]
    reference = [torch.arange(1.0, 8.0), torch.arange(3.0)]
    rollout = Rollout(groups, rewards, reference=reference)
    task = OnlinePairs(rollout, training("sppo", n=4, beta=0.5))
    assert [e.completions for e in task.examples] == [([4, 5, 6], [7])]
    loss, sums, _ = task.loss(model, [0], 1.0, 0)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    best = (0.5 + sigmoid(0.25) + sigmoid(1.75)) / 3
    worst = (0.5 + sigmoid(-1.75) + sigmoid(-1.5)) / 3
    assert sums["win_rate_chosen"] == (approx(best), 1.0)
    assert sums["win_rate_rejected"] == (approx(worst), 1.0)
    own = [model.token_logprobs(model.layout([([9], (a.ids,))])).sum() for a in answers[2:]]
    gaps = [float(own[0].detach()) - 15.0, float(own[1].detach()) - 7.0]
    wanted = ((gaps[0] - 2 * (best - 0.5)) ** 2 + (gaps[1] - 2 * (worst - 0.5)) ** 2) / 2
    assert float(loss.detach()) == approx(wanted, rel=1e-4)


# Several steps on one rollout


def updates(model: TrainModel, method: str, moved: float, **keys: Any) -> Tensor:
    """The gradient of one step on a rollout whose old log-probs are `moved` times noise away."""
    answers = tuple(answer(ids) for ids in ([1, 2, 5], [3, 3], [4, 5, 6, 8], [7]))
    options = training(method, n=4, sync_every=2, importance="none", beta=0.0, **keys)
    rewards = [[1.0, 0.0, 0.5, 0.25]]
    rollout = measure(model, [Group("p", [9], answers)], rewards, options, None, None)
    assert rollout.old is not None
    noise = torch.randn(10, generator=torch.Generator().manual_seed(1))
    rollout.old = [rollout.old[0] + moved * noise]
    add_advantages(rollout, options, 0.0)
    task = PolicyTask(rollout, options, 0.0)
    loss, _, _ = task.loss(model, [0], task.total([0]), 0)
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in model.params.values() if p.grad is not None])
    found = found.clone()
    for param in model.params.values():
        if param.grad is not None:
            param.grad.zero_()
    return found


@pytest.mark.parametrize(
    ("method", "grpo"),
    [("gspo", {"reduction": "sequence"}), ("cispo", {"reduction": "token"})],
    ids=["gspo", "cispo"],
)
def test_the_first_step_is_grpos_and_the_next_is_not(
    model: TrainModel, method: str, grpo: dict[str, str]
) -> None:
    def distance(moved: float) -> float:
        own, other = updates(model, method, moved), updates(model, "grpo", moved, **grpo)
        return float((own - other).norm() / other.norm())

    assert distance(0.0) < 1e-5
    assert distance(0.3) > 0.05


@pytest.mark.parametrize("baseline", ["none", "group"])
def test_reinforce_pp_differs_from_grpo_from_the_first_step_on(
    model: TrainModel, baseline: str
) -> None:
    """Its deviation is that of the tokens: another direction only where lengths weigh."""
    own, other = (
        updates(model, method, 0.3, **keys)
        for method, keys in (("reinforce_pp", {"baseline": baseline}), ("grpo", {}))
    )
    assert float((own - other).norm() / other.norm()) > 0.05


# The critic's head start


@pytest.mark.parametrize("critic", ["head", "separate"])
def test_the_policy_stays_as_it_is_while_the_critic_warms_up(
    make_model: Callable[[int], Path], critic: str
) -> None:
    policy, own = (prepare(load_module(make_model(0), CPU), CPU, torch.float32) for _ in "ab")
    judge = add_critic(policy, own if critic == "separate" else None)
    torch.nn.init.normal_(judge.head.weight)
    options = training("ppo", n=2, beta=0.0, critic=critic, critic_warmup=3, lam=1.0)
    answers = tuple(answer(ids) for ids in ([1, 2, 5], [3, 3]))
    rollout = measure(policy, [Group("p", [9], answers)], [[1.0, 0.0]], options, None, judge)
    add_advantages(rollout, options, 0.0)
    task = PolicyTask(rollout, options, 0.0, judge)
    moved = {}
    for step in (2, 3):
        for param in policy.params.values():
            param.grad = None
        loss, sums, _ = task.loss(policy, [0], task.total([0]), step)
        loss.backward()
        grads = {n: p.grad for n, p in policy.params.items() if p.grad is not None}
        moved[step] = {n for n, g in grads.items() if bool(g.abs().any())}
        if step == 2:
            assert float(loss.detach()) == approx(0.1 * sums["value_loss"][0] / 5)
    trained = {n for n in policy.params if n.startswith(("value_head.", "critic."))}
    assert moved[2] <= trained and "value_head.weight" in moved[2]
    assert moved[2] < moved[3] and moved[3] - trained
