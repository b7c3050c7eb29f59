"""FlexAttention for packed rows: few graphs, the same numbers, and a loud way out.

There is no GPU here, so the graphs are run by torch's own operators (backend "eager"): which graphs
are made, and what they compute, is the same.
"""

from __future__ import annotations

import logging
import random

import pytest
import torch
from torch._dynamo import config as dynamo
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as flex_module

from rlaif.kernels import attention
from rlaif.kernels.attention import (
    BLOCK,
    branch_attention,
    compiled_flex,
    fill_to_blocks,
    flex_failure,
)
from rlaif.kernels.batching import Group, packed_layout

MODES = {"train": torch.enable_grad, "no_grad": torch.no_grad, "infer": torch.inference_mode}


@pytest.fixture
def graphs(monkeypatch):
    """FlexAttention as on a GPU, with a counter of its graphs."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = compiled_flex.__wrapped__(counter)
    monkeypatch.setattr(attention, "compiled_flex", lambda: compiled)
    monkeypatch.setattr(attention, "uses_flex", lambda device: flex_failure() is None)
    monkeypatch.setattr(attention._Flex, "failure", None)
    # It refuses gradients on a CPU, for want of a kernel.
    monkeypatch.setattr(flex_module, "_validate_device", lambda *tensors: None)
    attention.block_mask.cache_clear()
    yield counter
    attention.block_mask.cache_clear()
    torch._dynamo.reset()


def random_row(draw: random.Random, tokens: int):
    """The groups of a packed row of about `tokens` tokens, and its exact length."""
    examples = []
    while tokens > 0:
        prompt = [draw.randrange(3) for _ in range(draw.randint(1, min(tokens, 300)))]
        branches = [[1] * draw.randint(1, 90) for _ in range(draw.randint(1, 4))]
        examples.append((prompt, branches))
        tokens -= len(prompt) + sum(map(len, branches))
    layout = packed_layout(examples)
    return layout.groups, layout.input_ids.shape[1]


def inputs(tokens: int, heads: tuple[int, int], dtype: torch.dtype, grad: bool):
    torch.manual_seed(tokens)
    shapes = [(1, n, tokens, 8) for n in (heads[0], heads[1], heads[1])]
    return [torch.randn(s, dtype=dtype).requires_grad_(grad) for s in shapes]


def test_forty_layouts_share_one_graph_for_each_kind_of_call(graphs):
    draw = random.Random(0)
    sizes = [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 6 * BLOCK]
    sizes += [draw.randint(64, 900) for _ in range(34)]
    kinds = [(d, m) for d in (torch.float32, torch.bfloat16) for m in MODES]
    forms = [((3, 1), None), ((2, 2), None), ((3, 1), 20)]
    seen = set()
    for number, size in enumerate(sizes):
        groups, tokens = random_row(draw, size)
        for dtype, mode in (kinds[number % 6],):
            heads, window = forms[(number // 6) % 3]
            with MODES[mode]():
                states = inputs(tokens, heads, dtype, grad=mode == "train")
                found = branch_attention(*states, groups, window=window)
            assert found.shape[2] == tokens
            seen.add((dtype, mode, heads, window))
            assert graphs.frame_count <= len(seen)
    assert flex_failure() is None
    assert len(seen) == 18


def test_as_many_blocks_as_heads_are_no_graph_of_their_own(graphs):
    with torch.no_grad():
        for blocks in (3, 2, 5):
            groups = (Group(0, BLOCK, ((blocks - 1) * BLOCK,)),)
            states = inputs(blocks * BLOCK, (3, 1), torch.float32, grad=False)
            branch_attention(*states, groups)
    assert graphs.frame_count == 1


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_filled_rows_give_what_groups_give_one_by_one(graphs, window, softcap, monkeypatch):
    groups, tokens = random_row(random.Random(1), 300)
    assert tokens % BLOCK
    states = inputs(tokens, (4, 2), torch.float64, grad=True)
    slope = torch.randn(1, 4, tokens, 8, dtype=torch.float64)
    found = branch_attention(*states, groups, window=window, softcap=softcap)
    assert graphs.frame_count == 1
    slopes = torch.autograd.grad((found * slope).sum(), states)
    monkeypatch.setattr(attention, "uses_flex", lambda device: False)
    wanted = branch_attention(*states, groups, window=window, softcap=softcap)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(slopes, torch.autograd.grad((wanted * slope).sum(), states))


def test_a_row_has_two_blocks_at_least():
    assert [fill_to_blocks(n) for n in (1, 128, 256, 257, 384)] == [256, 256, 256, 384, 384]


def test_past_the_limit_of_graphs_groups_are_computed_one_by_one_and_that_is_said_once(
    graphs, caplog
):
    groups, tokens = random_row(random.Random(2), 200)
    with caplog.at_level(logging.WARNING), torch.no_grad(), dynamo.patch(recompile_limit=1):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            states = inputs(tokens, (2, 2), dtype, grad=False)
            found = branch_attention(*states, groups)
            assert found.dtype == dtype
            assert found.isfinite().all()
    (record,) = [r for r in caplog.records if "FlexAttention" in r.message]
    assert "group by group" in record.message
    assert "RecompileLimit" in flex_failure()


def test_running_out_of_memory_is_no_reason_to_give_up(graphs, monkeypatch):
    def full(*args, **options):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(attention, "compiled_flex", lambda: full)
    groups, tokens = random_row(random.Random(3), 100)
    with pytest.raises(torch.OutOfMemoryError):
        branch_attention(*inputs(tokens, (1, 1), torch.float32, grad=False), groups)
    assert flex_failure() is None


def test_a_mask_made_while_inferring_can_be_trained_with():
    """It is kept for later calls, and inference tensors would make graphs of their own."""
    groups, _ = random_row(random.Random(4), 100)
    attention.block_mask.cache_clear()
    with torch.inference_mode():
        mask = attention.block_mask(groups, None, "cpu")
    attention.block_mask.cache_clear()
    assert not mask.kv_num_blocks.is_inference()
