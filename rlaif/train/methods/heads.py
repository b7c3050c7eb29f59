"""Heads that are fitted on features of a model that stays as it is: a class and a fit for each.

The defaults are the papers' or, where those need a large model, what the field uses; each field's
description names its source.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rlaif.config.base import Fraction
from rlaif.config.distill import FitStep


class LinearDistill(FitStep):
    """Bradley-Terry on fixed features: a ridge logistic regression. Seconds after one forward
    pass, and what WARM (arXiv 2401.12187) starts its members' heads from."""

    FIT = "rlaif.train.probe:fit_linear_head"

    method: Literal["linear"]
    layers: Literal["auto", "all"] | PositiveInt = Field(
        "auto",
        description="How many of the start's first layers the reward model has. auto: of seven "
        "depths the one of the least held-out loss; all: the whole start.",
    )

    @property
    def body_layers(self) -> int | Literal["auto", "all"]:
        """See `layers`."""
        return self.layers


class OrdinalDistill(FitStep):
    """Ratings of single answers by proportional odds (McCullagh 1980), from the pairs' own scores
    or one judge's."""

    FIT = "rlaif.train.probe:fit_ordinal_head"

    method: Literal["ordinal"]
    levels: Annotated[int, Field(ge=2)] = Field(
        5, description="Maximum levels; more ratings are binned by equal mass."
    )
    objective: str | None = Field(
        None, description="The judge, or JUDGE/PRINCIPLE; required if there are several."
    )

    @model_validator(mode="after")
    def _check_weights(self) -> OrdinalDistill:
        if any(weight not in (0, 1) for weight in self.source_weights.values()):
            raise ValueError(
                "source_weights: `ordinal` learns the ratings of single answers, and no pair "
                "counts more than another: a weight is 0 (the source's pairs are left out) or 1"
            )
        return self


class GatedDistill(FitStep):
    """Keys of heads with several objectives, debiased for length and mixed by a gate."""

    FIT = "rlaif.train.probe:fit_gated_head"

    objectives: list[str] | None = Field(
        None, description="Judges, or JUDGE/PRINCIPLE; default: all ratings that differ."
    )
    debias: Fraction | None = Field(
        0.03,
        description="Largest Spearman correlation of an objective with length; null leaves length "
        "alone.",
    )
    gate_layers: int = Field(3, ge=0, description="Hidden layers of the gate; 0 for no gate.")
    gate_width: PositiveInt = 1024
    gate_temperature: PositiveFloat = 10.0
    gate_steps: PositiveInt = 2000
    gate_batch: PositiveInt = Field(1024, description="Pairs in one step of the gate.")

    @property
    def quantile_count(self) -> int:
        """How many quantiles of each objective; 1 for its mean alone."""
        return 1

    @property
    def lowest_share(self) -> float:
        """Which share of the lowest quantiles the reward averages."""
        return 1.0


class MultiObjectiveDistill(GatedDistill):
    """One ridge regression for each objective and a gate that sees the prompt (ArmoRM, arXiv
    2406.12845)."""

    method: Literal["multi_objective"]


class QuantileDistill(GatedDistill):
    """A distribution of each objective by its quantiles (QRM, arXiv 2409.10164)."""

    method: Literal["quantile"]
    quantiles: Annotated[int, Field(ge=2)] = 19
    risk: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Fraction of the lowest quantiles to average; below 1: risk-averse."
    )

    @property
    def quantile_count(self) -> int:
        """See `quantiles`."""
        return self.quantiles

    @property
    def lowest_share(self) -> float:
        """See `risk`."""
        return self.risk
