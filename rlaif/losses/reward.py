"""Losses of reward models: pure functions of scalar rewards."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | None = None,
    prob: Tensor | None = None,
    centre: float = 0.0,
) -> Tensor:
    """Bradley-Terry loss of B pairs of rewards, (B,), with d = chosen - rejected:
    -log sigmoid(d - margin) + centre (chosen + rejected)^2.

    All inputs are (B,). `margin` >= 0 is by how much the better answer should win (Llama 2, arXiv
    2307.09288). `centre` (0.01 in arXiv 2312.09244) pulls the two rewards to opposite values; the
    pairs alone fix them only up to a constant per prompt.

    With `prob`, the probability p that chosen is really better, the first term is
    -p log sigmoid(d - margin) - (1 - p) log sigmoid(-d - margin): the margin is asked of whichever
    answer is better, so swapping the answers and taking 1 - p changes nothing and p = 1/2 has its
    optimum at d = 0. The optimum is d = logit(p) only without a margin; a margin moves it outwards.
    """
    if len({tuple(v.shape) for v in (chosen, rejected, margin, prob) if v is not None}) > 1:
        raise ValueError("chosen, rejected, margin and prob need the same shape (B,)")
    gap = chosen - rejected
    asked: Tensor | float = 0.0 if margin is None else margin
    loss = -F.logsigmoid(gap - asked)
    if prob is not None:
        loss = prob * loss - (1.0 - prob) * F.logsigmoid(-gap - asked)
    return loss + centre * (chosen + rejected) ** 2 if centre else loss
