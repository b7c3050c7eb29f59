"""The train step's methods that learn from answers the policy has just sampled."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from rlaif.config.base import Count, Fraction
from rlaif.config.gates import Gates
from rlaif.config.rewards import Rewards, RewardTerm, terms_of
from rlaif.config.training import ReferenceTrain


class OnPolicyTrain(ReferenceTrain):
    """Keys of methods that learn from answers the policy has just sampled.

    One rollout samples `n` answers to each of `batch_size` x `sync_every` training prompts;
    `batch_size` counts the prompts of one optimiser step, `epochs` the passes over a rollout.
    """

    rewards: Rewards = Field(
        description="A list of terms whose sum is the reward, or the weight of each judge by id: "
        "then it is the weighted mean of their scores."
    )
    gates: Gates = Field(
        Gates(),
        exclude_if=lambda value: value == Gates(),
        description="Where to warn, and where to stop before a rollout is learned from.",
    )
    rollouts: PositiveInt = Field(50, description="How often fresh answers are sampled.")
    n: Count = Field(8, description="Answers to each prompt.")
    sync_every: PositiveInt = Field(
        1, description="Optimiser steps that learn from answers of the same weights."
    )
    batch_size: PositiveInt = Field(4, description="Prompts in one optimiser step.")
    temperature: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    max_new_tokens: PositiveInt = 64
    stop: list[str] = []
    checkpoint_every: PositiveInt = Field(5, description="Rollouts between checkpoints.")
    missing_eos_penalty: NonNegativeFloat = Field(
        0.0, description="Taken from the reward of an answer that never ends."
    )
    importance: Literal[
        "none", "truncate_token", "truncate_sequence", "mask_token", "mask_sequence"
    ] = Field("mask_sequence", description="What to do where sampler and trainer differ.")
    importance_cap: PositiveFloat = Field(
        3.0, description="The largest trainer/sampler ratio that is kept; TRL's default."
    )
    importance_floor: NonNegativeFloat = Field(
        0.0, description="The least one; IcePop masks tokens outside of 0.5 and 5."
    )

    @property
    def terms(self) -> list[RewardTerm]:
        """The terms of the reward."""
        return terms_of(self.rewards)

    @property
    def reward_judges(self) -> list[str]:
        """The judges of the terms, each once."""
        return list(dict.fromkeys(term.judge for term in self.terms))

    @property
    def compares(self) -> bool:
        """Whether the reference's log-probs are needed: for the loss, or to watch the KL."""
        return self.beta > 0 or self.gates.kl is not None

    @model_validator(mode="after")
    def _one_answer_has_no_group(self) -> OnPolicyTrain:
        if self.n > 1:
            return self
        if any(term.normalise == "group" for term in self.terms):
            raise ValueError(
                "`normalise: group` compares the answers to one prompt, and n is 1: raise n, or "
                "take running or reference"
            )
        if self.gates.flat_groups is not None:
            raise ValueError(
                "gates.flat_groups has no effect: with n of 1 every prompt has one answer"
            )
        return self

    @model_validator(mode="after")
    def _combine(self) -> OnPolicyTrain:
        if self.processes not in ("auto", 1):
            raise ValueError("on-policy training runs in one process; leave `processes` out")
        if self.sharding != "none":
            raise ValueError("on-policy training runs in one process; leave `sharding` out")
        if self.lora is not None and self.lora.dropout > 0:
            raise ValueError("on-policy training compares log-probs: set lora.dropout to 0")
        if self.overlong == "truncate_left":
            raise ValueError(
                "a prompt that is answered anew cannot be cut: set `overlong` to skip or refuse"
            )
        if self.max_length <= self.max_new_tokens:
            raise ValueError(
                f"max_length ({self.max_length}) counts prompt and answer, and max_new_tokens "
                f"({self.max_new_tokens}) leaves no room for a prompt: raise max_length"
            )
        mixes = getattr(self, "ptx_weight", 0.0) > 0
        if not mixes and not self.train_on_eos:
            raise ValueError(
                "train_on_eos: answers are learned from as they were sampled, with the end token "
                "if there is one; leave it out (it counts for ppo with ptx_weight)"
            )
        if not mixes and self.reasoning != "keep":
            raise ValueError(
                "reasoning: answers are learned from as they were sampled; leave it out (it counts "
                "for ppo with ptx_weight)"
            )
        if not mixes and self.uses is not None:
            raise ValueError(
                "uses names preferences, and only ppo with ptx_weight mixes some in; leave it out"
            )
        fields = OnPolicyTrain.model_fields
        bounds = ("importance_cap", "importance_floor")
        changed = [key for key in bounds if getattr(self, key) != fields[key].default]
        if changed and self.importance == "none":
            raise ValueError(f"`{changed[0]}` has no effect with `importance: none`; leave it out")
        if self.importance_floor >= self.importance_cap:
            raise ValueError("importance_floor must be below importance_cap")
        if self.importance != "none" and self.temperature != 1.0:
            raise ValueError(
                "the sampler's log-probs are at temperature 1: with another temperature set "
                "`importance: none`"
            )
        return self


class GrpoTrain(OnPolicyTrain):
    """Group-relative policy optimisation (arXiv 2402.03300), with the switches of DAPO
    (arXiv 2503.14476) and Dr. GRPO (arXiv 2503.20783)."""

    method: Literal["grpo"]
    n: Annotated[int, Field(ge=2)] = 8
    beta: NonNegativeFloat = Field(0.04, description="arXiv 2402.03300; DAPO uses 0.")
    kl: Literal["k2", "k3"] = Field(
        "k3", description="k1 is left out: as a loss its expected gradient is 0."
    )
    scale: Literal["std", "none"] = Field("std", description="none: Dr. GRPO.")
    reduction: Literal["token", "sequence", "constant"] = Field(
        "token", description="token: DAPO; sequence: DeepSeekMath; constant: Dr. GRPO."
    )
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = Field(0.2, description="DAPO: 0.28.")
    two_sided: PositiveFloat | None = None
    overlong_buffer: int = Field(
        0, ge=0, description="DAPO: the reward falls over the last this many tokens; 0 is off."
    )
    mask_truncated: bool = Field(False, description="DAPO: unfinished answers teach nothing.")

    @model_validator(mode="after")
    def _sides(self) -> GrpoTrain:
        if self.two_sided is not None and self.two_sided <= 1 + self.clip_high:
            raise ValueError("two_sided must be above 1 + clip_high")
        return self


class RlooTrain(OnPolicyTrain):
    """REINFORCE leave-one-out (arXiv 2402.14740); the KL is part of the reward."""

    method: Literal["rloo"]
    n: Annotated[int, Field(ge=2)] = 4
    beta: NonNegativeFloat = 0.03


class PpoTrain(OnPolicyTrain):
    """Proximal policy optimisation for language models (arXiv 1909.08593, 2203.02155)."""

    method: Literal["ppo"]
    n: Count = 1
    batch_size: PositiveInt = 16
    epochs: PositiveInt = 4
    beta: NonNegativeFloat = Field(0.05, description="The KL coefficient; TRL's default.")
    kl_target: PositiveFloat | None = Field(
        None, description="Nats per answer; beta adapts to it where it is given."
    )
    kl_horizon: PositiveFloat = 10000.0
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    clip: PositiveFloat = 0.2
    value_clip: PositiveFloat = 0.2
    value_weight: PositiveFloat = 0.1
    whiten_rewards: bool = False
    critic: Literal["head", "separate"] = Field(
        "head", description="A value head on the policy, or a model of its own."
    )
    ptx_weight: NonNegativeFloat = Field(
        0.0, description="InstructGPT: adds the chosen answers' NLL of the preferences so far."
    )

    @model_validator(mode="after")
    def _adapts(self) -> PpoTrain:
        if self.kl_target is not None and self.beta == 0:
            raise ValueError("kl_target scales beta, which must then be above 0 to start from")
        return self


class OnlineDpoTrain(OnPolicyTrain):
    """Online DPO, or OAIF (arXiv 2402.04792): the best of `n` answers against the worst."""

    method: Literal["online_dpo"]
    n: Annotated[int, Field(ge=2)] = 2
    importance: Literal["none"] = Field("none", description="Pairs need no correction.")
    loss: Literal["dpo", "ipo", "hinge"] = Field(
        "dpo", description="The paper's beta: dpo 0.1, ipo 1.0, hinge (SLiC) 0.002."
    )
