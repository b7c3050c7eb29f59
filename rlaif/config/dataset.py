"""`dataset`: what is written of an experiment's preferences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from rlaif.config.base import StepId, Strict

PairFormat = Literal[
    "trl",
    "ultrafeedback_binarized",
    "distilabel",
    "rewardbench",
    "openrlhf",
    "llama_factory",
    "verl",
]


class DatasetSpec(Strict):
    """A folder that `datasets.load_dataset` reads: one configuration for each format, splits by
    prompt, and a card."""

    title: str | None = Field(None, description="Default: the experiment's name.")
    formats: Annotated[list[PairFormat | Literal["ultrafeedback"]], Field(min_length=1)] = Field(
        ["trl", "ultrafeedback"], description="The first one is the default configuration."
    )
    uses: StepId | None = Field(
        None, description="The step whose preferences are written; default: the last of each round."
    )
    test: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1, description="Fraction of the prompts whose pairs form the test split."
    )
    overall: StepId | None = Field(
        None, description="The judge that gives `overall_score` and `critique` of `ultrafeedback`."
    )
    license: str | None = Field(None, description="An identifier of the hub, such as cc-by-4.0.")
    language: list[str] = ["en"]
    sources: list[str] = Field(
        [], description="Origin and licences of prompts and models, as sentences."
    )
    limits: list[str] = Field([], description="Known limitations, besides those measured.")

    @field_validator("formats")
    @classmethod
    def _refuse_repeats(cls, formats: list[str]) -> list[str]:
        if len(set(formats)) < len(formats):
            raise ValueError("each format once")
        return formats
