"""The experiment file: what every key means, its default, and how a file becomes a config.

Everything here is validation. Unknown keys are refused with the nearest known one; nothing is read
but the YAML itself. `description` fields never enter a hash.
"""

from rlaif.config.base import Strict
from rlaif.config.baselines import (
    FirstJudge,
    LongerJudge,
    OverlapJudge,
    PerplexityJudge,
    RandomJudge,
)
from rlaif.config.bench import JudgesFile
from rlaif.config.experiment import Experiment, experiment_schema, load_experiment, resolved_yaml
from rlaif.config.judges import (
    AdditiveJudge,
    ConstitutionalJudge,
    CritiqueJudge,
    CustomJudge,
    DirectJudge,
    ImplicitRewardJudge,
    JudgeStep,
    JuryJudge,
    MetaJudge,
    PairwiseJudge,
    ParseSpec,
    PrometheusJudge,
    PrometheusPairJudge,
    RatingJudge,
    RewardModelJudge,
    RulesJudge,
    TemplateJudge,
    YesNoJudge,
)
from rlaif.config.judging import JudgeBase, LabelJudge, ModelJudge, WritingJudge
from rlaif.config.models import RESERVED_MODELS, Columns, LabelColumns, ModelSpec, PromptsSpec
from rlaif.config.overrides import apply_override
from rlaif.config.rubrics import (
    RbrJudge,
    RbrmJudge,
    RubricItem,
    RubricJudge,
    RubricWriting,
    UltraFeedbackJudge,
)
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
    "AdditiveJudge",
    "CheckSpec",
    "Columns",
    "ConstitutionalJudge",
    "CritiqueJudge",
    "CustomJudge",
    "DirectJudge",
    "DistillStep",
    "DpoTrain",
    "EvaluateStep",
    "Experiment",
    "FirstJudge",
    "ImplicitRewardJudge",
    "JudgeBase",
    "JudgeStep",
    "JudgesFile",
    "JuryJudge",
    "LabelColumns",
    "LabelJudge",
    "LoadStep",
    "LongerJudge",
    "LoraOptions",
    "MetaJudge",
    "ModelJudge",
    "ModelSpec",
    "OnPolicyTrain",
    "OverlapJudge",
    "PairStep",
    "PairwiseJudge",
    "ParseSpec",
    "PerplexityJudge",
    "PrometheusJudge",
    "PrometheusPairJudge",
    "PromptsSpec",
    "RandomJudge",
    "RatingJudge",
    "RbrJudge",
    "RbrmJudge",
    "ReferenceTrain",
    "RewardModelJudge",
    "RubricItem",
    "RubricJudge",
    "RubricWriting",
    "RulesJudge",
    "SampleStep",
    "SftTrain",
    "Strict",
    "TemplateJudge",
    "TrainStep",
    "UltraFeedbackJudge",
    "WritingJudge",
    "YesNoJudge",
    "apply_override",
    "experiment_schema",
    "load_experiment",
    "resolved_yaml",
]
