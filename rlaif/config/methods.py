"""All methods of the train step and kinds of reward models, by name.

A row names the class of a method's keys, which says what the method needs and what computes it.
"""

from __future__ import annotations

from typing import Annotated

from rlaif.config.base import OneOf, SpecTable
from rlaif.config.distill import DistillStep, FitStep
from rlaif.config.training import TrainStep

METHODS: SpecTable[TrainStep] = SpecTable(
    {
        "sft": "rlaif.train.methods.answers:SftTrain",
        "dpo": "rlaif.train.methods.pairs:DpoTrain",
        "robust": "rlaif.train.methods.pairs:RobustTrain",
        "ipo": "rlaif.train.methods.pairs:IpoTrain",
        "hinge": "rlaif.train.methods.pairs:HingeTrain",
        "apo_zero": "rlaif.train.methods.pairs:ApoZeroTrain",
        "nca": "rlaif.train.methods.pairs:NcaTrain",
        "kto": "rlaif.train.methods.answers:KtoTrain",
        "slic": "rlaif.train.methods.pairs:SlicTrain",
        "simpo": "rlaif.train.methods.pairs:SimpoTrain",
        "orpo": "rlaif.train.methods.pairs:OrpoTrain",
        "ppo": "rlaif.train.methods.on_policy:PpoTrain",
        "grpo": "rlaif.train.methods.on_policy:GrpoTrain",
        "rloo": "rlaif.train.methods.on_policy:RlooTrain",
        "gspo": "rlaif.train.methods.gspo:GspoTrain",
        "cispo": "rlaif.train.methods.cispo:CispoTrain",
        "reinforce": "rlaif.train.methods.reinforce:ReinforceTrain",
        "reinforce_pp": "rlaif.train.methods.reinforce_pp:ReinforcePpTrain",
        "sppo": "rlaif.train.methods.sppo:SppoTrain",
        "quark": "rlaif.train.methods.quark:QuarkTrain",
        "online_dpo": "rlaif.train.methods.on_policy:OnlineDpoTrain",
        "on_policy_distillation": (
            "rlaif.train.methods.on_policy_distillation:OnPolicyDistillationTrain"
        ),
    }
)
AnyTrain = Annotated[
    TrainStep,
    OneOf(
        METHODS,
        "method",
        unknown=f"`method` must be one of {', '.join(METHODS)}",
        default="dpo",
    ),
]
DISTILLATIONS: SpecTable[DistillStep | FitStep] = SpecTable(
    {
        "bradley_terry": "rlaif.train.methods.reward_models:BradleyTerryDistill",
        "k_wise": "rlaif.train.methods.reward_models:KWiseDistill",
        "cost": "rlaif.train.methods.reward_models:CostDistill",
        "conditional": "rlaif.train.methods.reward_models:ConditionalDistill",
        "linear": "rlaif.train.methods.heads:LinearDistill",
        "ordinal": "rlaif.train.methods.heads:OrdinalDistill",
        "multi_objective": "rlaif.train.methods.heads:MultiObjectiveDistill",
        "quantile": "rlaif.train.methods.heads:QuantileDistill",
    }
)
AnyDistill = Annotated[
    DistillStep | FitStep,
    OneOf(
        DISTILLATIONS,
        "method",
        unknown=f"`method` must be one of {', '.join(DISTILLATIONS)}",
        default="bradley_terry",
    ),
]
