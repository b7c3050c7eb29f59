"""Judges: what each kind can be told."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from rlaif.config.base import PluginName, StepId, Strict
from rlaif.config.baselines import (
    FirstJudge,
    LongerJudge,
    OverlapJudge,
    PerplexityJudge,
    RandomJudge,
)


class JudgeBase(Strict):
    """Keys that every judge has. `principles` limits it to some of the constitution's."""

    id: StepId
    principles: list[str] | None = None
    uses: list[str] | None = None


class ModelJudge(JudgeBase):
    """Keys of every judge that asks a model. `by` names the model; `template` a prompt file."""

    by: str = "policy"
    template: str | None = None


class RulesJudge(JudgeBase):
    """The constitution's `check`s, run as programs."""

    kind: Literal["rules"]
    id: StepId = "rules"


class YesNoJudge(ModelJudge):
    """Pointwise: P(yes) against P(no) at the next token, one call per text principle."""

    kind: Literal["yes_no"]
    id: StepId = "yes_no"
    yes_labels: list[str] = ["Yes", " Yes", "yes", " yes"]
    no_labels: list[str] = ["No", " No", "no", " no"]


class GeneratedJudge(ModelJudge):
    """Keys of judges that write text. `samples` judgements are taken and averaged."""

    samples: PositiveInt = 1
    temperature: NonNegativeFloat = 0.0
    max_new_tokens: PositiveInt = 128

    @model_validator(mode="after")
    def _samples_differ(self) -> GeneratedJudge:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples > 1 needs temperature > 0: greedy samples are all the same")
        return self


class RatingJudge(GeneratedJudge):
    """Pointwise rating on a described scale; `expected` reads the label log-probs instead."""

    kind: Literal["rating"]
    id: StepId = "rating"
    scale: tuple[int, int] = (1, 5)
    expected: bool = False

    @model_validator(mode="after")
    def _scale_rises(self) -> RatingJudge:
        if not 0 <= self.scale[0] < self.scale[1]:
            raise ValueError("scale must be [low, high] with 0 <= low < high")
        return self


class AdditiveJudge(GeneratedJudge):
    """Self-rewarding additive 0-5 score (METHODS: 2401.10020); several samples are averaged."""

    kind: Literal["additive"]
    id: StepId = "additive"
    samples: PositiveInt = 3
    temperature: NonNegativeFloat = 0.7
    max_new_tokens: PositiveInt = 200
    expected: bool = False


class PairwiseJudge(ModelJudge):
    """Which of two answers is better, by label log-probs, in both orders by default."""

    kind: Literal["pairwise"]
    id: StepId = "pairwise"
    order: Literal["both", "random", "fixed"] = "both"
    first_labels: list[str] = ["1", " 1"]
    second_labels: list[str] = ["2", " 2"]


class ParseSpec(Strict):
    """How a template judge's answer is read: a pattern's last match, a JSON schema, or labels."""

    pattern: str | None = Field(None, description="A regular expression with one group.")
    json_schema: dict[str, Any] | None = None
    field: str = Field("score", description="The key of the JSON answer that holds the value.")
    values: dict[str, float] | None = Field(
        None, description="What each matched word is worth; a number is read when absent."
    )

    @model_validator(mode="after")
    def _one_way(self) -> ParseSpec:
        if (self.pattern is None) == (self.json_schema is None):
            raise ValueError("give exactly one of `pattern` and `json_schema`")
        return self


class TemplateJudge(GeneratedJudge):
    """A judge of one's own: a template file, a way to read the answer, and a scale."""

    kind: Literal["template"]
    id: StepId = "template"
    template: str
    parse: ParseSpec
    scale: tuple[float, float] = (0.0, 1.0)
    per_principle: bool = Field(
        False, description="One call per text principle instead of one for all."
    )

    @model_validator(mode="after")
    def _scale_rises(self) -> TemplateJudge:
        if not self.scale[0] < self.scale[1]:
            raise ValueError("scale must be [low, high] with low < high")
        return self


class RewardModelJudge(JudgeBase):
    """A reward model: `by` names a model with a one-number head, or a `distill` step. The score is
    the sigmoid of its reward; the reward itself is kept beside it."""

    kind: Literal["reward_model"]
    id: StepId = "reward_model"
    by: str


class CustomJudge(ModelJudge):
    """A judge class of one's own, `kind: package.module:Name`, built with `options`."""

    kind: PluginName
    id: StepId = "custom"
    options: dict[str, Any] = {}


def _judge_tag(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "custom" if isinstance(kind, str) and ":" in kind else str(kind)


JudgeStep = Annotated[
    Annotated[RulesJudge, Tag("rules")]
    | Annotated[YesNoJudge, Tag("yes_no")]
    | Annotated[RatingJudge, Tag("rating")]
    | Annotated[AdditiveJudge, Tag("additive")]
    | Annotated[PairwiseJudge, Tag("pairwise")]
    | Annotated[TemplateJudge, Tag("template")]
    | Annotated[RewardModelJudge, Tag("reward_model")]
    | Annotated[LongerJudge, Tag("longer")]
    | Annotated[FirstJudge, Tag("first")]
    | Annotated[RandomJudge, Tag("random")]
    | Annotated[OverlapJudge, Tag("overlap")]
    | Annotated[PerplexityJudge, Tag("perplexity")]
    | Annotated[CustomJudge, Tag("custom")],
    Discriminator(
        _judge_tag,
        custom_error_type="unknown_kind",
        custom_error_message="`kind` must be rules, yes_no, rating, additive, pairwise, template, "
        "reward_model, a baseline (longer, first, random, overlap, perplexity), or "
        "package.module:Name",
    ),
]

AnyJudge = (
    RulesJudge
    | YesNoJudge
    | RatingJudge
    | AdditiveJudge
    | PairwiseJudge
    | TemplateJudge
    | RewardModelJudge
    | LongerJudge
    | FirstJudge
    | RandomJudge
    | OverlapJudge
    | PerplexityJudge
    | CustomJudge
)
