"""Packed rows equal padded rows, in loss and gradients, on every attention they claim to know."""

from __future__ import annotations

import logging

import pytest
import torch

from rlaif.engines.local.forward import packing
from rlaif.engines.local.proof import choose
from rlaif.kernels.attention import SHORT, STEM, block_mask, branch_attention, locate_tokens
from rlaif.kernels.batching import Group, packed_layout, padded_layout
from rlaif.train.loading import proved_head
from rlaif.train.model import TrainModel, prepare
from tests.support.architectures import ALIKE, ARCHITECTURES, CPU, EXAMPLES, build


def loss_and_gradients(model, packed, examples=EXAMPLES):
    """A loss that weighs every sequence differently."""
    layout = (packed_layout if packed else padded_layout)(examples)
    model.module.zero_grad(set_to_none=not model.masters)
    values = model.logprobs(layout)
    (values * torch.linspace(-1, 1, len(values))).sum().backward()
    return values.detach(), {n: p.grad.clone() for n, p in model.module.named_parameters()}


@pytest.mark.parametrize("examples", [EXAMPLES, ALIKE], ids=["different", "alike"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_equals_padded_in_values_and_gradients(name, examples):
    module = build(name)
    head = proved_head(module)
    plain = TrainModel(module, {}, {}, CPU, torch.float32, head)
    wanted, wanted_gradients = loss_and_gradients(plain, False, examples)
    with packing(module):
        found, gradients = loss_and_gradients(plain, True, examples)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    for key, gradient in wanted_gradients.items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_changes_nothing():
    found = []
    for checkpointing in (False, True):
        model = prepare(build("llama"), CPU, torch.float32, None, checkpointing)
        assert model.packed
        found.append(loss_and_gradients(model, packed=True))
    torch.testing.assert_close(found[0], found[1])


def test_a_window_that_no_layer_looks_at_changes_nothing():
    """Llama's code knows no window, so packed and padded rows agree whatever its config says."""
    module = build("llama")
    module.config.sliding_window = 4
    assert choose(module, torch.float32, CPU).packed


@pytest.mark.usefixtures("nothing_proved")
def test_a_window_that_packed_rows_lose_is_found(monkeypatch, caplog):
    import rlaif.engines.local.forward as engine_packing

    def wide(query, key, value, groups, scale, window, softcap):
        return branch_attention(query, key, value, groups, scale, None, softcap)

    monkeypatch.setattr(engine_packing, "branch_attention", wide)
    with caplog.at_level(logging.WARNING):
        model = prepare(build("mistral_window"), CPU, torch.float32)
    assert not model.packed
    assert "padded and not packed, which is slower: the log-probs differ" in caplog.text
    assert model.layout(EXAMPLES).groups is None


@pytest.mark.usefixtures("nothing_proved")
def test_recurrent_layers_fall_back_loudly(caplog):
    import transformers

    config = transformers.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2)
    torch.manual_seed(0)
    module = transformers.MambaForCausalLM(config).eval()
    with caplog.at_level(logging.WARNING):
        assert not choose(module, torch.float32, CPU).packed
    assert "padded and not packed" in caplog.text


@pytest.mark.usefixtures("nothing_proved")
def test_attention_that_mixes_branches_is_found(monkeypatch):
    import rlaif.engines.local.forward as engine_packing

    def leaky(query, key, value, groups, *rest):
        whole = Group(0, query.shape[2], ())
        return branch_attention(query, key, value, [whole], *rest)

    monkeypatch.setattr(engine_packing, "branch_attention", leaky)
    module = build("llama")
    choice = choose(module, torch.float32, CPU)
    assert not choice.packed
    assert "differ" in choice.reasons[0]
    assert module.config._attn_implementation == "sdpa"


def dense(query, key, value, groups, scale=None, window=None, softcap=None):
    """One big masked softmax."""
    group, branch, position = locate_tokens(groups)
    back = position[:, None] - position[None]
    seen = ((group[:, None] == group[None]) | (group[None] == STEM)) & (back >= 0)
    seen &= (branch[None] == 0) | (branch[:, None] == branch[None])
    if window is not None:
        seen &= back < window
    repeat = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(repeat, 1).mT
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return weights @ value.repeat_interleave(repeat, 1)


GROUPS = (Group(0, 5, (3, 4, 2)), Group(14, 2, (6,)), Group(22, 3, ()))
STEMMED = (Group(4, 2, (3, 2, 4), 4), Group(15, 1, (5, 1), 4), Group(22, 3, (), 4))


@pytest.mark.parametrize("groups", [GROUPS, STEMMED], ids=["no stem", "stem"])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_branch_attention_equals_one_dense_mask(scale, window, softcap, groups):
    torch.manual_seed(0)
    query = torch.randn(1, 4, 25, 8, dtype=torch.float64, requires_grad=True)
    key, value = (
        torch.randn(1, 2, 25, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    ours = branch_attention(query, key, value, groups, scale, window, softcap)
    plain = dense(query, key, value, groups, scale, window, softcap)
    torch.testing.assert_close(ours, plain)
    weight = torch.randn_like(plain)
    wanted = torch.autograd.grad((plain * weight).sum(), (query, key, value))
    found = torch.autograd.grad((ours * weight).sum(), (query, key, value))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "groups",
    [STEMMED, (Group(0, SHORT + 9, (4, SHORT + 2)), Group(2 * SHORT + 15, 6, (3, 5)))],
    ids=["short pieces", "long and short pieces"],
)
def test_in_bf16_gradients_are_those_of_the_rounded_inputs(groups):
    torch.manual_seed(0)
    last = groups[-1]
    tokens = last.start + last.prompt + sum(last.branches)
    rounded = [torch.randn(1, heads, tokens, 8).bfloat16() for heads in (4, 2, 2)]
    ours, wide = ([t.to(d).requires_grad_() for t in rounded] for d in (torch.bfloat16, float))
    weight = torch.randn(1, 4, tokens, 8)
    found = torch.autograd.grad((branch_attention(*ours, groups) * weight).sum(), ours)
    wanted = torch.autograd.grad((dense(*wide, groups) * weight.double()).sum(), wide)
    for own, exact in zip(found, wanted, strict=True):
        assert own.dtype == torch.bfloat16
        # Group by group, so that a wrong small one cannot hide behind a large one.
        for group in groups:
            span = slice(group.start, group.start + group.prompt + sum(group.branches))
            error = (own.double() - exact)[:, :, span].norm() / exact[:, :, span].norm()
            assert error < 0.02


@pytest.mark.parametrize("groups", [GROUPS, STEMMED], ids=["no stem", "stem"])
@pytest.mark.parametrize("window", [None, 3])
def test_the_block_mask_of_a_gpu_is_the_same_mask(window, groups):
    """FlexAttention has no backward pass on a CPU, but its mask can be compared there."""
    from torch.nn.attention.flex_attention import create_mask

    group, branch, position = locate_tokens(groups)
    back = position[:, None] - position[None]
    seen = ((group[:, None] == group[None]) | (group[None] == STEM)) & (back >= 0)
    seen &= (branch[None] == 0) | (branch[:, None] == branch[None])
    if window is not None:
        seen &= back < window
    mask = create_mask(block_mask(groups, window, "cpu").mask_mod, None, None, 25, 25, device="cpu")
    assert torch.equal(mask[0, 0], seen)


def test_what_all_prompts_begin_with_stands_once():
    packed, padded = packed_layout(ALIKE), padded_layout(ALIKE)
    assert packed.groups[0].stem == 3
    assert packed.input_ids[0, :6].tolist() == [1, 2, 3, 4, 7, 8]
    assert packed.position_ids[0, :6].tolist() == [0, 1, 2, 3, 4, 5]
    assert [g.prompt for g in packed.groups] == [1, 4, 1]
    assert packed.input_ids.numel() == 3 + (1 + 7) + (4 + 7) + (1 + 3)
    assert torch.equal(packed.targets, padded.targets)
    assert packed.tokens == padded.tokens


@pytest.mark.parametrize(
    ("prompts", "stem"),
    [
        ([[1, 2], [1, 2]], 1),
        ([[1], [1, 2]], 0),
        ([[1, 2, 3], [1, 2, 3, 4]], 2),
        ([[1, 2], [3, 2]], 0),
        ([[1, 2]], 0),
    ],
)
def test_every_prompt_keeps_a_token_of_its_own(prompts, stem):
    layout = packed_layout([(prompt, [[9]]) for prompt in prompts])
    assert all(g.stem == stem and g.prompt > 0 for g in layout.groups)


def test_the_layouts_name_the_same_targets():
    packed, padded = packed_layout(EXAMPLES), padded_layout(EXAMPLES)
    assert torch.equal(packed.targets, padded.targets)
    assert packed.lengths == padded.lengths == [5, 2, 8, 1, 3, 2, 1]
    assert packed.input_ids.numel() == 10 + 22 - 4 + 4 and packed.tokens == padded.tokens
    for layout in (packed, padded):
        flat = layout.input_ids.flatten()
        ends = [branch[-1] for _, branches in EXAMPLES for branch in branches]
        assert flat[layout.last].tolist() == ends


def test_an_empty_answer_is_read_at_the_end_of_its_own_prompt():
    examples = [([1, 2, 3], [[4, 5], [], [6]]), ([1, 7], [[], [8]])]
    packed, padded = packed_layout(examples), padded_layout(examples)
    wanted = [5, 3, 6, 7, 8]
    assert packed.input_ids.flatten()[packed.last].tolist() == wanted
    assert padded.input_ids.flatten()[padded.last].tolist() == wanted


def test_the_real_model_packed_equals_its_own_code_padded(model_folder):
    """Real prompts under the chat template's system prompt, at full precision."""
    from transformers import AutoModelForCausalLM

    from rlaif.core.chat import render_prompt
    from rlaif.train.loading import load_module
    from rlaif.train.tokenise import load_tokenizer

    tokenizer = load_tokenizer(model_folder)

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    questions = {
        "Name a red fruit.": ["An apple.", "Strawberries are red, and so are cherries."],
        "Why is the sky blue?": ["Air scatters blue light more than red.", "Because."],
        "What do bees make?": ["Honey, and wax for their combs.", "They make nothing at all."],
    }
    examples = [
        (ids(render_prompt(tokenizer, [{"role": "user", "content": q}])), [*map(ids, a)])
        for q, a in questions.items()
    ]
    model = prepare(load_module(model_folder, CPU), CPU, torch.float32)
    layout = model.layout(examples)
    assert layout.groups[0].stem > 10
    found = model.logprobs(layout)
    slope = torch.linspace(-1, 1, len(found))
    (found * slope).sum().backward()
    plain = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    wanted = TrainModel(plain, {}, {}, CPU, torch.float32).logprobs(padded_layout(examples))
    (wanted * slope).sum().backward()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    for name, parameter in plain.named_parameters():
        scale = float(parameter.grad.abs().max())
        gap = float((model.masters[name].grad - parameter.grad).abs().max())
        assert gap <= 1e-4 * max(1.0, scale), name
