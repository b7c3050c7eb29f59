"""Keys that training methods share. A method's own class is in `rlaif.train.methods`.

Class variables say what a method needs and, as `module:name`, what carries it out: nothing that
computes is imported here.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from rlaif.config.base import Fraction, StepId, Strict

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

    LEARNS_FROM: ClassVar[Literal["pairs", "good answers", "answers"]] = "pairs"
    MAKES_REWARD_MODEL: ClassVar[bool] = False
    SAMPLES: ClassVar[bool] = False
    USES_RATINGS: ClassVar[bool] = False
    MEMORY_KEYS: ClassVar[tuple[str, ...]] = ("micro_batch_tokens", "max_length")

    id: StepId = "train"
    method: str
    from_: str = Field("current", alias="from", description="The model to start from.")
    micro_batch_tokens: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="Tokens computed at once; affects memory. auto: 768 on a CPU (1024 in "
        "bf16), 16384 on a GPU.",
    )
    max_length: PositiveInt = Field(1024, description="Maximum tokens of prompt plus answer.")
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
        description="auto and bf16: bf16 autocast if the device has fast bf16, else fp32.",
    )
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        [], description="Also log to these trackers; each must be installed."
    )
    uses: list[str] | None = None

    @property
    def trainer(self) -> str:
        """The function of a `TrainJob` that does it."""
        raise NotImplementedError

    @property
    def makes_masters(self) -> bool:
        """Whether the model has fp32 masters, which a later training starts from."""
        return True

    @property
    def kept_adapter(self) -> LoraOptions | None:
        """How the adapter is made that is written beside whole weights, or in place of them."""
        return None

    @property
    def memory_advice(self) -> str:
        """What to change when memory runs out."""
        *most, last = (f"`{key}` ({getattr(self, key)})" for key in self.MEMORY_KEYS)
        return f"lower {', '.join(most)} or {last}"

    def arrange_examples(self, examples: list[Any]) -> list[Any]:
        """The `Example`s as the method batches them. Raises RlaifError where answers lack what it
        needs."""
        return examples


class TrainStep(TextStep):
    """Keys of every method. Batch sizes count pairs, examples or prompts.

    `TASK` is the class of its examples, loss and metrics; `LOSS` the function of a loss on pairs,
    which takes the keys in `LOSS_KEYS`.
    """

    TASK: ClassVar[str] = "rlaif.train.preference:PreferenceTask"
    LOSS: ClassVar[str]
    LOSS_KEYS: ClassVar[tuple[str, ...]] = ()

    learning_rate: PositiveFloat = 1e-6
    epochs: PositiveInt = 1
    batch_size: PositiveInt = Field(16, description="Examples (pairs) per optimiser step.")
    warmup_ratio: Fraction = 0.1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    min_lr_ratio: Fraction = 0.0
    weight_decay: NonNegativeFloat = 0.0
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw",
        description="adamw_8bit: 8-bit optimiser state (arXiv 2110.02861); needs bitsandbytes.",
    )
    adam_betas: tuple[Beta, Beta] = (0.9, 0.999)
    max_grad_norm: PositiveFloat = 1.0
    gradient_checkpointing: bool = False
    train_on_eos: bool = True
    lora: LoraOptions | None = None
    processes: PositiveInt | Literal["auto"] = Field(
        "auto", description="auto: one per GPU, one on a CPU. Several share every batch."
    )
    sharding: Literal["none", "full"] = Field(
        "none",
        description="full: weights, gradients and optimiser state are sharded over processes "
        "(FSDP2).",
    )
    checkpoint_every: PositiveInt = Field(
        50, description="Optimiser steps between checkpoints; at least one every five minutes."
    )
    policy: bool = Field(
        True,
        exclude_if=lambda value: value is True,
        description="Whether the model becomes the policy. false: a judge, a teacher or a variant, "
        "known by the step's id.",
    )

    @model_validator(mode="after")
    def _check_sharding(self) -> TrainStep:
        if self.sharding == "full" and self.processes == 1:
            raise ValueError("`sharding: full` needs several processes: set `processes` above 1")
        return self

    @property
    def trainer(self) -> str:
        """The same of all methods that have their data from the start."""
        return "rlaif.train.run:train_on_preferences"

    @property
    def makes_masters(self) -> bool:
        """Not as an adapter alone, which is exact as it is."""
        return self.lora is None or self.lora.export != "adapter"

    @property
    def loss_options(self) -> dict[str, Any]:
        """The keys that the method's loss function takes."""
        return {key: getattr(self, key) for key in self.LOSS_KEYS}

    @property
    def compares(self) -> bool:
        """Whether the reference's log-probs are needed."""
        return False

    @property
    def reward_scale(self) -> float:
        """What log-ratios are multiplied by in the reward metrics."""
        return 1.0

    @property
    def per_token(self) -> bool:
        """Whether reward metrics are per token, as of length-normalised losses, or summed."""
        return False

    @property
    def added_nll(self) -> float:
        """The weight of the chosen answer's NLL per token beside the loss."""
        return 0.0

    @property
    def kept_adapter(self) -> LoraOptions | None:
        """The one of `lora`, unless it is only merged."""
        return None if self.lora is None or self.lora.export == "merged" else self.lora

    @property
    def memory_advice(self) -> str:
        """What to change when memory runs out."""
        advice = super().memory_advice
        if not self.gradient_checkpointing:
            advice += ", or set `gradient_checkpointing: true`"
        return advice if self.lora else f"{advice}, or train adapters alone with `lora`"


class ReferenceTrain(TrainStep):
    """Keys of methods that compare with a reference model."""

    reference: str = "current"
    beta: PositiveFloat = 0.1

    @property
    def compares(self) -> bool:
        """Always."""
        return True

    @property
    def reward_scale(self) -> float:
        """The loss's own."""
        return self.beta
