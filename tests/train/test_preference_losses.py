"""Preference losses: published formulas by hand, the checks of each method, and TRL's own code.

Golden numbers are worked out from the formulas with beta delta = 1, where
log(1 + exp(-1)) = 0.313262 and log(1 + exp(1)) = 1.313262.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.train.losses.preference import (
    PairLogprobs,
    apo_zero,
    dpo,
    hinge,
    ipo,
    kto,
    kto_baseline,
    log1mexp,
    nca,
    nll_loss,
    orpo,
    pair_metrics,
    robust_dpo,
    simpo,
    slic,
)

# The first call into torch is slow.
relaxed = settings(deadline=None)
part = functools.partial
REFERENCED = {
    "dpo": part(dpo, beta=0.3),
    "cdpo": part(dpo, beta=0.3, label_smoothing=0.1),
    "dpo_positive": part(dpo, beta=0.3, positive_weight=5.0),
    "dpo_normalised": part(dpo, beta=5.0, length_normalise=True),
    "robust": part(robust_dpo, beta=0.3, label_smoothing=0.2),
    "ipo": part(ipo, beta=0.4),
    "ipo_normalised": part(ipo, beta=0.4, length_normalise=True),
    "hinge": part(hinge, beta=0.3),
    "apo_zero": part(apo_zero, beta=0.3),
    "nca": part(nca, beta=0.3),
}
REFERENCE_FREE = {
    "slic": part(slic, margin=2.0, nll_weight=0.1),
    "simpo": part(simpo, beta=2.0, gamma=0.7),
    "orpo": part(orpo, weight=0.3),
}
LOSSES = REFERENCED | REFERENCE_FREE
# At pi = pi_ref, whatever the log-probs are.
AT_REFERENCE = {
    "dpo": math.log(2),
    "cdpo": math.log(2),
    "dpo_positive": math.log(2),
    "dpo_normalised": math.log(2),
    "robust": math.log(2),
    "ipo": (1 / 0.8) ** 2,
    "ipo_normalised": (1 / 0.8) ** 2,
    "hinge": 1.0,
    "apo_zero": 1.0,
    "nca": 2 * math.log(2),
}


def t(*values, grad=False):
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def ratios(chosen, rejected=None, len_chosen=None, len_rejected=None):
    """Pairs with the given log-ratios: the reference's log-probs are -50."""
    chosen = torch.as_tensor(chosen, dtype=torch.float64).reshape(-1)
    rejected = torch.zeros_like(chosen) if rejected is None else torch.as_tensor(rejected).view(-1)
    ones, base = torch.ones_like(chosen), torch.full_like(chosen, -50.0)
    lengths = [
        ones if v is None else torch.as_tensor(v).view(-1) for v in (len_chosen, len_rejected)
    ]
    return PairLogprobs(base + chosen, base + rejected, base, base, *lengths)


def free(chosen, rejected, len_chosen=1, len_rejected=1):
    """Pairs without a reference, with the given summed log-probs."""
    values = [torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in (chosen, rejected)]
    lengths = [torch.as_tensor(v).expand_as(values[0]) for v in (len_chosen, len_rejected)]
    return PairLogprobs(*values, None, None, *lengths)


def some_pairs(seed=0, size=6, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (2, size), generator=random)
    # Between 0.2 and 1.2 nats per token: no probability reaches 1.
    policy, reference = -lengths * (0.2 + torch.rand(2, 2, size, dtype=dtype, generator=random))
    return PairLogprobs(*policy, *reference, *lengths)


def swapped(pairs):
    return PairLogprobs(
        pairs.policy_rejected,
        pairs.policy_chosen,
        pairs.ref_rejected,
        pairs.ref_chosen,
        pairs.len_rejected,
        pairs.len_chosen,
    )


def with_policy(pairs, chosen, rejected):
    others = (pairs.ref_chosen, pairs.ref_rejected, pairs.len_chosen, pairs.len_rejected)
    return PairLogprobs(chosen, rejected, *others)


def slope(loss, delta):
    """d loss / d delta of pairs whose chosen log-ratio is delta and whose rejected one is 0."""
    value = t(delta, grad=True)
    loss(ratios(value)).sum().backward()
    return value.grad.item()


def test_log_ratios_and_their_difference():
    pairs = PairLogprobs(t(-3.0), t(-5.0), t(-4.0), t(-4.5), t(3), t(4))
    assert (pairs.rho_chosen, pairs.rho_rejected, pairs.delta) == (t(1.0), t(-0.5), t(1.5))
    assert pairs.has_reference


@pytest.mark.parametrize("name", REFERENCED)
def test_a_missing_reference_is_named(name):
    with pytest.raises(ValueError, match="no reference log-probs"):
        REFERENCED[name](free(-3.0, -5.0))


def test_pairs_that_cannot_be_meant_are_refused():
    one = torch.ones(2)
    with pytest.raises(ValueError, match="of both answers, or of neither"):
        PairLogprobs(one, one, one, None, one, one)
    with pytest.raises(ValueError, match="same shape"):
        PairLogprobs(one, one, one.unsqueeze(1), one.unsqueeze(1), one, one)
    with pytest.raises(ValueError, match="same shape"):
        PairLogprobs(one, one, None, None, one, torch.ones(3))
    with pytest.raises(ValueError, match="same shape"):
        PairLogprobs(*[torch.ones(2, 2)] * 2, None, None, *[torch.ones(2, 2)] * 2)


@pytest.mark.parametrize("name", REFERENCE_FREE)
def test_reference_free_losses_do_not_read_a_reference(name):
    pairs = some_pairs()
    without = PairLogprobs(
        pairs.policy_chosen, pairs.policy_rejected, None, None, pairs.len_chosen, pairs.len_rejected
    )
    torch.testing.assert_close(LOSSES[name](pairs), LOSSES[name](without), rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
@relaxed
@given(seed=st.integers(0, 2**32), p=st.floats(0, 1))
def test_swapping_the_answers_and_the_label_changes_nothing(name, seed, p):
    pairs = some_pairs(seed, 2)
    prob = t(p, 1 - p)
    torch.testing.assert_close(swapped(pairs).delta, -pairs.delta)
    torch.testing.assert_close(
        LOSSES[name](pairs, prob=prob), LOSSES[name](swapped(pairs), prob=1 - prob)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_swapping_the_answers_alone_does_change_the_loss(name):
    pairs = some_pairs()
    assert ((LOSSES[name](pairs) - LOSSES[name](swapped(pairs))).abs() > 1e-4).all()


@pytest.mark.parametrize("name", LOSSES)
def test_soft_labels_mix_the_two_hard_ones(name):
    pairs, loss = some_pairs(), LOSSES[name]
    one = torch.ones(6, dtype=torch.float64)
    torch.testing.assert_close(loss(pairs, prob=one), loss(pairs))
    torch.testing.assert_close(loss(pairs, prob=0 * one), loss(swapped(pairs)))
    mixed = 0.3 * loss(pairs) + 0.7 * loss(swapped(pairs))
    torch.testing.assert_close(loss(pairs, prob=0.3 * one), mixed)


@pytest.mark.parametrize("name", REFERENCED)
@relaxed
@given(seed=st.integers(0, 2**32))
def test_constant_where_the_policy_is_the_reference(name, seed):
    pairs = some_pairs(seed, 3)
    same = with_policy(pairs, pairs.ref_chosen, pairs.ref_rejected)
    wanted = torch.full((3,), AT_REFERENCE[name], dtype=torch.float64)
    torch.testing.assert_close(REFERENCED[name](same), wanted)


@pytest.mark.parametrize("name", REFERENCED)
def test_the_reference_gets_no_gradient_and_the_policy_does(name):
    pairs = some_pairs()
    tensors = [v.clone().requires_grad_() for v in list(vars(pairs).values())[:4]]
    loss = REFERENCED[name](PairLogprobs(*tensors, pairs.len_chosen, pairs.len_rejected))
    loss.sum().backward()
    assert [v.grad is None for v in tensors] == [False, False, True, True]
    assert all(bool(v.grad.any()) for v in tensors[:2])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("soft", [False, True])
def test_gradient_by_finite_differences(name, soft):
    pairs = some_pairs(3)
    prob = torch.linspace(0, 1, 6, dtype=torch.float64) if soft else None
    inputs = [v.clone().requires_grad_() for v in (pairs.policy_chosen, pairs.policy_rejected)]
    assert torch.autograd.gradcheck(
        lambda w, l: LOSSES[name](with_policy(pairs, w, l), prob=prob),  # noqa: E741
        inputs,
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_down_the_gradient_prefers_the_chosen_answer_more(name):
    pairs = some_pairs(1)
    w, l = (v.clone().requires_grad_() for v in (pairs.ref_chosen, pairs.ref_rejected))  # noqa: E741
    LOSSES[name](with_policy(pairs, w, l)).sum().backward()
    assert (w.grad < 0).all() and (l.grad > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_one_loss_per_pair_that_no_other_pair_changes(name):
    pairs = some_pairs()
    alone = [
        LOSSES[name](PairLogprobs(*(v[i : i + 1] for v in vars(pairs).values()))) for i in range(6)
    ]
    assert LOSSES[name](pairs).shape == (6,)
    torch.testing.assert_close(LOSSES[name](pairs), torch.cat(alone))


@pytest.mark.parametrize("name", LOSSES)
def test_finite_far_out_in_single_precision(name):
    far = torch.tensor([-2e3, -1e-3, -2e3, -1e-3])
    w, l = far.clone().requires_grad_(), far.flip(0).clone().requires_grad_()  # noqa: E741
    ones = torch.ones(4)
    loss = LOSSES[name](PairLogprobs(w, l, -ones, -ones, ones, ones), prob=0.5 * ones)
    loss.sum().backward()
    assert all(bool(v.isfinite().all()) for v in (loss, w.grad, l.grad))


def test_dpo_golden_values():
    loss = dpo(ratios([0.0, 10.0, -10.0]), beta=0.1)
    assert loss.tolist() == pytest.approx([0.693147, 0.313262, 1.313262], abs=1e-6)
    assert slope(dpo, 10.0) == pytest.approx(-0.0268941, abs=1e-7)


@relaxed
@given(st.floats(-40, 40), st.floats(0.01, 2))
def test_dpo_slope_is_minus_beta_sigmoid(delta, beta):
    wanted = -beta / (1 + math.exp(beta * delta))
    assert slope(part(dpo, beta=beta), delta) == pytest.approx(wanted, rel=1e-9)


@relaxed
@given(st.floats(0.01, 0.49))
def test_conservative_dpo_is_flat_at_the_logit_of_its_noise(noise):
    best = math.log((1 - noise) / noise) / 0.1
    loss = part(dpo, beta=0.1, label_smoothing=noise)
    assert slope(loss, best) == pytest.approx(0.0, abs=1e-12)
    assert slope(loss, best - 1) < 0 < slope(loss, best + 1)


def test_conservative_dpo_golden_values():
    assert slope(part(dpo, beta=1.0, label_smoothing=0.1), 2.197225) == pytest.approx(0, abs=1e-7)
    loss = dpo(ratios(1.0), beta=1.0, label_smoothing=0.1).item()
    assert loss == pytest.approx(0.9 * 0.313262 + 0.1 * 1.313262, abs=1e-6)


def test_conservative_dpo_and_soft_labels_compose():
    pairs = some_pairs()
    both = dpo(pairs, label_smoothing=0.2, prob=torch.full((6,), 0.75, dtype=torch.float64))
    once = dpo(pairs, prob=torch.full((6,), 0.75 * 0.8 + 0.25 * 0.2, dtype=torch.float64))
    torch.testing.assert_close(both, once)


def test_robust_golden_values():
    right, wrong = robust_dpo(ratios([1.0, -1.0]), beta=1.0, label_smoothing=0.1).tolist()
    assert right == pytest.approx(0.188262, abs=1e-6)
    assert 0.9 * right + 0.1 * wrong == pytest.approx(0.313262, abs=1e-6)


@relaxed
@given(st.floats(-30, 30), st.floats(0, 0.45))
def test_robust_averaged_over_flips_is_the_clean_loss(delta, noise):
    loss = part(robust_dpo, beta=0.2, label_smoothing=noise)
    mean = loss(ratios(delta), prob=t(1 - noise))
    torch.testing.assert_close(mean, dpo(ratios(delta), beta=0.2), atol=1e-9, rtol=1e-9)


def test_robust_falls_without_end_where_conservative_turns():
    assert robust_dpo(ratios(1e4)).item() == pytest.approx(-0.1 / 0.8 * 1e3)
    assert dpo(ratios(1e4), label_smoothing=0.1).item() == pytest.approx(0.1 * 1e3)


@pytest.mark.parametrize("loss", [dpo, robust_dpo])
@pytest.mark.parametrize("noise", [0.5, 0.9, -0.1])
def test_noise_rates_that_mean_nothing_are_refused(loss, noise):
    with pytest.raises(ValueError, match=r"\[0, 0.5\)"):
        loss(ratios(1.0), label_smoothing=noise)


@relaxed
@given(st.floats(-20, 20), st.floats(-20, 20))
def test_dpo_positive_is_dpo_exactly_where_the_chosen_did_not_fall(rho_w, rho_l):
    pairs = ratios(rho_w, rho_l)
    positive = dpo(pairs, beta=0.3, positive_weight=50.0).item()
    plain = dpo(pairs, beta=0.3).item()
    if rho_w >= 0:
        assert positive == plain
    else:
        wanted = math.log1p(math.exp(-min(0.3 * (rho_w - rho_l + 50 * rho_w), 700)))
        if 0.3 * (rho_w - rho_l + 50 * rho_w) > -600:
            assert positive == pytest.approx(wanted, rel=1e-6)
        assert positive >= plain


def test_dpo_positive_by_hand():
    # 0.5 (delta - 2 * 1) = 0.5 (3 - 2) = 0.5; log(1 + exp(-0.5)) = 0.474077.
    loss = dpo(ratios(-1.0, -4.0), beta=0.5, positive_weight=2.0)
    assert loss.item() == pytest.approx(0.474077, abs=1e-6)
    # Swapped, the better answer is the one at -4: 0.5 (-3 - 2 * 4) = -5.5.
    soft = dpo(ratios(-1.0, -4.0), beta=0.5, positive_weight=2.0, prob=t(0.0))
    assert soft.item() == pytest.approx(math.log1p(math.exp(5.5)), abs=1e-6)


@pytest.mark.parametrize("loss", [part(dpo, beta=0.5), part(ipo, beta=0.1)])
def test_length_normalised_repeating_both_texts_changes_nothing(loss):
    short = ratios([1.0, -2.0], [-0.5, 3.0], [4, 2], [5, 7])
    long = ratios([3.0, -6.0], [-1.5, 9.0], [12, 6], [15, 21])
    normalised = part(loss, length_normalise=True)
    torch.testing.assert_close(normalised(short), normalised(long))
    assert ((loss(short) - loss(long)).abs() > 1e-3).all()


def test_length_normalised_by_hand():
    # 5 (2 / 4 - 1 / 5) = 1.5; log(1 + exp(-1.5)) = 0.201413.
    pairs = ratios(2.0, 1.0, 4, 5)
    assert dpo(pairs, beta=5.0, length_normalise=True).item() == pytest.approx(0.201413, abs=1e-6)
    assert ipo(pairs, beta=1.0, length_normalise=True).item() == pytest.approx(0.04)
    assert ipo(pairs, beta=1.0).item() == pytest.approx(0.25)


def test_an_empty_answer_counts_as_one_token():
    pairs = ratios(2.0, 0.0, 4, 0)
    assert dpo(pairs, beta=2.0, length_normalise=True).item() == pytest.approx(0.313262, abs=1e-6)


def test_adding_the_likelihood_keeps_the_chosen_answer_from_falling():
    # One weight, features 1 for chosen, 2 for rejected and 0 for two other answers: what separates
    # the pair lowers both.
    features = t(1.0, 2.0, 0.0, 0.0)

    def chosen_after(alpha):
        weight = t(0.0, grad=True)
        base = torch.log_softmax(weight.detach() * features, 0)
        for _ in range(200):
            now = torch.log_softmax(weight * features, 0)
            ones = torch.ones(1)
            pairs = PairLogprobs(now[:1], now[1:2], base[:1], base[1:2], ones, ones)
            loss = dpo(pairs, beta=0.1) + alpha * nll_loss(now[:1], ones)
            (gradient,) = torch.autograd.grad(loss.sum(), weight)
            weight = (weight - gradient).detach().requires_grad_()
        return pairs.rho_chosen.item(), pairs.delta.item()

    fell, apart = chosen_after(0.0)
    assert fell < -0.1 and apart > 1.0
    assert chosen_after(1.0)[0] > 0.0


def test_spin_data_against_its_own_samples_pulls_nowhere():
    # SPIN is DPO with data chosen, the opponent's sample rejected and the opponent as reference.
    data, opponent = t(0.5, 0.3, 0.2), t(0.1, 0.2, 0.7)

    def expected(rival):
        logits = torch.log(rival).requires_grad_()
        policy, base = torch.log_softmax(logits, 0), torch.log(rival)
        w, l = torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")  # noqa: E741
        w, l = w.flatten(), l.flatten()  # noqa: E741
        ones = torch.ones(9)
        loss = dpo(PairLogprobs(policy[w], policy[l], base[w], base[l], ones, ones), beta=0.1)
        torch.testing.assert_close(loss, torch.full_like(loss, math.log(2)))
        return torch.autograd.grad((data[w] * rival[l] * loss).sum(), logits)[0]

    torch.testing.assert_close(expected(data), torch.zeros_like(data), atol=1e-12, rtol=0)
    # Otherwise descent moves along beta / 2 (data - opponent).
    torch.testing.assert_close(-expected(opponent), 0.05 * (data - opponent))


def test_cream_label_is_conservative_dpo():
    # (tau + 1) / 2 of Kendall's tau 1, 0.6, 0 and -1.
    label = t(1.0, 0.8, 0.5, 0.0)
    pairs = some_pairs(size=4)
    loss = dpo(pairs, prob=label)
    for i, wanted in enumerate(
        [dpo(pairs), dpo(pairs, label_smoothing=0.2), None, dpo(swapped(pairs))]
    ):
        if wanted is not None:
            torch.testing.assert_close(loss[i], wanted[i])
    assert slope(part(dpo, prob=t(0.5)), 0.0) == pytest.approx(0.0, abs=1e-15)


def test_ipo_is_zero_at_half_over_tau_and_nowhere_else():
    assert ipo(ratios([5.0, 4.0, 7.0]), beta=0.1).tolist() == pytest.approx([0.0, 1.0, 4.0])


@relaxed
@given(st.floats(0, 1), st.floats(0.05, 2))
def test_ipo_soft_label_optimum(p, tau):
    best = (2 * p - 1) / (2 * tau)
    assert slope(part(ipo, beta=tau, prob=t(p)), best) == pytest.approx(0.0, abs=1e-9)


def bandit(loss, steps):
    """Probability of the winner of two answers after descent from an even reference."""
    logit = t(0.0, grad=True)
    base = torch.log(t(0.5))
    ones = torch.ones(1)
    for _ in range(steps):
        policy = torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit)
        value = loss(PairLogprobs(*policy, base, base, ones, ones)).sum()
        logit = (logit - 0.2 * torch.autograd.grad(value, logit)[0]).detach().requires_grad_()
    return torch.sigmoid(logit).item()


def test_ipo_stops_on_a_bandit_with_sure_labels_where_dpo_does_not():
    assert bandit(part(ipo, beta=0.1), 100) == pytest.approx(0.993307, abs=1e-6)
    assert slope(part(dpo, beta=1.0), 5.0) < -1e-3 and slope(part(dpo, beta=1.0), 30.0) < 0
    assert bandit(part(dpo, beta=1.0, label_smoothing=0.1), 1200) == pytest.approx(0.9, abs=1e-6)


def test_hinge_is_zero_past_one_over_beta():
    loss = hinge(ratios([19.0, 20.0, 25.0, -20.0]), beta=0.05)
    assert loss.tolist() == pytest.approx([0.05, 0.0, 0.0, 2.0])
    assert [slope(part(hinge, beta=0.05), d) for d in (19.0, 21.0)] == [-0.05, 0.0]


def test_apo_zero_by_hand():
    # sigmoid(1) = 0.731059: (1 - 0.731059) + sigmoid(-1) = 0.537883.
    assert apo_zero(ratios(2.0, -2.0), beta=0.5).item() == pytest.approx(0.537883, abs=1e-6)
    # Each answer counts for itself: the same difference elsewhere costs something else.
    assert apo_zero(ratios(4.0, 0.0), beta=0.5).item() == pytest.approx(0.619203, abs=1e-6)


def test_nca_by_hand():
    # 0.313262 + 1.313262 / 2 + 0.313262 / 2.
    assert nca(ratios(1.0, -1.0), beta=1.0).item() == pytest.approx(1.126524, abs=1e-6)


def test_slic_by_hand():
    pairs = free([-3.0, -5.0], [-3.5, -3.0])
    assert slic(pairs, margin=1.0).tolist() == [0.5, 3.0]
    assert slic(pairs, margin=1.0, nll_weight=0.1).tolist() == pytest.approx([0.8, 3.5])
    assert slic(free(-3.0, -4.0), margin=1.0).item() == 0.0


def test_simpo_golden_values():
    # The averages are -0.5 and -1.
    loss = simpo(free(-2.0, -7.0, 4, 7), beta=2.5, gamma=1.375)
    assert loss.item() == pytest.approx(0.757599, abs=1e-6)
    # Equal averages: -log sigmoid(-gamma).
    even = simpo(free([-2.0, -9.0], [-4.0, -3.0], t(2.0, 3.0), t(4.0, 1.0)), gamma=1.375)
    assert even.tolist() == pytest.approx([math.log1p(math.exp(1.375))] * 2)


def test_orpo_golden_values():
    pairs = free(-2.0, -7.0, 4, 7)
    ratio = orpo(pairs, weight=1.0) - orpo(pairs, weight=0.0)
    assert ratio.item() == pytest.approx(0.320300, abs=1e-6)
    assert -math.log(math.expm1(ratio.item())) == pytest.approx(0.974077, abs=1e-6)
    assert orpo(pairs).item() == pytest.approx(0.5 + 0.1 * 0.320300, abs=1e-6)


def test_orpo_takes_odds_of_the_mean_and_not_of_the_sum():
    term = [orpo(p, weight=1.0) - orpo(p, weight=0.0) for p in (free(-2, -7, 4, 7), free(-2, -7))]
    assert abs(term[0] - term[1]).item() > 0.1


@pytest.mark.parametrize("x", [-1e-6, -1e-3, -0.5, -0.693, -0.694, -1.0, -5.0, -15.0])
def test_log1mexp_in_single_precision(x):
    value = torch.tensor([x], requires_grad=True)
    exact = value.item()
    log1mexp(value).backward()
    assert log1mexp(value).item() == pytest.approx(math.log(-math.expm1(exact)), rel=1e-6)
    assert value.grad.item() == pytest.approx(math.exp(exact) / math.expm1(exact), rel=1e-6)


@pytest.mark.parametrize("x", [-1e-30, -1e-8, -80.0, -1e4])
def test_log1mexp_has_finite_gradients_at_both_ends(x):
    value = torch.tensor([x], requires_grad=True)
    log1mexp(value).backward()
    assert log1mexp(value).isfinite() and value.grad.isfinite() and log1mexp(value) <= 0


def test_orpo_of_certain_answers_is_finite():
    w, l = torch.tensor([0.0, 0.0, -9.0], requires_grad=True), torch.tensor([0.0, -9.0, 0.0])  # noqa: E741
    loss = orpo(PairLogprobs(w, l, None, None, torch.ones(3), torch.ones(3)), weight=1.0)
    loss.sum().backward()
    assert loss.isfinite().all() and w.grad.isfinite().all()
    assert loss[0].item() == pytest.approx(math.log(2)) and loss[1] < 1e-6 and loss[2] > 30


def test_kto_is_half_its_weight_at_the_baseline():
    good = torch.tensor([True, False])
    loss = kto(t(1.7, 1.7), good, t(1.7)[0], desirable_weight=1.5, undesirable_weight=0.8)
    assert loss.tolist() == pytest.approx([0.75, 0.4])


def test_kto_by_hand():
    # sigmoid(1) = 0.731059, with rho - z = 2 and beta 0.5.
    loss = kto(t(3.0, 3.0, -1.0), torch.tensor([True, False, False]), t(1.0)[0], beta=0.5)
    assert loss.tolist() == pytest.approx([0.268941, 0.731059, 0.268941], abs=1e-6)


def test_kto_sends_no_gradient_through_the_baseline():
    rho, z = t(1.0, -2.0, grad=True), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    kto(rho, torch.tensor([True, False]), z).sum().backward()
    assert z.grad is None
    assert rho.grad[0] < 0 < rho.grad[1]
    z = z.detach()
    assert torch.autograd.gradcheck(lambda r: kto(r, torch.tensor([True, False]), z), [rho])


@relaxed
@given(st.floats(-9, 9), st.floats(0, 9))
def test_kto_of_both_labels_sums_to_the_weight(rho, z):
    both = kto(t(rho, rho), torch.tensor([True, False]), t(z)[0]).sum()
    assert both.item() == pytest.approx(1.0)


def test_kto_baseline_is_the_mean_and_never_negative():
    value = t(1.0, -0.5, 2.5, grad=True)
    assert kto_baseline(value).item() == 1.0
    assert not kto_baseline(value).requires_grad
    # The mean is cut off, not each ratio.
    assert kto_baseline(t(1.0, -3.0)).item() == 0.0
    with pytest.raises(ValueError, match="at least one"):
        kto_baseline(torch.ones(0))


def test_metrics_with_a_reference():
    w = t(-3.0, -9.0, grad=True)
    pairs = PairLogprobs(w, t(-5.0, -5.0), t(-4.0, -4.0), t(-4.5, -4.5), t(2, 2), t(5, 5))
    metrics = pair_metrics(pairs, 0.5)
    assert {k: v.tolist() for k, v in metrics.items()} == {
        "margin": [0.75, -2.25],
        "accuracy": [1.0, 0.0],
        "logprob_chosen": [-3.0, -9.0],
        "logprob_rejected": [-5.0, -5.0],
        "reward_chosen": [0.5, -2.5],
        "reward_rejected": [-0.25, -0.25],
    }
    assert not any(v.requires_grad for v in metrics.values())
    normalised = pair_metrics(pairs, 0.5, length_normalise=True)
    assert normalised["reward_chosen"].tolist() == [0.25, -1.25]
    assert normalised["margin"].tolist() == pytest.approx([0.3, -1.2])
    assert normalised["logprob_chosen"].tolist() == [-3.0, -9.0]


def test_metrics_without_a_reference_have_no_rewards():
    pairs = free([-3.0, -4.0], [-5.0, -4.0], 1, 5)
    metrics = pair_metrics(pairs, 0.5)
    assert set(metrics) == {"margin", "accuracy", "logprob_chosen", "logprob_rejected"}
    assert metrics["margin"].tolist() == [1.0, 0.0]
    # A tie is no win.
    assert metrics["accuracy"].tolist() == [1.0, 0.0]
    normalised = pair_metrics(pairs, 0.5, length_normalise=True)
    assert normalised["margin"].tolist() == pytest.approx([-1.0, -1.6])


@pytest.fixture
def trl():
    return pytest.importorskip("trl", reason="trl is not installed: nothing to compare with")


PROMPT = 2


def tokens(total, length, width):
    """(1, width) log-probs per token, zero off the completion, which add up to `total`."""
    n = int(length)
    return torch.cat(
        [total.new_zeros(PROMPT - 1), total.expand(n) / n, total.new_zeros(width - PROMPT + 1 - n)]
    )


def masks(lengths, width):
    spots = torch.arange(width + 1).expand(len(lengths), -1)
    lengths = torch.as_tensor(lengths).unsqueeze(1)
    return ((spots >= PROMPT) & (spots < PROMPT + lengths)).long()


def fake_outputs(logprobs):
    zero = torch.zeros_like(logprobs)
    return SimpleNamespace(log_probs=logprobs, entropy=zero, mean_logits=zero, is_top1=zero.bool())


def fake_trainer(**options):
    keep = {
        "model": SimpleNamespace(training=False),
        "accelerator": SimpleNamespace(
            device=torch.device("cpu"), gather=lambda v: v, gather_for_metrics=lambda v: v
        ),
        "aux_loss_enabled": False,
        "precompute_ref_logps": True,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    return SimpleNamespace(**(keep | options))


def trl_dpo(pairs, loss_type, beta, label_smoothing=0.0):
    """TRL's loss of each pair (B,), each as a batch of its own."""
    from trl.trainer.dpo_trainer import DPOTrainer

    trainer = fake_trainer(
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
    )
    losses = []
    for i in range(len(pairs.policy_chosen)):
        lengths = [int(pairs.len_chosen[i]), int(pairs.len_rejected[i])]
        width = PROMPT - 1 + max(lengths)
        policy = (pairs.policy_chosen[i : i + 1], pairs.policy_rejected[i : i + 1])
        rows = torch.stack([tokens(v, n, width) for v, n in zip(policy, lengths, strict=True)])
        mask = masks(lengths, width)
        batch = {
            "input_ids": torch.zeros_like(mask),
            "attention_mask": torch.ones_like(mask),
            "completion_mask": mask,
            "ref_chosen_logps": pairs.ref_chosen[i : i + 1],
            "ref_rejected_logps": pairs.ref_rejected[i : i + 1],
        }
        model = functools.partial(lambda rows, **_: fake_outputs(rows), rows)
        losses.append(DPOTrainer._compute_loss(trainer, model, batch, False))
    return torch.stack(losses)


def compare(ours, theirs, pairs):
    """Equal losses and equal gradients, pair by pair."""
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    inputs = (pairs.policy_chosen, pairs.policy_rejected)
    found = [
        torch.autograd.grad(loss.sum(), inputs, allow_unused=True, materialize_grads=True)
        for loss in (ours, theirs)
    ]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    assert any(bool(v.any()) for v in found[0])


@pytest.fixture
def pairs():
    """Single precision, with gradients, log-ratios on both sides of every kink."""
    made = some_pairs(7, 8, torch.float32)
    gap = made.policy_chosen - made.policy_rejected
    for side in (made.rho_chosen > 0, 0.3 * made.delta > 1, gap > 1):
        assert side.any() and not side.all()
    return with_policy(
        made, made.policy_chosen.requires_grad_(), made.policy_rejected.requires_grad_()
    )


TRL_DPO = {
    "sigmoid": ("sigmoid", {}, part(dpo, beta=0.3)),
    # Of a single pair, aot is conservative DPO: sorting one number does nothing.
    "cdpo": ("aot", {"label_smoothing": 0.1}, part(dpo, beta=0.3, label_smoothing=0.1)),
    "robust": ("robust", {"label_smoothing": 0.1}, part(robust_dpo, beta=0.3)),
    "ipo": ("ipo", {}, part(ipo, beta=0.3, length_normalise=True)),
    "hinge": ("hinge", {}, part(hinge, beta=0.3)),
    "normalised": ("sigmoid_norm", {}, part(dpo, beta=0.3, length_normalise=True)),
    "apo_zero": ("apo_zero", {}, part(apo_zero, beta=0.3)),
    "nca": ("nca_pair", {}, part(nca, beta=0.3)),
    "nll": ("sft", {}, lambda pairs: nll_loss(pairs.policy_chosen, pairs.len_chosen)),
}


@pytest.mark.parametrize("name", TRL_DPO)
def test_equals_trl(trl, name, pairs):
    loss_type, options, ours = TRL_DPO[name]
    compare(ours(pairs), trl_dpo(pairs, loss_type, 0.3, **options), pairs)


def test_trl_leaves_label_smoothing_out_of_plain_dpo_and_we_do_not(trl, pairs):
    theirs = trl_dpo(pairs, "sigmoid", 0.3, label_smoothing=0.1)
    torch.testing.assert_close(theirs, dpo(pairs, beta=0.3), atol=1e-6, rtol=1e-6)
    ours = dpo(pairs, beta=0.3, label_smoothing=0.1)
    assert ((ours - theirs).abs() > 1e-3).all()


def test_trl_divides_ipo_by_lengths_and_the_paper_does_not(trl, pairs):
    theirs = trl_dpo(pairs, "ipo", 0.3)
    longer = (pairs.len_chosen > 1) | (pairs.len_rejected > 1)
    assert longer.any() and ((ipo(pairs, beta=0.3) - theirs)[longer].abs() > 1e-3).all()


def trl_cpo(chosen, rejected, loss_type, beta, label_smoothing=0.0):
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    trainer = fake_trainer(
        alpha=0.0,
        loss_type=loss_type,
        beta=beta,
        simpo_gamma=0.8,
        label_smoothing=label_smoothing,
    )
    return CPOTrainer.cpo_loss(trainer, chosen, rejected)[0]


def test_simpo_equals_trl(trl, pairs):
    means = (pairs.policy_chosen / pairs.len_chosen, pairs.policy_rejected / pairs.len_rejected)
    compare(simpo(pairs, beta=2.0, gamma=0.8), trl_cpo(*means, "simpo", 2.0), pairs)


def test_trl_smooths_simpo_with_the_margin_on_one_side_and_we_do_not(trl, pairs):
    means = (pairs.policy_chosen / pairs.len_chosen, pairs.policy_rejected / pairs.len_rejected)
    theirs = trl_cpo(*means, "simpo", 2.0, label_smoothing=0.2)
    ours = simpo(pairs, beta=2.0, gamma=0.8, prob=torch.full((8,), 0.8))
    assert (ours > theirs + 1e-3).all()
    gap = 2.0 * (means[0] - means[1])
    other = torch.nn.functional.logsigmoid(-gap - 0.8) - torch.nn.functional.logsigmoid(0.8 - gap)
    torch.testing.assert_close(ours, theirs - 0.2 * other)


def test_slic_hinge_equals_trl_without_a_reference(trl, pairs):
    theirs = trl_cpo(pairs.policy_chosen, pairs.policy_rejected, "hinge", 1.0)
    compare(slic(pairs), theirs, pairs)


def test_orpo_odds_equal_trl(trl, pairs):
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    means = (pairs.policy_chosen / pairs.len_chosen, pairs.policy_rejected / pairs.len_rejected)
    gained = ORPOTrainer.odds_ratio_loss(fake_trainer(beta=0.3), *means)[0]
    compare(
        orpo(pairs, weight=0.3), nll_loss(pairs.policy_chosen, pairs.len_chosen) - gained, pairs
    )


def test_orpo_in_trl_also_learns_the_prompt_and_ours_does_not(trl):
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=random)
    ids = torch.randint(0, 7, (2, 5), generator=random)
    labels = ids.masked_fill(torch.arange(5) < PROMPT, -100)
    batch = {}
    for i, name in enumerate(("chosen", "rejected")):
        row = slice(i, i + 1)
        batch |= {f"{name}_input_ids": ids[row], f"{name}_labels": labels[row]}
        batch[f"{name}_attention_mask"] = torch.ones_like(ids[row])
    trainer = fake_trainer(
        is_encoder_decoder=False,
        padding_value=0,
        concatenated_inputs=ORPOTrainer.concatenated_inputs,
        get_batch_logps=ORPOTrainer.get_batch_logps,
    )
    chosen, rejected, _, _, nll = ORPOTrainer.concatenated_forward(
        trainer, lambda *_, **__: SimpleNamespace(logits=logits), batch
    )
    ours = orpo(free(3 * chosen, 3 * rejected, 3, 3), weight=0.0)
    assert abs(ours.item() - nll.item()) > 1e-2
    # With the prompt's one predicted token added, it is theirs.
    prompt = -torch.log_softmax(logits[0, 0], 0)[ids[0, 1]]
    assert (3 * ours.item() + prompt.item()) / 4 == pytest.approx(nll.item(), abs=1e-5)


@pytest.mark.parametrize("shift", [-30.0, 0.0, 30.0])
def test_kto_equals_trl(trl, shift, pairs):
    from trl.trainer.kto_trainer import KTOTrainer

    # Desirable answers first: TRL's losses come in that order.
    label = torch.arange(8) < 5
    lengths, reference = pairs.len_chosen, pairs.ref_chosen
    width = PROMPT - 1 + int(lengths.max())
    rows = torch.stack(
        [
            tokens(v.view(1), n, width)
            for v, n in zip(pairs.policy_chosen, lengths.tolist(), strict=True)
        ]
    )
    mismatched = pairs.rho_rejected.detach() + shift
    mask = masks(lengths, width)
    trainer = fake_trainer(
        loss_type="kto",
        beta=0.3,
        calculate_KL=True,
        desirable_weight=1.2,
        undesirable_weight=0.7,
        _compute_kl_logps=lambda model, batch: mismatched + pairs.ref_rejected,
    )
    batch = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": label,
        "ref_logps": reference,
        "ref_KL_logps": pairs.ref_rejected,
    }
    theirs = KTOTrainer._compute_loss(trainer, lambda **_: fake_outputs(rows), batch, False)
    z = kto_baseline(mismatched)
    assert (z > 0) == (mismatched.mean() > 0)
    weights = {"desirable_weight": 1.2, "undesirable_weight": 0.7}
    ours = kto(pairs.rho_chosen, label, z, beta=0.3, **weights)
    compare(ours.mean(), theirs, pairs)
