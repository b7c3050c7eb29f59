"""Policy optimisation (PPO, GRPO and its successors, RLOO): pure functions of flat tensors.

A batch of S completions is flat: per-token values are (N,) tensors grouped by sequence, `lengths`
counts the tokens of each of them, and N = sum(lengths). Per-sequence values are (S,). Only tokens
that the policy sampled are in it, the end-of-sequence token among them; nothing is padding.

A training step is a chain: scores -> advantages -> a per-token loss -> one of the reductions. A
loss takes (N,) log-probabilities and (N,) advantages and gives (N,) losses with its metrics, so
another kind of ratio or clipping is one more function like `clipped_policy_loss`, in the module of
its method (GSPO, CISPO): `to_tokens` brings a ratio of sequences to their tokens, and nothing else
in the chain changes.

Metrics are detached scalars over the tokens given. To join those of several micro-batches, weight
the means by how many tokens (or sequences) they are over, and take the extremes of _min and _max.
Logs are natural.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

from rlaif.kernels.batching import sequence_sums

KlKind = Literal["k1", "k2", "k3"]
Scale = Literal["std", "none", "batch"]
Reduction = Literal["sequence", "token", "constant"]
Level = Literal["token", "sequence"]
Mode = Literal["truncate", "mask"]

# A probability ratio beyond e^20 is a fault, not a measurement. The bound keeps 0 * inf, which is
# not a number, out of values and gradients.
LOG_LIMIT = 20.0
FLAT = 1e-6
"""Rewards of a group that differ by less than this share of the largest are taken for equal."""


@dataclass(frozen=True, slots=True)
class GlobalBatch:
    """What one optimiser step averages over: all of its micro-batches (and processes) together.

    `sequences` counts completions and `tokens` the tokens of theirs that take part in the loss.
    """

    sequences: int
    tokens: int


def to_tokens(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """(S,) values of sequences -> (N,), each repeated for every token of its sequence."""
    return values.repeat_interleave(torch.tensor(lengths, device=values.device))


def kl_estimate(policy: Tensor, reference: Tensor, kind: KlKind) -> Tensor:
    """KL(policy || reference) estimated at each token that the policy sampled.

    policy and reference (N,) log-probabilities, u = reference - policy -> (N,) nats:
    k1 = -u, k2 = u^2 / 2, k3 = e^u - 1 - u (Schulman, "Approximating KL divergence", 2020; k3 in
    GRPO, arXiv 2402.03300, eq. 4). k1 and k3 have the KL as their mean; k3 is never negative.

    As a loss on samples of the policy itself, the mean gradient of k1 is zero, that of k2 is the
    gradient of KL(policy || reference), and that of k3 the one of KL(reference || policy). As part
    of a reward use k1. On samples of an older policy multiply k3 by the probability ratio
    (DeepSeek-V3.2); then its gradient is that of KL(policy || reference) too.
    """
    u = reference - policy
    if kind == "k1":
        return -u
    if kind == "k2":
        return u.square() / 2
    if kind == "k3":
        return _exp_minus_tangent(u)
    assert_never(kind)


def _exp_minus_tangent(u: Tensor) -> Tensor:
    """e^u - 1 - u >= 0: its series near 0, its tangent beyond LOG_LIMIT.

    Near 0 the difference would keep no correct digit in fp32 and could turn negative. The tangent
    leaves value and gradient finite, and the gradient's sign right.
    """
    small = u.abs() < 0.1
    near = torch.where(small, u, 0.0)
    series = torch.zeros_like(near)
    for divisor in (20160, 2520, 360, 60, 12, 3, 1):
        series = series * near + 1 / divisor
    bounded = torch.where(small, 0.0, u).clamp(max=LOG_LIMIT)
    beyond = (u - LOG_LIMIT).clamp(min=0.0)
    far = bounded.expm1() - bounded + bounded.expm1() * beyond
    return torch.where(small, near.square() / 2 * series, far)


def group_advantages(
    rewards: Tensor, groups: Tensor, scale: Scale = "std", eps: float = 1e-4
) -> Tensor:
    """GRPO's advantages: the reward against those of the other answers to the same prompt.

    rewards (S,) float, NaN where an answer could not be scored; groups (S,) int, in any order
    -> (S,) in fp64. (r - mean) / (std + eps * spread) within the group, with the unbiased (n - 1)
    standard deviation (arXiv 2402.03300, section 4.1.2; n - 1 as TRL and verl have it). `spread` is
    the deviation within all groups taken together, so a r + b with a > 0 has the advantages of r;
    TRL's eps of 1e-4 and verl's of 1e-6 are numbers on the rewards' scale, whatever that is.
    scale "none" leaves r - mean (Dr. GRPO, arXiv 2503.20783, section 3), and "batch" divides it by
    the unbiased deviation of r - mean over all scorable answers: with rewards whose terms were
    normalised per group these are GDPO's (arXiv 2601.05242).

    An unscorable answer is in no mean and no deviation and gets 0, and so does everything in a
    group whose scorable rewards are equal (`is_flat`), or fewer than two.
    """
    if scale == "std":
        small = eps * _within_spread(rewards, groups)
        return _within_groups(rewards, groups, lambda r: (r - r.mean()) / (r.std() + small))
    centred = _within_groups(rewards, groups, lambda r: r - r.mean())
    if scale == "none":
        return centred
    if scale == "batch":
        scored = centred[~rewards.isnan()]
        spread = float(scored.std()) if len(scored) > 1 else 0.0
        return centred / spread if spread > 0 else centred
    assert_never(scale)


def rloo_advantages(rewards: Tensor, groups: Tensor) -> Tensor:
    """REINFORCE leave-one-out: the reward less the mean of the *other* answers' rewards.

    rewards (S,) float, NaN where unscorable; groups (S,) int -> (S,) in fp64:
    r_i - (1 / (n - 1)) sum of r_j over j != i = n / (n - 1) (r_i - mean), with n scorable answers
    in the group (arXiv 2402.14740). Zeros as in `group_advantages`. A KL penalty belongs in the
    reward: score - beta * the sequence's sum of k1.
    """
    return _within_groups(rewards, groups, lambda r: (r - r.mean()) * (len(r) / (len(r) - 1)))


def is_flat(values: Tensor) -> bool:
    """Whether numbers, NaN left out, are equal or no further apart than `FLAT` of the largest of
    them, which is about what fp32 rounds away; so are fewer than two."""
    known = values[~values.isnan()].double()
    if len(known) < 2:
        return True
    return bool(known.max() - known.min() <= FLAT * known.abs().max())


def _scorable_members(rewards: Tensor, groups: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(mask (S,), rewards in fp64) of the scorable answers of each group that is not flat."""
    for group in sorted(set(groups.tolist())):
        mask = (groups == group) & ~rewards.isnan()
        values = rewards[mask].double()
        if not is_flat(values):
            yield mask, values


def _within_groups(
    rewards: Tensor, groups: Tensor, advantage: Callable[[Tensor], Tensor]
) -> Tensor:
    """`advantage` of the scorable rewards of each group, in fp64: a large offset would round the
    differences away in fp32. 0 where there is nothing to compare."""
    result = torch.zeros_like(rewards, dtype=torch.float64)
    for mask, values in _scorable_members(rewards, groups):
        result[mask] = advantage(values)
    return result


def _within_spread(rewards: Tensor, groups: Tensor) -> float:
    """The unbiased standard deviation within groups, of all that are not flat taken together."""
    every = [values for _, values in _scorable_members(rewards, groups)]
    free = sum(len(values) - 1 for values in every)
    return math.sqrt(sum(float(v.var() * (len(v) - 1)) for v in every) / free) if free else 0.0


def shaped_rewards(scores: Tensor, kl: Tensor, beta: float, lengths: Sequence[int]) -> Tensor:
    """PPO's per-token rewards: -beta * kl at each token, and the score at the last one.

    scores (S,), kl (N,) of kind k1 -> (N,); each sequence's rewards sum to score - beta * sum of kl
    (arXiv 1909.08593, eq. 2; beta 0.2 there at first, 0.05 in TRL). An answer that could not be
    scored (NaN) has no rewards either: leave it out beforehand.
    """
    if 0 in lengths:
        raise ValueError("a sequence needs at least one token to put its score at")
    rewards = -beta * kl
    rewards[_last_tokens(kl, lengths)] += scores.to(kl)
    return rewards


def gae(
    rewards: Tensor, values: Tensor, lengths: Sequence[int], gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16), backwards within each sequence.

    rewards and values (N,), both as stored at the rollout -> advantages (N,), returns (N,):
    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}, return = A + V. After
    the last token V and A are 0. Detached. Whiten the advantages afterwards, never the returns.
    Defaults as in arXiv 1909.08593.
    """
    rewards, values = rewards.detach(), values.detach()
    last = _last_tokens(values, lengths)
    counts = torch.tensor([n for n in lengths if n], device=values.device)
    following = torch.zeros_like(values)
    following[:-1] = values[1:]
    following[last] = 0.0
    advantages = rewards + gamma * following - values
    for back in range(1, max(lengths, default=0)):
        position = (last - back)[counts > back]
        advantages[position] += gamma * lam * advantages[position + 1]
    return advantages, advantages + values


def _last_tokens(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Where the last token of each sequence that has one lies in (N,) values."""
    if sum(lengths) != len(values):
        raise ValueError(f"lengths add up to {sum(lengths)}, but there are {len(values)} tokens")
    counts = [n for n in lengths if n]
    return torch.tensor(counts, dtype=torch.int64, device=values.device).cumsum(0) - 1


def whiten(x: Tensor, mask: Tensor | None = None, shift_mean: bool = True) -> Tensor:
    """(x - mean) / std over the kept elements, with the unbiased (n - 1) variance plus 1e-8.

    x (N,), mask (N,) bool, None for all -> (N,), 0 where not kept. Advantages are shifted; rewards
    keep their mean (`shift_mean=False`, arXiv 1909.08593). One element alone is not scaled.
    """
    keep = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.bool()
    kept = x[keep]
    mean = kept.mean()
    centred = kept - mean
    if len(kept) > 1:
        centred = centred * (kept.var() + 1e-8).rsqrt()
    result = torch.zeros_like(x)
    result[keep] = centred if shift_mean else centred + mean
    return result


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    two_sided: float | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped surrogate, per token and not reduced (arXiv 1707.06347, eq. 7).

    logprobs, old_logprobs, advantages (N,), w = exp(logprobs - old_logprobs) -> (N,):
    weight * max(-A w, -A clip(w, 1 - clip_low, 1 + clip_high)). Different bounds are DAPO's
    clip-higher (0.2, 0.28; arXiv 2503.14476, section 3.1). `two_sided`, above 1 + clip_high, caps
    w where A < 0, which the plain form leaves unbounded (dual-clip PPO, arXiv 1912.09729), to 4
    for example. `weight` (N,) is the weight of `importance_weights`: a KL term is added to the loss
    afterwards and so never multiplied by it. Only `logprobs` gets a gradient.

    clip_fraction counts tokens whose gradient the bounds take away; approx_kl is half the mean
    squared log-ratio.
    """
    if two_sided is not None and two_sided <= 1 + clip_high:
        raise ValueError(f"two_sided is {two_sided}, but must be above 1 + clip_high")
    advantages = advantages.detach()
    log_ratio = logprobs - old_logprobs.detach()
    ratio = log_ratio.clamp(max=LOG_LIMIT).exp()
    # Only bad answers see this cap: it lies above the bound that good ones meet first.
    capped = ratio if two_sided is None else ratio.clamp(max=two_sided)
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(-advantages * capped, -advantages * bounded)
    if weight is not None:
        loss = loss * weight.detach()
    clipped = (advantages > 0) & (ratio > 1 + clip_high)
    clipped |= (advantages < 0) & ((ratio < 1 - clip_low) | (ratio > capped))
    metrics = summarise_spread("ratio", ratio) | {
        "clip_fraction": clipped.to(ratio.dtype).mean(),
        "approx_kl": log_ratio.detach().square().mean() / 2,
    }
    return loss, metrics


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None = 0.2
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error of the value head, per token, with its step clipped (arXiv 1909.08593, code).

    values, old_values (of the rollout), returns (N,) -> (N,):
    max((V - R)^2, (V' - R)^2) / 2 with V' = V_old + clip(V - V_old, -clip, clip). None: no
    clipping. Only `values` gets a gradient. value_clip_fraction counts tokens whose clipped error
    is the larger one.
    """
    old, target = old_values.detach(), returns.detach()
    error = (values - target).square()
    bound = torch.inf if clip is None else clip
    clipped = (old + (values - old).clamp(-bound, bound) - target).square()
    if clip is None:
        clipped = error
    fraction = (clipped > error).to(error.dtype).mean()
    return torch.maximum(error, clipped) / 2, {"value_clip_fraction": fraction}


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """1 - mean((returns - values)^2) / variance of returns.

    values and returns (N,) -> a detached scalar: 1 is perfect, 0 no better than the returns' mean,
    NaN when all returns are equal. The error is not centred (arXiv 1909.08593, code): a value head
    that is off by a constant is wrong.
    """
    values, returns = values.detach(), returns.detach()
    variance = returns.var(correction=0)
    explained = 1 - (returns - values).square().mean() / variance
    return torch.where(variance > 0, explained, torch.nan)


def token_reduction(
    losses: Tensor,
    lengths: Sequence[int],
    kind: Reduction,
    total: GlobalBatch,
    constant: int | None = None,
) -> Tensor:
    """This micro-batch's share of the global batch's loss: the shares add up to the whole.

    losses (N,) -> a scalar. `total` is the same for all micro-batches of an optimiser step, so
    their gradients are added, not averaged.
    sequence: mean over sequences of the mean over their tokens (GRPO, arXiv 2402.03300, eq. 3).
    token: sum over tokens / total.tokens (DAPO, arXiv 2503.14476, section 3.3).
    constant: sum over tokens / (total.sequences * constant), constant the longest length that can
    be generated (Dr. GRPO, arXiv 2503.20783, section 3).
    A sequence without tokens adds 0.
    """
    if kind == "sequence":
        counts = torch.tensor(lengths, dtype=losses.dtype, device=losses.device).clamp(min=1)
        return (sequence_sums(losses, lengths) / counts).sum() / total.sequences
    if kind == "token":
        return losses.sum() / total.tokens
    if kind == "constant":
        if constant is None:
            raise ValueError("the reduction 'constant' needs its constant")
        return losses.sum() / (total.sequences * constant)
    assert_never(kind)


def adapt_kl(beta: float, kl: float, target: float, horizon: float, episodes: int) -> float:
    """The next KL coefficient: beta (1 + e episodes / horizon), e = kl / target - 1 within +-0.2.

    kl is the batch's mean of the KL *summed* over each sequence, episodes the number of sequences
    in it, horizon 10,000 as a rule (arXiv 1909.08593, section 2.2; the code's form).
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * episodes / horizon)


def importance_weights(
    trainer_logprobs: Tensor,
    sampler_logprobs: Tensor,
    lengths: Sequence[int],
    level: Level = "sequence",
    mode: Mode = "mask",
    cap: float = 3.0,
    floor: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """What corrects for a sampler whose probabilities differ from the trainer's.

    Both (N,), of the *same* policy: c = exp(trainer - sampler) of each token, or of each sequence's
    sum and then the same for all of its tokens -> (N,) detached. truncate: c is held within
    [floor, cap]. mask: outside of it the weight is 0. Per token has less variance and a bias; per
    sequence has none before it is cut. Defaults as in TRL 1.16.

    Metrics are of c before it is cut, over tokens or sequences as `level` says, with the fraction
    outside the bounds; logprob_gap is the mean of |trainer - sampler| over tokens.
    """
    gap = (trainer_logprobs - sampler_logprobs).detach()
    log_weight = gap if level == "token" else sequence_sums(gap, lengths)
    raw = log_weight.clamp(max=LOG_LIMIT).exp()
    outside = (raw < floor) | (raw > cap)
    if mode == "truncate":
        weight = raw.clamp(floor, cap)
    elif mode == "mask":
        weight = raw.masked_fill(outside, 0.0)
    else:
        assert_never(mode)
    metrics = summarise_spread("weight", raw) | {
        "weight_cut_fraction": outside.to(raw.dtype).mean(),
        "logprob_gap": gap.abs().mean(),
    }
    return weight if level == "token" else to_tokens(weight, lengths), metrics


def overlong_penalty(lengths: Sequence[int], limit: int, buffer: int) -> Tensor:
    """DAPO's soft penalty for length, to be added to the score (arXiv 2503.14476, eq. 13).

    Token counts of S completions -> (S,) fp32: 0 up to limit - buffer, then falling in a straight
    line to -1 at limit, and -1 beyond. The paper: limit 20,480 and buffer 4,096. With buffer 0 the
    penalty starts above the limit.
    """
    excess = torch.tensor(lengths, dtype=torch.float32) - (limit - buffer)
    if buffer == 0:
        return -(excess > 0).to(torch.float32)
    return (-excess / buffer).clamp(-1.0, 0.0)


def summarise_spread(name: str, values: Tensor) -> dict[str, Tensor]:
    """Mean, least and largest of the values, detached; NaN when there are none."""
    values = values.detach() if len(values) else values.new_full((1,), torch.nan)
    return {
        f"{name}_mean": values.mean(),
        f"{name}_min": values.min(),
        f"{name}_max": values.max(),
    }
