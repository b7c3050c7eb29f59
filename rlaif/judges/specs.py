"""What judges share in the experiment file: who is asked, what may stand in place of a verdict, and
how text is sampled. A kind's own keys stand in the module of the judge that they describe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, PositiveInt, create_model, model_validator

from rlaif.config.base import Count, Fraction, StepId, Strict, Temperature
from rlaif.config.models import THINKING, ThinkingSpec
from rlaif.constitution.model import Constitution
from rlaif.judges.base import Judge

Order = Literal["both", "random", "fixed"]
ABSTENTIONS = ("abstain", "N/A", "not applicable", "cannot tell")
"""What a judge may write in place of a verdict, where the spec names no words; templates offer the
first."""


@dataclass(frozen=True, slots=True)
class JudgeInputs:
    """What a judge is built from, beside its spec. `beside` is the experiment file: templates are
    looked for beside it too. `thinking` says how thinking is told in the answers."""

    constitution: Constitution | None = None
    beside: Path | None = None
    thinking: ThinkingSpec = THINKING


class JudgeBase(Strict):
    """Keys that every judge has. `principles` limits it to some of the constitution's."""

    kind: str
    id: StepId
    principles: list[str] | None = None
    uses: list[str] | None = None
    reasoning: Literal["keep", "strip"] = Field(
        "keep",
        exclude_if=lambda value: value == "keep",
        description="The thinking in an answer's text (`<think>`, `[THINK]`, channels): judged "
        "with it, or left out.",
    )

    def asks(self) -> dict[str, str]:
        """The models that the judge asks: role to name in the experiment. Most have one, `by`."""
        within = self.judges_within().items()
        return {f"{n}/{role}": name for n, judge in within for role, name in judge.asks().items()}

    def judges_within(self) -> dict[str, JudgeBase]:
        """The judges that this one builds, by the beginning of their roles. Most have none."""
        return {}

    def build_judge(self, inputs: JudgeInputs) -> Judge:
        """The judge that the spec describes. Raises ConfigError when the spec cannot work."""
        raise NotImplementedError(self.kind)


class ModelJudge(JudgeBase):
    """Keys of every judge that asks a model. `by` names the model; `template` a prompt file."""

    by: str = "policy"
    template: str | None = None

    def asks(self) -> dict[str, str]:
        """The model `by`, and those of judges within."""
        return {"by": self.by} | super().asks()


class VerdictJudge(ModelJudge):
    """Keys of judges whose model gives a verdict, or abstains."""

    abstain_labels: list[str] | None = Field(
        None,
        description="What the judge may answer in place of a verdict; templates offer the first. "
        "When absent: some words where the verdict is written, none where labels are read.",
    )
    min_label_mass: Fraction = Field(
        0.0, description="Abstain if the labels' total probability is below this."
    )

    @property
    def written(self) -> bool:
        """Whether the verdict is written, and not read from label probabilities."""
        return False

    @property
    def abstentions(self) -> tuple[str, ...]:
        """What the judge may answer in place of a verdict."""
        if self.abstain_labels is None:
            return ABSTENTIONS if self.written else ()
        return tuple(self.abstain_labels)

    @model_validator(mode="after")
    def _mass_is_read(self) -> VerdictJudge:
        if self.min_label_mass and self.written:
            raise ValueError("`min_label_mass` has no effect where the verdict is written")
        return self


class WritingJudge(VerdictJudge):
    """Keys of judges that can write text. `samples` judgements are taken and averaged."""

    samples: Count = 1
    temperature: Temperature = 0.0
    max_new_tokens: PositiveInt = 128
    structured: bool = Field(
        False, description="Ask for a JSON answer, enforced by engines that can."
    )

    @property
    def written(self) -> bool:
        """Yes, where no probabilities are read."""
        return True

    @property
    def writes(self) -> bool:
        """Whether the judge writes anything, with the keys as they are."""
        return self.written

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
        if self.structured and not self.written:
            raise ValueError("`structured` has no effect where label probabilities are read")
        return self


class LabelJudge(WritingJudge):
    """Judges that read label probabilities; with `cot` after reasons that they wrote first."""

    cot: bool = Field(False, description="Write reasons first, then read the labels.")
    max_new_tokens: PositiveInt = 256

    @property
    def written(self) -> bool:
        """No: its labels are read."""
        return False

    @property
    def writes(self) -> bool:
        """With `cot`, or where the verdict is written."""
        return self.cot or self.written


J = TypeVar("J", bound=JudgeBase)


def define_preset(base: type[J], kind: str, description: str, **defaults: Any) -> type[J]:
    """The spec of a kind that is another kind with other defaults."""
    fields: dict[str, Any] = {"kind": (Literal[kind], ...), "id": (StepId, kind)}
    for key, value in defaults.items():
        field = base.model_fields[key]
        fields[key] = (Annotated[(field.annotation, *field.metadata, Field())], value)
    name = f"{kind.title().replace('_', '')}Judge"
    return create_model(
        name, __base__=base, __doc__=description, __module__=base.__module__, **fields
    )
