"""A rating on a described scale, per text principle or overall.

Levels with descriptions after the rubrics of Prometheus 2 (2405.01535); `expected` reads the mean
level from label probabilities (2309.00267, section "Direct RLAIF"), at once or after a critique.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlaif.config.base import StepId
from rlaif.core.errors import ConfigError
from rlaif.judges.common import (
    JudgeInputs,
    WritingJudge,
    define_preset,
    hash_judge,
    judge_template,
    question_hashes,
    text_principles,
)
from rlaif.judges.questions import make_asking
from rlaif.judges.scored import Scored, check_levels, scale_of


class RatingJudge(WritingJudge):
    """Pointwise rating on a described scale; `expected` reads the label log-probs instead."""

    kind: Literal["rating"]
    id: StepId = "rating"
    scale: tuple[int, int] = (1, 5)
    expected: bool = False
    cot: bool = Field(False, description="With `expected`: write reasons first, then read labels.")

    @property
    def written(self) -> bool:
        """Unless the levels' probabilities are read."""
        return not self.expected

    @property
    def writes(self) -> bool:
        """Where the rating is written, or reasons before it."""
        return self.written or self.cot

    @model_validator(mode="after")
    def _scale_rises(self) -> RatingJudge:
        if not 0 <= self.scale[0] < self.scale[1]:
            raise ValueError("scale must be [low, high] with 0 <= low < high")
        if self.cot and not self.expected:
            raise ValueError(
                "`cot` needs `expected: true`; without it the judge writes its reasons anyway"
            )
        return self

    def build_judge(self, inputs: JudgeInputs) -> Scored:
        """The judge of the spec. A principle's own `scale` replaces the spec's for that one."""
        principles = text_principles(self, inputs.constitution)
        for principle in principles or (None,):
            low, high = scale_of(principle, self.scale, own_scales=True)
            if not low < high:
                name = principle.id if principle is not None else ""
                raise ConfigError(f"judge {self.id}: the scale of principle {name!r} has one level")
            if self.expected:
                check_levels(self, low, high)
        template = judge_template(self, inputs.beside, per_principle=bool(principles))
        return Scored(
            id=self.id,
            judge_hash=hash_judge(self, principles, template),
            questions=question_hashes(self, principles, template),
            asking=make_asking(self, template, self.cot),
            principles=tuple(principles),
            listed=tuple(principles),
            scale=self.scale,
            own_scales=True,
            samples=self.samples,
        )


DirectJudge = define_preset(
    RatingJudge,
    "direct",
    "Direct reward: the mean of the levels 1 to 10 under their label probabilities.",
    scale=(1, 10),
    expected=True,
)
CritiqueJudge = define_preset(
    RatingJudge,
    "critique",
    "A critique is written first, then the levels 1 to 10 are read.",
    scale=(1, 10),
    expected=True,
    cot=True,
    max_new_tokens=256,
)
PrometheusJudge = define_preset(
    RatingJudge,
    "prometheus",
    "Absolute grading by a rubric, with a reference answer where the prompt has one.",
    max_new_tokens=256,
)
