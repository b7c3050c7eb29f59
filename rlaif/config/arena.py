"""The step that has models meet in battles and rates them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from rlaif.config.arms import MAIN
from rlaif.config.base import Fraction, StepId, Strict, Temperature, told


class ArenaStep(Strict):
    """Models answer the same prompts, a judge says of two answers which is better, in both orders,
    and the models are rated: by Bradley and Terry, by Elo, and at equal style."""

    id: StepId = "arena"
    models: Annotated[list[str], Field(min_length=2)] = Field(
        description="Models, or steps whose completions are answers to the prompts."
    )
    judge: StepId = Field(description="The judge, by its id in `judges`.")
    prompts: StepId = Field(MAIN, description="The set whose prompts are asked.")
    split: Literal["held_out", "all"] = Field(
        "held_out", description="Which of them; all: those for training too."
    )
    temperature: Temperature | None = None
    max_new_tokens: PositiveInt | None = None
    battles: PositiveInt | None = Field(
        None,
        description="At most this many battles, which are drawn by seed; default: every two "
        "models on every prompt.",
    )
    pairing: Literal["information", "variance", "uniform"] = Field(
        "information",
        description="With `battles`, who meets next. information: whose battle says most about "
        "the ratings; variance: whose win rate it narrows most (Chatbot Arena's rule); uniform: "
        "anyone.",
    )
    explore: Fraction = Field(
        0.1,
        description="With `battles`: the share of them that is drawn evenly, whatever `pairing` "
        "says.",
    )
    min_battles: NonNegativeInt = Field(
        4, description="With `battles`: each model first has this many."
    )
    batch: PositiveInt = Field(
        32, description="With `battles`: how many are judged before the next are drawn."
    )
    anchor: str | None = Field(
        None, description="The model that is rated 1000; default: the mean of all."
    )

    @model_validator(mode="after")
    def _check_keys(self) -> ArenaStep:
        twice = sorted({name for name in self.models if self.models.count(name) > 1})
        if twice:
            raise ValueError(f"models: {twice[0]!r} is named twice")
        if self.anchor is not None and self.anchor not in self.models:
            raise ValueError(f"anchor: {self.anchor!r} is none of `models`")
        drawn = told(self, "pairing", "explore", "min_battles", "batch")
        if drawn and self.battles is None:
            raise ValueError(f"{', '.join(drawn)}: only with `battles`")
        if self.pairing == "uniform" and told(self, "explore"):
            raise ValueError("explore: `pairing: uniform` draws all pairs evenly")
        return self
