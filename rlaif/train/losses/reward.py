"""Losses of reward models: pure functions of rewards, and of what a head says before it is one
number."""

from __future__ import annotations

import torch
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


def cost(
    safer: Tensor,
    worse: Tensor,
    safer_is_safe: Tensor,
    worse_is_safe: Tensor,
    *,
    prob: Tensor | None = None,
) -> Tensor:
    """The cost model's loss of Safe RLHF (arXiv 2310.12773, section 3.2) for B pairs, (B,), in
    terms of the reward r = -cost, so that an answer is safe where r > 0:

    -log sigmoid(r_safer - r_worse) - log sigmoid(s_safer r_safer) - log sigmoid(s_worse r_worse)

    with s = 1 for a safe answer and -1 for a harmful one. Rewards are (B,), the flags boolean (B,);
    with `prob` (B,) the first term is the expectation over which answer is safer.
    """
    ranked = bradley_terry(safer, worse, prob=prob)
    for reward, safe in ((safer, safer_is_safe), (worse, worse_is_safe)):
        ranked = ranked - F.logsigmoid(torch.where(safe, reward, -reward))
    return ranked


def focal_ranking(
    chosen: Tensor, rejected: Tensor, *, prob: Tensor | None = None, gamma: float = 2.0
) -> Tensor:
    """COOL RLHF's ranking loss of B pairs, (B,): -(1 - 2 max(0, P - 1/2))^gamma log P with
    P = sigmoid(chosen - rejected) (InternLM2, arXiv 2403.17297, section 4.2).

    Pairs that are ranked right with certainty count for little; for P <= 1/2 it is cross-entropy.
    With `prob` (B,) it is the expectation over which answer is better.
    """
    gap = chosen - rejected

    def loss_of_side(d: Tensor) -> Tensor:
        """(B,) if the answer that is ahead by d is the better one."""
        sure = (2.0 * torch.sigmoid(d) - 1.0).clamp(min=0.0)
        return -((1.0 - sure) ** gamma) * F.logsigmoid(d)

    return (
        loss_of_side(gap)
        if prob is None
        else prob * loss_of_side(gap) + (1.0 - prob) * loss_of_side(-gap)
    )


def barrier(reward: Tensor, limit: float = 5.0) -> Tensor:
    """-(log(x + limit) + log(limit - x)), which keeps rewards within (-limit, limit) (InternLM2,
    arXiv 2403.17297, section 4.2); the shape of `reward`, least at 0.

    Outside, where the logarithm has no value, it goes on as the straight line that it is at 0.999
    of the limit, so that there is still a gradient back.
    """
    edge = 0.999 * limit
    inside = reward.clamp(-edge, edge)
    slope = 1.0 / (limit - edge) - 1.0 / (limit + edge)
    beyond = (reward.abs() - edge).clamp(min=0.0)
    return -(torch.log(inside + limit) + torch.log(limit - inside)) + slope * beyond


def pinball(quantiles: Tensor, labels: Tensor, levels: Tensor) -> Tensor:
    """Quantile loss u (tau - 1[u < 0]) with u = label - quantile (Koenker and Bassett 1978; QRM,
    arXiv 2409.10164), the shape of `quantiles` (..., Q). `labels` is (...), `levels` (Q,) within
    (0, 1)."""
    error = labels.unsqueeze(-1) - quantiles
    return torch.maximum(levels * error, (levels - 1.0) * error)


def ordinal_nll(reward: Tensor, thresholds: Tensor, level: Tensor) -> Tensor:
    """Negative log-likelihood, (N,), of ratings under the proportional-odds model
    P(rating > k) = sigmoid(reward - thresholds[k]) (McCullagh 1980).

    `reward` is (N,), `thresholds` (L - 1,) increasing, `level` (N,) int64 in 0..L-1.
    """
    above = reward[:, None] - thresholds
    # Where nobody gave a level, its thresholds meet; log 0 would make every gradient NaN.
    gaps = (thresholds[:-1] - thresholds[1:]).clamp(max=-1e-6)
    # log(sigmoid(a) - sigmoid(b)) for neighbours a > b, without a difference of near-equal numbers.
    log_between = (
        F.logsigmoid(above[:, :-1]) + F.logsigmoid(-above[:, 1:]) + torch.log(-torch.expm1(gaps))
    )
    logs = torch.cat([F.logsigmoid(-above[:, :1]), log_between, F.logsigmoid(above[:, -1:])], dim=1)
    return -logs.gather(1, level[:, None])[:, 0]
