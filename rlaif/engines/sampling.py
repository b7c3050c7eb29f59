"""From logits to tokens, row by row: temperature, top-k, top-p, and one uniform number per row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlaif.engines.base import Sampling

TOP_P_CANDIDATES = 2048


def sample_tokens(
    logits: torch.Tensor, uniform: torch.Tensor, sampling: Sequence[Sampling]
) -> torch.Tensor:
    """One token per row: (rows,) int64 from fp32 `logits` (rows, vocabulary).

    `uniform` (rows,) in [0, 1) picks by inverse CDF, so a token depends on its row alone.
    Temperature 0 is the argmax.
    """
    greedy = torch.tensor([s.temperature == 0 for s in sampling], device=logits.device)
    picked = logits.argmax(-1)
    if bool(greedy.all()):
        return picked
    temperature = torch.tensor([s.temperature or 1.0 for s in sampling], device=logits.device)
    scaled = logits / temperature[:, None]
    drawn = _inverse_cdf(scaled.softmax(-1), uniform)
    limited = [i for i, s in enumerate(sampling) if s.top_k or s.top_p < 1]
    if limited:
        # These alone: a row without limits must not notice what its batch asks for.
        rows = torch.tensor(limited, device=logits.device)
        drawn[rows] = _filtered(scaled[rows], uniform[rows], [sampling[i] for i in limited])
    return torch.where(greedy, picked, drawn)


def _inverse_cdf(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    cdf = probs.cumsum(-1)
    # The last value is 1 only up to rounding: scaling by it keeps the index inside.
    target = (uniform * cdf[:, -1]).unsqueeze(-1)
    return torch.searchsorted(cdf, target, right=True).squeeze(-1).clamp(max=probs.shape[-1] - 1)


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
