"""Clipped importance-sampling-weight policy optimisation (CISPO, arXiv 2506.13585)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from rlaif.config.on_policy import GroupTrain, PolicyTerms

if TYPE_CHECKING:
    from torch import Tensor


class CispoTrain(GroupTrain):
    """GRPO that clips the weight of a token and never its gradient (arXiv 2506.13585): REINFORCE
    with bounded importance weights, which are held fixed.

    With one step per rollout the weight is 1, and the gradient is that of GRPO.
    """

    LOSS = "rlaif.train.methods.cispo:cispo_loss"
    LOSS_KEYS = ("clip_low", "clip_high")

    method: Literal["cispo"]
    beta: NonNegativeFloat = Field(0.0, description="The paper leaves the KL out.")
    clip_low: PositiveFloat | None = Field(
        None, description="Weights are at least 1 - clip_low; the paper has no lower bound."
    )
    clip_high: PositiveFloat = Field(
        4.0,
        description="Weights are at most 1 + clip_high: 5, which TRL recommends (and calls 5.0).",
    )

    def policy_terms(self) -> PolicyTerms:
        """The mean over all tokens."""
        return PolicyTerms(1.0, self.clip_high, reduction="token", kl=self.kl)


def cispo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    lengths: Sequence[int],
    clip_low: float | None = None,
    clip_high: float = 4.0,
    weight: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """-clip(w, 1 - clip_low, 1 + clip_high) A log pi of each token (arXiv 2506.13585, eq. 4).

    logprobs, old_logprobs, advantages (N,), w = exp(logprobs - old_logprobs) -> (N,). No gradient
    goes through w, so that no token loses its own. `weight` (N,) and the metrics as in
    `clipped_policy_loss`; clip_fraction counts tokens whose weight a bound changes.
    """
    from rlaif.train.losses.policy import LOG_LIMIT, summarise_spread

    log_ratio = (logprobs - old_logprobs).detach()
    ratio = log_ratio.clamp(max=LOG_LIMIT).exp()
    bounded = ratio.clamp(None if clip_low is None else 1 - clip_low, 1 + clip_high)
    loss = -bounded * advantages.detach() * logprobs
    if weight is not None:
        loss = loss * weight.detach()
    metrics = summarise_spread("ratio", ratio) | {
        "clip_fraction": (bounded != ratio).to(ratio.dtype).mean(),
        "approx_kl": log_ratio.square().mean() / 2,
    }
    return loss, metrics
