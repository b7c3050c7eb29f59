"""Losses on pairs of answers: pure functions of summed log-probabilities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
    prob: Tensor | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Direct preference optimisation (arXiv 2305.18290), with the conservative (cDPO) label noise.

    All four inputs are (B,) log-probabilities in nats, summed over completion tokens. With
    delta = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected) and p the probability
    that chosen is really better: -p log sigmoid(beta delta) - (1 - p) log sigmoid(-beta delta).
    p is `prob` (B,) or 1, mixed with `label_smoothing`: p (1 - e) + (1 - p) e. `weight` (B,)
    multiplies the loss. Returns the loss per pair (B,) and detached metrics per pair (B,).
    """
    reward_chosen = beta * (policy_chosen - ref_chosen)
    reward_rejected = beta * (policy_rejected - ref_rejected)
    margin = reward_chosen - reward_rejected
    p: Tensor | float = 1.0 if prob is None else prob
    p = p * (1.0 - label_smoothing) + (1.0 - p) * label_smoothing
    loss = -p * F.logsigmoid(margin) - (1.0 - p) * F.logsigmoid(-margin)
    if weight is not None:
        loss = loss * weight
    metrics = {
        "margin": margin,
        "accuracy": (margin > 0).to(margin.dtype),
        "logprob_chosen": policy_chosen,
        "logprob_rejected": policy_rejected,
        "reward_chosen": reward_chosen,
        "reward_rejected": reward_rejected,
    }
    return loss, {name: value.detach() for name, value in metrics.items()}


def nll_loss(logprobs: Tensor, lengths: Tensor) -> Tensor:
    """Mean negative log-likelihood per token of each sequence, the added term of DPO+NLL
    (iterative RPO, arXiv 2404.19733; Llama 3, arXiv 2407.21783).

    logprobs (B,) summed over completion tokens, lengths (B,) token counts -> (B,) nats per token.
    """
    return -logprobs / lengths.clamp(min=1)
