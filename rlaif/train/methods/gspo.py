"""Group sequence policy optimisation (GSPO, arXiv 2507.18071)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from rlaif.config.on_policy import GroupTrain, PolicyTerms

if TYPE_CHECKING:
    from torch import Tensor


class GspoTrain(GroupTrain):
    """GRPO whose probability ratio is that of the whole answer, to the power of one over its
    length (arXiv 2507.18071): an answer is clipped whole or not at all.

    With one step per rollout the ratio is 1, and this is GRPO with `reduction: sequence`.
    """

    LOSS = "rlaif.train.methods.gspo:gspo_loss"
    LOSS_KEYS = ("clip_low", "clip_high")

    method: Literal["gspo"]
    beta: NonNegativeFloat = Field(0.0, description="The paper leaves the KL out.")
    sync_every: PositiveInt = Field(
        4, description="Optimiser steps per rollout: the paper's four minibatches."
    )
    clip_low: PositiveFloat = Field(3e-4, description="Of a ratio per token: far below GRPO's 0.2.")
    clip_high: PositiveFloat = 4e-4

    def policy_terms(self) -> PolicyTerms:
        """The mean over answers, so that no answer counts by its length."""
        return PolicyTerms(self.clip_low, self.clip_high, reduction="sequence", kl=self.kl)


def gspo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    lengths: Sequence[int],
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    weight: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped surrogate of whole answers (arXiv 2507.18071, eq. 5 and 7), given to each token.

    logprobs, old_logprobs, advantages (N,), lengths of S answers -> (N,) whose mean over an
    answer's tokens is max(-A s, -A clip(s, 1 - clip_low, 1 + clip_high)), with
    s = exp(mean of logprobs - old_logprobs over its tokens). `weight` (N,) as in
    `clipped_policy_loss`; only `logprobs` gets a gradient, and of every token s A / length. Metrics
    as there, with the ratio s; clip_fraction counts tokens of clipped answers.
    """
    import torch

    from rlaif.kernels.batching import sequence_sums
    from rlaif.train.losses.policy import clipped_policy_loss, to_tokens

    log_ratio = logprobs - old_logprobs.detach()
    counts = torch.tensor(lengths, dtype=logprobs.dtype, device=logprobs.device).clamp(min=1)
    mean = to_tokens(sequence_sums(log_ratio, lengths) / counts, lengths)
    loss, metrics = clipped_policy_loss(
        mean, torch.zeros_like(mean), advantages, clip_low, clip_high, weight=weight
    )
    return loss, metrics | {"approx_kl": log_ratio.detach().square().mean() / 2}
