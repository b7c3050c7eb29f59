"""The reward model's loss against the published formula, its checks and TRL's own code."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.train.losses.reward import bradley_terry

# The first call into torch is slow.
relaxed = settings(deadline=None)
rewards = st.floats(-20, 20)
probs = st.floats(0, 1)


def t(*values, grad=False):
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def test_golden_values():
    assert bradley_terry(t(2.0), t(2.0)).item() == pytest.approx(math.log(2), abs=1e-12)
    assert bradley_terry(t(3.0), t(2.0), margin=t(1.0)).item() == pytest.approx(0.693147, abs=1e-6)
    assert bradley_terry(t(3.0), t(1.0), margin=t(1.0)).item() == pytest.approx(0.313262, abs=1e-6)
    # d = 1, p = 0.75: 0.75 * 0.313262 + 0.25 * 1.313262; and 0.01 * (3 + 2)^2.
    soft = bradley_terry(t(3.0), t(2.0), prob=t(0.75), centre=0.01)
    assert soft.item() == pytest.approx(0.563262 + 0.25, abs=1e-6)


def test_each_pair_has_its_own_loss():
    loss = bradley_terry(t(3.0, 0.0), t(2.0, 0.0), margin=t(0.0, 1.0))
    assert loss.tolist() == pytest.approx([0.313262, 1.313262], abs=1e-6)


@relaxed
@given(rewards, rewards, rewards, st.floats(0, 3), probs)
def test_a_shift_of_both_changes_only_the_centring(chosen, rejected, shift, margin, p):
    options = {"margin": t(margin), "prob": t(p)}
    moved = bradley_terry(t(chosen + shift), t(rejected + shift), **options)
    torch.testing.assert_close(bradley_terry(t(chosen), t(rejected), **options), moved)


def test_centring_does_see_a_shift():
    assert bradley_terry(t(2.0), t(1.0), centre=0.01) > bradley_terry(t(0.5), t(-0.5), centre=0.01)


@relaxed
@given(rewards, rewards, st.floats(0, 3), probs)
def test_swapping_the_answers_and_the_label_changes_nothing(chosen, rejected, margin, p):
    options = {"margin": t(margin), "centre": 0.01}
    loss = bradley_terry(t(chosen), t(rejected), prob=t(p), **options)
    swapped = bradley_terry(t(rejected), t(chosen), prob=1 - t(p), **options)
    torch.testing.assert_close(loss, swapped)


def _gradients(chosen, rejected, **options):
    first, second = t(chosen, grad=True), t(rejected, grad=True)
    bradley_terry(first, second, **options).sum().backward()
    return first.grad.item(), second.grad.item()


def test_gradients_are_opposite_without_centring_and_only_then():
    up, down = _gradients(1.3, 0.2, margin=t(0.5))
    assert up == pytest.approx(-down) and up == pytest.approx(-1 / (1 + math.exp(0.6)))
    up, down = _gradients(1.3, 0.2, margin=t(0.5), centre=0.1)
    assert up + down == pytest.approx(4 * 0.1 * 1.5)


def test_the_centred_optimum_of_a_soft_label_is_unique_at_opposite_rewards():
    start = torch.tensor([5.0, 4.0, -3.0, 2.0], dtype=torch.float64)
    value = start.reshape(2, 2).clone().requires_grad_()
    optimiser = torch.optim.LBFGS([value], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = bradley_terry(value[0], value[1], prob=t(0.8, 0.8), centre=0.01).sum()
        loss.backward()
        return loss

    for _ in range(20):
        optimiser.step(closure)
    half = math.log(4) / 2
    torch.testing.assert_close(
        value.detach(), t(half, half, -half, -half).reshape(2, 2), atol=1e-5, rtol=0
    )


@relaxed
@given(st.floats(0.05, 0.95))
def test_soft_label_optimum_is_the_logit(p):
    up, _ = _gradients(math.log(p / (1 - p)), 0.0, prob=t(p))
    assert up == pytest.approx(0.0, abs=1e-12)


def test_a_margin_moves_the_soft_optimum_outwards_and_not_that_of_an_even_label():
    gap = math.log(4)
    assert _gradients(gap, 0.0, prob=t(0.8), margin=t(1.0))[0] < -1e-3
    assert _gradients(-gap, 0.0, prob=t(0.2), margin=t(1.0))[0] > 1e-3
    assert _gradients(0.0, 0.0, prob=t(0.5), margin=t(1.0))[0] == pytest.approx(0.0, abs=1e-12)


def test_gradient_by_finite_differences():
    inputs = (t(0.3, -1.0, 40.0, grad=True), t(0.1, 2.0, -40.0, grad=True))
    options = {"margin": t(0.0, 1.0, 2.0), "prob": t(1.0, 0.7, 0.5), "centre": 0.01}
    assert torch.autograd.gradcheck(lambda c, r: bradley_terry(c, r, **options), inputs)


def test_stays_finite_far_out_in_single_precision():
    loss = bradley_terry(torch.tensor([-1e4]), torch.tensor([1e4]), prob=torch.tensor([1.0]))
    assert loss.item() == 2e4


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="same shape"):
        bradley_terry(t(1.0, 2.0), t(1.0, 2.0).unsqueeze(1))
    with pytest.raises(ValueError, match="same shape"):
        bradley_terry(t(1.0, 2.0), t(1.0, 2.0), margin=t(1.0))


@pytest.mark.parametrize("centre", [None, 0.01])
@pytest.mark.parametrize("margin", [None, (0.5, 0.0, 1.0)])
def test_equals_trl(centre, margin):
    pytest.importorskip("trl", reason="trl is not installed: nothing to compare with")
    from trl.trainer.reward_trainer import RewardTrainer

    scores = torch.tensor([0.4, -2.0, 3.0, 1.1, -1.5, 2.0], requires_grad=True)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=centre),
        accelerator=SimpleNamespace(gather=lambda v: v, gather_for_metrics=lambda v: v),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {} if margin is None else {"margin": torch.tensor(margin)}

    def model(**_):
        return SimpleNamespace(logits=scores.unsqueeze(1))

    theirs = RewardTrainer.compute_loss(trainer, model, inputs)
    chosen, rejected = scores.chunk(2)
    asked = None if margin is None else torch.tensor(margin)
    ours = bradley_terry(chosen, rejected, margin=asked, centre=centre or 0.0).mean()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    gradients = [torch.autograd.grad(loss, scores, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)
