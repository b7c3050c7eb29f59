"""Losses against the golden numbers of the papers' formulas."""

from __future__ import annotations

import math

import pytest
import torch

from rlaif.losses.preference import dpo_loss, nll_loss
from rlaif.losses.sft import sft_loss


def _dpo(delta, beta=0.1, **options):
    value = torch.as_tensor(delta, dtype=torch.float64).reshape(-1)
    zero = torch.zeros_like(value)
    return dpo_loss(value, zero, zero, zero, beta, **options)


def test_golden_values():
    assert _dpo(0.0)[0].item() == pytest.approx(math.log(2), abs=1e-7)
    assert _dpo(10.0)[0].item() == pytest.approx(0.313262, abs=1e-6)


def test_gradient():
    chosen = torch.tensor([10.0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    dpo_loss(chosen, zero, zero, zero, 0.1)[0].backward()
    assert chosen.grad.item() == pytest.approx(-0.0268941, abs=1e-7)


def test_label_smoothing_is_optimal_at_the_logit_of_the_noise():
    delta = torch.tensor([21.97225], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    dpo_loss(delta, zero, zero, zero, 0.1, label_smoothing=0.1)[0].backward()
    assert delta.grad.item() == pytest.approx(0.0, abs=1e-7)
    mixed = _dpo(10.0, label_smoothing=0.1)[0]
    assert mixed.item() == pytest.approx(0.9 * 0.313262 + 0.1 * 1.313262, abs=1e-6)


def test_swapping_the_answers_flips_the_margin_and_soft_labels_undo_it():
    values = [torch.tensor([v]) for v in (-3.0, -5.0, -4.0, -4.5)]
    w, l, rw, rl = values  # noqa: E741
    loss, metrics = dpo_loss(w, l, rw, rl, 0.5, prob=torch.tensor([0.8]))
    swapped, turned = dpo_loss(l, w, rl, rw, 0.5, prob=torch.tensor([0.2]))
    torch.testing.assert_close(loss, swapped)
    torch.testing.assert_close(metrics["margin"], -turned["margin"])
    assert metrics["margin"].item() == pytest.approx(0.5 * (1.0 + 0.5))
    assert metrics["accuracy"].item() == 1.0
    assert turned["accuracy"].item() == 0.0


def test_even_soft_label_has_its_minimum_at_zero_and_weights_multiply():
    half = torch.tensor([0.5], dtype=torch.float64)
    assert _dpo(0.0, prob=half)[0] < _dpo(1.0, prob=half)[0]
    assert _dpo(1.0, prob=half)[0].item() == pytest.approx(_dpo(-1.0, prob=half)[0].item())
    assert _dpo(3.0, weight=half)[0].item() == pytest.approx(_dpo(3.0)[0].item() / 2)


def test_no_gradient_reaches_the_reference_at_equality_the_loss_is_constant():
    value = torch.tensor([-7.0])
    assert dpo_loss(value, value * 3, value, value * 3, 0.7)[0].item() == pytest.approx(math.log(2))


def test_sft_uniform_is_log_vocabulary_and_micro_batches_add_up():
    vocabulary = 50
    logprobs = torch.full((4, 6), -math.log(vocabulary))
    mask = torch.zeros(4, 6).bool()
    mask[0, :2] = mask[1, 3:] = mask[3] = True
    total, count = sft_loss(logprobs, mask)
    assert count.item() == 11
    assert (total / count).item() == pytest.approx(math.log(vocabulary), rel=1e-6)
    parts = [sft_loss(logprobs[i : i + 1], mask[i : i + 1]) for i in range(4)]
    assert sum(p[0].item() for p in parts) == pytest.approx(total.item(), rel=1e-6)
    assert sum(p[1].item() for p in parts) == 11


def test_sft_masked_positions_get_no_gradient_even_when_infinite():
    logprobs = torch.tensor([-1.0, -torch.inf, -2.0], requires_grad=True)
    total, _ = sft_loss(logprobs, torch.tensor([1, 0, 1]))
    total.backward()
    assert total.item() == 3.0
    assert logprobs.grad.tolist() == [-1.0, 0.0, -1.0]


def test_nll_is_per_token():
    assert nll_loss(torch.tensor([-6.0]), torch.tensor([3])).item() == 2.0
