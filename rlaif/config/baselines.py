"""Baselines: judges that understand nothing, which every other judge must beat."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from rlaif.config.base import StepId
from rlaif.config.judging import JudgeBase


class BaselineJudge(JudgeBase):
    """A judge without principles."""

    @field_validator("principles")
    @classmethod
    def _judges_as_a_whole(cls, value: list[str] | None) -> None:
        if value is not None:
            raise ValueError("a baseline follows no principle; drop `principles`")


class LongerJudge(BaselineJudge):
    """The answer with more characters wins."""

    kind: Literal["longer"]
    id: StepId = "longer"


class FirstJudge(BaselineJudge):
    """The answer that is shown first wins; each pair is shown once."""

    kind: Literal["first"]
    id: StepId = "first"


class RandomJudge(BaselineJudge):
    """A coin, thrown by the seed and the two answers."""

    kind: Literal["random"]
    id: StepId = "random"


class OverlapJudge(BaselineJudge):
    """The answer that uses more of the question's key terms wins (English)."""

    kind: Literal["overlap"]
    id: StepId = "overlap"


class PerplexityJudge(BaselineJudge):
    """The answer that the model `by` finds likelier, token by token, wins."""

    kind: Literal["perplexity"]
    id: StepId = "perplexity"
    by: str = "policy"

    def asks(self) -> dict[str, str]:
        """The one model, `by`."""
        return {"by": self.by}
