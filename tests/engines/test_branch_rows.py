"""Samples that share their prompt's keys, and requests that share what they begin with: the same
numbers as rows of their own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlaif.config.models import ModelSpec
from rlaif.engines.base import GenerateRequest, Sampling, ScoreRequest
from rlaif.engines.local import forward
from rlaif.engines.local.decoding import BranchRows, no_branches
from rlaif.engines.local.encoding import Row
from rlaif.engines.local.forward import BranchCache, attention, empty_rows
from rlaif.engines.local.hf import HfEngine, load
from tests.support.architectures import ARCHITECTURES, build

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [1, 2, 30], [1, 2, 9, 8, 7, 6, 5, 4, 3, 11, 12]]
OWNER = [0, 0, 1, 2, 2, 2]


def full_states(model: Any, prompt: list[int], more: list[int]) -> torch.Tensor:
    """(1 + len(more), H) hidden states after the prompt, by one plain pass."""
    ids = torch.tensor([prompt + more])
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 :]


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.inference_mode()
def test_rows_have_the_states_of_a_plain_pass_beyond_any_window(name: str) -> None:
    model, draw = build(name), torch.Generator().manual_seed(3)
    assert no_branches(model) is None
    tokens = torch.randint(0, 97, (9, len(OWNER)), generator=draw)
    wanted = [
        full_states(model, PROMPTS[p], tokens[:, row].tolist()) for row, p in enumerate(OWNER)
    ]
    with forward.packing(model):
        rows = BranchRows(model, PROMPTS, OWNER, len(tokens) + 1)
        torch.testing.assert_close(
            rows.first(), torch.stack([w[0] for w in wanted]), rtol=1e-4, atol=1e-4
        )
        left = list(range(len(OWNER)))
        for step, given_tokens in enumerate(tokens):
            if step in (3, 6):
                # Row 2 is its prompt's only one, and row 4 stands between others of its prompt.
                kept = [i for i, row in enumerate(left) if row != (2 if step == 3 else 4)]
                rows.keep(torch.tensor(kept))
                left = [left[i] for i in kept]
            states = rows.after(given_tokens[left])
            expected = torch.stack([wanted[row][step + 1] for row in left])
            torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_attention_is_that_over_prompt_and_own_tokens(
    window: int | None, softcap: float | None
) -> None:
    draw = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    lengths, owner = [5, 2], [0, 0, 1]
    held = [some(2, 2, 5, 8)], [some(2, 2, 5, 8)]
    rows = empty_rows(held[0], 3, 4), empty_rows(held[1], 3, 4)
    cache = BranchCache(*held, *rows, torch.tensor(lengths), torch.tensor(owner))
    own: list[tuple[torch.Tensor, torch.Tensor]] = []
    for _ in range(4):
        query, key, value = some(3, 4, 1, 8), some(3, 2, 1, 8), some(3, 2, 1, 8)
        own.append((key, value))
        found = cache.attend(0, query, key, value, 0.4, window, softcap)
        for row, prompt in enumerate(owner):
            keys, values = (
                torch.cat([held[i][0][prompt, :, : lengths[prompt]]] + [o[i][row] for o in own], 1)
                for i in range(2)
            )
            scores = (query[row] @ keys.repeat_interleave(2, 0).mT) * 0.4
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            back = torch.arange(keys.shape[1]).flip(0)
            if window is not None:
                scores = scores.masked_fill(back >= window, -torch.inf)
            wanted = scores.softmax(-1) @ values.repeat_interleave(2, 0)
            torch.testing.assert_close(found[row, 0], wanted[:, 0], rtol=1e-5, atol=1e-6)
        cache.advance()


def test_the_kernel_of_a_cpu_and_plain_products_are_the_same_attention() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, n, 16) for n in (4, 9, 9))
    mask = torch.zeros(2, 1, 1, 9)
    mask[1, ..., 5:] = torch.finfo(torch.float32).min
    fast = attention(query, key, value, mask, None, None)
    # A soft cap far above every score changes nothing but the way it is computed.
    plain = attention(query, key, value, mask, None, 1e6)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


def test_decoding_that_differs_falls_back_loudly(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = ModelSpec(path=str(tiny_model), dtype="float32")
    requests = [
        GenerateRequest(
            str(i), [{"role": "user", "content": "Hi"}], Sampling(seed=i, max_new_tokens=5)
        )
        for i in range(3)
    ]
    sound = load(spec, tiny_model, "tiny")
    right = BranchCache.attend

    def wrong(self: BranchCache, layer: int, query: Any, *rest: Any) -> torch.Tensor:
        return right(self, layer, query.flip(0), *rest)

    monkeypatch.setattr(BranchCache, "attend", wrong)
    with caplog.at_level(logging.WARNING):
        engine = load(spec, tiny_model, "tiny")
    assert not engine.weights.branches
    assert "decoded states differ by" in caplog.text
    texts = [{r.request_id: r.text for b in e.generate(requests) for r in b} for e in (engine,)]
    monkeypatch.undo()
    assert sound.weights.branches
    assert texts == [{r.request_id: r.text for b in sound.generate(requests) for r in b}]


def both_ways(engine: HfEngine, requests: list[ScoreRequest]) -> list[dict[str, Any]]:
    found = []
    for branches in (True, False):
        engine.weights.branches = branches
        found.append({r.request_id: r for batch in engine.score(requests) for r in batch})
    return found


def test_shared_beginnings_change_no_score(tiny_model: Path) -> None:
    engine = load(ModelSpec(path=str(tiny_model), dtype="float32"), tiny_model, "tiny")
    assert engine.weights.branches
    head = "Judge these two answers to one question. Say which is better. "
    labels = {"a": ("A",), "b": ("B",)}
    requests = [
        ScoreRequest(f"{i}{order}", [{"role": "user", "content": text}], **more)
        for i, question in enumerate(["Why is it so?", "How? " * 9])
        for order, text in enumerate(
            [head + question + "yes, it is; no", head + question + "no; yes, it is"]
        )
        for more in ({"labels": labels}, {"continuation": " indeed, so"})[order : order + 1]
    ]
    requests.append(ScoreRequest("same", requests[0].messages, labels=labels))
    requests.append(
        ScoreRequest("both", requests[0].messages, labels=labels, continuation=" It is")
    )
    packed, padded = both_ways(engine, requests)
    assert packed.keys() == padded.keys() == {r.request_id for r in requests}
    for name, result in packed.items():
        assert result.label_probs == pytest.approx(padded[name].label_probs, rel=1e-4)
        assert result.token_logprobs == pytest.approx(padded[name].token_logprobs, rel=1e-4)
        assert result.prompt_tokens == padded[name].prompt_tokens
    assert packed["same"].label_probs == pytest.approx(packed["00"].label_probs, rel=1e-4)


ids = st.lists(st.integers(0, 2), min_size=1, max_size=8)


@given(st.lists(st.tuples(ids, st.integers(0, 3)), min_size=1, max_size=12), st.integers(4, 20))
def test_every_request_is_in_one_batch_and_one_group(
    asked: list[tuple[list[int], int]], budget: int
) -> None:
    rows = [Row(f"{i:02}", prompt + [7] * tail, 0) for i, (prompt, tail) in enumerate(asked)]
    tails = {f"{i:02}": tail for i, (_, tail) in enumerate(asked)}
    batches = forward.batches(rows, tails, budget)
    assert batches == forward.batches(rows[::-1], tails, budget)
    assert sorted(r.request_id for b in batches for r in b) == sorted(tails)
    for batch in batches:
        groups = forward.grouped(batch, tails)
        assert [row for group in groups for row in group] == batch
        for group in groups:
            start, ends = forward.example(group, tails)
            assert start
            for row, end in zip(group, ends, strict=True):
                assert [*start, *end] == row.ids
                assert len(end) >= tails[row.request_id]


def test_both_orders_stand_together() -> None:
    stem, first, second = [1] * 5, [2] * 6, [3] * 6
    texts = [
        [*stem, *q, *a, *b]
        for q in ([4] * 4, [5] * 4)
        for a, b in ((first, second), (second, first))
    ]
    rows = [Row(str(i), text, 0) for i, text in enumerate(texts)]
    tails = dict.fromkeys("0123", 0)
    [batch] = forward.batches(rows, tails, 1000)
    groups = forward.grouped(batch, tails)
    assert [[r.request_id for r in group] for group in groups] == [["0", "1"], ["2", "3"]]
    assert [len(forward.example(group, tails)[0]) for group in groups] == [9, 9]


def test_prepacked_weights_are_used_and_given_back(tiny_model: Path) -> None:
    engine = load(ModelSpec(path=str(tiny_model), dtype="float32"), tiny_model, "tiny")
    layer = engine.model.model.layers[0].self_attn.q_proj
    inputs = torch.randn(2, 3, layer.in_features)
    plain = layer(inputs)
    own = layer.forward
    requests = [
        GenerateRequest(str(i), [{"role": "user", "content": "Hi"}], Sampling(max_new_tokens=2))
        for i in range(2)
    ]
    batches = engine.generate(requests)
    score = engine.score([ScoreRequest("s", requests[0].messages, continuation="Yes")])
    assert next(batches)
    assert layer.forward != own
    torch.testing.assert_close(layer(inputs), plain, rtol=1e-5, atol=1e-5)
    assert next(score)
    assert list(batches) == []
    # Somebody still asks for scores.
    assert layer.forward != own
    assert list(score) == []
    assert layer.forward == own
    with torch.no_grad():
        layer.weight.mul_(2)
    torch.testing.assert_close(layer(inputs), 2 * plain)


def test_the_batch_follows_the_memory_that_there_is(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlaif.engines.local import encoding

    spec = ModelSpec(path=str(tiny_model), dtype="float32")
    engine = load(spec, tiny_model, "tiny")
    config = engine.model.config
    each = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert encoding.token_bytes(config, torch.float32) == each
    found = []
    for size in (1, 5000 * 8 * each, 1 << 60):
        monkeypatch.setattr(encoding, "total_memory", lambda device, size=size: size)
        found.append(encoding.batch_tokens(spec, engine.model))
    assert found == [1024, 4096, 16384]
    asked = spec.model_copy(update={"batch_tokens": 77})
    assert encoding.batch_tokens(asked, engine.model) == 77
    assert encoding.pass_tokens(asked, engine.device) == 77
    assert encoding.pass_tokens(spec, engine.device) == 2048


def test_what_rows_share_is_counted_once_in_a_batch() -> None:
    rows = [Row(str(i), [*range(20), 30 + i], 0) for i in range(4)]
    tails = dict.fromkeys("0123", 0)
    # 21 tokens, and one more for each of the others.
    assert [len(b) for b in forward.batches(rows, tails, 24)] == [4]
    assert [len(b) for b in forward.batches(rows, tails, 23)] == [3, 1]
    # A continuation is no part of what is shared: 5 tokens more for each of the others.
    tails = dict.fromkeys("0123", 5)
    assert [len(b) for b in forward.batches(rows, tails, 26)] == [2, 2]
