"""Keys of the step that makes one model of several by their weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from rlaif.config.base import StepId, Strict


class AverageStep(Strict):
    """Make one model of several that began as one: the mean of their weights, or the best of them.

    greedy and best are chosen by a judge's mean on the validation prompts of the stage's set.
    """

    id: StepId = "average"
    models: Annotated[list[str], Field(min_length=2)] = Field(
        description="Two or more models of one shape and vocabulary: policies, or reward models "
        "with `policy: false`."
    )
    method: Literal["uniform", "slerp", "greedy", "best"] = Field(
        "uniform",
        description="uniform: the mean; slerp: halfway between two on the sphere; greedy: the soup "
        "to which each model in turn, the best first, is added if the judge's mean does not fall "
        "(arXiv 2203.05482); best: the one with the highest mean.",
    )
    weights: dict[str, PositiveFloat] | None = Field(
        None,
        description="Of `method: uniform`: how much each model counts, by the names in `models`; "
        "default: equally.",
    )
    by: StepId | None = Field(
        None, description="Of greedy and best: the judge, by its id. It scores each answer."
    )
    policy: bool = Field(
        True,
        description="Whether the model becomes the policy. false: a judge, a teacher or a variant, "
        "known by the step's id.",
    )

    @model_validator(mode="after")
    def _check_method(self) -> AverageStep:
        twice = sorted({name for name in self.models if self.models.count(name) > 1})
        if twice:
            raise ValueError(f"models: {twice[0]!r} is named twice; `weights` makes it count more")
        if self.method == "slerp" and len(self.models) != 2:
            raise ValueError(
                f"slerp goes from one model to another, and `models` names {len(self.models)}"
            )
        if self.weights is not None and self.method != "uniform":
            raise ValueError(f"`weights` has no effect with `method: {self.method}`; leave it out")
        if self.weights is not None and self.weights.keys() != set(self.models):
            raise ValueError("`weights` must name the same models as `models`")
        if self.chooses and self.by is None:
            raise ValueError(f"`method: {self.method}` needs `by`: the judge that chooses")
        if not self.chooses and self.by is not None:
            raise ValueError(f"`by` has no effect with `method: {self.method}`; leave it out")
        return self

    @property
    def chooses(self) -> bool:
        """Whether a judge decides which models are in it."""
        return self.method in ("greedy", "best")

    @property
    def shares(self) -> list[float]:
        """What each of `models` counts, with a sum of 1."""
        given = [self.weights[name] if self.weights else 1.0 for name in self.models]
        return [weight / sum(given) for weight in given]

    @property
    def makes_masters(self) -> bool:
        """Where all of its models have fp32 masters, so has it."""
        return True
