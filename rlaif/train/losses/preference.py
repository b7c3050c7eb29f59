"""Losses on pairs of answers: pure functions of summed log-probabilities.

Every loss on pairs is a function of two numbers, one per answer: the log-ratio to the reference
rho = log pi - log pi_ref, or the log-prob itself where there is no reference; both summed over
completion tokens or divided by the number of them. A soft label `prob` (B,) is the probability p
that `chosen` is really the better answer, and the loss is the expectation
p loss(chosen, rejected) + (1 - p) loss(rejected, chosen). So swapping the two answers and taking
1 - p changes no loss here, also where a margin, a penalty or a likelihood term is part of it.

The supervised loss stands here too, with its normaliser explicit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PairLogprobs:
    """Log-probabilities of B pairs of answers, in nats, summed over completion tokens, all (B,).

    The lengths are completion tokens. `ref_chosen` and `ref_rejected` are the reference's, or both
    None for losses without a reference; no gradient flows into them.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    ref_chosen: Tensor | None
    ref_rejected: Tensor | None
    len_chosen: Tensor
    len_rejected: Tensor

    def __post_init__(self) -> None:
        if (self.ref_chosen is None) != (self.ref_rejected is None):
            raise ValueError("give the reference's log-probs of both answers, or of neither")
        shapes = {name: tuple(v.shape) for name, v in vars(self).items() if v is not None}
        # (B,) and (B, 1) would broadcast to (B, B), silently.
        if len(set(shapes.values())) > 1 or self.policy_chosen.dim() != 1:
            raise ValueError(f"all log-probs and lengths need the same shape (B,), got {shapes}")

    @property
    def has_reference(self) -> bool:
        """Whether the log-ratios exist."""
        return self.ref_chosen is not None

    @property
    def rho_chosen(self) -> Tensor:
        """log pi - log pi_ref of the chosen answers (B,)."""
        return self.policy_chosen - _require_reference(self.ref_chosen)

    @property
    def rho_rejected(self) -> Tensor:
        """log pi - log pi_ref of the rejected answers (B,)."""
        return self.policy_rejected - _require_reference(self.ref_rejected)

    @property
    def delta(self) -> Tensor:
        """rho_chosen - rho_rejected (B,)."""
        return self.rho_chosen - self.rho_rejected


def _require_reference(reference: Tensor | None) -> Tensor:
    if reference is None:
        raise ValueError(
            "this compares with a reference, and the pairs have no reference log-probs: give "
            "ref_chosen and ref_rejected, or use a loss without a reference (slic, simpo, orpo)"
        )
    return reference.detach()


def _log_ratios(pairs: PairLogprobs, length_normalise: bool) -> tuple[Tensor, Tensor]:
    if length_normalise:
        return (
            _per_token(pairs.rho_chosen, pairs.len_chosen),
            _per_token(pairs.rho_rejected, pairs.len_rejected),
        )
    return pairs.rho_chosen, pairs.rho_rejected


def _mean_logprobs(pairs: PairLogprobs) -> tuple[Tensor, Tensor]:
    return (
        _per_token(pairs.policy_chosen, pairs.len_chosen),
        _per_token(pairs.policy_rejected, pairs.len_rejected),
    )


def _per_token(values: Tensor, lengths: Tensor) -> Tensor:
    return values / lengths.clamp(min=1)


def _expected_loss(
    loss: Callable[[Tensor, Tensor], Tensor],
    chosen: Tensor,
    rejected: Tensor,
    prob: Tensor | float | None,
) -> Tensor:
    """`loss(better, worse)` averaged over which answer is the better one."""
    if prob is None:
        return loss(chosen, rejected)
    return prob * loss(chosen, rejected) + (1.0 - prob) * loss(rejected, chosen)


def dpo(
    pairs: PairLogprobs,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    length_normalise: bool = False,
    positive_weight: float = 0.0,
    prob: Tensor | None = None,
) -> Tensor:
    """Direct preference optimisation (arXiv 2305.18290): -log sigmoid(beta delta), (B,).

    - `label_smoothing` e in [0, 0.5) is conservative DPO, (1 - e) loss(delta) + e loss(-delta): the
      optimum is at beta delta = logit(1 - e). With `prob`, p becomes p (1 - e) + (1 - p) e.
    - `length_normalise` divides each rho by its length (Tülu 3, arXiv 2411.15124, with beta 5).
    - `positive_weight` w > 0 is DPO-positive (Smaug, arXiv 2402.13228, with w 50 and beta 0.3):
      -log sigmoid(beta (delta - w max(0, -rho_chosen))), plain DPO where rho_chosen >= 0.
    """
    _check_noise(label_smoothing)

    def loss_of_order(better: Tensor, worse: Tensor) -> Tensor:
        """(B,) of the two answers' numbers, (B,) each, if the first is the better one."""
        margin = beta * better - beta * worse
        if positive_weight:
            margin = margin - beta * positive_weight * F.relu(-better)
        return -F.logsigmoid(margin)

    p: Tensor | float | None = prob
    if label_smoothing:
        p = 1.0 if prob is None else prob
        p = p * (1.0 - label_smoothing) + (1.0 - p) * label_smoothing
    return _expected_loss(loss_of_order, *_log_ratios(pairs, length_normalise), p)


def robust_dpo(
    pairs: PairLogprobs,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
    prob: Tensor | None = None,
) -> Tensor:
    """Robust DPO (arXiv 2403.00409): [(1 - e) l(delta) - e l(-delta)] / (1 - 2 e) with
    l(d) = -log sigmoid(beta d), (B,).

    If labels were flipped at the rate e = `label_smoothing` in [0, 0.5), its mean over the flips is
    the DPO loss of the clean labels. It has no lower bound: as delta grows it falls linearly.
    """
    _check_noise(label_smoothing)

    def loss_of_order(better: Tensor, worse: Tensor) -> Tensor:
        """(B,) of the two answers' numbers, (B,) each, if the first is the better one."""
        margin = beta * (better - worse)
        kept = -(1.0 - label_smoothing) * F.logsigmoid(margin)
        return (kept + label_smoothing * F.logsigmoid(-margin)) / (1.0 - 2.0 * label_smoothing)

    return _expected_loss(loss_of_order, pairs.rho_chosen, pairs.rho_rejected, prob)


def _check_noise(rate: float) -> None:
    if not 0.0 <= rate < 0.5:
        raise ValueError(f"label_smoothing is a rate of wrong labels in [0, 0.5), got {rate}")


def ipo(
    pairs: PairLogprobs,
    *,
    beta: float = 0.1,
    length_normalise: bool = False,
    prob: Tensor | None = None,
) -> Tensor:
    """Identity preference optimisation (arXiv 2310.12036): (delta - 1 / (2 tau))^2 with tau = beta,
    (B,). With `prob` the optimum is delta = (2 p - 1) / (2 tau).

    The paper's equation has sums over tokens. TRL divides each rho by its length, which is
    `length_normalise`; losses and betas of the two forms are not comparable.
    """

    def loss_of_order(better: Tensor, worse: Tensor) -> Tensor:
        """(B,) of the two answers' numbers, (B,) each, if the first is the better one."""
        return (better - worse - 0.5 / beta) ** 2

    return _expected_loss(loss_of_order, *_log_ratios(pairs, length_normalise), prob)


def hinge(pairs: PairLogprobs, *, beta: float = 0.05, prob: Tensor | None = None) -> Tensor:
    """Hinge with a reference (RSO, arXiv 2309.06657): max(0, 1 - beta delta), (B,)."""

    def loss_of_order(better: Tensor, worse: Tensor) -> Tensor:
        """(B,) of the two answers' numbers, (B,) each, if the first is the better one."""
        return F.relu(1.0 - beta * (better - worse))

    return _expected_loss(loss_of_order, pairs.rho_chosen, pairs.rho_rejected, prob)


def slic(
    pairs: PairLogprobs,
    *,
    margin: float = 1.0,
    nll_weight: float = 0.0,
    prob: Tensor | None = None,
) -> Tensor:
    """SLiC-HF (arXiv 2305.10425), without a reference:
    max(0, margin - log pi(chosen) + log pi(rejected)) - nll_weight log pi(chosen), (B,).

    Both terms have sums over tokens. The likelihood term's target is the better answer; the paper
    also uses the fine-tuning data's. The defaults are ours.
    """

    def loss_of_order(better: Tensor, worse: Tensor) -> Tensor:
        """(B,) of the two answers' numbers, (B,) each, if the first is the better one."""
        return F.relu(margin - better + worse) - nll_weight * better

    return _expected_loss(loss_of_order, pairs.policy_chosen, pairs.policy_rejected, prob)


def simpo(
    pairs: PairLogprobs, *, beta: float = 2.0, gamma: float = 1.0, prob: Tensor | None = None
) -> Tensor:
    """SimPO (arXiv 2405.14734), without a reference: -log sigmoid(beta (a_w - a_l) - gamma), (B,),
    with a the mean log-prob per token. The paper has beta 2 to 10, gamma / beta 0.1 to 0.8.

    With `prob`, gamma is asked of whichever answer is the better one. TRL's label smoothing instead
    keeps gamma on the side of `chosen` in both halves.
    """

    def loss_of_order(better: Tensor, worse: Tensor) -> Tensor:
        """(B,) of the two answers' numbers, (B,) each, if the first is the better one."""
        return -F.logsigmoid(beta * (better - worse) - gamma)

    return _expected_loss(loss_of_order, *_mean_logprobs(pairs), prob)


def orpo(pairs: PairLogprobs, *, weight: float = 0.1, prob: Tensor | None = None) -> Tensor:
    """ORPO (arXiv 2403.07691), without a reference: -a_w - weight log sigmoid(o_w - o_l), (B,),
    with a the mean log-prob per completion token and o = a - log(1 - exp a) its log odds.

    TRL's likelihood term also counts the prompt's tokens.
    """

    def loss_of_order(better: Tensor, worse: Tensor) -> Tensor:
        """(B,) of the two answers' numbers, (B,) each, if the first is the better one."""
        return -better - weight * F.logsigmoid(_log_odds(better) - _log_odds(worse))

    return _expected_loss(loss_of_order, *_mean_logprobs(pairs), prob)


def log1mexp(values: Tensor) -> Tensor:
    """log(1 - exp x) for x < 0, accurate at both ends, with finite gradients."""
    # `where` multiplies the gradient of the branch not taken by 0, so it must be finite too.
    far = torch.log1p(-torch.exp(values.clamp(max=-math.log(2))))
    return torch.where(values > -math.log(2), torch.log(-torch.expm1(values)), far)


def _log_odds(mean_logprobs: Tensor) -> Tensor:
    # A probability that rounds to 1 has infinite odds, and two of them have none to compare.
    below = mean_logprobs.clamp(max=-torch.finfo(mean_logprobs.dtype).eps)
    return below - log1mexp(below)


def apo_zero(pairs: PairLogprobs, *, beta: float = 0.1, prob: Tensor | None = None) -> Tensor:
    """APO-zero (arXiv 2408.06266): 1 - sigmoid(beta rho_w) + sigmoid(beta rho_l), (B,), in (0, 2).

    Raises the chosen answer's likelihood and lowers the rejected one's, each for itself.
    """

    def loss_of_order(better: Tensor, worse: Tensor) -> Tensor:
        """(B,) of the two answers' numbers, (B,) each, if the first is the better one."""
        return torch.sigmoid(-beta * better) + torch.sigmoid(beta * worse)

    return _expected_loss(loss_of_order, pairs.rho_chosen, pairs.rho_rejected, prob)


def nca(pairs: PairLogprobs, *, beta: float = 0.01, prob: Tensor | None = None) -> Tensor:
    """Noise contrastive alignment on pairs (arXiv 2402.05369), with r = beta rho:
    -log sigmoid(r_w) - log sigmoid(-r_w) / 2 - log sigmoid(-r_l) / 2, (B,).
    """

    def loss_of_order(better: Tensor, worse: Tensor) -> Tensor:
        """(B,) of the two answers' numbers, (B,) each, if the first is the better one."""
        pulled_back = F.logsigmoid(-beta * better) + F.logsigmoid(-beta * worse)
        return -F.logsigmoid(beta * better) - 0.5 * pulled_back

    return _expected_loss(loss_of_order, pairs.rho_chosen, pairs.rho_rejected, prob)


def kto(
    rho: Tensor,
    desirable: Tensor,
    z: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Kahneman-Tversky optimisation (arXiv 2402.01306) of single answers, (B,):
    w_D (1 - sigmoid(beta (rho - z))) if desirable, else w_U (1 - sigmoid(beta (z - rho))).

    rho (B,) is log pi - log pi_ref, `desirable` (B,) is bool, `z` is `kto_baseline`'s scalar and
    gets no gradient. The paper wants w_D n_D / (w_U n_U) in [1, 3/2], with n the counts.
    """
    gap = beta * (rho - z.detach())
    good = desirable_weight * torch.sigmoid(-gap)
    return torch.where(desirable.bool(), good, undesirable_weight * torch.sigmoid(gap))


def kto_baseline(rho_mismatched: Tensor) -> Tensor:
    """KTO's z: the mean of log pi - log pi_ref over answers put to another row's prompt, at least
    0, detached. A scalar, shared by the batch; it estimates the divergence from the reference.
    """
    if rho_mismatched.numel() == 0:
        raise ValueError("KTO's baseline needs at least one mismatched pair of prompt and answer")
    return rho_mismatched.detach().mean().clamp(min=0.0)


def pair_metrics(
    pairs: PairLogprobs, beta: float, *, length_normalise: bool = False
) -> dict[str, Tensor]:
    """What to log for each pair, (B,), detached: margin, accuracy (1 where margin > 0), the summed
    logprob_chosen and logprob_rejected and, with a reference, reward_chosen and reward_rejected.

    The rewards are beta rho, and the margin is their difference. Without a reference it is beta
    times the difference of log-probs. `length_normalise` divides by the lengths in both, as losses
    do that work per token.
    """
    if pairs.has_reference:
        chosen, rejected = _log_ratios(pairs, length_normalise)
    else:
        chosen, rejected = (
            _mean_logprobs(pairs)
            if length_normalise
            else (pairs.policy_chosen, pairs.policy_rejected)
        )
    margin = beta * chosen - beta * rejected
    metrics = {
        "margin": margin,
        "accuracy": (margin > 0).to(margin.dtype),
        "logprob_chosen": pairs.policy_chosen,
        "logprob_rejected": pairs.policy_rejected,
    }
    if pairs.has_reference:
        metrics |= {"reward_chosen": beta * chosen, "reward_rejected": beta * rejected}
    return {name: value.detach() for name, value in metrics.items()}


def nll_loss(logprobs: Tensor, lengths: Tensor) -> Tensor:
    """Mean negative log-likelihood per token of each sequence, the added term of DPO+NLL
    (iterative RPO, arXiv 2404.19733; Llama 3, arXiv 2407.21783).

    logprobs (B,) summed over completion tokens, lengths (B,) token counts -> (B,) nats per token.
    """
    return -_per_token(logprobs, lengths)


def sft_loss(token_logprobs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood summed over the tokens that `mask` keeps, and how many those are.

    token_logprobs and mask (bool or 0/1) share any shape. Returns two scalars: the sum in nats and
    the count. Divide by the count over the whole global batch, so that the result does not depend
    on how the batch was cut into micro-batches.
    """
    keep = mask.bool()
    return -token_logprobs.masked_fill(~keep, 0.0).sum(), keep.sum()
