"""Methods that learn from answers the policy has just sampled.

The defaults are the papers' or, where those need a large model, what the field uses; each field's
description names its source.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from rlaif.config.base import Count, Fraction
from rlaif.config.on_policy import ConstrainedTrain, GroupTrain, OnPolicyTrain, PolicyTerms


class GrpoTrain(GroupTrain):
    """Group-relative policy optimisation (arXiv 2402.03300), with the switches of DAPO
    (arXiv 2503.14476) and Dr. GRPO (arXiv 2503.20783)."""

    method: Literal["grpo"]
    beta: NonNegativeFloat = Field(0.04, description="arXiv 2402.03300; DAPO uses 0.")
    reduction: Literal["token", "sequence", "constant"] = Field(
        "token", description="token: DAPO; sequence: DeepSeekMath; constant: Dr. GRPO."
    )
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = Field(0.2, description="DAPO: 0.28.")
    two_sided: PositiveFloat | None = None

    @model_validator(mode="after")
    def _check_sides(self) -> GrpoTrain:
        if self.two_sided is not None and self.two_sided <= 1 + self.clip_high:
            raise ValueError("two_sided must be above 1 + clip_high")
        return self

    def policy_terms(self) -> PolicyTerms:
        """The KL is part of the loss."""
        return PolicyTerms(
            self.clip_low,
            self.clip_high,
            self.two_sided,
            self.reduction,
            self.max_new_tokens,
            kl=self.kl,
        )


class RlooTrain(ConstrainedTrain):
    """REINFORCE leave-one-out (arXiv 2402.14740); the KL is part of the reward."""

    ADVANTAGES = "rlaif.train.rollout:add_rloo_advantages"

    method: Literal["rloo"]
    n: Annotated[int, Field(ge=2)] = 4
    beta: NonNegativeFloat = 0.03

    @property
    def needs_old_logprobs(self) -> bool:
        """Always, for the KL."""
        return True

    def policy_terms(self) -> PolicyTerms:
        """REINFORCE does not clip; with one step per rollout the ratio is 1 anyhow. Tokens are
        summed."""
        return PolicyTerms(1.0, math.inf, reduction="constant", constant=1)


class PpoTrain(ConstrainedTrain):
    """Proximal policy optimisation for language models (arXiv 1909.08593, 2203.02155)."""

    LEARNS_FROM = "good answers"
    ADVANTAGES = "rlaif.train.rollout:add_ppo_advantages"

    method: Literal["ppo"]
    n: Count = 1
    batch_size: PositiveInt = 16
    epochs: PositiveInt = 4
    beta: NonNegativeFloat = Field(0.05, description="The KL coefficient; TRL's default.")
    kl_target: PositiveFloat | None = Field(
        None, description="Target KL in nats per answer, to which beta adapts."
    )
    kl_horizon: PositiveFloat = 10000.0
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    clip: PositiveFloat = 0.2
    value_clip: PositiveFloat = 0.2
    value_weight: PositiveFloat = 0.1
    whiten_rewards: bool = False
    critic: Literal["head", "separate"] = Field(
        "head", description="A value head on the policy, or a separate model."
    )
    critic_warmup: int = Field(
        0,
        ge=0,
        exclude_if=lambda value: value == 0,
        description="Optimiser steps in which the critic learns alone and the policy stays as it "
        "is; InternLM2 (arXiv 2403.17297): 50.",
    )
    ptx_weight: NonNegativeFloat = Field(
        0.0,
        description="InstructGPT: adds the NLL of raw texts, demonstrations or the preferences' "
        "chosen answers.",
    )

    @model_validator(mode="after")
    def _check_warmup(self) -> PpoTrain:
        if self.critic_warmup and self.weight_decay:
            raise ValueError(
                "critic_warmup leaves the policy as it is, and weight_decay would shrink it: set "
                "one of them to 0"
            )
        steps = self.rollouts * self.epochs * self.sync_every
        if self.critic_warmup >= steps:
            raise ValueError(
                f"critic_warmup ({self.critic_warmup}) is not below the training's optimiser steps "
                f"(rollouts x epochs x sync_every = {steps}): the policy would never learn"
            )
        return self

    @model_validator(mode="after")
    def _check_adaptive_kl(self) -> PpoTrain:
        if self.kl_target is not None and self.beta == 0:
            raise ValueError("kl_target scales beta, which must then be above 0 to start from")
        return self

    @property
    def needs_old_logprobs(self) -> bool:
        """Always, for the KL and the values."""
        return True

    @property
    def whitens_advantages(self) -> bool:
        """Over all tokens of a rollout."""
        return True

    @property
    def critic_kind(self) -> Literal["head", "separate"]:
        """See `critic`."""
        return self.critic

    @property
    def critic_steps(self) -> int:
        """See `critic_warmup`."""
        return self.critic_warmup

    @property
    def mixes_data(self) -> bool:
        """See `ptx_weight`."""
        return self.ptx_weight > 0

    def policy_terms(self) -> PolicyTerms:
        """The mean over all tokens, with the critic's loss and the mixed answers'."""
        return PolicyTerms(
            self.clip,
            self.clip,
            value_weight=self.value_weight,
            value_clip=self.value_clip,
            ptx_weight=self.ptx_weight,
        )

    def next_beta(self, beta: float, kl: float | None, answers: int) -> float:
        """Towards `kl_target`, where that is given and the KL was measured."""
        from rlaif.train.losses.policy import adapt_kl

        if self.kl_target is None:
            return beta
        kl = self.kl_target if kl is None else kl
        return adapt_kl(beta, kl, self.kl_target, self.kl_horizon, answers)


class OnlineDpoTrain(OnPolicyTrain):
    """Online DPO, or OAIF (arXiv 2402.04792): the best of `n` answers against the worst."""

    method: Literal["online_dpo"]
    n: Annotated[int, Field(ge=2)] = 2
    importance: Literal["none"] = Field("none", description="Pairs need no correction.")
    loss: Literal["dpo", "ipo", "hinge"] = Field(
        "dpo", description="The paper's beta: dpo 0.1, ipo 1.0, hinge (SLiC) 0.002."
    )

    @property
    def pair_loss(self) -> str:
        """See `loss`."""
        return f"rlaif.train.losses.preference:{self.loss}"
