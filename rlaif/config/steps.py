"""Steps other than judge and train, and the list of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from rlaif.config.arms import HUMAN
from rlaif.config.base import Fraction, StepId, Strict
from rlaif.config.filters import FilterStep
from rlaif.config.judges import JudgeStep
from rlaif.config.judging import JudgeBase
from rlaif.config.models import LabelColumns
from rlaif.config.training import AnyTrain, DistillStep
from rlaif.rules import validate_check


class SamplingKeys(Strict):
    """Keys that every step that samples shares. `temperature` 0 is greedy."""

    temperature: NonNegativeFloat = 0.8
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: NonNegativeInt = 0
    max_new_tokens: PositiveInt = 64
    stop: list[str] = []


class SampleStep(SamplingKeys):
    """Sample `n` completions of each training prompt."""

    id: StepId = "sample"
    n: Annotated[int, Field(ge=1)] = 4
    by: str = "policy"
    prompts: PositiveInt | None = Field(
        None, description="Training prompts used this round, drawn by seed; all when absent."
    )


class LoadStep(Strict):
    """Bring in records from a file: preferences, completions or judgements of a run, or labelled
    pairs: two given answers each, and what people said of them.

    Preferences are TRL rows; with `format` or `columns` they are made of labelled pairs.
    """

    id: StepId = "load"
    type: Literal["preferences", "completions", "judgements", "pairs"]
    path: str | None = Field(None, description="The experiment's `data` when absent.")
    format: str | None = Field(
        None,
        description="A format of labelled pairs; see docs/data.md. Of pairs, found when absent.",
    )
    columns: LabelColumns | None = Field(None, description="Or which column is what.")
    on_error: Literal["fail", "skip"] = Field(
        "fail", description="What is done with a labelled pair that cannot be read."
    )

    @model_validator(mode="after")
    def _labelled(self) -> LoadStep:
        given = sorted({"format", "columns", "on_error"} & self.model_fields_set)
        if given and self.type not in ("preferences", "pairs"):
            raise ValueError(f"{', '.join(given)}: only for `type: preferences` or `type: pairs`")
        if self.format is not None and self.columns is not None:
            raise ValueError("give `format` or `columns`, not both")
        if given == ["on_error"] and self.type == "preferences":
            raise ValueError("on_error: only with `format` or `columns`")
        return self


class LabelStep(Strict):
    """Make preferences of loaded pairs: the answers are given, and `labels` says who chooses."""

    id: StepId = "label"
    labels: StepId = Field(
        HUMAN,
        description="human: the loaded labels; ai: every judge, combined; random: a coin; or the id"
        " of one judge. With `arms`, each arm says.",
    )
    flip: Fraction | None = Field(None, description="Turn this share of the labels round.")
    weights: dict[str, NonNegativeFloat] | None = Field(
        None, description="Of `ai`: weight of each judge by id; equal weights when absent."
    )


class PairStep(Strict):
    """Make preferences from judgements. `min_margin` is on the combined [0, 1] scale."""

    id: StepId = "pair"
    strategy: Literal["best_vs_worst", "best_vs_random", "margin", "all", "reference"] = Field(
        "best_vs_worst",
        description="reference: each prompt's reference against every sample (SPIN), unjudged.",
    )
    weights: dict[str, NonNegativeFloat] | None = Field(
        None, description="Weight of each judge by id; equal weights when absent."
    )
    min_margin: Fraction = 0.0
    missing: Literal["drop", "renormalise"] = "drop"
    standardise: Literal["initial"] | None = None
    consistency: StepId | None = Field(
        None, description="CREAM's soft labels (arXiv 2410.12735) from a judge of this id."
    )
    consistency_mean: bool = Field(False, description="All pairs get the mean (the paper's avg).")
    max_pairs: PositiveInt | None = Field(None, description="Keep the widest margins, at most.")
    uses: list[str] | None = None

    @model_validator(mode="after")
    def _unjudged(self) -> PairStep:
        judged = ("weights", "min_margin", "standardise", "consistency", "uses")
        given = [key for key in judged if getattr(self, key)]
        if self.strategy == "reference" and given:
            raise ValueError(
                f"{', '.join(given)}: strategy reference looks at no judgement; leave it out"
            )
        return self


class CheckSpec(Strict):
    """A rule to watch on held-out answers that no judge trains on."""

    id: StepId
    rule: str
    params: dict[str, Any] = {}

    @model_validator(mode="after")
    def _known(self) -> CheckSpec:
        validate_check(self.rule, self.params)
        return self


class EvaluateStep(Strict):
    """Sample held-out prompts from the new policy and compare with other models."""

    id: StepId = "evaluate"
    against: list[Literal["initial", "previous"]] = ["initial", "previous"]
    n: PositiveInt = 1
    temperature: NonNegativeFloat | None = None
    max_new_tokens: PositiveInt | None = None
    judges: list[str] | None = Field(None, description="Judge ids; every judge when absent.")
    checks: list[CheckSpec] = []
    resamples: PositiveInt = 2000


class StepEntry(Strict):
    """One item of `steps`: exactly one of its keys is set."""

    sample: SampleStep | None = None
    load: LoadStep | None = None
    filter: FilterStep | None = None
    judge: JudgeStep | None = None
    pair: PairStep | None = None
    label: LabelStep | None = None
    distill: DistillStep | None = None
    train: AnyTrain | None = None
    evaluate: EvaluateStep | None = None

    @model_validator(mode="before")
    @classmethod
    def _empty_means_defaults(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: {} if item is None else item for key, item in value.items()}
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> StepEntry:
        if len(self.model_fields_set) != 1:
            raise ValueError(
                "each step is one key: sample, load, filter, judge, pair, label, distill, train or "
                "evaluate"
            )
        return self

    @property
    def kind(self) -> str:
        """sample, load, filter, judge, pair, label, distill, train or evaluate."""
        return next(iter(self.model_fields_set))

    @property
    def step(self) -> AnyStep:
        """The step itself."""
        return getattr(self, self.kind)  # type: ignore[no-any-return]


AnyStep = (
    SampleStep
    | LoadStep
    | FilterStep
    | JudgeBase
    | PairStep
    | LabelStep
    | DistillStep
    | AnyTrain
    | EvaluateStep
)
