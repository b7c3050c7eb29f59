"""What judges share in the experiment file: who is asked, and how text is sampled."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from rlaif.config.base import StepId, Strict

Order = Literal["both", "random", "fixed"]


class JudgeBase(Strict):
    """Keys that every judge has. `principles` limits it to some of the constitution's."""

    kind: str
    id: StepId
    principles: list[str] | None = None
    uses: list[str] | None = None

    def asks(self) -> dict[str, str]:
        """The models that the judge asks: role to name in the experiment. Most have one, `by`."""
        return {}


class ModelJudge(JudgeBase):
    """Keys of every judge that asks a model. `by` names the model; `template` a prompt file."""

    by: str = "policy"
    template: str | None = None

    def asks(self) -> dict[str, str]:
        """The one model, `by`."""
        return {"by": self.by}


class WritingJudge(ModelJudge):
    """Keys of judges that can write text. `samples` judgements are taken and averaged."""

    samples: PositiveInt = 1
    temperature: NonNegativeFloat = 0.0
    max_new_tokens: PositiveInt = 128

    @property
    def writes(self) -> bool:
        """Whether the judge writes anything, with the keys as they are."""
        return True

    @model_validator(mode="after")
    def _sampling_makes_sense(self) -> WritingJudge:
        names = ("samples", "temperature", "max_new_tokens")
        fields = type(self).model_fields
        changed = [n for n in names if getattr(self, n) != fields[n].default]
        if changed and not self.writes:
            raise ValueError(
                f"`{changed[0]}` has no effect here: the judge reads probabilities once and "
                "samples nothing; leave it out, or let the judge write"
            )
        if self.writes and self.samples > 1 and self.temperature == 0:
            raise ValueError("samples > 1 needs temperature > 0: greedy samples are all the same")
        return self


class LabelJudge(WritingJudge):
    """Judges that read label probabilities; with `cot` after reasons that they wrote first."""

    cot: bool = Field(False, description="Write reasons first, then read the labels.")
    max_new_tokens: PositiveInt = 256

    @property
    def writes(self) -> bool:
        """With `cot` alone."""
        return self.cot
