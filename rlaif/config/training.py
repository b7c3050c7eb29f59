"""The train step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

from rlaif.config.base import Fraction, StepId, Strict


class LoraOptions(Strict):
    """Low-rank adapters through peft; merged into the exported weights."""

    r: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Fraction = 0.0
    target_modules: str | list[str] = "all-linear"


class TrainStep(Strict):
    """Train the policy. Batch sizes count pairs (dpo) or examples (sft)."""

    id: StepId = "train"
    method: Literal["dpo", "sft"] = "dpo"
    from_: str = Field("current", alias="from")
    reference: str = "current"
    beta: PositiveFloat = 0.1
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    nll_weight: NonNegativeFloat = 0.0
    learning_rate: PositiveFloat = 1e-6
    epochs: PositiveInt = 1
    batch_size: PositiveInt = 16
    micro_batch_tokens: PositiveInt = Field(
        2048, description="Tokens computed at once; memory grows with them."
    )
    max_length: PositiveInt = 1024
    overlong: Literal["skip", "refuse", "truncate_left"] = "skip"
    warmup_ratio: Fraction = 0.1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    min_lr_ratio: Fraction = 0.0
    weight_decay: NonNegativeFloat = 0.0
    adam_betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    max_grad_norm: PositiveFloat = 1.0
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto: bf16 autocast where the device multiplies it fast, else fp32."
    )
    gradient_checkpointing: bool = False
    train_on_eos: bool = True
    lora: LoraOptions | None = None
    checkpoint_every: PositiveInt = Field(50, description="Optimiser steps between checkpoints.")
    uses: list[str] | None = None
