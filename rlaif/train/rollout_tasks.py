"""Which task of the training loop a rollout is: of advantages, pairs, whole distributions, or of
the pool that it joins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlaif.config.on_policy import RolloutTrain
from rlaif.train import parallel
from rlaif.train.critic import Critic
from rlaif.train.distillation import DistillTask
from rlaif.train.loop import Task
from rlaif.train.methods.on_policy_distillation import OnPolicyDistillationTrain
from rlaif.train.model import TrainModel
from rlaif.train.policy_tasks import OnlinePairs, PolicyTask
from rlaif.train.pool import Scored, add_to_pool, pool_metrics, rank_quantiles, scored_answers
from rlaif.train.quark import QuarkTask
from rlaif.train.rollout import Rollout
from rlaif.train.tokenise import Example


def make_task(
    rollout: Rollout,
    options: RolloutTrain,
    beta: float,
    reference: TrainModel | None,
    critic: Critic | None,
    ptx: Sequence[Example],
    number: int,
) -> Task:
    """What is learned from a sampled rollout."""
    if options.pair_loss is not None:
        pairs = OnlinePairs(rollout, options)
        rollout.metrics["pairs"] = len(pairs.examples)
        return pairs
    if isinstance(options, OnPolicyDistillationTrain) and options.divergence == "jsd":
        assert reference is not None
        return DistillTask([group.example for group in rollout.groups], options, reference)
    return PolicyTask(rollout, options, beta, critic, ptx, number)


def pool_task(
    rollout: Rollout,
    pool: list[Scored],
    model: TrainModel,
    options: RolloutTrain,
    reference: TrainModel | None,
    work: Path,
) -> Task:
    """What is learned from the pool once the rollout's answers have joined it."""
    answers = scored_answers(rollout)
    if parallel.rank() == 0:
        add_to_pool(work, answers)
    pool += answers
    quantiles = rank_quantiles([answer.reward for answer in pool], options.quantile_tokens)
    rollout.metrics |= pool_metrics(pool, quantiles)
    return QuarkTask(pool, quantiles, model, options, reference)


def given_task(
    options: RolloutTrain, examples: Sequence[Example], teacher: TrainModel, number: int
) -> Task:
    """What is learned in place of rollout `number` from given answers, in turn over all such
    rollouts: as many as a sampled one has prompts."""
    assert isinstance(options, OnPolicyDistillationTrain)
    before = sum(options.is_given(n) for n in range(number))
    count = options.batch_size * options.sync_every
    places = (before * count + i for i in range(count))
    chosen = [examples[place % len(examples)] for place in places]
    return DistillTask(
        [replace(e, completions=e.completions[:1]) for e in chosen], options, teacher
    )
