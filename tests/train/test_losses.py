"""The supervised loss, and the NLL term."""

from __future__ import annotations

import math

import pytest
import torch

from rlaif.train.losses.preference import nll_loss, sft_loss


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
