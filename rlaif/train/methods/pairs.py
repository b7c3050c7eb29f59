"""Methods that compare a chosen with a rejected answer: a class and a loss for each.

The defaults are the papers' or, where those need a large model, what the field uses; each field's
description names its source.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from rlaif.config.training import ReferenceTrain, TrainStep

Noise = Annotated[float, Field(ge=0.0, lt=0.5)]


class DpoTrain(ReferenceTrain):
    """Direct preference optimisation (arXiv 2305.18290) and its additive variants."""

    LOSS = "rlaif.train.losses.preference:dpo"
    LOSS_KEYS = ("beta", "label_smoothing", "length_normalise", "positive_weight")

    method: Literal["dpo"] = "dpo"
    beta: PositiveFloat = Field(0.1, description="arXiv 2305.18290; TL;DR used 0.5.")
    label_smoothing: Noise = Field(0.0, description="cDPO: the rate of wrong labels.")
    nll_weight: NonNegativeFloat = Field(
        0.0, description="Adds the chosen answer's NLL per token: Llama 3 0.2, iterative RPO 1."
    )
    positive_weight: NonNegativeFloat = Field(
        0.0, description="DPO-positive (arXiv 2402.13228): 50, with beta 0.3; 0 is off."
    )
    length_normalise: bool = Field(
        False, description="Log-ratios per token; Tulu 3 (arXiv 2411.15124) with beta 5."
    )

    @property
    def per_token(self) -> bool:
        """As the loss."""
        return self.length_normalise

    @property
    def added_nll(self) -> float:
        """See `nll_weight`."""
        return self.nll_weight


class RobustTrain(ReferenceTrain):
    """Robust DPO: unbiased under labels flipped at a known rate (arXiv 2403.00409)."""

    LOSS = "rlaif.train.losses.preference:robust_dpo"
    LOSS_KEYS = ("beta", "label_smoothing")

    method: Literal["robust"]
    label_smoothing: Noise = 0.1


class IpoTrain(ReferenceTrain):
    """Identity preference optimisation (arXiv 2310.12036); `beta` is the paper's tau."""

    LOSS = "rlaif.train.losses.preference:ipo"
    LOSS_KEYS = ("beta", "length_normalise")

    method: Literal["ipo"]
    length_normalise: bool = Field(
        False, description="TRL divides by length; the paper's equation does not."
    )

    @property
    def per_token(self) -> bool:
        """As the loss."""
        return self.length_normalise


class HingeTrain(ReferenceTrain):
    """The hinge loss of RSO (arXiv 2309.06657)."""

    LOSS = "rlaif.train.losses.preference:hinge"
    LOSS_KEYS = ("beta",)

    method: Literal["hinge"]
    beta: PositiveFloat = 0.05


class ApoZeroTrain(ReferenceTrain):
    """APO-zero (arXiv 2408.06266): chosen answers up, rejected ones down."""

    LOSS = "rlaif.train.losses.preference:apo_zero"
    LOSS_KEYS = ("beta",)

    method: Literal["apo_zero"]
    learning_rate: PositiveFloat = 2e-7


class NcaTrain(ReferenceTrain):
    """Noise-contrastive alignment for pairs (arXiv 2402.05369)."""

    LOSS = "rlaif.train.losses.preference:nca"
    LOSS_KEYS = ("beta",)

    method: Literal["nca"]
    beta: PositiveFloat = 0.01


class SlicTrain(TrainStep):
    """Sequence likelihood calibration (arXiv 2305.10425): a hinge without a reference."""

    LOSS = "rlaif.train.losses.preference:slic"
    LOSS_KEYS = ("margin", "nll_weight")

    method: Literal["slic"]
    margin: PositiveFloat = Field(1.0, description="Margin in nats between chosen and rejected.")
    nll_weight: NonNegativeFloat = 0.0


class SimpoTrain(TrainStep):
    """SimPO (arXiv 2405.14734): mean log-probs with a target margin, without a reference."""

    LOSS = "rlaif.train.losses.preference:simpo"
    LOSS_KEYS = ("beta", "gamma")

    method: Literal["simpo"]
    beta: PositiveFloat = Field(2.0, description="2 to 10 in the paper.")
    gamma: NonNegativeFloat = Field(1.0, description="0.1 to 0.8 of beta in the paper.")

    @property
    def reward_scale(self) -> float:
        """The loss's own."""
        return self.beta

    @property
    def per_token(self) -> bool:
        """As the loss."""
        return True


class OrpoTrain(TrainStep):
    """ORPO (arXiv 2403.07691): NLL and the odds ratio, without a reference."""

    LOSS = "rlaif.train.losses.preference:orpo"
    LOSS_KEYS = ("weight",)

    method: Literal["orpo"]
    weight: PositiveFloat = Field(0.1, description="lambda in the paper.")
    learning_rate: PositiveFloat = Field(8e-6, description="5e-6 to 8e-6 in the paper.")

    @property
    def per_token(self) -> bool:
        """As the loss."""
        return True
