"""From logits to tokens, row by row: temperature, top-k, top-p, and one uniform number per row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlaif.engines.base import Sampling

TOP_P_CANDIDATES = 2048
BLOCK = 256


def sample_tokens(
    logits: torch.Tensor, uniform: torch.Tensor, sampling: Sequence[Sampling]
) -> torch.Tensor:
    """One token per row: (rows,) int64 from fp32 `logits` (rows, vocabulary).

    `uniform` (rows,) in [0, 1) picks by inverse CDF, so a token depends on its row alone.
    Temperature 0 is the argmax.
    """
    picked = torch.empty(len(sampling), dtype=torch.int64, device=logits.device)
    greedy = [i for i, s in enumerate(sampling) if s.temperature == 0]
    limited = [i for i, s in enumerate(sampling) if s.temperature and (s.top_k or s.top_p < 1)]
    others = [i for i, s in enumerate(sampling) if s.temperature and not (s.top_k or s.top_p < 1)]
    if greedy:
        picked[greedy] = _of(logits, greedy).argmax(-1)
    if others:
        # These apart: a row without limits must not notice what its batch asks for.
        scaled = _scaled(_of(logits, others), [sampling[i] for i in others])
        picked[others] = _inverse_cdf(scaled.softmax(-1), _of(uniform, others))
    if limited:
        asked = [sampling[i] for i in limited]
        scaled = _scaled(_of(logits, limited), asked)
        picked[limited] = _filtered(scaled, _of(uniform, limited), asked)
    return picked


def _of(values: torch.Tensor, rows: list[int]) -> torch.Tensor:
    return values if len(rows) == len(values) else values[rows]


def _scaled(logits: torch.Tensor, sampling: Sequence[Sampling]) -> torch.Tensor:
    if all(s.temperature == 1 for s in sampling):
        return logits
    return logits / torch.tensor([[s.temperature] for s in sampling], device=logits.device)


def _inverse_cdf(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Where the running sum of each row of `probs` (rows, n), not normalised, passes its uniform's
    share of the whole: in two steps, since a running sum is slow and a sum is not."""
    rows, count = probs.shape
    width = min(BLOCK, count)
    blocks = torch.nn.functional.pad(probs, (0, -count % width)).view(rows, -1, width)
    ends = blocks.sum(-1).cumsum(-1)
    target = (uniform * ends[:, -1])[:, None]
    # Rounding can put the target on the very end; a block or token of no mass is never picked.
    block = _first_above(ends, target)
    before = torch.where(block > 0, ends.gather(-1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks[torch.arange(rows, device=probs.device), block[:, 0]].cumsum(-1)
    place = _first_above(inside, torch.minimum(target - before, inside[:, -1:]))
    return (block * width + place)[:, 0]


def _first_above(running: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(rows, 1) index of the first running sum (rows, n) above `target` (rows, 1); where none is,
    of the first that is as large as the last."""
    last = torch.searchsorted(running, running[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(running, target, right=True), last)


def _filtered(
    scaled: torch.Tensor, uniform: torch.Tensor, sampling: Sequence[Sampling]
) -> torch.Tensor:
    vocabulary = scaled.shape[-1]
    probs = scaled.softmax(-1)
    top_p = torch.tensor([s.top_p for s in sampling], device=scaled.device)
    top_k = torch.tensor([s.top_k or vocabulary for s in sampling], device=scaled.device)
    count = min(vocabulary, max(TOP_P_CANDIDATES, *(s.top_k for s in sampling)))
    values, tokens = probs.topk(count, dim=-1)
    unbounded = top_k > count
    if bool((unbounded & (values.sum(-1) < top_p)).any()):
        values, tokens = probs.sort(dim=-1, descending=True)
    ranks = torch.arange(values.shape[-1], device=scaled.device)
    # A token stays while the mass before it is below top_p: the first always does.
    before = values.cumsum(-1) - values
    keep = (before < top_p[:, None]) & (ranks[None] < top_k[:, None])
    index = _inverse_cdf(values * keep, uniform)
    return tokens.gather(-1, index[:, None])[:, 0]
