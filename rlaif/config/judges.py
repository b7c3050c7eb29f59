"""Judges: what each kind can be told."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from rlaif.config.base import Count, Fraction, PluginName, StepId, Strict, Temperature
from rlaif.config.baselines import (
    FirstJudge,
    LongerJudge,
    OverlapJudge,
    PerplexityJudge,
    RandomJudge,
)
from rlaif.config.judging import JudgeBase, LabelJudge, ModelJudge, Order, WritingJudge
from rlaif.config.rubrics import RbrJudge, RbrmJudge, RubricJudge, UltraFeedbackJudge


class RulesJudge(JudgeBase):
    """The constitution's `check`s, run as programs."""

    kind: Literal["rules"]
    id: StepId = "rules"


class YesNoJudge(LabelJudge):
    """Pointwise: P(yes) against P(no) at the next token, one call per text principle."""

    kind: Literal["yes_no"]
    id: StepId = "yes_no"
    yes_labels: list[str] = ["Yes", " Yes", "yes", " yes"]
    no_labels: list[str] = ["No", " No", "no", " no"]


class _Rating(WritingJudge):
    scale: tuple[int, int] = (1, 5)
    expected: bool = False
    cot: bool = Field(False, description="With `expected`: write reasons first, then read labels.")

    @property
    def written(self) -> bool:
        return not self.expected

    @property
    def writes(self) -> bool:
        return self.written or self.cot

    @model_validator(mode="after")
    def _scale_rises(self) -> _Rating:
        if not 0 <= self.scale[0] < self.scale[1]:
            raise ValueError("scale must be [low, high] with 0 <= low < high")
        if self.cot and not self.expected:
            raise ValueError(
                "`cot` needs `expected: true`; without it the judge writes its reasons anyway"
            )
        return self


class RatingJudge(_Rating):
    """Pointwise rating on a described scale; `expected` reads the label log-probs instead."""

    kind: Literal["rating"]
    id: StepId = "rating"


class DirectJudge(_Rating):
    """Direct reward: the mean of the levels 1 to 10 under their label probabilities."""

    kind: Literal["direct"]
    id: StepId = "direct"
    scale: tuple[int, int] = (1, 10)
    expected: bool = True


class CritiqueJudge(_Rating):
    """A critique is written first, then the levels 1 to 10 are read."""

    kind: Literal["critique"]
    id: StepId = "critique"
    scale: tuple[int, int] = (1, 10)
    expected: bool = True
    cot: bool = True
    max_new_tokens: PositiveInt = 256


class PrometheusJudge(_Rating):
    """Absolute grading by a rubric, with a reference answer where the prompt has one."""

    kind: Literal["prometheus"]
    id: StepId = "prometheus"
    max_new_tokens: PositiveInt = 256


class AdditiveJudge(WritingJudge):
    """Self-rewarding additive 0-5 score (METHODS: 2401.10020); several samples are averaged."""

    kind: Literal["additive"]
    id: StepId = "additive"
    samples: Count = 3
    temperature: Temperature = 0.7
    max_new_tokens: PositiveInt = 200
    expected: bool = False

    @property
    def written(self) -> bool:
        """Unless the expected score is read."""
        return not self.expected


class _Comparing(LabelJudge):
    order: Order = "both"
    verdict: Literal["labels", "written"] = Field(
        "labels", description="labels: probabilities of the labels; written: the last one written."
    )
    first_labels: list[str] = ["1", " 1"]
    second_labels: list[str] = ["2", " 2"]
    tie_labels: list[str] | None = Field(
        None,
        description="A tie is a verdict of its own. When absent: tie where the verdict is written, "
        "none where labels are read.",
    )
    soft: bool = Field(True, description="false: 1, 0.5 or 0, whichever label is likeliest.")
    clamp: tuple[Fraction, Fraction] | None = Field(
        None, description="Probabilities are moved into this range, such as [0.4, 0.6]."
    )
    draw: Literal["each", "one"] = Field(
        "each", description="Every principle in turn, or one drawn for each comparison."
    )
    preamble: Literal["base", "detailed"] = "base"
    shots: NonNegativeInt = Field(0, description="How many of the principle's examples to show.")

    @property
    def written(self) -> bool:
        return self.verdict == "written"

    @property
    def ties(self) -> tuple[str, ...]:
        """What stands for a tie."""
        if self.tie_labels is None:
            return ("tie",) if self.written else ()
        return tuple(self.tie_labels)

    @model_validator(mode="after")
    def _comparison_makes_sense(self) -> _Comparing:
        if self.clamp is not None and (
            abs(self.clamp[0] + self.clamp[1] - 1) > 1e-9 or self.clamp[0] >= self.clamp[1]
        ):
            raise ValueError("clamp must be [1 - p, p] with p > 0.5, so that swapping mirrors it")
        if self.written and not self.soft:
            raise ValueError("`soft` has no effect where the verdict is written: it is 1, 0.5 or 0")
        if self.cot and self.verdict == "written":
            raise ValueError("`cot` reads labels after the reasons; drop it, or `verdict: written`")
        return self


class PairwiseJudge(_Comparing):
    """Which of two answers is better, by label log-probs, in both orders by default."""

    kind: Literal["pairwise"]
    id: StepId = "pairwise"


class ConstitutionalJudge(_Comparing):
    """Multiple choice (A) or (B) by one principle that is drawn for each comparison."""

    kind: Literal["constitutional"]
    id: StepId = "constitutional"
    first_labels: list[str] = ["A", " A"]
    second_labels: list[str] = ["B", " B"]
    draw: Literal["each", "one"] = "one"


class PrometheusPairJudge(_Comparing):
    """Relative grading by a rubric: feedback, then [RESULT] A or B."""

    kind: Literal["prometheus_pair"]
    id: StepId = "prometheus_pair"
    verdict: Literal["labels", "written"] = "written"
    first_labels: list[str] = ["A", " A"]
    second_labels: list[str] = ["B", " B"]


class ParseSpec(Strict):
    """How a template judge's answer is read: the matches of a pattern, a JSON schema, or labels."""

    pattern: str | None = Field(None, description="A regular expression with one group.")
    json_schema: dict[str, Any] | None = None
    field: str = Field("score", description="The key of the JSON answer that holds the value.")
    values: dict[str, float | None] | None = Field(
        None,
        description="What each matched word is worth, null where the judge abstains; a number is "
        "read when absent.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> ParseSpec:
        if (self.pattern is None) == (self.json_schema is None):
            raise ValueError("give exactly one of `pattern` and `json_schema`")
        return self


class TemplateJudge(WritingJudge):
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
        if self.structured:
            raise ValueError("`structured` has no effect here: give a `json_schema` in `parse`")
        return self


class RewardModelJudge(JudgeBase):
    """A reward model: `by` names a model with a reward head, or a `distill` step. The score is the
    sigmoid of its reward; the reward itself is kept beside it."""

    kind: Literal["reward_model"]
    id: StepId = "reward_model"
    by: str
    condition: str | None = Field(
        None, description="The system prompt under which a conditional model judges."
    )

    def asks(self) -> dict[str, str]:
        """The one model, `by`."""
        return {"by": self.by}


class RewardEnsembleJudge(JudgeBase):
    """Several reward models as one (arXiv 2310.02743)."""

    kind: Literal["reward_ensemble"]
    id: StepId = "reward_ensemble"
    members: Annotated[list[str], Field(min_length=1)] = Field(
        description="Reward models: names under `models`, `distill` steps, or folders. One alone "
        "must be an ensemble of adapters, all of which are members."
    )
    combine: Literal["mean", "worst", "uncertainty"] = Field(
        "mean", description="uncertainty: the mean less `penalty` times the members' variance."
    )
    penalty: NonNegativeFloat = 1.0
    standardise: dict[str, tuple[float, PositiveFloat]] = Field(
        {},
        description="Mean and standard deviation of a member's rewards on a set of answers that "
        "stays the same; its rewards are then in these units.",
    )

    @model_validator(mode="after")
    def _members(self) -> RewardEnsembleJudge:
        if len(set(self.members)) < len(self.members):
            raise ValueError("`members` names a model twice: its vote would count twice")
        if unknown := sorted(set(self.standardise) - set(self.members)):
            raise ValueError(f"`standardise` names {unknown[0]!r}, which is no member")
        if self.standardise and len(self.standardise) < len(self.members):
            raise ValueError("`standardise` must name all members or none: they are compared")
        return self

    def asks(self) -> dict[str, str]:
        """Each member under its own name."""
        return {name: name for name in self.members}


class ImplicitRewardJudge(JudgeBase):
    """DPO's implicit reward: beta (log p_by(answer) - log p_reference(answer))."""

    kind: Literal["implicit_reward"]
    id: StepId = "implicit_reward"
    by: str = "policy"
    reference: str = "initial"
    beta: PositiveFloat = 0.1
    per_token: bool = Field(False, description="Mean log-ratio of a token in place of the sum.")

    def asks(self) -> dict[str, str]:
        """`by` and `reference`."""
        return {"by": self.by, "reference": self.reference}


class CustomJudge(ModelJudge):
    """A judge class of one's own, `kind: package.module:Name`, built with `options`."""

    kind: PluginName
    id: StepId = "custom"
    options: dict[str, Any] = {}


def _judge_tag(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "custom" if isinstance(kind, str) and ":" in kind else str(kind)


class MetaJudge(ModelJudge):
    """A judge of judgements: those of `judge` are compared, ranked by Elo, and the best counts."""

    kind: Literal["meta"]
    id: StepId = "meta"
    judge: JudgeStep
    first_labels: list[str] = ["1", " 1"]
    second_labels: list[str] = ["2", " 2"]

    def asks(self) -> dict[str, str]:
        """`by`, and the models of the judge whose judgements it compares."""
        return {"by": self.by} | {f"judge/{r}": name for r, name in self.judge.asks().items()}


class JuryJudge(JudgeBase):
    """Several judges and one verdict: the mean of their scores, or a vote on each pair."""

    kind: Literal["jury"]
    id: StepId = "jury"
    of: Annotated[list[JudgeStep], Field(min_length=1)]
    pool: Literal["mean", "vote"] = "mean"
    weights: dict[str, NonNegativeFloat] | None = None
    accuracy: dict[str, Fraction] | str | None = Field(
        None, description="Measured accuracies, or a file that `judge-bench --json` wrote."
    )
    missing: Literal["drop", "renormalise"] = "renormalise"

    @field_validator("of")
    @classmethod
    def _ids_differ(cls, members: list[Any]) -> list[Any]:
        ids = [member.id for member in members]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"the jurors' ids must differ; {twice} is used twice (set `id:`)")
        return members

    @model_validator(mode="after")
    def _one_weighting(self) -> JuryJudge:
        if self.weights is not None and self.accuracy is not None:
            raise ValueError("give `weights` or `accuracy`, not both")
        if self.principles is not None:
            raise ValueError("`principles` belongs to the jurors; set it there")
        return self

    def asks(self) -> dict[str, str]:
        """The models of the jurors, by juror and role."""
        return {f"{j.id}/{r}": name for j in self.of for r, name in j.asks().items()}


JudgeStep = Annotated[
    Annotated[RulesJudge, Tag("rules")]
    | Annotated[YesNoJudge, Tag("yes_no")]
    | Annotated[RatingJudge, Tag("rating")]
    | Annotated[DirectJudge, Tag("direct")]
    | Annotated[CritiqueJudge, Tag("critique")]
    | Annotated[PrometheusJudge, Tag("prometheus")]
    | Annotated[AdditiveJudge, Tag("additive")]
    | Annotated[PairwiseJudge, Tag("pairwise")]
    | Annotated[ConstitutionalJudge, Tag("constitutional")]
    | Annotated[PrometheusPairJudge, Tag("prometheus_pair")]
    | Annotated[TemplateJudge, Tag("template")]
    | Annotated[UltraFeedbackJudge, Tag("ultrafeedback")]
    | Annotated[RbrmJudge, Tag("rbrm")]
    | Annotated[RbrJudge, Tag("rbr")]
    | Annotated[RubricJudge, Tag("rubric")]
    | Annotated[RewardModelJudge, Tag("reward_model")]
    | Annotated[RewardEnsembleJudge, Tag("reward_ensemble")]
    | Annotated[ImplicitRewardJudge, Tag("implicit_reward")]
    | Annotated[MetaJudge, Tag("meta")]
    | Annotated[JuryJudge, Tag("jury")]
    | Annotated[LongerJudge, Tag("longer")]
    | Annotated[FirstJudge, Tag("first")]
    | Annotated[RandomJudge, Tag("random")]
    | Annotated[OverlapJudge, Tag("overlap")]
    | Annotated[PerplexityJudge, Tag("perplexity")]
    | Annotated[CustomJudge, Tag("custom")],
    Discriminator(
        _judge_tag,
        custom_error_type="unknown_kind",
        custom_error_message="`kind` must be rules, yes_no, rating, direct, critique, prometheus, "
        "additive, pairwise, constitutional, prometheus_pair, template, ultrafeedback, rbrm, rbr, "
        "rubric, reward_model, reward_ensemble, implicit_reward, meta, jury, a baseline "
        "(longer, first, random, overlap, perplexity), or package.module:Name",
    ),
]

MetaJudge.model_rebuild()
JuryJudge.model_rebuild()
