"""`models` and `prompts`."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    PositiveInt,
    model_validator,
)

from rlaif.config.base import PluginName, Strict

RESERVED_MODELS = frozenset({"policy", "initial", "previous", "earlier", "current"})


class ModelSpec(Strict):
    """One model, named once. `path` is builtin/NAME, a local folder, or a hub id."""

    path: str
    engine: Literal["hf", "fake"] | PluginName = "hf"
    role: Literal["policy", "labeller", "proxy", "gold"] | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="auto: bfloat16 where the device multiplies it fast, else float32."
    )
    device: str = "auto"
    batch_tokens: PositiveInt = Field(
        8192, description="Tokens (prompt width + new, times rows) in one engine batch."
    )
    max_context: PositiveInt | None = Field(
        None, description="Longest prompt plus answer; the model's own limit when absent."
    )
    system_prompt: str = Field(
        "keep",
        description="keep: what the chat template inserts; drop: none; anything else: that text.",
    )
    script: str | None = Field(None, description="For engine fake: a YAML file of answers.")


class Columns(Strict):
    """Which column of a dataset holds what. Give `prompt` (text) or `messages`."""

    prompt: str | None = None
    messages: str | None = None
    tags: str | None = None
    reference: str | None = None
    split: str | None = None


Cell = str | int | float | bool


class LabelValues(Strict):
    """The values of a label column: which say that the first or second answer is better, or tie."""

    first: Cell | list[Cell]
    second: Cell | list[Cell]
    tie: Cell | list[Cell] = []

    @model_validator(mode="after")
    def _apart(self) -> LabelValues:
        sides = (self.first, self.second, self.tie)
        given = [str(v) for side in sides for v in (side if isinstance(side, list) else [side])]
        if len(set(given)) < len(given):
            raise ValueError("the values of first, second and tie must differ")
        return self

    def meaning(self) -> dict[str, float | None]:
        """The probability that the first answer is better, by the value's text."""
        sides = ((self.first, 1.0), (self.second, 0.0), (self.tie, 0.5))
        return {
            str(value): label
            for side, label in sides
            for value in (side if isinstance(side, list) else [side])
        }


class LabelColumns(Strict):
    """Which column of a table of labelled pairs holds what.

    Give `chosen` and `rejected`; or `first`, `second` and `label`.
    """

    prompt: str
    chosen: str | None = None
    rejected: str | None = None
    first: str | None = None
    second: str | None = None
    label: str | None = None
    labels: LabelValues | None = Field(
        None, description="What the label's values mean; without it: P(first is better), 0 to 1."
    )
    subset: str | None = None
    first_author: str | None = None
    second_author: str | None = None
    annotator: str | None = None
    annotator_kind: Literal["human", "ai", "model", "rule"] = "human"

    @model_validator(mode="after")
    def _one_form(self) -> LabelColumns:
        won = (self.chosen, self.rejected)
        compared = (self.first, self.second, self.label)
        if not (all(won) and not any(compared)) and not (all(compared) and not any(won)):
            raise ValueError("give `chosen` and `rejected`, or `first`, `second` and `label`")
        if self.labels is not None and self.label is None:
            raise ValueError("`labels` says what the values of `label` mean; give `label` too")
        return self

    @property
    def answers(self) -> tuple[str, str]:
        """The columns of the two answers."""
        first, second = self.chosen or self.first, self.rejected or self.second
        assert first is not None
        assert second is not None
        return first, second


class PromptsSpec(Strict):
    """The instructions. `path` is JSONL or Parquet; `dataset` any `datasets` dataset."""

    path: str | None = None
    dataset: str | None = None
    dataset_split: str = "train"
    columns: Columns = Columns()
    holdout: PositiveInt = Field(64, description="Prompts kept for evaluation, never trained on.")
    limit: PositiveInt | None = Field(None, description="Use at most this many training prompts.")

    @model_validator(mode="after")
    def _one_source(self) -> PromptsSpec:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of `path` and `dataset`")
        return self
