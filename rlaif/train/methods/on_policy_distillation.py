"""On-policy distillation: a teacher's log-probs of what the student itself has just sampled."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from rlaif.config.base import Count, Fraction, told
from rlaif.config.on_policy import PolicyTerms, RolloutTrain


class OnPolicyDistillationTrain(RolloutTrain):
    """On-policy distillation (GKD, arXiv 2306.13649; per-token reverse KL as in MiniLLM, arXiv
    2306.08543): the student samples, and a teacher says of each token how likely it finds it."""

    LEARNS_FROM = "good answers"
    ADVANTAGES = "rlaif.train.rollout:add_teacher_advantages"

    method: Literal["on_policy_distillation"]
    teacher: Annotated[str, Field(min_length=1)] = Field(
        description="The model to imitate: a name in `models`, the id of a step that makes "
        "one, or a folder. It needs the student's vocabulary, and samples nothing."
    )
    divergence: Literal["reverse_kl", "jsd"] = Field(
        "reverse_kl",
        description="reverse_kl: each sampled token's log-ratio is its advantage; jsd: the "
        "Jensen-Shannon divergence over the whole vocabulary at each token.",
    )
    beta: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.5,
        description="Of jsd: the teacher's share of the mixture. The divergence tends to 0 at both "
        "ends: take 0.1 to 0.9.",
    )
    gamma: Fraction = Field(
        0.0, description="Of reverse_kl: the discount of the advantages of later tokens."
    )
    given: Fraction = Field(
        0.0,
        description="Share of the rollouts that learn from the answers in `uses` and sample none; "
        "their divergence is over the whole vocabulary.",
    )
    n: Count = 4
    learning_rate: PositiveFloat = 5e-5

    @model_validator(mode="after")
    def _check_divergence(self) -> OnPolicyDistillationTrain:
        idle = {"reverse_kl": ("beta",), "jsd": ("gamma", "importance_cap", "importance_floor")}
        without = told(self, *idle[self.divergence])
        if without:
            raise ValueError(
                f"`{without[0]}` has no effect with `divergence: {self.divergence}`; leave it out"
            )
        if self.divergence == "jsd" and self.lag:
            raise ValueError(
                "lag: `divergence: jsd` looks at whole distributions, which no weight of an answer "
                "corrects; leave it out, or set `divergence: reverse_kl`"
            )
        if self.divergence == "jsd" and self.importance not in ("none", "mask_sequence"):
            raise ValueError(
                "`importance` has no effect with `divergence: jsd`, which looks at whole "
                "distributions; leave it out"
            )
        rewarded = [name for name in ("flat_groups", "reward_spread") if name in self.gates.given()]
        if rewarded:
            raise ValueError(f"gates.{rewarded[0]} has no effect: there is no reward")
        if self.gates.kl is not None:
            raise ValueError("gates.kl is of a reference, and there is none but the teacher")
        return self

    @property
    def compares(self) -> bool:
        """The teacher is always asked."""
        return True

    @property
    def needs_old_logprobs(self) -> bool:
        """Of reverse_kl, for the advantages."""
        return self.divergence == "reverse_kl"

    @property
    def mixes_data(self) -> bool:
        """See `given`."""
        return self.given > 0

    @property
    def sampled_rollouts(self) -> int:
        """See `given`."""
        return sum(not self.is_given(number) for number in range(self.rollouts))

    def is_given(self, rollout: int) -> bool:
        """Whether the rollout is one of those, evenly spread, that make up the share `given`."""
        # A share such as 0.1 is not exact, and ten of them are to be one.
        before, after = (math.floor(n * self.given + 1e-9) for n in (rollout, rollout + 1))
        return after > before

    def policy_terms(self) -> PolicyTerms:
        """Each token's advantage times its ratio, which is not clipped; the mean over tokens."""
        return PolicyTerms(1.0, math.inf, reduction="token")
