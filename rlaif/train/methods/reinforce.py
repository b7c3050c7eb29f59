"""REINFORCE with a learned baseline, as in RLAIF (arXiv 2309.00267)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from rlaif.config.base import Count, Fraction
from rlaif.config.on_policy import OnPolicyTrain, PolicyTerms

if TYPE_CHECKING:
    from rlaif.train.rollout import Rollout


class ReinforceTrain(OnPolicyTrain):
    """REINFORCE (Williams 1992) with a critic's value as the baseline, whose return weighs reward
    against KL: (1 - beta) reward - beta KL, over the whole answer (arXiv 2309.00267)."""

    ADVANTAGES = "rlaif.train.methods.reinforce:add_baseline_advantages"

    method: Literal["reinforce"]
    n: Count = 1
    batch_size: PositiveInt = 16
    beta: Fraction = Field(
        0.05, description="The share of the KL in the return; the reward has the rest."
    )
    critic: Literal["head", "separate"] = Field(
        "separate", description="The paper's is a model of its own; head: on the policy's states."
    )
    value_weight: PositiveFloat = Field(
        1.0, description="Of half the critic's squared error, beside the policy's loss."
    )

    @property
    def needs_old_logprobs(self) -> bool:
        """Always, for the KL and the values."""
        return True

    @property
    def critic_kind(self) -> Literal["head", "separate"]:
        """See `critic`."""
        return self.critic

    def policy_terms(self) -> PolicyTerms:
        """Nothing is clipped; with one step per rollout the ratio is 1. Tokens are summed."""
        return PolicyTerms(
            1.0,
            math.inf,
            reduction="constant",
            constant=1,
            value_weight=self.value_weight,
            value_clip=None,
        )


def add_baseline_advantages(rollout: Rollout, options: ReinforceTrain, beta: float) -> None:
    """The return of the whole answer at each of its tokens, less the critic's value of the state
    before it (arXiv 2309.00267, appendix)."""
    import torch

    from rlaif.train.losses.policy import explained_variance, to_tokens
    from rlaif.train.rollout import sequence_kl

    assert rollout.values is not None
    advantages, returns = [], []
    for number, scores in enumerate(rollout.rewards):
        # An answer without a reward is not learned from; 0 keeps the arithmetic finite.
        own = (1 - beta) * scores.nan_to_num(0.0) - beta * sequence_kl(rollout, number)
        spread = to_tokens(own.float(), rollout.lengths(number))
        returns.append(spread)
        advantages.append(spread - rollout.values[number].cpu())
    rollout.advantages, rollout.returns = advantages, returns
    keep = torch.cat([to_tokens(a, rollout.lengths(i)) for i, a in enumerate(rollout.active)])
    values = torch.cat([value.cpu() for value in rollout.values])
    variance = explained_variance(values[keep], torch.cat(returns)[keep])
    rollout.metrics["explained_variance"] = float(variance)
