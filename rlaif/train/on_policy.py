"""The on-policy loop: sample, score, learn, and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlaif.config.on_policy import OnlineDpoTrain, OnPolicyTrain, PpoTrain
from rlaif.core.errors import RlaifError
from rlaif.kernels.batching import plan_epoch
from rlaif.train import checkpoint, metrics
from rlaif.train.gates import STOPPED_FILE, look, raise_stopped, warnings_of
from rlaif.train.loop import (
    Task,
    TrainOutcome,
    TrainProgress,
    make_optimizer,
    memory_advice,
    optimiser_step,
    progress_of,
    summary_of,
)
from rlaif.train.losses import policy as losses
from rlaif.train.model import TrainModel, kernels_in_use
from rlaif.train.policy_tasks import OnlinePairs, PolicyTask
from rlaif.train.rewards import (
    Moments,
    fit_reference,
    moments_from_json,
    moments_to_json,
    reward_metrics,
    summed,
    updated,
)
from rlaif.train.rollout import Critic, Group, Rollout, add_advantages, measure
from rlaif.train.tokenise import Example

Collect = Callable[[int, TrainModel], Sequence[Group]]
"""The rollout's number and the policy -> fresh answers with the values of the reward's terms. Below
0 it is a draw from the start policy that `normalise: reference` is fitted on: only the values of
such terms are needed."""


def run_on_policy(
    model: TrainModel,
    options: OnPolicyTrain,
    collect: Collect,
    reference: TrainModel | None,
    critic: Critic | None,
    ptx: Sequence[Example],
    work: Path,
    seed: int,
    fingerprint: str,
    progress: Callable[[TrainProgress], None] | None = None,
) -> TrainOutcome:
    """Train `model` in place, continuing from the latest checkpoint in `work`.

    `reference` is `model` itself when its adapters are to be switched off for it. Raises RlaifError
    on a non-finite loss or a rollout without any reward, GateStopped where a gate stops.
    """
    work.mkdir(parents=True, exist_ok=True)
    (work / STOPPED_FILE).unlink(missing_ok=True)
    optimizer = make_optimizer(model, options)
    torch.manual_seed(seed)
    state = checkpoint.restore(work, model.masters, optimizer, fingerprint) or {}
    first, beta = int(state.get("rollout", 0)), float(state.get("beta", options.beta))
    running = moments_from_json(state.get("running", {}))
    if state:
        model.sync()
    per_rollout = options.epochs * options.sync_every
    rows = metrics.keep(work, first * per_rollout, state or None)
    terms = options.terms
    fitted = fit_reference(lambda draw: collect(draw, model), terms, work, first > 0)

    def save(done: int) -> None:
        """A checkpoint of the first `done` rollouts."""
        kept = {"fingerprint": fingerprint, "rollout": done, "beta": beta}
        kept["running"] = moments_to_json(running)
        checkpoint.save(work, done * per_rollout, model.masters, optimizer, kept)

    for number in range(first, options.rollouts):
        with memory_advice(options):
            groups = collect(number, model)
            after = updated(running, groups, terms)
            rollout = _rewarded(model, groups, options, fitted | after, reference, critic)
        _require_reward(rollout, number, work)
        add_advantages(rollout, options, beta)
        stopped = look(options.gates, rollout.metrics, number + 1)
        if stopped is not None:
            if number > first:
                save(number)
            raise_stopped(work, stopped, number)
        task = _task(rollout, options, beta, critic, ptx, number)
        for row in _learn(task, model, optimizer, options, number, seed, work):
            row |= {"rollout": number + 1, "beta": beta, **rollout.metrics}
            rows.append(row)
            metrics.write(work, row)
            if progress is not None:
                progress(progress_of(row, options.rollouts * per_rollout))
        beta, running = _next_beta(beta, options, rollout), after
        if (number + 1) % options.checkpoint_every == 0 and number + 1 < options.rollouts:
            save(number + 1)
    return _outcome(model, options, rows)


def _rewarded(
    model: TrainModel,
    groups: Sequence[Group],
    options: OnPolicyTrain,
    moments: Mapping[str, Moments],
    reference: TrainModel | None,
    critic: Critic | None,
) -> Rollout:
    """The rollout of these answers, with their rewards."""
    rewards = summed(groups, options.terms, moments)
    rollout = measure(model, groups, rewards, options, reference, critic)
    rollout.metrics |= reward_metrics(groups, options.terms, moments)
    return rollout


def _require_reward(rollout: Rollout, number: int, work: Path) -> None:
    """Raise RlaifError where no answer has a reward: there is nothing to learn from."""
    if all(bool(r.isnan().all()) for r in rollout.rewards):
        raise RlaifError(
            f"rollout {number + 1}: no answer has a reward. Look at the judgements in {work.parent}"
        )


def _outcome(
    model: TrainModel, options: OnPolicyTrain, rows: Sequence[dict[str, Any]]
) -> TrainOutcome:
    return TrainOutcome(
        steps=sum("loss" in row for row in rows),
        tokens=sum(row["tokens"] for row in rows),
        metrics=summary_of(rows),
        seconds=sum(row["timing"]["seconds"] for row in rows),
        compute_dtype=str(model.dtype).removeprefix("torch."),
        kernels=kernels_in_use(model),
        notes=warnings_of(options.gates, rows),
    )


def _learn(
    task: Task,
    model: TrainModel,
    optimizer: torch.optim.Optimizer,
    options: OnPolicyTrain,
    number: int,
    seed: int,
    work: Path,
) -> Iterator[dict[str, Any]]:
    """The optimiser steps on rollout `number`, a row for each.

    Every rollout has its own step numbers, also those that it has too few pairs for: so the
    schedule ends where it should, and a resumed run counts as an uninterrupted one.
    """
    per_rollout = options.epochs * options.sync_every
    step, total = number * per_rollout, options.rollouts * per_rollout
    if not task.examples:
        # Its rewards are known, and there is nothing to learn from them.
        timing = {"seconds": 0.0, "tokens_per_second": 0.0}
        yield {"step": step + 1, "tokens": 0, "timing": timing}
    sizes = [model.size(example.branches) for example in task.examples]
    budget = model.token_budget(options)
    for epoch in range(options.epochs):
        order = number * options.epochs + epoch
        for batch in plan_epoch(sizes, options.batch_size, budget, seed, order):
            yield optimiser_step(task, model, optimizer, batch, options, step, total, work)
            step += 1


def _next_beta(beta: float, options: OnPolicyTrain, rollout: Rollout) -> float:
    if not isinstance(options, PpoTrain) or options.kl_target is None:
        return beta
    episodes = sum(len(group.answers) for group in rollout.groups)
    kl = rollout.metrics.get("kl_reference", options.kl_target)
    return losses.adapt_kl(beta, kl, options.kl_target, options.kl_horizon, episodes)


def _task(
    rollout: Rollout,
    options: OnPolicyTrain,
    beta: float,
    critic: Critic | None,
    ptx: Sequence[Example],
    number: int,
) -> Task:
    if isinstance(options, OnlineDpoTrain):
        pairs = OnlinePairs(rollout, options)
        rollout.metrics["pairs"] = len(pairs.examples)
        return pairs
    return PolicyTask(rollout, options, beta, critic, ptx, number)


def add_critic(model: TrainModel, own: TrainModel | None) -> Critic:
    """A critic whose weights are trained, checkpointed and resumed with the policy's.

    With `own`, a model of its own; else a zero-initialised head on the policy's hidden states.
    """
    body = model.module if own is None else own.module
    width = body.config.get_text_config().hidden_size
    head = torch.nn.Linear(width, 1, dtype=torch.float32, device=model.device)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    extra = {f"value_head.{name}": param for name, param in head.named_parameters()}
    for name, param in extra.items():
        param.grad = torch.zeros_like(param)
        model.masters[name] = model.params[name] = param
    if own is not None:
        model.masters |= {f"critic.{name}": master for name, master in own.masters.items()}
        model.params |= {f"critic.{name}": param for name, param in own.params.items()}
    return Critic(head, own)


def drop_critic(model: TrainModel) -> None:
    """Leave the policy's own weights alone in `model`, before it is exported."""
    for held in (model.masters, model.params):
        for name in [n for n in held if n.startswith(("value_head.", "critic."))]:
            del held[name]
