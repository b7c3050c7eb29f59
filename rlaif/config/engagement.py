"""What people did with answers that they were shown, and how it becomes preferences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from rlaif.config.base import Strict

Signal = Literal["clicked", "liked", "shared", "thumbs", "dwell"]
Chance = Annotated[float, Field(gt=0.0, le=1.0)]


class EngagementSpec(Strict):
    """Rows of shown answers as preferences, each with the inverse of the probability that its
    answer was looked at as its weight."""

    signal: Signal = Field(description="What says that an answer is good.")
    form: Literal["pairs", "answers"] = Field(
        "pairs",
        description="pairs: within one impression; answers: good and bad ones that stand alone, "
        "for `kto`.",
    )
    against: Literal["shown", "skipped_above"] = Field(
        "shown",
        description="Of pairs: what a good answer is compared with. shown: every other answer of "
        "the impression; skipped_above: those above it without the signal.",
    )
    examination: Literal["logged", "random", "position_model"] | list[Chance] = Field(
        "logged",
        description="The probability that an answer is looked at. logged: `propensity` of each row;"
        " or a list, by position, whose last value is that of all later ones; or estimated. "
        "random: from rows whose position was drawn (`random`); position_model: from answers that "
        "were shown at several positions.",
    )
    max_weight: Annotated[float, Field(ge=1.0)] | None = Field(
        None, description="A larger inverse probability is clipped to this. Default: no clipping."
    )
    long_dwell: PositiveFloat | None = Field(
        None, description="Of `signal: dwell`: seconds from which an answer is good."
    )
    short_dwell: NonNegativeFloat | None = Field(
        None, description="Of `signal: dwell` and `form: answers`: seconds below which it is bad."
    )

    @model_validator(mode="after")
    def _check_keys(self) -> EngagementSpec:
        if (self.signal == "dwell") != (self.long_dwell is not None):
            raise ValueError("`signal: dwell` and `long_dwell` go together")
        if self.short_dwell is not None:
            if self.long_dwell is None or self.form != "answers":
                raise ValueError("short_dwell: only with `signal: dwell` and `form: answers`")
            if self.short_dwell > self.long_dwell:
                raise ValueError("short_dwell: above `long_dwell`")
        if self.against != "shown" and self.form != "pairs":
            raise ValueError("against: only with `form: pairs`")
        if self.examination == []:
            raise ValueError("examination: the list is empty")
        return self
