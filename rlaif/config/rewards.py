"""What on-policy training is rewarded by, a sum of terms or the mean of some judges' scores, and
what it may cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from rlaif.config.base import LATE, Strict
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


def _add_first_name(schema: dict[str, Any]) -> None:
    """`where` may also be given under its first name, which a schema by names has anyway."""
    properties = schema["properties"]
    if "where" in properties:
        properties["when"] = {**properties["where"], "deprecated": True}


class RewardTerm(Strict):
    """One term of the reward: `weight` times a judge's value, normalised and clipped first."""

    model_config = ConfigDict(json_schema_extra=_add_first_name)

    judge: Annotated[str, Field(min_length=1)]
    weight: FiniteFloat = Field(
        1.0,
        description="A negative weight makes the value a penalty; with 0 it is logged and not part "
        "of the reward.",
    )
    value: Literal["raw", "score"] | None = Field(
        None,
        description="raw: the judge's own number, of any size; score: on [0, 1]. By default raw of "
        "judges that have it, such as reward models, and the score of others.",
    )
    normalise: Literal["none", "reference", "running", "group", "range"] = Field(
        "none",
        description="Mean 0 and deviation 1: over answers of the start policy (reference), over "
        "all answers so far (running), or among the answers to one prompt (group); range: the "
        "lowest of these is -1 and the highest 1.",
    )
    clip: PositiveFloat | None = Field(
        None, description="Clamps the normalised value to [-clip, clip]."
    )
    # The hashes of files that were written before `where` have its first name, `when`.
    when: PromptCondition | None = Field(
        None,
        alias="where",
        description="The prompts that the term applies to; for others it adds 0.",
    )
    only_if: Annotated[str | None, Field(min_length=1), LATE] = Field(
        None,
        description="A judge: the term adds 0 to answers to which it gives a score below 0.5.",
    )
    within: Annotated[str | None, Field(min_length=1), LATE] = Field(
        None,
        description="A judge: group and range compare an answer with those of its prompt that have "
        "the same score of that judge.",
    )

    @model_validator(mode="after")
    def _check_within(self) -> RewardTerm:
        if self.within is not None and not self.compares_group:
            raise ValueError(
                f"the term of judge {self.judge!r}: `within` says which answers to a prompt are "
                "compared, so `normalise` must be group or range"
            )
        return self

    @property
    def compares_group(self) -> bool:
        """Whether values are normalised among the answers to one prompt."""
        return self.normalise in ("group", "range")

    @property
    def fits_reference(self) -> bool:
        """Whether answers of the start policy say what the value is normalised by."""
        return self.normalise == "reference" and self.weight != 0

    @property
    def judges(self) -> list[str]:
        """Whose values decide what the term adds."""
        return [j for j in (self.judge, self.only_if, self.within) if j is not None]

    def is_for(self, prompt: Prompt) -> bool:
        """Whether the term counts for answers to this prompt."""
        return self.when is None or self.when.holds(prompt)


class CostTerm(Strict):
    """A constraint: the mean cost of the answers is to be at most `limit` (PPO-Lagrangian, arXiv
    2310.12773). Defaults as in that paper's code, except for `max` (align-anything's)."""

    judge: Annotated[str, Field(min_length=1)]
    limit: FiniteFloat = Field(description="The highest mean cost that is accepted.")
    higher: Literal["worse", "better"] | None = Field(
        None,
        description="worse: the judge's value is the cost; better: the cost is minus the raw "
        "value, or 1 - score. Required, except for a `reward_model` judge by a `distill: {method: "
        "cost}`, whose reward is minus its cost.",
    )
    value: Literal["raw", "score"] | None = Field(
        None, description="As of a term of `rewards`: raw where the judge has it, else its score."
    )
    start: NonNegativeFloat = Field(
        1.0,
        description="The multiplier before the first rollout. With 0 it stays 0: the cost is "
        "logged and changes nothing.",
    )
    rate: NonNegativeFloat = Field(
        0.1,
        description="After each rollout the multiplier's logarithm moves by rate x multiplier x "
        "(mean cost - limit); with 0 the multiplier stays at `start`.",
    )
    max: PositiveFloat = Field(20.0, description="The largest multiplier.")
    window: PositiveInt = Field(
        128, description="How many of the latest answers the mean cost is taken over."
    )

    @model_validator(mode="after")
    def _check_start(self) -> CostTerm:
        if self.start > self.max:
            raise ValueError(
                f"the cost of judge {self.judge!r}: `start` ({self.start:g}) is above `max` "
                f"({self.max:g})"
            )
        return self

    @property
    def acts(self) -> bool:
        """Whether the cost changes what is learned: a multiplier of 0 stays 0."""
        return self.start > 0


def names_of(terms: Sequence[RewardTerm | CostTerm]) -> list[str]:
    """What terms or costs go by in metrics and files: the judge, and its place where it has
    several."""
    judges = [term.judge for term in terms]
    return [
        term.judge if judges.count(term.judge) == 1 else f"{term.judge}/{place}"
        for place, term in enumerate(terms, start=1)
    ]


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
