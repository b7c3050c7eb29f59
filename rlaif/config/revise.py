"""The keys of a `revise` step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlaif.config.base import Count, StepId
from rlaif.config.steps import SamplingKeys


class ReviseStep(SamplingKeys):
    """Have answers criticised and written again (Constitutional AI, arXiv 2212.08073), by the
    critique and revision texts of the constitution's principles."""

    id: StepId = "revise"
    by: str = Field("policy", description="The model that criticises and revises.")
    times: Count = Field(1, description="How often; each time revises the revision before.")
    principles: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="Some of the constitution's principles; default: all."
    )
    draw: Literal["one", "all"] = Field(
        "one",
        description="one: a principle is drawn for each answer and time; all: each time the texts "
        "of all principles that apply, together.",
    )
    keep: Literal["last", "all"] = Field(
        "last", description="The last revision of each answer, or those of every time."
    )
    template: str = Field(
        "prompts/revise/revise.j2",
        description="The turns that ask for the critique and, after it, for the revision.",
    )
    uses: list[str] | None = Field(
        None, description="The steps whose answers are revised; default: the latest answers."
    )
