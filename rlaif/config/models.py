"""`models` and `prompts`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    PositiveInt,
    model_validator,
)

from rlaif.config.base import PluginName, Strict

RESERVED_MODELS = frozenset({"policy", "initial", "previous", "earlier", "current"})

TRAINABLE = frozenset({"hf", "vllm"})
"""Engines that serve a checkpoint as training reads and writes it."""


class ModelSpec(Strict):
    """One model, named once. `path` is builtin/NAME, a local folder, or a hub id."""

    path: str
    engine: Literal["hf", "vllm", "fake"] | PluginName = "hf"
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
    engine_args: dict[str, Any] = Field(
        default_factory=dict,
        description="For engine vllm: arguments of vllm.LLM, such as tensor_parallel_size.",
    )
    script: str | None = Field(None, description="For engine fake: a YAML file of answers.")

    @model_validator(mode="after")
    def _options_have_effect(self) -> ModelSpec:
        if self.engine_args and self.engine != "vllm":
            raise ValueError(f"engine_args are for engine vllm, and this one is {self.engine}")
        return self


class Columns(Strict):
    """Which column of a dataset holds what. Give `prompt` (text) or `messages`."""

    prompt: str | None = None
    messages: str | None = None
    tags: str | None = None
    reference: str | None = None
    split: str | None = None


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
