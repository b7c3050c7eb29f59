"""Policy losses: the papers' formulas by enumeration, golden numbers, and TRL's own functions.

The golden numbers are recomputed in comments or by the definition next to them. TRL 1.16 has no PPO
any more, so generalised advantage estimation and whitening are held against their definitions.
"""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from rlaif.config.methods import METHODS
from rlaif.core.resources import find_object
from rlaif.train.losses.policy import (
    GlobalBatch,
    adapt_kl,
    clipped_policy_loss,
    explained_variance,
    gae,
    group_advantages,
    importance_weights,
    is_flat,
    kl_estimate,
    overlong_penalty,
    rloo_advantages,
    shaped_rewards,
    to_tokens,
    token_reduction,
    value_loss,
    whiten,
)

NAN = math.nan
KINDS = ("k1", "k2", "k3")
quick = settings(max_examples=60, deadline=None)
finite = st.floats(-5, 5, allow_subnormal=False)
lengths_of = st.lists(st.integers(1, 6), min_size=1, max_size=6)


def t(*values, **options):
    return torch.tensor(values, dtype=torch.float64, **options)


def close(ours, wanted, **options):
    torch.testing.assert_close(ours, torch.as_tensor(wanted, dtype=ours.dtype), **options)


def noise(count, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, generator=generator, dtype=torch.float64)


LOGITS, REFERENCE = t(0.3, -1.2, 0.8, 0.1), t(-0.5, 0.4, 0.2, 1.1).log_softmax(0)


def _policy():
    logits = LOGITS.clone().requires_grad_()
    return logits, logits.log_softmax(0)


def _gradient(of):
    """The gradient in the logits of `of(log-probabilities)`."""
    logits, logprobs = _policy()
    return torch.autograd.grad(of(logprobs), logits)[0]


def _forward_kl(logprobs):
    return (REFERENCE.exp() * (REFERENCE - logprobs)).sum()


def _reverse_kl(logprobs):
    return (logprobs.exp() * (logprobs - REFERENCE)).sum()


def _mean_loss(kind):
    """The expected loss on samples of the policy, which do not depend on the logits themselves."""
    return lambda logprobs: (logprobs.detach().exp() * kl_estimate(logprobs, REFERENCE, kind)).sum()


def test_k1_and_k3_have_the_kl_as_their_mean_and_k2_has_not():
    _, logprobs = _policy()
    kl = _reverse_kl(logprobs)
    for kind in ("k1", "k3"):
        close(_mean_loss(kind)(logprobs), kl.detach())
    assert abs(_mean_loss("k2")(logprobs).item() - kl.item()) > 1e-3


def test_k3_is_never_negative_and_k1_is_for_some_symbols():
    _, logprobs = _policy()
    assert kl_estimate(logprobs, REFERENCE, "k3").min() > 0
    assert kl_estimate(logprobs, REFERENCE, "k1").min() < -0.1


def test_gradients_of_the_estimators_as_losses():
    reverse, forward = _gradient(_reverse_kl), _gradient(_forward_kl)
    assert (reverse - forward).abs().max() > 0.05
    close(_gradient(_mean_loss("k1")), torch.zeros(4))
    close(_gradient(_mean_loss("k2")), reverse)
    close(_gradient(_mean_loss("k3")), forward)


def test_k1_in_the_reward_gives_the_gradient_of_the_kl():
    def surrogate(logprobs):
        reward = kl_estimate(logprobs, REFERENCE, "k1").detach()
        return (logprobs.detach().exp() * reward * logprobs).sum()

    close(_gradient(surrogate), _gradient(_reverse_kl))


def test_k3_times_the_ratio_is_right_on_samples_of_an_older_policy():
    old = t(1.0, 0.2, -0.7, 0.0).log_softmax(0)

    def loss(logprobs, corrected=True):
        ratio = (logprobs - old).exp() if corrected else 1.0
        return (old.exp() * ratio * kl_estimate(logprobs, REFERENCE, "k3")).sum()

    _, logprobs = _policy()
    close(loss(logprobs).detach(), _reverse_kl(logprobs).detach())
    close(_gradient(loss), _gradient(_reverse_kl))
    assert abs(loss(logprobs, corrected=False) - _reverse_kl(logprobs)) > 0.01


def test_estimators_by_hand():
    policy, reference = t(-1.0, -1.0, -2.0), t(-0.9, -1.1, -2.0)
    close(kl_estimate(policy, reference, "k1"), [-0.1, 0.1, 0.0])
    close(kl_estimate(policy, reference, "k2"), [0.005, 0.005, 0.0])
    # e^0.1 - 1.1 and e^-0.1 - 0.9
    close(kl_estimate(policy, reference, "k3"), [0.00517092, 0.00483742, 0.0], rtol=0, atol=5e-9)


@pytest.mark.parametrize(
    "u", [1e-7, -1e-7, 1e-4, -1e-4, 0.0999, -0.0999, 0.1001, -0.1001, 0.3, 3.0]
)
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 5e-6), (torch.float64, 1e-11)])
def test_k3_keeps_its_digits_near_zero(u, dtype, rel):
    value = torch.tensor([u], dtype=dtype)
    exact = math.fsum(value.item() ** n / math.factorial(n) for n in range(2, 40))
    ours = kl_estimate(torch.zeros_like(value), value, "k3").item()
    assert ours == pytest.approx(exact, rel=rel, abs=0)
    assert ours > 0


@pytest.mark.parametrize("u", [19.9, 20.1, 60.0, 1e4, -1e4])
def test_k3_is_finite_with_a_gradient_of_the_right_sign(u):
    policy = torch.zeros(1, requires_grad=True)
    value = kl_estimate(policy, torch.tensor([u]), "k3")
    value.backward()
    assert torch.isfinite(value).all() and torch.isfinite(policy.grad).all()
    assert torch.sign(policy.grad).item() == -math.copysign(1, u)
    bound = math.exp(20) - 21 if u > 20 else math.exp(u) - 1 - u
    assert value.item() >= bound * (1 - 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_the_estimators(kind):
    policy = t(-1.0, -2.0, -0.5, -3.0, -1.0).requires_grad_()
    reference = t(-1.03, -0.4, -1.9, -2.95, -25.0)
    assert gradcheck(lambda x: kl_estimate(x, reference, kind), policy)
    assert gradcheck(lambda x: kl_estimate(reference, x, kind), policy)


groups_and_rewards = st.lists(
    st.tuples(st.integers(0, 3), st.one_of(st.integers(-4, 4), st.just(NAN))),
    min_size=1,
    max_size=14,
)


def _columns(rows):
    return t(*[float(r) for _, r in rows]), torch.tensor([g for g, _ in rows])


def _members(rewards, groups):
    for group in groups.unique():
        yield (groups == group) & ~rewards.isnan()


def test_golden_group_advantages():
    zeros = torch.zeros(4, dtype=torch.int64)
    rewards = t(1.0, 0.0, 0.0, 0.0)
    # mean 1/4, n - 1 variance (9/16 + 3/16) / 3 = 1/4
    close(group_advantages(rewards, zeros, eps=0.0), [1.5, -0.5, -0.5, -0.5])
    # One group: the deviation within all groups is its own, 1/2, and eps a share of that.
    close(group_advantages(rewards, zeros), [0.75 / 0.50005, *[-0.25 / 0.50005] * 3])
    # Two: sqrt((3 * 1/4 + 1 * 2) / 4) within both, which weighs more beside the narrow one.
    both = torch.tensor([0, 0, 0, 0, 1, 1])
    spread = math.sqrt(2.75 / 4)
    wide = 1 / (math.sqrt(2) + 1e-4 * spread)
    narrow = [r / (0.5 + 1e-4 * spread) for r in (0.75, -0.25, -0.25, -0.25)]
    close(group_advantages(t(1, 0, 0, 0, 7, 5), both), [*narrow, wide, -wide])
    close(group_advantages(rewards, zeros, "none"), [0.75, -0.25, -0.25, -0.25])
    half = 1 / math.sqrt(2)
    close(group_advantages(t(3.0, -7.0), zeros[:2], eps=0.0), [half, -half])


def test_golden_leave_one_out():
    zeros = torch.zeros(4, dtype=torch.int64)
    close(rloo_advantages(t(1.0, 2.0, 3.0, 6.0), zeros), [-8 / 3, -4 / 3, 0.0, 4.0])


def test_groups_are_apart_in_any_order_and_unscorable_answers_do_not_count():
    rewards = t(1.0, 10.0, NAN, 0.0, 30.0, 0.0, 7.0, NAN, 5.0, 5.0)
    groups = torch.tensor([7, 2, 7, 7, 2, 7, 3, 3, 9, 9])
    third, half = 1 / 3, 1 / math.sqrt(2)
    deviation = math.sqrt(third)
    wanted = [2 * third, -half, 0.0, -third, half, -third, 0.0, 0.0, 0.0, 0.0]
    wanted = [w / deviation if g == 7 else w for w, g in zip(wanted, groups.tolist(), strict=True)]
    close(group_advantages(rewards, groups, eps=0.0), wanted)
    close(rloo_advantages(rewards, groups), [1.0, -20, 0, -0.5, 20, -0.5, 0, 0, 0, 0])


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e6 + 0.1])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_equal_rewards_give_exactly_nothing(reward, count):
    """In fp32 the mean of three times 0.1 is not 0.1; divided by eps that would be a signal."""
    rewards = torch.full((count,), reward)
    groups = torch.zeros(count, dtype=torch.int64)
    for ours in (
        group_advantages(rewards, groups, eps=1e-12),
        group_advantages(rewards, groups, "none"),
        rloo_advantages(rewards, groups),
    ):
        assert ours.tolist() == [0.0] * count


@quick
@given(groups_and_rewards)
def test_advantages_of_a_group_sum_to_zero_and_are_never_missing(rows):
    rewards, groups = _columns(rows)
    for ours in (
        group_advantages(rewards, groups),
        group_advantages(rewards, groups, "none"),
        rloo_advantages(rewards, groups),
    ):
        assert torch.isfinite(ours).all()
        assert (ours[rewards.isnan()] == 0).all()
        for members in _members(rewards, groups):
            assert ours[members].sum().item() == pytest.approx(0.0, abs=1e-9)
            order = torch.argsort(rewards[members], stable=True)
            assert (ours[members][order].diff() >= 0).all()


@quick
@given(groups_and_rewards, st.floats(0.1, 10), finite)
def test_affine_invariance_with_the_deviation_and_shift_invariance_without(rows, factor, shift):
    rewards, groups = _columns(rows)
    shift = 1000 * shift
    moved = factor * rewards + shift
    close(group_advantages(moved, groups), group_advantages(rewards, groups))
    close(rloo_advantages(rewards + shift, groups), rloo_advantages(rewards, groups))
    close(
        group_advantages(moved, groups, "none"), factor * group_advantages(rewards, groups, "none")
    )


def test_what_is_flat_is_decided_by_the_size_of_the_rewards():
    """Rounding of fp32 around 20 is 2e-6, and no signal; around 0 it is one."""
    zeros = torch.zeros(3, dtype=torch.int64)
    noise_of_20 = t(20.0, 20.0 + 4e-6, 20.0)
    assert is_flat(noise_of_20)
    assert group_advantages(noise_of_20, zeros).tolist() == [0.0] * 3
    assert not is_flat(noise_of_20 - 20.0)
    assert group_advantages(noise_of_20 - 20.0, zeros).any()
    assert is_flat(t(NAN, 3.0, NAN)) and is_flat(t(0.0, 0.0))


def test_differences_are_taken_before_the_cast():
    """In fp32 these rewards are 1e5 and 1e5: the steps there are of 1/128."""
    rewards, zeros = 1e5 + t(0.0, 0.5, 0.251), torch.zeros(3, dtype=torch.int64)
    close(rloo_advantages(rewards, zeros), [-0.3755, 0.3745, 0.001], rtol=0, atol=1e-9)


@quick
@given(groups_and_rewards)
def test_leave_one_out_by_its_definition_and_against_dr_grpo(rows):
    rewards, groups = _columns(rows)
    ours, centred = rloo_advantages(rewards, groups), group_advantages(rewards, groups, "none")
    for members in _members(rewards, groups):
        kept, count = rewards[members].tolist(), int(members.sum())
        if count < 2:
            assert (ours[members] == 0).all()
            continue
        wanted = [r - (sum(kept) - r) / (count - 1) for r in kept]
        close(ours[members], wanted)
        close(ours[members], count / (count - 1) * centred[members])


def test_the_baseline_of_an_answer_does_not_depend_on_its_reward():
    zeros = torch.zeros(3, dtype=torch.int64)
    for reward in (-3.0, 0.5, 8.0):
        rewards = t(reward, 1.0, 4.0)
        assert (rewards - rloo_advantages(rewards, zeros))[0].item() == pytest.approx(2.5)


def test_to_tokens_repeats_and_skips_empty_sequences():
    assert to_tokens(t(1.0, 2.0, 3.0), [2, 0, 1]).tolist() == [1.0, 1.0, 3.0]


def _gae_by_definition(rewards, values, gamma, lam):
    """A_t as the sum of (gamma lam)^k delta_{t+k}, one sequence, plain numbers."""
    following = [*values[1:], 0.0]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, following, values, strict=True)]
    count = len(deltas)
    return [
        sum((gamma * lam) ** (k - i) * deltas[k] for k in range(i, count)) for i in range(count)
    ]


def test_golden_gae():
    rewards, values = t(0.0, 0.0, 1.0), t(0.5, 0.6, 0.7)
    advantages, returns = gae(rewards, values, [3])
    # deltas 0.1, 0.1, 0.3: 0.1 + 0.95 * 0.3 = 0.385, 0.1 + 0.95 * 0.385 = 0.46575
    close(advantages, [0.46575, 0.385, 0.3])
    close(returns, [0.96575, 0.985, 1.0])


@quick
@given(lengths_of, st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_gae_is_its_definition_in_each_sequence_apart(lengths, gamma, lam, seed):
    count = sum(lengths)
    rewards, values = noise(count, seed), noise(count, seed + 1)
    advantages, returns = gae(rewards, values, lengths, gamma, lam)
    wanted = []
    for r, v in zip(rewards.split(lengths), values.split(lengths), strict=True):
        wanted += _gae_by_definition(r.tolist(), v.tolist(), gamma, lam)
    close(advantages, wanted)
    close(returns, torch.tensor(wanted, dtype=torch.float64) + values)


def test_gae_at_the_ends_of_lambda():
    rewards, values, lengths = noise(7), noise(7, 1), [3, 4]
    to_go = torch.cat([r.flip(0).cumsum(0).flip(0) for r in rewards.split(lengths)])
    advantages, returns = gae(rewards, values, lengths, 1.0, 1.0)
    close(advantages, to_go - values)
    close(returns, to_go)
    following = torch.cat([torch.cat([v[1:], t(0.0)]) for v in values.split(lengths)])
    close(gae(rewards, values, lengths, 0.9, 0.0)[0], rewards + 0.9 * following - values)


def test_gae_skips_empty_sequences_is_detached_and_leaves_its_inputs_alone():
    rewards, values = noise(5).requires_grad_(), noise(5, 1).requires_grad_()
    before = rewards.detach().clone(), values.detach().clone()
    advantages, returns = gae(rewards, values, [0, 2, 0, 3, 0], 0.9, 0.8)
    close(advantages, gae(rewards, values, [2, 3], 0.9, 0.8)[0])
    assert not advantages.requires_grad and not returns.requires_grad
    assert torch.equal(rewards, before[0]) and torch.equal(values, before[1])
    assert [len(x) for x in gae(t(), t(), [], 1.0, 1.0)] == [0, 0]


def test_lengths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="add up to 4"):
        gae(noise(5), noise(5), [2, 2])
    with pytest.raises(ValueError, match="add up to 4"):
        shaped_rewards(t(1.0, 1.0), noise(5), 0.1, [2, 2])
    with pytest.raises(ValueError, match="at least one token"):
        shaped_rewards(t(1.0, 1.0), noise(2), 0.1, [2, 0])


@quick
@given(lengths_of, st.floats(0, 2), st.integers(0, 99))
def test_shaped_rewards_sum_to_the_score_less_the_penalty(lengths, beta, seed):
    scores, kl = noise(len(lengths), seed), noise(sum(lengths), seed + 1)
    rewards = shaped_rewards(scores, kl, beta, lengths)
    parts = zip(rewards.split(lengths), kl.split(lengths), scores, strict=True)
    for part, penalty, score in parts:
        close(part.sum(), score - beta * penalty.sum())
        close(part[:-1], -beta * penalty[:-1])


def test_no_reward_no_value_no_advantage_and_no_gradient_into_the_reward():
    kl = noise(5).requires_grad_()
    before = kl.detach().clone()
    rewards = shaped_rewards(torch.zeros(2), kl, 0.0, [2, 3])
    assert gae(rewards, torch.zeros(5).double(), [2, 3])[0].abs().max() == 0
    assert torch.equal(kl, before)


@quick
@given(st.lists(st.booleans(), min_size=3, max_size=12), st.integers(0, 99))
def test_whitened_values_have_mean_zero_and_deviation_one_where_kept(flags, seed):
    keep = torch.tensor([True, True, *flags])
    x = 3 + 2 * noise(len(keep), seed)
    x = torch.where(keep, x, torch.nan)
    ours = whiten(x, keep)
    assert (ours[~keep] == 0).all()
    kept = x[keep].numpy()
    wanted = (kept - kept.mean()) / np.sqrt(np.var(kept, ddof=1) + 1e-8)
    close(ours[keep], wanted)
    assert ours[keep].mean().item() == pytest.approx(0.0, abs=1e-9)
    close(whiten(x, keep, shift_mean=False)[keep], wanted + kept.mean())


def test_whitening_has_deviation_one_without_a_mask_and_spares_a_single_value():
    x = noise(50, scale=9.0)
    assert whiten(x).std().item() == pytest.approx(1.0, abs=1e-6)
    assert whiten(x, shift_mean=False).mean().item() == pytest.approx(x.mean().item())
    assert whiten(t(4.0)).tolist() == [0.0]
    assert whiten(t(4.0), shift_mean=False).tolist() == [4.0]
    assert whiten(t(2.0, 2.0, 2.0)).tolist() == [0.0] * 3


def _with_ratio(*ratios):
    """Log-probabilities whose ratio to an old log-probability of -2 is the one given."""
    return t(*[math.log(r) - 2 for r in ratios]), torch.full((len(ratios),), -2.0).double()


def test_clipped_loss_by_hand():
    logprobs, old = _with_ratio(1.0, 1.1, 1.5, 0.5, 1.5, 0.5, 9.0)
    advantages = t(2.0, 2.0, 2.0, 2.0, -2.0, -2.0, 0.0)
    loss, metrics = clipped_policy_loss(logprobs, old, advantages, 0.2, 0.28)
    close(loss, [-2.0, -2.2, -2.56, -1.0, 3.0, 1.6, 0.0])
    assert metrics["clip_fraction"].item() == pytest.approx(2 / 7)
    assert metrics["ratio_mean"].item() == pytest.approx(15.1 / 7)
    assert metrics["ratio_min"].item() == pytest.approx(0.5)
    assert metrics["ratio_max"].item() == pytest.approx(9.0)
    logs = [math.log(r) ** 2 for r in (1.0, 1.1, 1.5, 0.5, 1.5, 0.5, 9.0)]
    assert metrics["approx_kl"].item() == pytest.approx(sum(logs) / 14)


def test_the_two_sided_bound_caps_the_ratio_of_bad_answers_only():
    logprobs, old = _with_ratio(9.0, 3.9, 9.0, 0.1)
    advantages = t(-1.0, -1.0, 1.0, -1.0)
    plain, _ = clipped_policy_loss(logprobs, old, advantages)
    close(plain, [9.0, 3.9, -1.2, 0.8])
    loss, metrics = clipped_policy_loss(logprobs, old, advantages, two_sided=4.0)
    close(loss, [4.0, 3.9, -1.2, 0.8])
    assert metrics["clip_fraction"].item() == pytest.approx(3 / 4)
    with pytest.raises(ValueError, match="above"):
        clipped_policy_loss(logprobs, old, advantages, two_sided=1.2)


@pytest.mark.parametrize("two_sided", [None, 4.0])
def test_gradient_is_zero_exactly_where_the_metric_says_so(two_sided):
    ratios = [1.0, 1.1, 1.5, 0.5, 1.5, 0.5, 9.0, 9.0, 0.9]
    logprobs, old = _with_ratio(*ratios)
    advantages = t(2.0, 2.0, 2.0, 2.0, -2.0, -2.0, -1.0, 1.0, -3.0)
    logprobs.requires_grad_()
    loss, metrics = clipped_policy_loss(logprobs, old, advantages, two_sided=two_sided)
    loss.sum().backward()
    active = logprobs.grad != 0
    assert (~active).double().mean().item() == pytest.approx(metrics["clip_fraction"].item())
    assert (~active).sum().item() == (4 if two_sided else 3)
    close(logprobs.grad[active], (-advantages * t(*ratios))[active])


def test_the_first_update_is_not_clipped_and_is_the_policy_gradient():
    logprobs = noise(6, scale=3.0).requires_grad_()
    advantages = noise(6, 1)
    loss, metrics = clipped_policy_loss(logprobs, logprobs, advantages, 3e-4, 4e-4)
    assert [metrics[f"ratio_{x}"].item() for x in ("mean", "min", "max")] == [1.0] * 3
    assert metrics["clip_fraction"].item() == 0 and metrics["approx_kl"].item() == 0
    close(torch.autograd.grad(loss.sum(), logprobs)[0], -advantages)


def test_expected_gradient_on_the_first_update_is_that_of_the_expected_reward():
    """By enumeration: the loss weighted by the probabilities falls as the expected reward rises."""
    reward = t(1.0, -0.5, 2.0, 0.3)

    def surrogate(logprobs):
        loss, _ = clipped_policy_loss(logprobs, logprobs, reward)
        return (logprobs.detach().exp() * loss).sum()

    close(_gradient(surrogate), -_gradient(lambda logprobs: (logprobs.exp() * reward).sum()))


def test_no_tokens_no_metrics():
    loss, metrics = clipped_policy_loss(t(), t(), t())
    assert loss.tolist() == [] and all(math.isnan(value) for value in metrics.values())


def test_only_the_new_logprobs_get_a_gradient_and_metrics_none():
    inputs = [noise(4, i).requires_grad_() for i in range(4)]
    logprobs, old, advantages, weight = inputs
    loss, metrics = clipped_policy_loss(logprobs, old, advantages, weight=weight.exp())
    loss.sum().backward()
    assert [x.grad is not None for x in inputs] == [True, False, False, False]
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("gap", [200.0, -200.0])
@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_an_absurd_ratio_gives_finite_numbers(gap, advantage):
    logprobs = torch.tensor([gap], requires_grad=True)
    loss, metrics = clipped_policy_loss(logprobs, torch.zeros(1), torch.tensor([advantage]))
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(logprobs.grad).all()
    assert all(torch.isfinite(value) for value in metrics.values())
    if advantage > 0 and gap > 0:
        assert loss.item() == pytest.approx(-1.2)


@pytest.mark.parametrize("two_sided", [None, 4.0])
def test_gradcheck_of_the_clipped_loss(two_sided):
    logprobs, old = _with_ratio(1.05, 0.9, 1.5, 0.5, 1.7, 0.6, 9.0)
    advantages, weight = t(2.0, -1.0, 2.0, 2.0, -2.0, -2.0, -1.0), noise(7).exp()

    def loss(x):
        return clipped_policy_loss(x, old, advantages, 0.2, 0.28, two_sided, weight)[0]

    assert gradcheck(loss, logprobs.requires_grad_())


def test_value_loss_by_hand():
    values, old, returns = t(1.0, 1.0, 0.0, 0.0), t(0.9, 0.0, 1.0, 1.0), t(2.0, 2.0, 0.5, -3.0)
    # clipped values 1.0, 0.2, 0.8, 0.8; the larger error counts
    wanted = [0.5, 0.5 * 1.8**2, 0.125, 0.5 * 3.8**2]
    loss, metrics = value_loss(values, old, returns, clip=0.2)
    close(loss, wanted)
    assert metrics["value_clip_fraction"].item() == 0.5
    plain, metrics = value_loss(values, old, returns, clip=None)
    close(plain, [0.5, 0.5, 0.125, 4.5])
    assert metrics["value_clip_fraction"].item() == 0


def test_value_loss_gradients():
    values, old, returns = (noise(6, i).requires_grad_() for i in range(3))
    for clip in (None, 0.3):
        loss, _ = value_loss(values, old, returns, clip)
        grads = torch.autograd.grad(loss.sum(), (values, old, returns), allow_unused=True)
        assert grads[0] is not None and grads[1] is None and grads[2] is None
        fixed = old.detach(), returns.detach()
        assert gradcheck(lambda x, c=clip, f=fixed: value_loss(x, *f, c)[0], values)
    close(
        torch.autograd.grad(value_loss(values, old, returns, None)[0].sum(), values)[0],
        (values - returns).detach(),
    )


def test_explained_variance():
    returns = t(1.0, 2.0, 3.0, 6.0)
    assert explained_variance(returns, returns).item() == 1
    assert explained_variance(torch.full_like(returns, 3.0), returns).item() == 0
    # variance 3.5; off by a constant 1: 1 - 1 / 3.5
    assert explained_variance(returns + 1, returns).item() == pytest.approx(1 - 1 / 3.5)
    assert math.isnan(explained_variance(returns, torch.full_like(returns, 3.0)).item())
    assert not explained_variance(returns.clone().requires_grad_(), returns).requires_grad


def test_reductions_by_hand():
    losses, lengths, total = t(1.0, 3.0, 5.0, 7.0, 9.0, 11.0), [2, 4, 0], GlobalBatch(3, 6)
    assert token_reduction(losses, lengths, "sequence", total).item() == pytest.approx(10 / 3)
    assert token_reduction(losses, lengths, "token", total).item() == pytest.approx(6)
    ours = token_reduction(losses, lengths, "constant", total, constant=8)
    assert ours.item() == pytest.approx(36 / 24)
    with pytest.raises(ValueError, match="constant"):
        token_reduction(losses, lengths, "constant", total)


@quick
@given(lengths_of, st.lists(st.booleans(), min_size=6, max_size=6), st.integers(0, 99))
def test_shares_of_micro_batches_add_up_with_their_gradients(lengths, cuts, seed):
    losses = noise(sum(lengths), seed).requires_grad_()
    total = GlobalBatch(len(lengths), sum(lengths))
    parts = list(zip(losses.split(lengths), lengths, strict=True))
    batches = [[parts[0]]]
    for part, cut in zip(parts[1:], cuts, strict=False):
        batches.append([part]) if cut else batches[-1].append(part)
    for kind in ("sequence", "token", "constant"):
        whole = token_reduction(losses, lengths, kind, total, 9)
        shares = sum(
            token_reduction(torch.cat([x for x, _ in b]), [n for _, n in b], kind, total, 9)
            for b in batches
        )
        close(shares, whole)
        ours, wanted = (
            torch.autograd.grad(x, losses, retain_graph=True)[0] for x in (shares, whole)
        )
        close(ours, wanted)


def test_normalising_each_micro_batch_by_itself_is_another_loss():
    """What `total` is for: averages of averages depend on how the batch was cut."""
    losses, lengths = t(1.0, 2.0, 3.0, 10.0, 20.0, 30.0), [1, 2, 3]
    whole = GlobalBatch(3, 6)
    for kind, wanted, naive in (("token", 11.0, 7.0), ("sequence", 23.5 / 3, 12.25 / 2)):
        assert token_reduction(losses, lengths, kind, whole).item() == pytest.approx(wanted)
        averaged = (
            token_reduction(losses[:1], [1], kind, GlobalBatch(1, 1))
            + token_reduction(losses[1:], [2, 3], kind, GlobalBatch(2, 5))
        ) / 2
        assert averaged.item() == pytest.approx(naive)


def test_reductions_agree_only_when_lengths_are_equal():
    losses = noise(6)
    even, uneven = ([2, 2, 2], [1, 2, 3])
    total = GlobalBatch(3, 6)
    token = token_reduction(losses, even, "token", total)
    close(token_reduction(losses, even, "sequence", total), token)
    close(token_reduction(losses, even, "constant", total, 2), token)
    assert abs(token_reduction(losses, uneven, "sequence", total) - token) > 0.01


def test_weight_of_a_token_in_each_reduction():
    """Per sequence a long answer's tokens count less: the length bias that Dr. GRPO removes."""
    losses, lengths, total = noise(5).requires_grad_(), [1, 4], GlobalBatch(2, 5)
    weights = {
        kind: torch.autograd.grad(token_reduction(losses, lengths, kind, total, 10), losses)[0]
        for kind in ("sequence", "token", "constant")
    }
    close(weights["sequence"], [0.5, 0.125, 0.125, 0.125, 0.125])
    close(weights["token"], [0.2] * 5)
    close(weights["constant"], [0.05] * 5)


def test_golden_adaptive_kl():
    assert adapt_kl(1.0, 12.0, 6.0, 10_000, 256) == pytest.approx(1.00512, abs=1e-12)
    assert adapt_kl(0.2, 0.0, 6.0, 10_000, 256) == pytest.approx(0.2 * (1 - 0.00512), abs=1e-12)
    assert adapt_kl(0.2, 6.6, 6.0, 1_000, 100) == pytest.approx(0.2 * 1.01, abs=1e-12)
    assert adapt_kl(0.2, 6.0, 6.0, 10_000, 256) == 0.2


def test_overlong_penalty_by_hand():
    ours = overlong_penalty([1, 16_384, 17_408, 18_432, 20_480, 20_481, 30_000], 20_480, 4_096)
    assert ours.tolist() == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0]
    assert overlong_penalty([9, 10, 11], 10, 0).tolist() == [0.0, 0.0, -1.0]


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_equal_engines_have_weight_one(level, mode):
    logprobs = noise(6, scale=4.0)
    weight, metrics = importance_weights(logprobs, logprobs, [2, 4], level, mode, 1.0, 1.0)
    assert weight.tolist() == [1.0] * 6
    assert metrics["logprob_gap"].item() == 0 and metrics["weight_cut_fraction"].item() == 0


def test_weights_by_hand():
    sampler = noise(5)
    trainer = sampler + t(*[math.log(c) for c in (2.0, 4.0, 0.5, 0.2, 2.0)])
    lengths = [2, 3]  # sequence weights 8 and 0.2

    def weight(*arguments):
        return importance_weights(trainer, sampler, lengths, *arguments)[0]

    close(weight("token", "truncate", 3.0), [2.0, 3.0, 0.5, 0.2, 2.0])
    close(weight("token", "truncate", 3.0, 0.3), [2.0, 3.0, 0.5, 0.3, 2.0])
    close(weight("token", "mask", 3.0), [2.0, 0.0, 0.5, 0.2, 2.0])
    close(weight("token", "mask", 3.0, 0.3), [2.0, 0.0, 0.5, 0.0, 2.0])
    close(weight("sequence", "truncate", 3.0), [3.0, 3.0, 0.2, 0.2, 0.2])
    close(weight("sequence", "mask", 3.0), [0.0, 0.0, 0.2, 0.2, 0.2])
    close(weight(), weight("sequence", "mask", 3.0))
    _, metrics = importance_weights(trainer, sampler, lengths)
    close(metrics["weight_mean"], 4.1)
    close(metrics["weight_min"], 0.2)
    close(metrics["weight_max"], 8.0)
    close(metrics["weight_cut_fraction"], 0.5)
    close(metrics["logprob_gap"], sum(abs(math.log(c)) for c in (2.0, 4.0, 0.5, 0.2, 2.0)) / 5)
    _, metrics = importance_weights(trainer, sampler, lengths, "token")
    close(metrics["weight_mean"], 8.7 / 5)
    close(metrics["weight_cut_fraction"], 0.2)


def test_without_a_cap_it_is_plain_importance_sampling():
    """All 16 sequences of two symbols, each drawn with its probability under the sampler."""
    trainer, sampler = LOGITS.log_softmax(0), REFERENCE
    pairs = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    reward = noise(16)
    drawn = sampler[pairs].sum(1).exp()
    lengths = [2] * 16

    def estimate(level, mode, cap):
        flat = trainer[pairs].flatten(), sampler[pairs].flatten()
        weight, _ = importance_weights(*flat, lengths, level, mode, cap)
        return weight.view(16, 2)

    wanted = (trainer[pairs].sum(1).exp() * reward).sum()
    for mode in ("truncate", "mask"):
        weight = estimate("sequence", mode, math.inf)[:, 0]
        close((drawn * weight).sum(), 1.0)
        close((drawn * weight * reward).sum(), wanted)
        close((drawn[:, None] * estimate("token", mode, math.inf)).sum(0), [1.0, 1.0])
    token = estimate("token", "truncate", math.inf)
    assert abs((drawn * token[:, 0] * reward).sum() - wanted) > 0.01
    cut = estimate("sequence", "truncate", 1.5)[:, 0]
    assert (drawn * cut).sum() < 0.99


@pytest.mark.parametrize("gap", [500.0, -500.0])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_masking_keeps_gradients_finite(gap, level):
    logprobs = torch.tensor([-1.0, -2.0, -1.5], requires_grad=True)
    sampler = torch.tensor([-1.0, -2.0 - gap, -1.5])
    weight, metrics = importance_weights(logprobs, sampler, [2, 1], level, "mask", 3.0, 0.1)
    assert not weight.requires_grad
    assert weight.tolist() == ([1.0, 0.0, 1.0] if level == "token" else [0.0, 0.0, 1.0])
    loss, _ = clipped_policy_loss(logprobs, logprobs, torch.ones(3), weight=weight)
    (loss + kl_estimate(logprobs, sampler, "k3")).sum().backward()
    assert torch.isfinite(logprobs.grad).all()
    assert all(torch.isfinite(value) for value in metrics.values())


def test_the_weight_multiplies_the_policy_term_only():
    logprobs, old, reference = noise(4).requires_grad_(), noise(4, 1), noise(4, 2)
    advantages, weight = noise(4, 3), t(0.0, 1.0, 2.0, 0.5)
    kl = kl_estimate(logprobs, reference, "k3")
    weighted, metrics = clipped_policy_loss(logprobs, old, advantages, weight=weight)
    plain, unweighted = clipped_policy_loss(logprobs, old, advantages)
    close(weighted, (plain * weight).detach())
    assert metrics == unweighted
    grad = torch.autograd.grad((weighted + 0.1 * kl).sum(), logprobs, retain_graph=True)[0]
    close(grad[0], 0.1 * torch.autograd.grad(kl.sum(), logprobs)[0][0])
    assert grad[0] != 0


def _trl():
    return pytest.importorskip("trl", reason="trl is not installed: nothing to compare with")


def _trl_loss(flat, lengths, total, **options):
    """TRL's GRPO loss of these very log-probabilities, with a stand-in for the trainer.

    `flat` holds logprobs, old, reference, advantages (S,) and weight, which are padded here.
    """
    _trl()
    from trl.trainer.grpo_trainer import GRPOTrainer

    def padded(values):
        return torch.nn.utils.rnn.pad_sequence(list(values.split(lengths)), batch_first=True)

    logprobs = padded(flat["logprobs"])
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (
            logprobs,
            torch.zeros_like(logprobs),
            None,
        ),
        args=SimpleNamespace(
            delta=options["two_sided"], use_bias_correction_kl=False, steps_per_generation=1
        ),
        accelerator=SimpleNamespace(
            num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x
        ),
        model=SimpleNamespace(training=True),
        loss_type=options["loss_type"],
        beta=options["beta"],
        epsilon_low=options["clip_low"],
        epsilon_high=options["clip_high"],
        max_completion_length=options["constant"],
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=options.get("level", "token"),
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    mask = padded(torch.ones(sum(lengths), dtype=torch.float64))
    inputs = {
        "prompt_ids": torch.zeros(len(lengths), 1, dtype=torch.int64),
        "prompt_mask": torch.ones(len(lengths), 1),
        "completion_ids": torch.zeros(mask.shape, dtype=torch.int64),
        "completion_mask": mask,
        "advantages": flat["advantages"],
        "old_per_token_logps": padded(flat["old"]),
        "ref_per_token_logps": padded(flat["reference"]),
        "importance_sampling_ratio": padded(flat["weight"]),
        "num_items_in_batch": torch.tensor(float(total.tokens)),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss, {name: values[0] for name, values in trainer._metrics["train"].items()}


@pytest.mark.parametrize("two_sided", [None, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(
    ("kind", "loss_type"), [("sequence", "grpo"), ("token", "dapo"), ("constant", "dr_grpo")]
)
def test_loss_and_gradient_equal_trl(kind, loss_type, beta, two_sided):
    lengths = [3, 7, 1, 5]
    count, total = sum(lengths), GlobalBatch(len(lengths), sum(lengths))
    logprobs = noise(count).requires_grad_()
    flat = {
        "logprobs": logprobs,
        "old": logprobs.detach() + noise(count, 1, 0.8),
        "reference": noise(count, 2),
        "advantages": noise(4, 3),
        "weight": noise(count, 4).exp(),
    }
    options = {"clip_low": 0.2, "clip_high": 0.28, "two_sided": two_sided}
    theirs, their_metrics = _trl_loss(
        flat, lengths, total, loss_type=loss_type, beta=beta, constant=8, **options
    )
    advantages = to_tokens(flat["advantages"], lengths)
    losses, metrics = clipped_policy_loss(
        logprobs, flat["old"], advantages, weight=flat["weight"], **options
    )
    plain, _ = clipped_policy_loss(logprobs, flat["old"], advantages, 0.2, 0.28)
    assert torch.equal(losses, plain * flat["weight"]) == (two_sided is None)
    losses = losses + beta * kl_estimate(logprobs, flat["reference"], "k3")
    ours = token_reduction(losses, lengths, kind, total, 8)
    close(ours, theirs.detach())
    close(*(torch.autograd.grad(x, logprobs)[0] for x in (ours, theirs)))
    if two_sided is None:
        assert metrics["clip_fraction"].item() == pytest.approx(
            their_metrics["clip_ratio/region_mean"]
        )
        assert 0 < metrics["clip_fraction"].item() < 1


@pytest.mark.parametrize(
    ("method", "kind", "options", "theirs"),
    [
        ("gspo", "sequence", {"clip_low": 0.05, "clip_high": 0.08}, {"loss_type": "grpo"}),
        ("cispo", "token", {"clip_high": 0.5}, {"loss_type": "cispo", "clip_high": 1.5}),
    ],
    ids=["gspo", "cispo"],
)
def test_gspo_and_cispo_equal_trl(method, kind, options, theirs):
    """TRL bounds CISPO's weight at epsilon_high itself, and not at 1 + epsilon_high."""
    lengths = [3, 7, 1, 5]
    count, total = sum(lengths), GlobalBatch(len(lengths), sum(lengths))
    logprobs = noise(count).requires_grad_()
    flat = {
        "logprobs": logprobs,
        "old": logprobs.detach() + noise(count, 1, 0.8),
        "reference": noise(count, 2),
        "advantages": noise(4, 3),
        "weight": noise(count, 4).exp(),
    }
    level = {"level": "sequence"} if method == "gspo" else {}
    given = {"clip_low": 0.2, "two_sided": None, "beta": 0.04, "constant": 8}
    wanted, _ = _trl_loss(flat, lengths, total, **given | options | level | theirs)
    advantages = to_tokens(flat["advantages"], lengths)
    function = find_object(METHODS[method].LOSS)
    losses, _ = function(
        logprobs, flat["old"], advantages, lengths, weight=flat["weight"], **options
    )
    plain, _ = function(logprobs, flat["old"], advantages, lengths, **options | {"clip_high": 99})
    assert not torch.equal(losses, plain * flat["weight"])
    losses = losses + 0.04 * kl_estimate(logprobs, flat["reference"], "k3")
    ours = token_reduction(losses, lengths, kind, total, 8)
    close(ours, wanted.detach())
    close(*(torch.autograd.grad(x, logprobs)[0] for x in (ours, wanted)))


def test_group_advantages_equal_trl():
    """TRL's formula with TRL's deviation; its groups lie in rows of equal size."""
    _trl()
    from trl.trainer.utils import nanstd

    rewards = noise(24).view(6, 4)
    rewards[1, 2] = rewards[3, 0] = rewards[3, 1] = NAN
    rewards[4] = 0.7
    mean = rewards.nanmean(1, keepdim=True)
    # TRL's eps is on the rewards' scale, ours a share of their spread: neither is in this.
    wanted = ((rewards - mean) / nanstd(rewards, dim=1, keepdim=True)).nan_to_num(0.0)
    wanted[4] = 0.0
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    groups = torch.arange(6).repeat_interleave(4)
    ours = group_advantages(rewards.flatten()[order], groups[order], eps=0.0)
    close(ours, wanted.flatten()[order])


@pytest.mark.parametrize(("limit", "buffer"), [(20, 5), (20, 20), (7, 0)])
def test_overlong_penalty_equals_trl(limit, buffer):
    _trl()
    from trl.rewards import get_soft_overlong_punishment

    lengths = list(range(1, 26))
    wanted = get_soft_overlong_punishment(limit, buffer)([[0] * n for n in lengths])
    close(overlong_penalty(lengths, limit, buffer), wanted)


def test_truncated_weights_equal_trl():
    _trl()
    from trl.experimental.sdft.loss_utils import apply_importance_sampling_clipping

    trainer, sampler, losses = noise(9), noise(9, 1), noise(9, 2)
    ours, _ = importance_weights(trainer, sampler, [4, 5], "token", "truncate", 2.0)
    wanted = apply_importance_sampling_clipping(losses, trainer, sampler, 2.0)
    close(losses * ours, wanted)
    assert ours.max() == 2
