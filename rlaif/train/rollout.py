"""Rollouts: answers that the policy has just sampled, their rewards, and what each method makes of
them before the first step that learns from them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch
from torch import Tensor

from rlaif.config.on_policy import GroupTrain, RolloutTrain
from rlaif.core.records import are_own, interleave
from rlaif.core.resources import find_object
from rlaif.kernels.batching import Layout, fill_batches, keep_targets
from rlaif.train import parallel
from rlaif.train.critic import Critic
from rlaif.train.losses import policy as losses
from rlaif.train.losses.distillation import teacher_advantages
from rlaif.train.methods.on_policy import PpoTrain, RlooTrain
from rlaif.train.methods.on_policy_distillation import OnPolicyDistillationTrain
from rlaif.train.model import TrainModel
from rlaif.train.tokenise import Example

OF_REWARDS = ("reward", "unscored", "reward_spread", "flat_groups", "kl_reference")
"""Metrics of a rollout that say nothing where there is neither a reward nor a reference."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer. `logprobs` are the sampler's, at temperature 1; `values` are those of the
    reward's terms, None where a judge gave none; `ended` says whether the end token was sampled.
    `watched` are numbers that are not learned from, by name.

    `idle` are the places of the terms that are not for this answer: they add 0. `strata` has by
    term the score that answers must share to be compared; `costs` are those of the costs, None
    where a judge gave none.

    Of an episode `ids` are the policy's own, all turns of it one after the other, and `turns` has
    for each how many of them it has and the ids that follow it, which were not sampled.
    """

    ids: list[int]
    logprobs: list[float]
    values: tuple[float | None, ...]
    ended: bool
    watched: Mapping[str, float] = field(default_factory=dict)
    idle: frozenset[int] = frozenset()
    strata: Mapping[int, float] = field(default_factory=dict)
    costs: tuple[float | None, ...] = ()
    turns: tuple[tuple[int, Sequence[int]], ...] = ()

    @property
    def sequence(self) -> list[int]:
        """All ids after the prompt in their order: the policy's own, and between its turns those
        that it was given."""
        return interleave(self.ids, self.turns) if self.turns else self.ids

    @property
    def is_own(self) -> list[bool]:
        """Of each id of `sequence`, whether the policy sampled it."""
        return are_own(self.turns or [(len(self.ids), ())])

    def stratum(self, place: int) -> float:
        """Of the term at a place; 0 where it compares all answers."""
        return self.strata.get(place, 0.0)


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt's sampled answers. Prompts that are `together` are learned from in one batch.

    `lead` is a token that the policy saw before the prompt; a reference does not see it.
    """

    prompt_id: str
    prompt_ids: list[int]
    answers: tuple[Answer, ...]
    together: str | None = None
    lead: int | None = None

    @property
    def example(self) -> Example:
        """The group as the loop's unit of batching."""
        branches = tuple(answer.sequence for answer in self.answers)
        seen = self.prompt_ids if self.lead is None else [self.lead, *self.prompt_ids]
        return Example(self.prompt_id, self.prompt_id, seen, branches)


@dataclass(slots=True)
class Rollout:
    """All groups of one rollout and what is fixed while it is learned from.

    Lists are by group; a tensor holds its group's answers one after the other: per token (N,) or
    per answer (S,). None: not needed by the method. Rewards are in fp64, NaN where there is none.
    Of each cost that acts there are `costs` as there are `rewards`, its name and multiplier, and
    with a critic its values and returns.
    """

    groups: Sequence[Group]
    rewards: list[Tensor] = field(default_factory=list)
    active: list[Tensor] = field(default_factory=list)
    old: list[Tensor] | None = None
    reference: list[Tensor] | None = None
    values: list[Tensor] | None = None
    advantages: list[Tensor] = field(default_factory=list)
    returns: list[Tensor] | None = None
    costs: list[list[Tensor]] = field(default_factory=list)
    cost_names: list[str] = field(default_factory=list)
    multipliers: list[float] = field(default_factory=list)
    cost_values: list[list[Tensor]] = field(default_factory=list)
    cost_returns: list[list[Tensor]] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def lengths(self, group: int) -> list[int]:
        """The policy's tokens of each answer of a group."""
        return [len(answer.ids) for answer in self.groups[group].answers]


def lay_out(model: TrainModel, groups: Sequence[Group]) -> Layout:
    """The groups' tokens; the targets are the policy's own."""
    layout = model.layout([group.example.branches for group in groups])
    answers = [answer for group in groups for answer in group.answers]
    if not any(answer.turns for answer in answers):
        return layout
    return keep_targets(layout, [own for answer in answers for own in answer.is_own])


@torch.no_grad()
def measure(
    model: TrainModel,
    groups: Sequence[Group],
    rewards: Sequence[Sequence[float | None]],
    options: RolloutTrain,
    reference: TrainModel | None,
    critic: Critic | None,
) -> Rollout:
    """The rollout with the old policy's, the reference's and the critic's numbers for each token.
    `rewards` are those of each group's answers.

    `reference` is the model itself when its adapters are to be switched off.
    """
    rollout = Rollout(groups, metrics=_mean_watched(groups))
    rollout.rewards = [
        _penalised_rewards(g, own, options) for g, own in zip(groups, rewards, strict=True)
    ]
    pairs = zip(groups, rollout.rewards, strict=True)
    rollout.active = [_learned_answers(group, own, options) for group, own in pairs]
    # Before the first step that moves the policy away from what has sampled.
    if options.needs_old_logprobs:
        rollout.old, columns = token_values(model, groups, options, critic)
        if columns is not None:
            rollout.values = [own[:, 0] for own in columns]
            heads = range(1, columns[0].shape[1])
            rollout.cost_values = [[own[:, head] for own in columns] for head in heads]
    plain = [replace(group, lead=None) for group in groups]
    if reference is model:
        with model.without_adapter():
            rollout.reference, _ = token_values(model, plain, options)
    elif reference is not None:
        rollout.reference, _ = token_values(reference, plain, options)
    rollout.metrics |= _measure_gated(model, rollout, options)
    return rollout


def _measure_gated(model: TrainModel, rollout: Rollout, options: RolloutTrain) -> dict[str, float]:
    """What a gate looks at and the method itself does not compute: the policy's entropy (nats, mean
    over tokens) and its KL to the reference (nats per answer)."""
    gates = options.gates
    found: dict[str, float] = {}
    policy = rollout.old
    if gates.entropy is not None:
        policy, entropy = _policy_entropy(model, rollout.groups, options)
        found["rollout_entropy"] = entropy
    if gates.kl is not None and rollout.old is None:
        # The pass for the entropy has given these already, where both are watched.
        policy = policy or token_values(model, rollout.groups, options)[0]
        found["kl_reference"] = mean_kl(policy, rollout)
    return found


def _policy_entropy(
    model: TrainModel, groups: Sequence[Group], options: RolloutTrain
) -> tuple[list[Tensor], float]:
    """Per group (N,) log-probs of its answers' tokens, and the mean entropy over all of them."""

    def measure_part(part: Sequence[Group]) -> tuple[list[Tensor], float, int]:
        """Log-probs by group, the sum of the entropies, and of how many tokens."""
        layout = lay_out(model, part)
        own, entropy = model.compute(
            lambda: model.read_logprobs_and_entropy(
                model.predicting(layout), layout, options.temperature
            )
        )
        own_groups = torch.split(own, _answer_tokens(part))
        return list(own_groups), float(entropy.double().sum()), len(entropy)

    parts = _split_groups(model, groups, options)
    found = parallel.deal(parts, measure_part, model.sharded)
    logprobs = [own.to(model.device) for part, _, _ in found for own in part]
    return logprobs, sum(amount for _, amount, _ in found) / sum(count for _, _, count in found)


def _mean_watched(groups: Sequence[Group]) -> dict[str, float]:
    """The means of what is watched of the answers."""
    values: dict[str, list[float]] = defaultdict(list)
    for answer in (answer for group in groups for answer in group.answers):
        for name, value in answer.watched.items():
            values[name].append(value)
    return {name: fmean(found) for name, found in values.items()}


def token_values(
    model: TrainModel,
    groups: Sequence[Group],
    options: RolloutTrain,
    critic: Critic | None = None,
) -> tuple[list[Tensor], list[Tensor] | None]:
    """Per group (N,) log-probs of its answers' tokens and, with a critic, (N, 1 + costs) its values
    of the states before them, from one pass."""

    def measure_part(part: Sequence[Group]) -> tuple[list[Tensor], list[Tensor]]:
        """Log-probs and values by group."""
        layout, sizes = lay_out(model, part), _answer_tokens(part)

        def read() -> tuple[Tensor, Tensor]:
            """The hidden states and the log-probs read from them."""
            hidden = model.predicting(layout)
            return hidden, model.read_logprobs(hidden, layout, options.temperature)

        hidden, own = model.compute(read)
        values = [] if critic is None else torch.split(critic.values(layout, hidden), sizes)
        return list(torch.split(own, sizes)), list(values)

    # Each part is computed by one rank, as one process would.
    parts = _split_groups(model, groups, options)
    found = parallel.deal(parts, measure_part, model.sharded)
    logprobs, values = (
        [own.to(model.device) for part in found for own in part[kind]] for kind in (0, 1)
    )
    return logprobs, None if critic is None else values


def _answer_tokens(groups: Sequence[Group]) -> list[int]:
    """How many tokens the answers of each group have together."""
    return [sum(len(answer.ids) for answer in group.answers) for group in groups]


def _split_groups(
    model: TrainModel, groups: Sequence[Group], options: RolloutTrain
) -> list[list[Group]]:
    sizes = [model.size(group.example.branches) for group in groups]
    parts = fill_batches(range(len(groups)), sizes, model.token_budget(options))
    return [[groups[i] for i in part] for part in parts]


def _penalised_rewards(
    group: Group, rewards: Sequence[float | None], options: RolloutTrain
) -> Tensor:
    """(S,) rewards less the penalties, NaN where there is none."""
    # NaN and not 0, which would be a reward like any other.
    values = [
        math.nan if reward is None else reward - (0.0 if a.ended else options.eos_penalty)
        for a, reward in zip(group.answers, rewards, strict=True)
    ]
    found = torch.tensor(values, dtype=torch.float64)
    if options.soft_limit:
        lengths = [len(a.ids) for a in group.answers]
        penalty = losses.overlong_penalty(lengths, options.max_new_tokens, options.soft_limit)
        found = found + penalty
    return found


def _learned_answers(group: Group, rewards: Tensor, options: RolloutTrain) -> Tensor:
    """(S,) bool: which answers are learned from."""
    ended = torch.tensor([a.ended or options.learns_unfinished for a in group.answers])
    return ended & ~rewards.isnan()


def add_advantages(rollout: Rollout, options: RolloutTrain, beta: float) -> None:
    """Fill in the per-token advantages (and PPO's returns), and the rollout's metrics."""
    if options.ADVANTAGES is not None:
        find_object(options.ADVANTAGES)(rollout, options, beta)
        _subtract_costs(rollout, options, beta)
        if options.whitens_advantages:
            _whiten_advantages(rollout)
    rollout.metrics = rollout_metrics(rollout, pairs=options.pair_loss is not None)
    if not options.terms:
        rollout.metrics = {n: v for n, v in rollout.metrics.items() if n not in OF_REWARDS}


def _subtract_costs(rollout: Rollout, options: RolloutTrain, beta: float) -> None:
    """(A_R - sum of lambda A_C) / (1 + sum of lambda) (arXiv 2310.12773).

    A cost's advantages are made as the reward's. Where the KL is part of the reward it is added to
    each cost, so that its coefficient is `beta` whatever the multipliers are.
    """
    if not rollout.costs:
        return
    total = [own.clone() for own in rollout.advantages]
    for place, (costs, name) in enumerate(zip(rollout.costs, rollout.cost_names, strict=True)):
        values = rollout.cost_values[place] if rollout.cost_values else None
        of_cost = replace(rollout, rewards=costs, values=values, costs=[], metrics={})
        assert options.ADVANTAGES is not None
        find_object(options.ADVANTAGES)(of_cost, options, -beta)
        for own, more in zip(total, of_cost.advantages, strict=True):
            own -= rollout.multipliers[place] * more
        if of_cost.returns is not None:
            rollout.cost_returns.append(of_cost.returns)
        own_metrics = of_cost.metrics.items()
        rollout.metrics |= {f"{known}/{name}": v for known, v in own_metrics if math.isfinite(v)}
    rollout.advantages = [own / (1 + sum(rollout.multipliers)) for own in total]


def _whiten_advantages(rollout: Rollout) -> None:
    """Mean 0 and deviation 1 over the tokens that are learned from."""
    keep = torch.cat(_kept_tokens(rollout))
    sizes = [len(own) for own in rollout.advantages]
    whitened = losses.whiten(torch.cat(rollout.advantages), keep)
    rollout.advantages = list(torch.split(whitened, sizes))


def _kept_tokens(rollout: Rollout) -> list[Tensor]:
    """Per group (N,) bool: the tokens of answers that are learned from."""
    return [losses.to_tokens(a, rollout.lengths(i)) for i, a in enumerate(rollout.active)]


def add_group_advantages(rollout: Rollout, options: GroupTrain, _: float) -> None:
    """Rewards less their group's mean and, with `scale: std`, by its deviation."""
    rollout.advantages = _group_advantages(
        rollout,
        rollout.rewards,
        lambda rewards, groups: losses.group_advantages(rewards, groups, options.scale),
    )


def add_rloo_advantages(rollout: Rollout, _: RlooTrain, beta: float) -> None:
    """Rewards, less the KL, against the mean of the group's other answers."""
    scores = [r - beta * sequence_kl(rollout, i) for i, r in enumerate(rollout.rewards)]
    rollout.advantages = _group_advantages(rollout, scores, losses.rloo_advantages)


def add_teacher_advantages(rollout: Rollout, options: OnPolicyDistillationTrain, _: float) -> None:
    """How much likelier the teacher finds each token than the student that sampled it; none where
    whole distributions are compared."""
    if rollout.reference is None or rollout.old is None:
        return
    pairs = [
        (old.cpu(), teacher.cpu())
        for old, teacher in zip(rollout.old, rollout.reference, strict=True)
    ]
    rollout.advantages = [
        teacher_advantages(old, teacher, rollout.lengths(number), options.gamma)
        for number, (old, teacher) in enumerate(pairs)
    ]
    gaps = torch.cat([old - teacher for old, teacher in pairs])
    rollout.metrics["kl_teacher"] = float(gaps.double().mean())


def mean_kl(policy: Sequence[Tensor], rollout: Rollout) -> float:
    """The mean over answers of the k1 estimate summed over each, nats; `policy` (N,) log-probs of
    each group's tokens."""
    assert rollout.reference is not None
    pairs = zip(policy, rollout.reference, strict=True)
    total = sum(float(losses.kl_estimate(p, r, "k1").double().sum()) for p, r in pairs)
    return total / sum(len(group.answers) for group in rollout.groups)


def sequence_kl(rollout: Rollout, group: int) -> Tensor:
    """(S,) the k1 estimate summed over each answer, nats; 0 without a reference."""
    lengths = rollout.lengths(group)
    if rollout.reference is None or rollout.old is None:
        return torch.zeros(len(lengths))
    kl = losses.kl_estimate(rollout.old[group], rollout.reference[group], "k1")
    return torch.stack([part.sum() for part in torch.split(kl, lengths)]).cpu()


def _group_advantages(
    rollout: Rollout,
    scores: Sequence[Tensor],
    advantages: Callable[[Tensor, Tensor], Tensor],
) -> list[Tensor]:
    """Per group, its answers' advantages on every token, in fp32."""
    sizes = [len(score) for score in scores]
    own = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))  # [answers]
    found = torch.split(advantages(torch.cat(list(scores)), own).float(), sizes)
    return [losses.to_tokens(a, rollout.lengths(i)) for i, a in enumerate(found)]


def add_ppo_advantages(rollout: Rollout, options: PpoTrain, beta: float) -> None:
    """Generalised advantage estimates by the critic, and the returns."""
    assert rollout.old is not None
    assert rollout.values is not None
    rewards, lengths = [], []
    for number, scores in enumerate(rollout.rewards):
        old = rollout.old[number].cpu()
        kl = torch.zeros_like(old)
        if rollout.reference is not None:
            kl = losses.kl_estimate(old, rollout.reference[number].cpu(), "k1")
        # An answer without a reward is not learned from; 0 keeps the arithmetic finite.
        scores = scores.nan_to_num(0.0)
        rewards.append(losses.shaped_rewards(scores, kl, beta, rollout.lengths(number)))
        lengths += rollout.lengths(number)
    sizes = [len(r) for r in rewards]
    flat = torch.cat(rewards)  # [tokens]
    keep = torch.cat(_kept_tokens(rollout))
    # Scaled and not shifted: a constant for every token would reward or punish length.
    if options.whiten_rewards:
        flat = losses.whiten(flat, keep, shift_mean=False)
    values = torch.cat([v.cpu() for v in rollout.values])  # [tokens]
    advantages, returns = losses.gae(flat, values, lengths, options.gamma, options.lam)
    rollout.advantages = list(torch.split(advantages, sizes))
    rollout.returns = list(torch.split(returns, sizes))
    # The returns are not whitened: the critic learns values on the reward's scale.
    variance = losses.explained_variance(values[keep], returns[keep])
    rollout.metrics["explained_variance"] = float(variance)


def rollout_metrics(rollout: Rollout, pairs: bool) -> dict[str, float]:
    """Means over the answers: reward, length, how many ended, KL to the reference; the rewards'
    spread, and the share of prompts whose answers have equal ones."""
    every = torch.cat(rollout.rewards)
    scored = every[~every.isnan()]
    answers = [a for group in rollout.groups for a in group.answers]
    flat = [losses.is_flat(r) for r in rollout.rewards]
    found = {
        "reward": float(scored.mean()) if len(scored) else math.nan,
        "unscored": float(every.isnan().float().mean()),
        "answer_tokens": sum(len(a.ids) for a in answers) / len(answers),
        "ended": sum(a.ended for a in answers) / len(answers),
    }
    if len(scored) > 1:
        found["reward_spread"] = float(scored.std())
    if pairs or len(rollout.groups[0].answers) > 1:
        found["flat_groups"] = sum(flat) / len(flat)
    if rollout.reference is not None and rollout.old is not None:
        found["kl_reference"] = mean_kl(rollout.old, rollout)
    # A mean of nothing is left out: JSON has no NaN.
    kept = {name: value for name, value in found.items() if math.isfinite(value)}
    return {**rollout.metrics, **kept}
