"""Judges that go by a list: aspects, classes, propositions, items."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from rlaif.config.base import Fraction, StepId, Strict
from rlaif.config.judging import LabelJudge, Order, VerdictJudge, WritingJudge
from rlaif.constitution.rules import validate_check

Category = Literal["essential", "important", "optional", "pitfall"]


class UltraFeedbackJudge(WritingJudge):
    """Four aspects, each rated for all answers of a prompt in one call, which the judge writes, or
    by label probabilities with all answers in view."""

    kind: Literal["ultrafeedback"]
    id: StepId = "ultrafeedback"
    aspects: Annotated[list[str], Field(min_length=1)] = [
        "instruction_following",
        "honesty",
        "truthfulness",
        "helpfulness",
    ]
    order: Order = "both"
    max_new_tokens: PositiveInt = 512
    expected: bool = Field(
        False, description="Read each text's mean level from label probabilities; write nothing."
    )

    @property
    def written(self) -> bool:
        """Unless the expected ratings are read."""
        return not self.expected


class RubricClass(Strict):
    """One class of a classification rubric and what falls into it."""

    id: Annotated[str, Field(min_length=1)]
    text: Annotated[str, Field(min_length=1)]


class RewardTable(Strict):
    """The reward of each class, on [0, 1], for prompts with one of `tags` (all when absent)."""

    tags: list[str] | None = None
    rewards: dict[str, Fraction]


class RbrmJudge(LabelJudge):
    """A rubric classifier: one letter per class, whose reward depends on the prompt's tags."""

    kind: Literal["rbrm"]
    id: StepId = "rbrm"
    classes: Annotated[list[RubricClass], Field(min_length=2, max_length=26)]
    tables: Annotated[list[RewardTable], Field(min_length=1)]
    soft: bool = Field(True, description="Mean reward over the classes, or the likeliest class's.")

    @model_validator(mode="after")
    def _tables_are_total(self) -> RbrmJudge:
        names = [c.id for c in self.classes]
        if len(set(names)) < len(names):
            raise ValueError("class ids must differ")
        for table in self.tables:
            if set(table.rewards) != set(names):
                raise ValueError(f"every table gives a reward to each of {names}, and to no other")
        return self


class RbrJudge(VerdictJudge):
    """Rule-based rewards: yes/no propositions with fitted weights. `weights` is a YAML file."""

    kind: Literal["rbr"]
    id: StepId = "rbr"
    weights: str
    yes_labels: list[str] = ["Yes", " Yes", "yes", " yes"]
    no_labels: list[str] = ["No", " No", "no", " no"]


class RubricItem(Strict):
    """One thing to look for. `check` is the name of a rule that decides it in place of a model."""

    text: Annotated[str, Field(min_length=1)]
    category: Category = "essential"
    weight: PositiveFloat | None = Field(None, description="The category's when absent.")
    check: str | None = None
    params: dict[str, Any] = {}

    @model_validator(mode="after")
    def _known_check(self) -> RubricItem:
        if self.check is not None:
            validate_check(self.check, self.params)
        elif self.params:
            raise ValueError("`params` belong to a `check`, and there is none")
        return self


class RubricWriting(Strict):
    """How the model writes a prompt's items: at most `most`, in `max_new_tokens` tokens."""

    most: PositiveInt = 8
    max_new_tokens: PositiveInt = 400
    template: str = "prompts/judges/rubric_write.j2"
    structured: bool = Field(False, description="Ask for a JSON answer, as judges can.")


class RubricJudge(VerdictJudge):
    """A checklist: items with weights, each decided alone or all weighed in one score.

    The items are those given, those of a file by prompt, or what the model writes for each prompt.
    """

    kind: Literal["rubric"]
    id: StepId = "rubric"
    items: list[RubricItem] | None = None
    items_file: str | None = Field(None, description="JSON lines: a `prompt` and its `items`.")
    generate: RubricWriting | None = None
    aggregate: Literal["explicit", "implicit"] = "explicit"
    category_weights: dict[Category, PositiveFloat] = {
        "essential": 1.0,
        "important": 0.7,
        "optional": 0.3,
        "pitfall": 0.8,
    }
    yes_labels: list[str] = ["Yes", " Yes", "yes", " yes"]
    no_labels: list[str] = ["No", " No", "no", " no"]

    @field_validator("category_weights")
    @classmethod
    def _all_categories(cls, weights: dict[str, float]) -> dict[str, float]:
        missing = sorted(set(get_args(Category)) - set(weights))
        if missing:
            raise ValueError(f"`category_weights` lacks {missing}")
        return weights

    @model_validator(mode="after")
    def _one_source(self) -> RubricJudge:
        if sum(x is not None for x in (self.items, self.items_file, self.generate)) != 1:
            raise ValueError("give exactly one of `items`, `items_file` and `generate`")
        if self.items is not None and not self.items:
            raise ValueError("`items` is empty")
        return self
