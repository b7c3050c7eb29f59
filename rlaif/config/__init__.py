"""The experiment file: what every key means, its default, and how a file becomes a config.

Everything here is validation. Unknown keys are refused with the nearest known one; nothing is read
but the YAML itself. `description` fields never enter a hash.
"""

from rlaif.config.base import Strict
from rlaif.config.experiment import Experiment, experiment_schema, load_experiment, resolved_yaml
from rlaif.config.judges import (
    AdditiveJudge,
    AnyJudge,
    GeneratedJudge,
    JudgeBase,
    JudgeStep,
    ModelJudge,
    PairwiseJudge,
    ParseSpec,
    RatingJudge,
    RewardModelJudge,
    RulesJudge,
    TemplateJudge,
    YesNoJudge,
)
from rlaif.config.models import (
    RESERVED_MODELS,
    TRAINABLE,
    ApiLimits,
    Columns,
    LabelColumns,
    ModelSpec,
    Price,
    PromptsSpec,
)
from rlaif.config.overrides import apply_override
from rlaif.config.steps import CheckSpec, EvaluateStep, LoadStep, PairStep, SampleStep
from rlaif.config.training import (
    METHODS,
    DistillStep,
    DpoTrain,
    LoraOptions,
    OnPolicyTrain,
    ReferenceTrain,
    SftTrain,
    TrainStep,
)

__all__ = [
    "METHODS",
    "RESERVED_MODELS",
    "TRAINABLE",
    "AdditiveJudge",
    "AnyJudge",
    "ApiLimits",
    "CheckSpec",
    "Columns",
    "DistillStep",
    "DpoTrain",
    "EvaluateStep",
    "Experiment",
    "GeneratedJudge",
    "JudgeBase",
    "JudgeStep",
    "LabelColumns",
    "LoadStep",
    "LoraOptions",
    "ModelJudge",
    "ModelSpec",
    "OnPolicyTrain",
    "PairStep",
    "PairwiseJudge",
    "ParseSpec",
    "Price",
    "PromptsSpec",
    "RatingJudge",
    "ReferenceTrain",
    "RewardModelJudge",
    "RulesJudge",
    "SampleStep",
    "SftTrain",
    "Strict",
    "TemplateJudge",
    "TrainStep",
    "YesNoJudge",
    "apply_override",
    "experiment_schema",
    "load_experiment",
    "resolved_yaml",
]
