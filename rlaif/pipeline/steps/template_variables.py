"""Variables of a chat template that one evaluation gives its model, such as a quantile's token."""

from __future__ import annotations

from dataclasses import replace

from rlaif.config.models import READ_BY
from rlaif.config.steps import EvaluateStep
from rlaif.core.records import content_hash
from rlaif.engines.base import Model
from rlaif.pipeline.plan.base import Walk


def with_variables(walk: Walk, index: int, step: EvaluateStep, model: Model) -> Model:
    """The model with the chat template's variables of this evaluation. Raises ConfigError for M0,
    whose figures all evaluations share, and for an engine that renders nothing."""
    given = step.chat_template_kwargs
    if not given:
        return model
    fault = None
    if model.key == walk.initial.key:
        fault = f"{model.label} is what others are compared with: set them in `models`"
    elif model.spec.engine not in READ_BY["chat_template_kwargs"]:
        fault = f"engine {model.spec.engine} of {model.label} has no chat template"
    if fault is not None:
        key = "chat_template_kwargs"
        raise walk.inputs.fail(index, f"{key}: {fault}", key)
    variables = {**model.spec.chat_template_kwargs, **given}
    said = ", ".join(f"{name} {value}" for name, value in sorted(given.items()))
    spec = model.spec.model_copy(update={"chat_template_kwargs": variables})
    return replace(model, spec=spec, label=f"{model.label}, {said}")


def measured_under(step: EvaluateStep, model: Model) -> str:
    """The key of a model's figures in this evaluation: a model may be compared with itself under
    other variables of its chat template."""
    given = step.chat_template_kwargs
    own = given and given.items() <= model.spec.chat_template_kwargs.items()
    return f"{model.key} {content_hash(given)}" if own else model.key
