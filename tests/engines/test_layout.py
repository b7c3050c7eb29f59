"""Batches as a pure function of the requests, and tokens by inverse CDF."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.engines.base import Sampling
from rlaif.engines.local.decoding import sample_tokens
from rlaif.engines.local.encoding import Row, batches, bucket

ROWS = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.sampled_from([0, 4, 8])),
    max_size=12,
).map(lambda rows: [Row(f"r{i}", ids, new) for i, (ids, new) in enumerate(rows)])


@pytest.mark.parametrize(("length", "width"), [(1, 16), (16, 16), (17, 32), (0, 0)])
def test_widths_come_in_steps(length: int, width: int) -> None:
    assert bucket(length) == width


@given(ROWS, st.integers(1, 400), st.randoms())
def test_batches_in_general(rows: list[Row], budget: int, rng: random.Random) -> None:
    made = batches(rows, budget)
    assert sorted(r.request_id for b in made for r in b) == sorted(r.request_id for r in rows)
    for batch in made:
        width = max(bucket(len(r.ids)) for r in batch)
        assert len({r.new for r in batch}) == 1
        assert len(batch) == 1 or len(batch) * (width + batch[0].new) <= budget
    shuffled = list(rows)
    rng.shuffle(shuffled)
    assert batches(shuffled, budget) == made


def test_batches_are_as_large_as_the_budget_allows() -> None:
    rows = [Row(f"r{i}", [1] * 10, 6) for i in range(10)]
    assert [len(b) for b in batches(rows, 4 * (16 + 6))] == [4, 4, 2]


@given(ROWS, st.integers(1, 400))
def test_equal_prompts_count_once_where_they_are_shared(rows: list[Row], budget: int) -> None:
    made = batches(rows, budget, share_prompts=True)
    assert sorted(r.request_id for b in made for r in b) == sorted(r.request_id for r in rows)
    assert len(made) <= len(batches(rows, budget))
    for batch in made:
        width = max(bucket(len(r.ids)) for r in batch)
        distinct = len({tuple(r.ids) for r in batch})
        size = distinct * width + len(batch) * batch[0].new
        assert len(batch) == 1 or size <= budget


def reference_probs(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Top-k then top-p by their definitions, one token at a time, in fp64."""
    probs = (logits.double() / sampling.temperature).softmax(-1)
    order = sorted(range(len(probs)), key=lambda i: -float(probs[i]))
    kept = torch.zeros_like(probs)
    mass = 0.0
    for rank, token in enumerate(order):
        if sampling.top_k and rank >= sampling.top_k:
            break
        if mass >= sampling.top_p:
            break
        kept[token] = probs[token]
        mass += float(probs[token])
    return kept / kept.sum()


def drawn_probs(logits: torch.Tensor, sampling: Sampling, draws: int) -> torch.Tensor:
    """What evenly spaced uniform numbers draw: exact up to 1 / draws."""
    uniform = (torch.arange(draws) + 0.5) / draws
    tokens = sample_tokens(logits.repeat(draws, 1), uniform, [sampling] * draws)
    return torch.bincount(tokens, minlength=logits.shape[-1]).double() / draws


@given(
    st.integers(0, 1000),
    st.sampled_from([0.3, 1.0, 1.7]),
    st.sampled_from([0, 1, 3, 50]),
    st.sampled_from([0.2, 0.6, 0.95, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_draws_follow_the_filtered_distribution(
    seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(1, 20) * 2
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    wanted = reference_probs(logits[0], sampling)
    found = drawn_probs(logits, sampling, 2000)
    assert float((found - wanted).abs().max()) <= 2 / 2000
    assert set(found.nonzero().flatten().tolist()) <= set(wanted.nonzero().flatten().tolist())


@pytest.mark.parametrize("top_p", [0.5, 0.98])
def test_top_p_of_a_large_vocabulary(top_p: float) -> None:
    # More tokens than are looked at first: a flat distribution needs the full sort.
    torch.manual_seed(1)
    logits = torch.randn(1, 3000) * 0.01
    nucleus = int((reference_probs(logits[0], Sampling(top_p=top_p)) > 0).sum())
    assert (nucleus > 2048) == (top_p > 0.9)
    rank = logits[0].argsort(descending=True).argsort()
    drawn = drawn_probs(logits, Sampling(top_p=top_p), 600).nonzero().flatten()
    # The last token of the nucleus may differ by the rounding of a sum of thousands in fp32.
    assert 0.99 * nucleus < int(rank[drawn].max()) <= nucleus + 2
    assert int(rank[drawn].min()) < 0.01 * nucleus


def test_greedy_rows_and_drawn_rows_in_one_batch() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]] * 3)
    sampling = [Sampling(temperature=0), Sampling(), Sampling(top_k=1)]
    high = torch.full((3,), 0.999999)
    assert sample_tokens(logits, high, sampling).tolist() == [1, 2, 1]
    low = torch.zeros(3)
    assert sample_tokens(logits, low, sampling).tolist() == [1, 0, 1]


def test_a_row_depends_on_itself_alone() -> None:
    torch.manual_seed(2)
    kinds = [
        Sampling(),
        Sampling(top_p=0.5),
        Sampling(top_k=3),
        Sampling(temperature=0),
        Sampling(temperature=0.05),
        Sampling(temperature=9.0),
        Sampling(temperature=0.05, top_k=9),
        Sampling(temperature=9.0, top_p=0.99),
        Sampling(),
    ]
    logits, uniform = torch.randn(len(kinds), 30), torch.rand(len(kinds))
    together = sample_tokens(logits, uniform, kinds)
    for i, kind in enumerate(kinds):
        assert sample_tokens(logits[i : i + 1], uniform[i : i + 1], [kind]).item() == together[i]


def test_the_largest_uniform_number_picks_a_token_that_is_possible() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]])
    almost_one = torch.tensor([1.0]) - torch.finfo(torch.float32).eps / 2
    for sampling in (Sampling(), Sampling(top_p=0.99), Sampling(top_k=3)):
        assert sample_tokens(logits, almost_one, [sampling]).item() in (0, 1)
