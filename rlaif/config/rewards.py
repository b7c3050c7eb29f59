"""What on-policy training is rewarded by: a sum of terms, or the mean of some judges' scores."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, FiniteFloat, PositiveFloat, Tag, model_validator

from rlaif.config.base import Strict
from rlaif.core.records import Prompt

REFERENCE_ANSWERS = 64
"""At least so many answers of the start policy say what `normalise: reference` takes off a term and
divides it by: mean 0 and deviation 1 under the policy that training starts from (arXiv 1909.08593,
section 2.2)."""


class PromptCondition(Strict):
    """Which prompts a term is for. With both conditions given, both must hold."""

    tags: list[str] = Field([], description="The prompt has at least one of these.")
    source: list[str] = Field([], description="The prompt is from one of these.")

    @model_validator(mode="after")
    def _require_condition(self) -> PromptCondition:
        if not self.tags and not self.source:
            raise ValueError("give `tags`, `source` or both")
        return self

    def holds(self, prompt: Prompt) -> bool:
        """Whether the prompt is meant."""
        tagged = not self.tags or not set(self.tags).isdisjoint(prompt.tags)
        return tagged and (not self.source or prompt.source in self.source)


class RewardTerm(Strict):
    """One term of the reward: `weight` times a judge's value, normalised and clipped first."""

    judge: Annotated[str, Field(min_length=1)]
    weight: FiniteFloat = Field(1.0, description="A negative weight makes the value a penalty.")
    value: Literal["raw", "score"] | None = Field(
        None,
        description="raw: the judge's own number, of any size; score: on [0, 1]. By default raw of "
        "judges that have it, such as reward models, and the score of others.",
    )
    normalise: Literal["none", "reference", "running", "group"] = Field(
        "none",
        description="Mean 0 and deviation 1: over answers of the start policy (reference), over "
        "all answers so far (running), or among the answers to one prompt (group).",
    )
    clip: PositiveFloat | None = Field(
        None, description="Clamps the normalised value to [-clip, clip]."
    )
    when: PromptCondition | None = Field(
        None, description="The prompts that the term applies to; for others it adds 0."
    )

    @model_validator(mode="after")
    def _refuse_zero_weight(self) -> RewardTerm:
        if self.weight == 0:
            raise ValueError("a term of weight 0 is paid for and adds nothing: leave it out")
        return self

    def is_for(self, prompt: Prompt) -> bool:
        """Whether the term counts for answers to this prompt."""
        return self.when is None or self.when.holds(prompt)


def _form_of(value: Any) -> str | None:
    return "terms" if isinstance(value, list) else "weights" if isinstance(value, dict) else None


Rewards = Annotated[
    Annotated[dict[str, PositiveFloat], Field(min_length=1, title="weights"), Tag("weights")]
    | Annotated[list[RewardTerm], Field(min_length=1, title="terms"), Tag("terms")],
    Discriminator(
        _form_of,
        custom_error_type="neither_form",
        custom_error_message="expected a list of terms, or a mapping of judges to their weights",
    ),
]


def terms_of(rewards: dict[str, float] | list[RewardTerm]) -> list[RewardTerm]:
    """The terms whose sum is the reward; judges with weights are terms of their scores, whose
    weights sum to 1."""
    if isinstance(rewards, list):
        return rewards
    total = sum(rewards.values())
    return [
        RewardTerm(judge=name, weight=weight / total, value="score")
        for name, weight in rewards.items()
    ]
