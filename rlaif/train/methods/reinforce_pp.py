"""REINFORCE++ (arXiv 2501.03262): no critic, advantages normalised over the whole rollout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from rlaif.config.base import Count, Fraction
from rlaif.config.on_policy import OnPolicyTrain, PolicyTerms

if TYPE_CHECKING:
    from torch import Tensor

    from rlaif.train.rollout import Rollout


class ReinforcePpTrain(OnPolicyTrain):
    """REINFORCE++ (arXiv 2501.03262): PPO without a critic, whose advantages are returns with mean
    0 and deviation 1 over all tokens of a rollout."""

    ADVANTAGES = "rlaif.train.methods.reinforce_pp:add_batch_advantages"

    method: Literal["reinforce_pp"]
    n: Count = 1
    batch_size: PositiveInt = 16
    beta: NonNegativeFloat = Field(0.01, description="The KL coefficient; OpenRLHF's default.")
    baseline: Literal["none", "group"] = Field(
        "none",
        description="none: the KL is taken off each token's reward; group: the mean reward of the "
        "prompt's answers is taken off first, and the KL is part of the loss (k2).",
    )
    gamma: Fraction = Field(1.0, description="The discount of later tokens' rewards.")
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2

    @model_validator(mode="after")
    def _check_baseline(self) -> ReinforcePpTrain:
        if self.baseline == "group" and self.n == 1:
            raise ValueError(
                "`baseline: group` compares the answers to one prompt, and n is 1: raise n, or "
                "take none"
            )
        if self.baseline == "group" and self.gamma != 1:
            raise ValueError(
                "`gamma` discounts the KL of each token, which `baseline: group` has in the loss: "
                "leave it out"
            )
        return self

    @property
    def needs_old_logprobs(self) -> bool:
        """Always, for the KL in the rewards."""
        return True

    def policy_terms(self) -> PolicyTerms:
        """The mean over all tokens."""
        kl: Literal["k2"] | None = "k2" if self.baseline == "group" else None
        return PolicyTerms(self.clip_low, self.clip_high, kl=kl)


def add_batch_advantages(rollout: Rollout, options: ReinforcePpTrain, beta: float) -> None:
    """Returns (arXiv 2501.03262, section 3), whitened over all tokens of the rollout that are
    learned from."""
    import torch

    from rlaif.train.losses.policy import to_tokens, whiten

    group = options.baseline == "group"
    returns = [
        _group_returns(rollout, number) if group else _token_returns(rollout, number, options, beta)
        for number in range(len(rollout.groups))
    ]
    keep = torch.cat([to_tokens(a, rollout.lengths(i)) for i, a in enumerate(rollout.active)])
    # Without any there is no mean.
    flat = whiten(torch.cat(returns), keep) if bool(keep.any()) else torch.zeros(len(keep))
    rollout.advantages = list(torch.split(flat, [len(r) for r in returns]))


def _token_returns(rollout: Rollout, number: int, options: ReinforcePpTrain, beta: float) -> Tensor:
    """(N,) -beta k1 at each token and the reward at the last one, summed from each token on."""
    import torch

    from rlaif.train.losses.policy import gae, kl_estimate, shaped_rewards

    assert rollout.old is not None
    old, lengths = rollout.old[number].cpu(), rollout.lengths(number)
    kl = torch.zeros_like(old)
    if rollout.reference is not None:
        kl = kl_estimate(old, rollout.reference[number].cpu(), "k1")
    # An answer without a reward is not learned from; 0 keeps the arithmetic finite.
    rewards = shaped_rewards(rollout.rewards[number].nan_to_num(0.0), kl, beta, lengths)
    return gae(rewards, torch.zeros_like(rewards), lengths, options.gamma, 1.0)[1]


def _group_returns(rollout: Rollout, number: int) -> Tensor:
    """(N,) each answer's reward less the mean of its prompt's answers, at all of its tokens."""
    from rlaif.train.losses.policy import to_tokens

    rewards = rollout.rewards[number]
    centred = (rewards - rewards.nanmean()).nan_to_num(0.0)
    return to_tokens(centred.float(), rollout.lengths(number))
