"""Quark: quantile tokens (arXiv 2205.13636)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from rlaif.config.base import Count
from rlaif.config.on_policy import OnPolicyTrain

if TYPE_CHECKING:
    from torch import Tensor


class QuarkTrain(OnPolicyTrain):
    """Quantised reward conditioning (Quark, arXiv 2205.13636): every answer so far is learned from
    after a token that says in which quantile of the rewards it is, and answers are sampled after
    the token of the best."""

    LOSS = "rlaif.train.methods.quark:quark_loss"
    LOSS_KEYS = ("beta", "entropy_weight")

    method: Literal["quark"]
    n: Count = 1
    batch_size: PositiveInt = 128
    sync_every: PositiveInt = Field(
        1, description="Optimiser steps on the pool between two rollouts; the paper's are 500."
    )
    quantiles: Annotated[int, Field(ge=2, le=100)] = Field(
        5, description="How many parts of equal size the pool is divided into."
    )
    beta: NonNegativeFloat = Field(
        0.05, description="Of the KL to the reference over the whole vocabulary, per token."
    )
    entropy_weight: NonNegativeFloat = Field(
        0.06, description="Of the entropy per token, which is raised."
    )
    learning_rate: PositiveFloat = 1e-5
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    importance: Literal["none"] = Field(
        "none", description="Answers are learned from by maximum likelihood: no correction."
    )
    keep_tokens: bool = Field(
        False,
        description="Export the quantile tokens in the vocabulary, with a chat template that puts "
        "the best one before every prompt; else the vocabulary is the start's.",
    )

    @model_validator(mode="after")
    def _learns_from_all_answers(self) -> QuarkTrain:
        if self.lag:
            raise ValueError(
                "lag: quark learns from all answers so far, whatever weights have sampled them; "
                "leave it out, or raise `sync_every`"
            )
        return self

    @model_validator(mode="after")
    def _tokens_are_merged(self) -> QuarkTrain:
        if self.keep_tokens and self.lora is not None and self.lora.export != "merged":
            raise ValueError(
                "keep_tokens adds to the vocabulary, which an adapter by itself cannot hold: leave "
                "out `keep_tokens`, or set `lora.export: merged`"
            )
        return self

    @property
    def needs_old_logprobs(self) -> bool:
        """Never: no ratio is taken."""
        return False

    @property
    def quantile_tokens(self) -> int:
        """See `quantiles`."""
        return self.quantiles

    @property
    def keeps_quantile_tokens(self) -> bool:
        """See `keep_tokens`."""
        return self.keep_tokens

    @property
    def step_examples(self) -> int:
        """Answers of the pool: as many as a rollout adds for each step."""
        return self.batch_size * self.n


def quark_loss(
    policy: Tensor,
    reference: Tensor | None,
    targets: Tensor,
    *,
    beta: float = 0.05,
    entropy_weight: float = 0.06,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(N,) NLL + beta KL(policy || reference) - entropy_weight H(policy) of each token (arXiv
    2205.13636, eq. 2), and its parts (N,) in nats.

    policy, reference (N, V) log-probs over the vocabulary without quantile tokens; targets (N,).
    Without a reference there is no KL.
    """
    probs = policy.exp()
    nll = -policy.gather(1, targets[:, None])[:, 0]
    entropy = -(probs * policy).sum(-1)
    loss = nll - entropy_weight * entropy
    parts = {"nll": nll, "entropy": entropy}
    if reference is not None:
        parts["kl"] = (probs * (policy - reference)).sum(-1)
        loss = loss + beta * parts["kl"]
    return loss, parts
