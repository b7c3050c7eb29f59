"""Fused token log-probs equal the plain path, values and gradients."""

from __future__ import annotations

import pytest
import torch

from rlaif.kernels.logprobs import token_logprobs, token_logprobs_and_entropy


def _plain(hidden, weight, targets, bias=None):
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def _inputs(dtype=torch.float64, tokens=7, width=5, vocabulary=23):
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    tensors = make(tokens, width), make(vocabulary, width), make(vocabulary)
    return [t.requires_grad_() for t in tensors], targets


@pytest.mark.parametrize("chunk", [1, 6, 23, 100])
def test_values_and_gradients_equal_the_plain_path(chunk):
    (hidden, weight, bias), targets = _inputs()
    upstream = torch.linspace(-1, 2, len(targets), dtype=torch.float64)
    ours = token_logprobs(hidden, weight, targets, bias, tile=(3, chunk))
    plain = _plain(hidden, weight, targets, bias)
    torch.testing.assert_close(ours, plain)
    wanted = torch.autograd.grad((plain * upstream).sum(), (hidden, weight, bias))
    found = torch.autograd.grad((ours * upstream).sum(), (hidden, weight, bias))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck():
    (hidden, weight, bias), targets = _inputs()
    assert torch.autograd.gradcheck(
        lambda h, w, b: token_logprobs(h, w, targets, b, tile=(4, 6)), (hidden, weight, bias)
    )


def test_fp32_head_is_exact_over_bf16_states_and_the_default_is_close():
    (hidden, weight, _), targets = _inputs(torch.bfloat16, tokens=40, width=64, vocabulary=301)
    exact = _plain(hidden.float(), weight.float(), targets)
    sharp = token_logprobs(hidden, weight, targets, tile=(16, 100), fp32_head=True)
    rough = token_logprobs(hidden, weight, targets, tile=(16, 100))
    assert sharp.dtype == rough.dtype == torch.float32
    torch.testing.assert_close(sharp, exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rough, exact, rtol=2e-2, atol=0.15)
    rough.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


def test_frozen_weight_gets_no_gradient_and_huge_logits_stay_finite():
    (hidden, weight, _), targets = _inputs(torch.float32)
    frozen = weight.detach() * 1e4
    values = token_logprobs(hidden, frozen, targets, tile=(2, 4))
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(hidden.grad).all()
    with torch.no_grad():
        assert torch.equal(token_logprobs(hidden, frozen, targets, tile=(2, 4)), values.detach())


def test_no_tokens():
    (hidden, weight, _), targets = _inputs(torch.float32)
    assert token_logprobs(hidden[:0], weight, targets[:0]).shape == (0,)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tile", [(7, 23), (3, 6)])
def test_entropy_temperature_and_softcap_equal_the_plain_path(softcap, temperature, tile):
    (hidden, weight, bias), targets = _inputs()
    logits = torch.nn.functional.linear(hidden, weight, bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits / temperature
    every = logits.log_softmax(-1)
    plain = every.gather(-1, targets[:, None])[:, 0]
    spread = -(every.exp() * every).sum(-1)
    options = {"temperature": temperature, "softcap": softcap, "tile": tile}
    ours, entropy = token_logprobs_and_entropy(hidden, weight, targets, bias, **options)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(entropy, spread)
    upstream = torch.linspace(-1, 2, len(targets), dtype=torch.float64)
    inputs = (hidden, weight, bias)
    wanted = torch.autograd.grad((plain * upstream - spread * upstream.flip(0)).sum(), inputs)
    found = torch.autograd.grad((ours * upstream - entropy * upstream.flip(0)).sum(), inputs)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(token_logprobs(hidden, weight, targets, bias, **options), plain)


def test_the_largest_tensor_does_not_grow_with_the_vocabulary_or_the_tokens():
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for item in result if isinstance(result, tuple) else (result,):
                if isinstance(item, torch.Tensor):
                    self.size = max(self.size, item.untyped_storage().nbytes() // 4)
            return result

    def largest(tokens, vocabulary):
        (hidden, weight, bias), targets = _inputs(torch.float32, tokens, 8, vocabulary)
        with Largest() as seen:
            token_logprobs(hidden, weight, targets, bias, tile=(64, 256)).sum().backward()
        return seen.size, max(hidden.numel(), weight.numel())

    for tokens, vocabulary in ((512, 512), (512, 4096), (4096, 512), (2048, 2048)):
        size, inputs = largest(tokens, vocabulary)
        assert size <= max(64 * 256, inputs) < tokens * vocabulary
