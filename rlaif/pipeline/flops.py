"""What a planned step computes, in floating-point operations, at most: 2 for each parameter that a
token goes through and each token read or written, and 4 more where gradients go back through it
(arXiv 2001.08361, appendix B; attention's own products are left out)."""

from __future__ import annotations

from collections.abc import Mapping

from rlaif.config.distill import DistillStep
from rlaif.config.on_policy import RolloutTrain
from rlaif.config.training import TextStep, TrainStep
from rlaif.engines.base import Model
from rlaif.pipeline.lengths import (
    WRITING,
    answer_tokens,
    learned_tokens,
    mean_tokens,
    prompt_texts,
    question_texts,
    request_texts,
)
from rlaif.pipeline.memory import Sizes, held_models
from rlaif.pipeline.plan.base import PlanInputs, Planned, Size

FORWARD, BACKWARD = 2, 4
"""For each parameter and token. Half of the backward pass are the weights' gradients."""


def pass_flops(step: TrainStep) -> int:
    """Of a token in training: forward, and backward without the gradients of weights that are
    not trained, and forward again where layers are recomputed."""
    back = BACKWARD if step.lora is None else BACKWARD // 2
    return FORWARD + back + FORWARD * step.gradient_checkpointing


def count_flops(
    inputs: PlanInputs,
    planned: Planned,
    size: Size,
    steps: Mapping[str, Planned],
    sizes: Sizes,
) -> float | None:
    """Of a step on all its devices; None where a model's parameters are not known. `steps` are
    those before it, by hash."""
    held = held_models(planned)
    active = {role: _active(model, sizes) for role, model in held.items()}
    if None in active.values():
        return None
    by_role = {role: count or 0 for role, count in active.items()}
    step = planned.step
    if isinstance(step, RolloutTrain):
        return _on_policy(inputs, planned, step, size, by_role)
    if isinstance(step, TextStep):
        return _training(inputs, planned, step, size, steps, by_role)
    # Of a judge with several models it does not show which is asked how often.
    largest = max(by_role.values(), default=0)
    answer = answer_tokens(planned, steps)
    if planned.kind == "judge":
        return _judging(inputs, planned, size, answer) * largest
    if planned.kind not in (*WRITING, "logprobs"):
        return 0.0
    prompt = mean_tokens(request_texts(inputs, planned, answer))
    made = size.tokens if planned.kind in WRITING else size.calls * answer
    return FORWARD * (size.calls * prompt + made) * largest


def device_seconds(planned: Planned, flops: float, speed: float) -> float:
    """Seconds of the step on its devices, of which one computes `speed` FLOP/s."""
    if isinstance(planned.step, TrainStep):
        processes = planned.step.processes
        return flops / speed / (1 if processes == "auto" else processes)
    return flops / speed / max((m.spec.processes for m in held_models(planned).values()), default=1)


def _active(model: Model, sizes: Sizes) -> int | None:
    """The parameters that a token goes through, or all where that is not known of a mixture."""
    size = sizes.of(model)
    if size is None:
        return None
    return size.parameters if size.active is None else size.active


def _judging(inputs: PlanInputs, planned: Planned, size: Size, answer: int) -> float:
    """Of the questions of a step's judges, by parameter: read, and answered at most."""
    prompts = inputs.some_prompts()
    tokens = 0.0
    for ask in size.judges:
        if ask.calls:
            texts = question_texts(ask, prompts, answer, planned.seed)
            tokens += ask.calls * mean_tokens(texts) + ask.tokens
    return FORWARD * tokens


def _training(
    inputs: PlanInputs,
    planned: Planned,
    step: TextStep,
    size: Size,
    steps: Mapping[str, Planned],
    active: Mapping[str, int],
) -> float:
    prompt = mean_tokens(prompt_texts(inputs.some_prompts()))
    answer = learned_tokens(planned, steps, step.max_length)
    rows = 2 if step.LEARNS_FROM == "pairs" else 1
    tokens = size.units * rows * min(prompt + answer, step.max_length)
    if not isinstance(step, TrainStep):
        return FORWARD * tokens * active["start"]
    members = step.members if isinstance(step, DistillStep) else 1
    trained = pass_flops(step) * tokens * members * active["start"]
    # The reference reads every example once, whatever the epochs.
    compared = active.get("reference", 0) if step.compares else 0
    return trained + FORWARD * tokens / step.epochs * compared


def _on_policy(
    inputs: PlanInputs, planned: Planned, step: RolloutTrain, size: Size, active: Mapping[str, int]
) -> float:
    prompt = mean_tokens(prompt_texts(inputs.some_prompts()))
    each = min(prompt + step.max_new_tokens, step.max_length)
    answers = size.calls - sum(ask.calls for ask in size.judges)
    learned = size.units / step.epochs
    policy = active["start"]
    critic = policy if step.critic_kind == "separate" else 0
    other = active.get("teacher", active.get("reference", 0))
    once = step.needs_old_logprobs * policy + step.compares * other + critic
    judges = max((n for role, n in active.items() if role.startswith("judge/")), default=0)
    judged = _judging(inputs, planned, size, step.max_new_tokens)
    return (
        FORWARD * answers * each * policy
        + FORWARD * learned * each * once
        + pass_flops(step) * size.units * each * (policy + critic)
        + judged * judges
    )
