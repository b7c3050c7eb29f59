"""Keys that kinds of reward models share. A kind's own class is in `rlaif.train.methods`.

Most train all weights on pairs, with a head of one number. Those on fixed features (`FitStep`) run
the model once over every answer and fit a head on what it says there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from rlaif.config.base import Count, Fraction, StepId, Strict
from rlaif.config.training import TextStep, TrainStep
from rlaif.core.records import Preference

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
        description="Fraction of earlier rounds' pairs to reuse; `uses: [pair@*]` brings them in."
    ),
]


class Refresh(Strict):
    """Keep the last round's reward model until it is stale: until its accuracy on the newest pairs
    of prompts that it was never trained on lies below what it had on such pairs when it was
    trained."""

    drop: Fraction = Field(0.05, description="Stale if the accuracy has fallen by more than this.")
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="Fraction of the prompts used to measure accuracy; never trained on."
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

    TASK = "rlaif.train.reward_model:RewardTask"
    MAKES_REWARD_MODEL = True

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
        if not self.policy:
            raise ValueError("a reward model never becomes the policy: leave `policy` out")
        if self.members > 1 and self.lora is None:
            raise ValueError("`members` are adapters on one body: give `lora` ({}: its defaults)")
        if self.members > 1 and self.lora is not None and self.lora.export != "merged":
            raise ValueError(
                "`members` are exported as adapters on one body in any case: leave lora.export out"
            )
        return self

    @property
    def trainer(self) -> str:
        """One training, or one for each member."""
        return "rlaif.train.members:train_members" if self.members > 1 else super().trainer

    @property
    def makes_masters(self) -> bool:
        """Not as an ensemble either: nothing can be trained from it."""
        return self.members == 1 and super().makes_masters

    def condition(self, preferences: Sequence[Preference]) -> list[Preference]:
        """The pairs as the model is asked about them."""
        return list(preferences)


class FitStep(TextStep):
    """Keys of the heads that are fitted on features of a model that stays as it is. `FIT` is the
    function that fits one."""

    FIT: ClassVar[str]
    MAKES_REWARD_MODEL = True
    USES_RATINGS = True

    id: StepId = "distill"
    source_weights: SourceWeights = {}
    replay: Replay = 1.0
    refresh: WhenStale = None

    @property
    def body_layers(self) -> int | Literal["auto", "all"]:
        """How many of the start's first layers the reward model has."""
        return "all"

    @property
    def trainer(self) -> str:
        """No gradients reach the body."""
        return "rlaif.train.probe:fit_reward_model"

    @property
    def makes_masters(self) -> bool:
        """No: the body stays as it is."""
        return False

    def condition(self, preferences: Sequence[Preference]) -> list[Preference]:
        """The pairs as the model is asked about them."""
        return list(preferences)
