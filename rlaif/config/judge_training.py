"""Steps that train a judge and measure it: the questions that it asks, and its figures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlaif.config.base import StepId, Strict


class QuestionsStep(Strict):
    """The questions that a judge asks about labelled pairs, or about answers of the run of which
    pairs or scores say which are good, as a set of prompts by the step's id. The `reference` of a
    question is the right verdict in the judge's words, and the questions about one pair are a
    `group`. Only answers to training prompts are asked about."""

    id: StepId = "questions"
    judge: StepId = Field(description="The judge that asks; it writes its verdict.")
    orders: Literal["both", "random", "fixed"] = Field(
        "both",
        description="Of a comparison: both orders of the answers, one that is drawn by seed, or "
        "the answer of smaller id first.",
    )
    uses: list[str] | None = Field(
        None,
        description="Loads of labelled pairs, or steps that make pairs, filter them or judge "
        "answers; default: the loads of its stage before it, else this round's pairs.",
    )

    @property
    def pair_names(self) -> list[str] | None:
        """The ids of the steps that `uses` names."""
        if self.uses is None:
            return None
        return list(dict.fromkeys(text.removesuffix("?").partition("@")[0] for text in self.uses))


class BenchStep(Strict):
    """Measure judges on labelled pairs whose prompts are held out, each asked with some models in
    turn."""

    id: StepId = "bench"
    judges: Annotated[list[StepId], Field(min_length=1)]
    pairs: StepId = Field(description="The load of labelled pairs.")
    by: list[str] = Field(
        [],
        description="Models that each judge asks in turn in place of its own `by`; default: that.",
    )

    @model_validator(mode="after")
    def _named_once(self) -> BenchStep:
        for key, names in (("judges", self.judges), ("by", self.by)):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{key}: {twice[0]!r} is named twice")
        return self
