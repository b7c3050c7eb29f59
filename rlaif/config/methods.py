"""All methods of the train step by name."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from rlaif.config.on_policy import GrpoTrain, OnlineDpoTrain, PpoTrain, RlooTrain
from rlaif.config.training import (
    ApoZeroTrain,
    DpoTrain,
    HingeTrain,
    IpoTrain,
    KtoTrain,
    NcaTrain,
    OrpoTrain,
    RobustTrain,
    SftTrain,
    SimpoTrain,
    SlicTrain,
    TrainStep,
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
