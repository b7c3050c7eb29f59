"""What a GPU runs in place of the plain passes, run on a CPU: the same values and gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import rlaif.kernels.fused as fused
import rlaif.kernels.logprobs as logprobs
from rlaif.kernels.device import compiled

OPTIONS = [
    {},
    {"softcap": 3.0, "temperature": 0.7},
]


def _draws(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]


def _results(function, inputs):
    """The outputs, and the gradients of their weighted sum."""
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weighted = [(o * torch.linspace(-1, 2, o.numel()).view_as(o)).sum() for o in outputs]
    return [*outputs, *torch.autograd.grad(sum(weighted), inputs)]


def _cases():
    targets = torch.tensor([0, 22, 7, 8, 3, 15, 1])
    for number, options in enumerate(OPTIONS):
        for read in (logprobs.token_logprobs, logprobs.token_logprobs_and_entropy):

            def call(hidden, weight, bias, read=read, options=options):
                return read(hidden, weight, targets, bias, tile=(3, 8), **options)

            yield pytest.param(call, _draws((7, 5), (23, 5), (23,)), id=f"{read.__name__}-{number}")
    norm = partial(fused.rms_norm, eps=1e-6)
    yield pytest.param(norm, _draws((2, 3, 8), (8,)), id="norm")
    yield pytest.param(partial(norm, offset=1.0), _draws((2, 3, 8), (8,)), id="norm of gemma")
    yield pytest.param(fused.gated_silu, _draws((2, 5), (2, 5)), id="gate")
    cos, sin = (t.detach() for t in _draws((1, 3, 8), (1, 3, 8)))
    turn = partial(fused.rotate, cos=cos, sin=sin)
    yield pytest.param(turn, _draws((1, 2, 3, 8), (1, 1, 3, 8)), id="rotary")


@pytest.mark.slow
@pytest.mark.parametrize(("function", "inputs"), _cases())
def test_compiled_passes_equal_the_plain_ones(function, inputs, monkeypatch):
    plain = _results(function, inputs)
    used = []
    for module in (fused, logprobs):
        monkeypatch.setattr(
            module, "compiled_on", lambda device, pass_: used.append(pass_) or compiled(pass_)
        )
    for ours, wanted in zip(_results(function, inputs), plain, strict=True):
        torch.testing.assert_close(ours, wanted)
    assert used


def test_cut_cross_entropy_equals_the_tiles(monkeypatch):
    kernel = pytest.importorskip("cut_cross_entropy").linear_cross_entropy
    on_a_cpu = partial(kernel, impl="torch_compile")
    monkeypatch.setattr(logprobs, "_cut_cross_entropy", lambda: on_a_cpu)
    hidden, weight = (t.detach().bfloat16() for t in _draws((7, 16), (23, 16)))
    targets, into = torch.tensor([0, 22, 7, 8, 3, 15, 1]), torch.zeros(23, 16)
    found = []
    for way in (
        logprobs._run_cut_cross_entropy,
        lambda h, w, t, o: logprobs._compute_logprobs(h, w, t, None, o)[0],
    ):
        states, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        options = logprobs._Options(1.0, 5.0, False, None, False, into.zero_())
        values = way(states, head, targets, options)
        (values * torch.linspace(-1, 2, 7)).sum().backward()
        assert head.grad is None
        found.append((values, states.grad.float(), into.clone()))
    for ours, tiles in zip(*found, strict=True):
        torch.testing.assert_close(ours, tiles, rtol=0.05, atol=0.05)
