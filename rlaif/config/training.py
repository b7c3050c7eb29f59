"""The train step: one class for each method, with its own keys and their defaults.

The defaults are the papers' or, where those need a large model, what the field uses; each field's
description names its source.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from rlaif.config.base import Fraction, StepId, Strict

Noise = Annotated[float, Field(ge=0.0, lt=0.5)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class LoraOptions(Strict):
    """Low-rank adapters through peft; merged into the exported weights."""

    r: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    dropout: Fraction = 0.0
    target_modules: str | list[str] = "all-linear"
    dora: bool = Field(False, description="Weight-decomposed adapters (arXiv 2402.09353).")


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
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto: bf16 autocast where the device multiplies it fast, else fp32."
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
    checkpoint_every: PositiveInt = Field(50, description="Optimiser steps between checkpoints.")

    @model_validator(mode="after")
    def _splits(self) -> TrainStep:
        if self.sharding == "full" and self.processes == 1:
            raise ValueError("`sharding: full` needs several processes: set `processes` above 1")
        return self

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


class OnPolicyTrain(ReferenceTrain):
    """Keys of methods that learn from answers the policy has just sampled.

    One rollout samples `n` answers to each of `batch_size` x `sync_every` training prompts;
    `batch_size` counts the prompts of one optimiser step, `epochs` the passes over a rollout.
    """

    rewards: Annotated[dict[str, PositiveFloat], Field(min_length=1)] = Field(
        description="Weight of each judge by id; the reward is their weighted mean."
    )
    rollouts: PositiveInt = Field(50, description="How often fresh answers are sampled.")
    n: PositiveInt = Field(8, description="Answers to each prompt.")
    sync_every: PositiveInt = Field(
        1, description="Optimiser steps that learn from answers of the same weights."
    )
    batch_size: PositiveInt = Field(4, description="Prompts in one optimiser step.")
    temperature: PositiveFloat = 1.0
    max_new_tokens: PositiveInt = 64
    stop: list[str] = []
    checkpoint_every: PositiveInt = Field(5, description="Rollouts between checkpoints.")
    missing_eos_penalty: NonNegativeFloat = Field(
        0.0, description="Taken from the reward of an answer that never ends."
    )
    importance: Literal[
        "none", "truncate_token", "truncate_sequence", "mask_token", "mask_sequence"
    ] = Field("mask_sequence", description="What to do where sampler and trainer differ.")
    importance_cap: PositiveFloat = Field(
        3.0, description="The largest trainer/sampler ratio that is kept; TRL's default."
    )
    importance_floor: NonNegativeFloat = Field(
        0.0, description="The least one; IcePop masks tokens outside of 0.5 and 5."
    )

    @model_validator(mode="after")
    def _combine(self) -> OnPolicyTrain:
        if self.processes not in ("auto", 1):
            raise ValueError("on-policy training runs in one process; leave `processes` out")
        if self.sharding != "none":
            raise ValueError("on-policy training runs in one process; leave `sharding` out")
        if self.lora is not None and self.lora.dropout > 0:
            raise ValueError("on-policy training compares log-probs: set lora.dropout to 0")
        if self.overlong == "truncate_left":
            raise ValueError(
                "a prompt that is answered anew cannot be cut: set `overlong` to skip or refuse"
            )
        if self.max_length <= self.max_new_tokens:
            raise ValueError(
                f"max_length ({self.max_length}) counts prompt and answer, and max_new_tokens "
                f"({self.max_new_tokens}) leaves no room for a prompt: raise max_length"
            )
        mixes = getattr(self, "ptx_weight", 0.0) > 0
        if not mixes and not self.train_on_eos:
            raise ValueError(
                "train_on_eos: answers are learned from as they were sampled, with the end token "
                "if there is one; leave it out (it counts for ppo with ptx_weight)"
            )
        if not mixes and self.uses is not None:
            raise ValueError(
                "uses names preferences, and only ppo with ptx_weight mixes some in; leave it out"
            )
        if self.importance_floor >= self.importance_cap:
            raise ValueError("importance_floor must be below importance_cap")
        if self.importance != "none" and self.temperature != 1.0:
            raise ValueError(
                "the sampler's log-probs are at temperature 1: with another temperature set "
                "`importance: none`"
            )
        return self


class GrpoTrain(OnPolicyTrain):
    """Group-relative policy optimisation (arXiv 2402.03300), with the switches of DAPO
    (arXiv 2503.14476) and Dr. GRPO (arXiv 2503.20783)."""

    method: Literal["grpo"]
    n: Annotated[int, Field(ge=2)] = 8
    beta: NonNegativeFloat = Field(0.04, description="arXiv 2402.03300; DAPO uses 0.")
    kl: Literal["k2", "k3"] = Field(
        "k3", description="k1 is left out: as a loss its expected gradient is 0."
    )
    scale: Literal["std", "none"] = Field("std", description="none: Dr. GRPO.")
    reduction: Literal["token", "sequence", "constant"] = Field(
        "token", description="token: DAPO; sequence: DeepSeekMath; constant: Dr. GRPO."
    )
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = Field(0.2, description="DAPO: 0.28.")
    two_sided: PositiveFloat | None = None
    overlong_buffer: int = Field(
        0, ge=0, description="DAPO: the reward falls over the last this many tokens; 0 is off."
    )
    mask_truncated: bool = Field(False, description="DAPO: unfinished answers teach nothing.")

    @model_validator(mode="after")
    def _sides(self) -> GrpoTrain:
        if self.two_sided is not None and self.two_sided <= 1 + self.clip_high:
            raise ValueError("two_sided must be above 1 + clip_high")
        return self


class RlooTrain(OnPolicyTrain):
    """REINFORCE leave-one-out (arXiv 2402.14740); the KL is part of the reward."""

    method: Literal["rloo"]
    n: Annotated[int, Field(ge=2)] = 4
    beta: NonNegativeFloat = 0.03


class PpoTrain(OnPolicyTrain):
    """Proximal policy optimisation for language models (arXiv 1909.08593, 2203.02155)."""

    method: Literal["ppo"]
    n: PositiveInt = 1
    batch_size: PositiveInt = 16
    epochs: PositiveInt = 4
    beta: NonNegativeFloat = Field(0.05, description="The KL coefficient; TRL's default.")
    kl_target: PositiveFloat | None = Field(
        None, description="Nats per answer; beta adapts to it where it is given."
    )
    kl_horizon: PositiveFloat = 10000.0
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    clip: PositiveFloat = 0.2
    value_clip: PositiveFloat = 0.2
    value_weight: PositiveFloat = 0.1
    whiten_rewards: bool = False
    critic: Literal["head", "separate"] = Field(
        "head", description="A value head on the policy, or a model of its own."
    )
    ptx_weight: NonNegativeFloat = Field(
        0.0, description="InstructGPT: adds the chosen answers' NLL of the preferences so far."
    )

    @model_validator(mode="after")
    def _adapts(self) -> PpoTrain:
        if self.kl_target is not None and self.beta == 0:
            raise ValueError("kl_target scales beta, which must then be above 0 to start from")
        return self


class OnlineDpoTrain(OnPolicyTrain):
    """Online DPO, or OAIF (arXiv 2402.04792): the best of `n` answers against the worst."""

    method: Literal["online_dpo"]
    n: Annotated[int, Field(ge=2)] = 2
    importance: Literal["none"] = Field("none", description="Pairs need no correction.")
    loss: Literal["dpo", "ipo", "hinge"] = Field(
        "dpo", description="The paper's beta: dpo 0.1, ipo 1.0, hinge (SLiC) 0.002."
    )


def _train_tag(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("method", "dpo"))
    return str(getattr(value, "method", "dpo"))


METHODS: dict[str, type[TrainStep]] = {
    "sft": SftTrain,
    "dpo": DpoTrain,
    "robust": RobustTrain,
    "ipo": IpoTrain,
    "hinge": HingeTrain,
    "apo_zero": ApoZeroTrain,
    "nca": NcaTrain,
    "kto": KtoTrain,
    "slic": SlicTrain,
    "simpo": SimpoTrain,
    "orpo": OrpoTrain,
    "ppo": PpoTrain,
    "grpo": GrpoTrain,
    "rloo": RlooTrain,
    "online_dpo": OnlineDpoTrain,
}
AnyTrain = Annotated[
    Annotated[SftTrain, Tag("sft")]
    | Annotated[DpoTrain, Tag("dpo")]
    | Annotated[RobustTrain, Tag("robust")]
    | Annotated[IpoTrain, Tag("ipo")]
    | Annotated[HingeTrain, Tag("hinge")]
    | Annotated[ApoZeroTrain, Tag("apo_zero")]
    | Annotated[NcaTrain, Tag("nca")]
    | Annotated[KtoTrain, Tag("kto")]
    | Annotated[SlicTrain, Tag("slic")]
    | Annotated[SimpoTrain, Tag("simpo")]
    | Annotated[OrpoTrain, Tag("orpo")]
    | Annotated[PpoTrain, Tag("ppo")]
    | Annotated[GrpoTrain, Tag("grpo")]
    | Annotated[RlooTrain, Tag("rloo")]
    | Annotated[OnlineDpoTrain, Tag("online_dpo")],
    Discriminator(
        _train_tag,
        custom_error_type="unknown_method",
        custom_error_message=f"`method` must be one of {', '.join(METHODS)}",
    ),
]
