"""Methods that learn from every answer for itself.

The defaults are the papers' or, where those need a large model, what the field uses; each field's
description names its source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveFloat

from rlaif.config.base import LATE
from rlaif.config.training import ReferenceTrain, TrainStep

if TYPE_CHECKING:
    from rlaif.train.tokenise import Example


class SftTrain(TrainStep):
    """Supervised: the mean negative log-likelihood of the chosen answers' tokens."""

    TASK = "rlaif.train.preference:SftTask"
    LEARNS_FROM = "good answers"

    method: Literal["sft"]
    context: Annotated[Literal["drop", "keep"], LATE] = Field(
        "drop",
        description="Of completions: the system prompt that their `sample` step added is not "
        "trained on (prompt distillation), or stays before the prompt.",
    )


class KtoTrain(ReferenceTrain):
    """Kahneman-Tversky optimisation (arXiv 2402.01306): chosen answers are desirable, rejected ones
    undesirable; the baseline comes from answers to other prompts."""

    TASK = "rlaif.train.preference:KtoTask"
    LEARNS_FROM = "answers"
    LOSS_KEYS = ("beta", "desirable_weight", "undesirable_weight")

    method: Literal["kto"]
    desirable_weight: PositiveFloat = 1.0
    undesirable_weight: PositiveFloat = 1.0

    def arrange_examples(self, examples: list[Example]) -> list[Example]:
        """Each with an answer to another prompt."""
        from rlaif.train.preference import add_mismatched, refuse_one_class, refuse_soft_labels

        refuse_soft_labels(examples)
        refuse_one_class(examples)
        return add_mismatched(examples)
