"""Fused norms, gates, rotary embeddings and vocabulary gradients equal transformers' own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from rlaif.engines.local.forward import fused_parts
from rlaif.engines.local.proof import choose
from rlaif.kernels.fused import embed_into, gated_silu, multiply_into, rms_norm, rotate
from rlaif.train.model import prepare
from tests.support.architectures import ARCHITECTURES, CPU, EXAMPLES, build

# Norms of a layer, the last norm, attention and a gate; Gemma's gate is not silu, and it has more
# norms.
CHANGED = {
    "llama": 3 * 4 + 1,
    "llama_tied": 3 * 4 + 1,
    "qwen2": 3 * 4 + 1,
    "qwen2_sliding": 3 * 4 + 1,
    "qwen3": 3 * 6 + 1,
    "gemma2": 3 * 5 + 1,
    "gemma3": 3 * 7 + 1,
    "mistral": 3 * 4 + 1,
    "mistral_window": 3 * 4 + 1,
}


def draws(*shapes):
    torch.manual_seed(0)
    return [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_by_finite_differences(offset):
    x, weight = draws((2, 3, 8), (8,))
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-6, offset), (x, weight))


def test_rms_norm_of_a_hand_made_vector():
    found = rms_norm(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0]), 0.0)
    torch.testing.assert_close(found, torch.tensor([3.0, 8.0]) / 12.5**0.5)


def test_gated_silu_by_finite_differences():
    assert torch.autograd.gradcheck(gated_silu, draws((2, 5), (2, 5)))


def test_rotary_keeps_the_dtype_under_wider_cosines():
    from transformers.models.olmo2.modeling_olmo2 import apply_rotary_pos_emb

    wide = [t.detach().float() for t in draws((1, 2, 3, 8), (1, 1, 3, 8), (1, 3, 8), (1, 3, 8))]
    q, k = (t.bfloat16().requires_grad_() for t in wide[:2])
    results = []
    for turn in (rotate, apply_rotary_pos_emb):
        outputs = turn(q, k, *wide[2:])
        assert {t.dtype for t in outputs} == {torch.bfloat16}
        total = sum((t * torch.linspace(-1, 2, t.numel()).view_as(t)).sum() for t in outputs)
        results.append([*outputs, *torch.autograd.grad(total, (q, k))])
    for ours, own in zip(*results, strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-2, atol=1e-2)


def test_rotary_by_finite_differences():
    q, k, cos, sin = draws((1, 2, 3, 8), (1, 1, 3, 8), (1, 3, 8), (1, 3, 8))
    cos, sin = cos.detach(), sin.detach()
    assert torch.autograd.gradcheck(lambda q, k: rotate(q, k, cos, sin), (q, k))


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_of_a_part_of_the_head_with_tables_in_fp32(width, dtype):
    """As Phi-4-mini (partial) and OLMo-2 (tables in fp32) have it."""
    q, k, cos, sin = (t.detach().float() for t in draws(*[(1, 2, 3, 8)] * 2, *[(1, 3, width)] * 2))
    q, k = q.to(dtype), k.to(dtype)
    half = transformers.models.llama.modeling_llama.rotate_half
    for found, x in zip(rotate(q, k, cos, sin), (q, k), strict=True):
        turning, rest = x[..., :width].float(), x[..., width:]
        turned = turning * cos[:, None] + half(turning) * sin[:, None]
        assert found.dtype == dtype
        torch.testing.assert_close(found, torch.cat([turned.to(dtype), rest], -1))


def gradients(module):
    """Of a loss that no symmetry makes simple."""
    module.zero_grad()
    logits = module(input_ids=torch.tensor([[1, 5, 9, 0, 3, 2]]), use_cache=False).logits
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in module.named_parameters()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_fused_model_equals_its_own_code_and_is_itself_again(name):
    module, other = build(name), build(name)
    wanted, wanted_gradients = gradients(module)
    with fused_parts(module, choose(module, torch.float32, CPU).parts) as changed:
        assert changed == CHANGED[name]
        found, found_gradients = gradients(module)
        # Another model of the same class computes with its own code meanwhile.
        torch.testing.assert_close(gradients(other)[0], wanted, rtol=0, atol=0)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_gradients, wanted_gradients, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients(module)[0], wanted, rtol=0, atol=0)
    assert all("forward" not in vars(part) for part in module.modules())


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_adds_its_gradient_where_it_is_told(bias):
    plain = nn.Linear(5, 3, bias=bias)
    ours = copy.deepcopy(plain)
    into = torch.ones(3, 5)
    multiply_into(ours, into)
    x, slope = torch.randn(2, 4, 5, requires_grad=True), torch.randn(2, 4, 3)
    (plain(x) * slope).sum().backward()
    wanted, x.grad = x.grad, None
    (ours(x) * slope).sum().backward()
    torch.testing.assert_close(x.grad, wanted)
    torch.testing.assert_close(into - 1, plain.weight.grad)
    assert ours.weight.grad is None
    if bias:
        torch.testing.assert_close(ours.bias.grad, plain.bias.grad)


@pytest.mark.parametrize("padding", [None, 2])
def test_an_embedding_adds_its_gradient_where_it_is_told(padding):
    plain = nn.Embedding(7, 3, padding_idx=padding)
    ours = copy.deepcopy(plain)
    into = torch.ones(7, 3)
    embed_into(ours, into)
    ids, slope = torch.tensor([[1, 2, 2], [5, 1, 0]]), torch.randn(2, 3, 3)
    (plain(ids) * slope).sum().backward()
    (ours(ids) * slope).sum().backward()
    torch.testing.assert_close(into - 1, plain.weight.grad)
    assert ours.weight.grad is None


def plain_logprobs(module):
    """Each branch of the examples by itself, through the model's own logits."""
    found = []
    for prompt, branches in EXAMPLES:
        for branch in branches:
            logits = module(input_ids=torch.tensor([[*prompt, *branch]])).logits[0].float()
            first = len(prompt) - 1
            steps = range(first, first + len(branch))
            found.append(logits.log_softmax(-1)[list(steps), branch].sum())
    return torch.stack(found)


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gemma3"])
def test_a_prepared_models_masters_get_the_plain_gradients(name):
    plain = build(name)
    model = prepare(copy.deepcopy(plain), CPU, torch.float32)
    slope = torch.linspace(-1, 1, 7)
    # Twice: gradients add up over micro-batches.
    for _ in range(2):
        (model.logprobs(model.layout(EXAMPLES)) * slope).sum().backward()
        (plain_logprobs(plain) * slope).sum().backward()
    wanted = {n: p.grad for n, p in plain.named_parameters()}
    found = {n: m.grad for n, m in model.masters.items()}
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_bf16_masters_get_the_vocabularys_gradients_unrounded():
    model = prepare(build("llama_tied"), CPU, torch.bfloat16)
    (model.logprobs(model.layout(EXAMPLES)) * torch.linspace(-1, 1, 7)).sum().backward()
    grad = model.masters["model.embed_tokens.weight"].grad
    assert grad.abs().max() > 0
    assert not torch.equal(grad, grad.bfloat16().float())
    assert model.params["model.embed_tokens.weight"].grad is None


def test_forms_that_were_there_before_are_put_back() -> None:
    """A policy in training has its own forms while it samples with those of an engine."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    module = LlamaForCausalLM(LlamaConfig(vocab_size=20, num_attention_heads=2, **sizes))
    part = module.model.layers[0].mlp
    parts: Any = {"LlamaMLP": "gate"}
    with fused_parts(module, parts) as outer:
        own = vars(part)["forward"]
        with fused_parts(module, parts) as inner:
            assert outer == inner == 1 and vars(part)["forward"] is not own
        assert vars(part)["forward"] is own
    assert "forward" not in vars(part)
