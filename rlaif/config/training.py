"""The train step: one class for each method, with its own keys and their defaults.

The defaults are the papers' or, where those need a large model, what the field uses; each field's
description names its source.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from rlaif.config.base import Fraction, StepId, Strict

Noise = Annotated[float, Field(ge=0.0, lt=0.5)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class LoraOptions(Strict):
    """Low-rank adapters through peft."""

    r: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Fraction = 0.0
    target_modules: str | list[str] = "all-linear"
    dora: bool = Field(False, description="Weight-decomposed adapters (arXiv 2402.09353).")
    export: Literal["merged", "adapter", "both"] = Field(
        "merged",
        exclude_if=lambda value: value == "merged",
        description="What is written: whole weights with the adapter in them, the adapter alone in "
        "peft's format, or whole weights and the adapter beside them in `adapter/`.",
    )


class TextStep(Strict):
    """Keys of every step that runs a model over prompts and answers to make another model."""

    id: StepId = "train"
    method: str
    from_: str = Field("current", alias="from", description="The model to start from.")
    micro_batch_tokens: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="Tokens computed at once; memory grows with them. auto: 768 on a CPU (1024 in "
        "bf16), 16384 on a GPU.",
    )
    max_length: PositiveInt = Field(1024, description="Tokens of prompt and answer together.")
    overlong: Literal["skip", "refuse", "truncate_left"] = "skip"
    reasoning: Literal["keep", "strip"] = Field(
        "keep",
        exclude_if=lambda value: value == "keep",
        description="An answer's thinking: learned with it, or left out. A template that opens a "
        "block of thinking then gets an empty one.",
    )
    on_error: Literal["fail", "skip"] = Field(
        "fail",
        exclude_if=lambda value: value == "fail",
        description="What is done with a row that the chat template refuses, that has a token "
        "which the model does not know or, in a file, that cannot be read.",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="auto and bf16: bf16 autocast where the device multiplies it fast, else fp32.",
    )
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        [], description="Where every step's numbers go as well; each must be installed."
    )
    uses: list[str] | None = None

    @property
    def makes_masters(self) -> bool:
        """Whether the model has fp32 masters, which a later training starts from."""
        return True


class TrainStep(TextStep):
    """Keys of every method. Batch sizes count pairs, examples or prompts."""

    LOSS_KEYS: ClassVar[tuple[str, ...]] = ()

    learning_rate: PositiveFloat = 1e-6
    epochs: PositiveInt = 1
    batch_size: PositiveInt = Field(16, description="What one optimiser step learns from.")
    warmup_ratio: Fraction = 0.1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    min_lr_ratio: Fraction = 0.0
    weight_decay: NonNegativeFloat = 0.0
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw",
        description="adamw_8bit: its state in 8 bits (arXiv 2110.02861), which needs bitsandbytes.",
    )
    adam_betas: tuple[Beta, Beta] = (0.9, 0.999)
    max_grad_norm: PositiveFloat = 1.0
    gradient_checkpointing: bool = False
    train_on_eos: bool = True
    lora: LoraOptions | None = None
    processes: PositiveInt | Literal["auto"] = Field(
        "auto", description="auto: one for each GPU, one on a CPU. Several share every batch."
    )
    sharding: Literal["none", "full"] = Field(
        "none",
        description="full: weights, gradients and optimiser state are split over the processes "
        "(FSDP2).",
    )
    checkpoint_every: PositiveInt = Field(
        50, description="Optimiser steps between checkpoints; there is also one every five minutes."
    )

    @model_validator(mode="after")
    def _splits(self) -> TrainStep:
        if self.sharding == "full" and self.processes == 1:
            raise ValueError("`sharding: full` needs several processes: set `processes` above 1")
        return self

    @property
    def makes_masters(self) -> bool:
        """Not as an adapter alone, which is exact as it is."""
        return self.lora is None or self.lora.export != "adapter"

    @property
    def loss_options(self) -> dict[str, Any]:
        """The keys that the method's loss function takes."""
        return {key: getattr(self, key) for key in self.LOSS_KEYS}


class SftTrain(TrainStep):
    """Supervised: the mean negative log-likelihood of the chosen answers' tokens."""

    method: Literal["sft"]


class ReferenceTrain(TrainStep):
    """Keys of methods that compare with a reference model."""

    reference: str = "current"
    beta: PositiveFloat = 0.1


class DpoTrain(ReferenceTrain):
    """Direct preference optimisation (arXiv 2305.18290) and its additive variants."""

    LOSS_KEYS = ("beta", "label_smoothing", "length_normalise", "positive_weight")

    method: Literal["dpo"] = "dpo"
    beta: PositiveFloat = Field(0.1, description="arXiv 2305.18290; TL;DR used 0.5.")
    label_smoothing: Noise = Field(0.0, description="cDPO: how often labels are wrong.")
    nll_weight: NonNegativeFloat = Field(
        0.0, description="Adds the chosen answer's NLL per token: Llama 3 0.2, iterative RPO 1."
    )
    positive_weight: NonNegativeFloat = Field(
        0.0, description="DPO-positive (arXiv 2402.13228): 50, with beta 0.3; 0 is off."
    )
    length_normalise: bool = Field(
        False, description="Log-ratios per token; Tulu 3 (arXiv 2411.15124) with beta 5."
    )


class RobustTrain(ReferenceTrain):
    """Robust DPO: unbiased under labels flipped at a known rate (arXiv 2403.00409)."""

    LOSS_KEYS = ("beta", "label_smoothing")

    method: Literal["robust"]
    label_smoothing: Noise = 0.1


class IpoTrain(ReferenceTrain):
    """Identity preference optimisation (arXiv 2310.12036); `beta` is the paper's tau."""

    LOSS_KEYS = ("beta", "length_normalise")

    method: Literal["ipo"]
    length_normalise: bool = Field(
        False, description="TRL divides by the length, the paper's equation does not."
    )


class HingeTrain(ReferenceTrain):
    """The hinge loss of RSO (arXiv 2309.06657)."""

    LOSS_KEYS = ("beta",)

    method: Literal["hinge"]
    beta: PositiveFloat = 0.05


class ApoZeroTrain(ReferenceTrain):
    """APO-zero (arXiv 2408.06266): chosen answers up, rejected ones down."""

    LOSS_KEYS = ("beta",)

    method: Literal["apo_zero"]
    learning_rate: PositiveFloat = 2e-7


class NcaTrain(ReferenceTrain):
    """Noise-contrastive alignment for pairs (arXiv 2402.05369)."""

    LOSS_KEYS = ("beta",)

    method: Literal["nca"]
    beta: PositiveFloat = 0.01


class KtoTrain(ReferenceTrain):
    """Kahneman-Tversky optimisation (arXiv 2402.01306): chosen answers are desirable, rejected ones
    undesirable; the baseline comes from answers to other prompts."""

    LOSS_KEYS = ("beta", "desirable_weight", "undesirable_weight")

    method: Literal["kto"]
    desirable_weight: PositiveFloat = 1.0
    undesirable_weight: PositiveFloat = 1.0


class SlicTrain(TrainStep):
    """Sequence likelihood calibration (arXiv 2305.10425): a hinge without a reference."""

    LOSS_KEYS = ("margin", "nll_weight")

    method: Literal["slic"]
    margin: PositiveFloat = Field(1.0, description="Nats between chosen and rejected.")
    nll_weight: NonNegativeFloat = 0.0


class SimpoTrain(TrainStep):
    """SimPO (arXiv 2405.14734): mean log-probs with a target margin, without a reference."""

    LOSS_KEYS = ("beta", "gamma")

    method: Literal["simpo"]
    beta: PositiveFloat = Field(2.0, description="2 to 10 in the paper.")
    gamma: NonNegativeFloat = Field(1.0, description="0.1 to 0.8 of beta in the paper.")


class OrpoTrain(TrainStep):
    """ORPO (arXiv 2403.07691): NLL and the odds ratio, without a reference."""

    LOSS_KEYS = ("weight",)

    method: Literal["orpo"]
    weight: PositiveFloat = Field(0.1, description="lambda in the paper.")
    learning_rate: PositiveFloat = Field(8e-6, description="5e-6 to 8e-6 in the paper.")
