"""The distill step: one class for each kind of reward model.

Most train all weights on pairs, with a head of one number. Those on fixed features (`FitStep`) run
the model once over every answer and fit a head on what it says there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from rlaif.config.base import Count, Fraction, StepId, Strict
from rlaif.config.methods import METHODS
from rlaif.config.training import TextStep, TrainStep

SourceWeights = Annotated[
    dict[str, NonNegativeFloat],
    Field(
        description="How much a pair counts by its `source` (human, rlaif, file ...); 1 where it "
        "is not named."
    ),
]


Replay = Annotated[
    Fraction,
    Field(
        description="Share of earlier rounds' pairs that is used again; `uses: [pair@*]` brings "
        "them in."
    ),
]


class Refresh(Strict):
    """Keep the last round's reward model until it is stale: until its accuracy on the newest pairs
    of prompts that it was never trained on lies below what it had on such pairs when it was
    trained."""

    drop: Fraction = Field(0.05, description="A fall of accuracy that is more than this is stale.")
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="Share of the prompts that accuracy is measured on; never trained on."
    )


WhenStale = Annotated[
    Refresh | None,
    Field(
        description="In later rounds: train only when the last round's model is stale, else keep "
        "it. Absent: train in every round."
    ),
]


class DistillStep(TrainStep):
    """Keys of the reward models that train all weights (arXiv 2203.02155, 2307.09288)."""

    id: StepId = "distill"
    learning_rate: PositiveFloat = Field(9e-6, description="arXiv 2203.02155.")
    source_weights: SourceWeights = {}
    replay: Replay = 1.0
    refresh: WhenStale = None
    train_on_eos: Literal[True] = Field(
        True, description="The reward is read at the end of the conversation."
    )
    members: Count = Field(
        1,
        description="More than 1: an ensemble of so many adapters (`lora`) with a head each on one "
        "body, which differ in their first weights and the order of pairs.",
    )

    @model_validator(mode="after")
    def _members_are_adapters(self) -> DistillStep:
        if self.members > 1 and self.lora is None:
            raise ValueError("`members` are adapters on one body: give `lora` ({}: its defaults)")
        if self.members > 1 and self.lora is not None and self.lora.export != "merged":
            raise ValueError(
                "`members` are exported as adapters on one body in any case: leave lora.export out"
            )
        return self

    @property
    def makes_masters(self) -> bool:
        """Not as an ensemble either: nothing can be trained from it."""
        return self.members == 1 and super().makes_masters


class BradleyTerryDistill(DistillStep):
    """Pairs by Bradley-Terry: the reward's gap is the log-odds that an answer is better."""

    LOSS_KEYS = ("centre",)

    method: Literal["bradley_terry"] = "bradley_terry"
    margin: Literal["none", "score"] = Field(
        "none", description="score: the pair's score margin is asked of the rewards' gap."
    )
    centre: NonNegativeFloat = Field(0.01, description="Pulls the rewards' mean to 0.")


class KWiseDistill(DistillStep):
    """All pairs of a prompt as one example, each answer computed once (InstructGPT, arXiv
    2203.02155, section 3.5). `batch_size` counts prompts."""

    LOSS_KEYS = ("centre",)

    method: Literal["k_wise"]
    batch_size: PositiveInt = Field(64, description="arXiv 2203.02155.")
    centre: NonNegativeFloat = Field(0.01, description="Pulls the rewards' mean to 0.")


class CostDistill(DistillStep):
    """The cost model of Safe RLHF (arXiv 2310.12773) as a reward: minus the cost, so that an answer
    is safe where it is above 0. The chosen answer is the safer one."""

    method: Literal["cost"]
    safe_at: float = Field(
        0.5, description="An answer whose own score is at least this is safe, below it harmful."
    )


class ConditionalDistill(DistillStep):
    """One model for several kinds of preferences, told apart by a system prompt (COOL RLHF,
    InternLM2, arXiv 2403.17297)."""

    LOSS_KEYS = ("gamma",)

    method: Literal["conditional"]
    learning_rate: PositiveFloat = Field(1e-5, description="arXiv 2403.17297.")
    weight_decay: NonNegativeFloat = Field(0.01, description="arXiv 2403.17297.")
    conditions: Annotated[dict[str, str], Field(min_length=1)] = Field(
        description="The system prompt for the pairs of each source, by `source`."
    )
    gamma: NonNegativeFloat = Field(2.0, description="Focus on pairs that are ranked wrong.")
    penalty: NonNegativeFloat = Field(0.02, description="Weight of the barrier at -5 and 5.")


class FitStep(TextStep):
    """Keys of the heads that are fitted on features of a model that stays as it is."""

    id: StepId = "distill"
    source_weights: SourceWeights = {}
    replay: Replay = 1.0
    refresh: WhenStale = None

    @property
    def makes_masters(self) -> bool:
        """No: the body stays as it is."""
        return False


class LinearDistill(FitStep):
    """Bradley-Terry on fixed features: a ridge logistic regression. Seconds after one forward
    pass, and what WARM (arXiv 2401.12187) starts its members' heads from."""

    method: Literal["linear"]
    layers: Literal["auto", "all"] | PositiveInt = Field(
        "auto",
        description="How many of the start's first layers the reward model has. auto: of seven "
        "depths the one of the least held-out loss; all: the whole start.",
    )


class OrdinalDistill(FitStep):
    """Ratings of single answers by proportional odds (McCullagh 1980), from the pairs' own scores
    or one judge's."""

    method: Literal["ordinal"]
    levels: Annotated[int, Field(ge=2)] = Field(
        5, description="Most levels; more different ratings are put into bins of equal mass."
    )
    objective: str | None = Field(
        None, description="The judge, or JUDGE/PRINCIPLE, that rated; needed where there are more."
    )


class GatedDistill(FitStep):
    """Keys of heads with several objectives, debiased for length and mixed by a gate."""

    objectives: list[str] | None = Field(
        None, description="Judges, or JUDGE/PRINCIPLE; everything that was rated when absent."
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


class MultiObjectiveDistill(GatedDistill):
    """One ridge regression for each objective and a gate that sees the prompt (ArmoRM, arXiv
    2406.12845)."""

    method: Literal["multi_objective"]


class QuantileDistill(GatedDistill):
    """A distribution of each objective by its quantiles (QRM, arXiv 2409.10164)."""

    method: Literal["quantile"]
    quantiles: Annotated[int, Field(ge=2)] = 19
    risk: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="The reward averages this share of the lowest quantiles: below 1 averse."
    )


DISTILLATIONS: dict[str, type[DistillStep] | type[FitStep]] = {
    "bradley_terry": BradleyTerryDistill,
    "k_wise": KWiseDistill,
    "cost": CostDistill,
    "conditional": ConditionalDistill,
    "linear": LinearDistill,
    "ordinal": OrdinalDistill,
    "multi_objective": MultiObjectiveDistill,
    "quantile": QuantileDistill,
}
TRAININGS: dict[str, type[TrainStep]] = METHODS | {
    name: spec for name, spec in DISTILLATIONS.items() if issubclass(spec, TrainStep)
}
"""Everything that trains all weights."""


def _tag(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("method", "bradley_terry"))
    return str(getattr(value, "method", "bradley_terry"))


AnyDistill = Annotated[
    Annotated[BradleyTerryDistill, Tag("bradley_terry")]
    | Annotated[KWiseDistill, Tag("k_wise")]
    | Annotated[CostDistill, Tag("cost")]
    | Annotated[ConditionalDistill, Tag("conditional")]
    | Annotated[LinearDistill, Tag("linear")]
    | Annotated[OrdinalDistill, Tag("ordinal")]
    | Annotated[MultiObjectiveDistill, Tag("multi_objective")]
    | Annotated[QuantileDistill, Tag("quantile")],
    Discriminator(
        _tag,
        custom_error_type="unknown_method",
        custom_error_message=f"`method` must be one of {', '.join(DISTILLATIONS)}",
    ),
]
