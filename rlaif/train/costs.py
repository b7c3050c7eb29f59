"""The multipliers of PPO-Lagrangian: how much each cost counts beside the reward.

Maximise the mean reward where the mean cost is at most its limit: max over the policy, min over
lambda >= 0 of E[R] - lambda (E[C] - limit) (Safe RLHF, arXiv 2310.12773). The step of
lambda is in log space, and the policy learns from (A_R - sum lambda A_C) / (1 + sum lambda).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlaif.config.rewards import CostTerm, names_of
from rlaif.train.rollout import Group, Rollout

LARGEST_FALL = 20.0
"""The most that a multiplier's logarithm falls at once."""


@dataclass(frozen=True, slots=True)
class Multiplier:
    """lambda, and the latest costs, of which the mean is held against the limit."""

    value: float
    window: tuple[float, ...] = ()

    def stepped(self, cost: CostTerm, costs: Sequence[float]) -> Multiplier:
        """After a rollout with these costs: log lambda += rate lambda (mean - limit), at most
        log max (as in the code of arXiv 2310.12773). Without any cost so far it stays."""
        window = (*self.window, *costs)[-cost.window :]
        if not window or self.value == 0:
            return Multiplier(self.value, window)
        gap = math.fsum(window) / len(window) - cost.limit
        # Bounded before its exponential: a huge gap would overflow, or leave a 0 that stays.
        move = max(cost.rate * self.value * gap, -LARGEST_FALL)
        move = min(move, math.log(cost.max / self.value))
        return Multiplier(min(cost.max, self.value * math.exp(move)), window)


def start_multipliers(costs: Sequence[CostTerm]) -> list[Multiplier]:
    """Before the first rollout."""
    return [Multiplier(cost.start) for cost in costs]


def step_multipliers(
    multipliers: Sequence[Multiplier], costs: Sequence[CostTerm], groups: Sequence[Group]
) -> list[Multiplier]:
    """After a rollout. Answers whose cost is missing are in no mean."""
    return [
        before.stepped(cost, _known_costs(groups, place))
        for place, (before, cost) in enumerate(zip(multipliers, costs, strict=True))
    ]


def _known_costs(groups: Sequence[Group], place: int) -> list[float]:
    every = (answer.costs[place] for group in groups for answer in group.answers)
    return [cost for cost in every if cost is not None]


def multipliers_to_json(
    costs: Sequence[CostTerm], multipliers: Sequence[Multiplier]
) -> dict[str, dict[str, Any]]:
    """As a checkpoint keeps them."""
    named = zip(names_of(costs), multipliers, strict=True)
    return {name: {"value": own.value, "window": list(own.window)} for name, own in named}


def multipliers_from_json(
    costs: Sequence[CostTerm], rows: Mapping[str, Mapping[str, Any]]
) -> list[Multiplier]:
    """What `multipliers_to_json` gave."""
    return [
        Multiplier(rows[name]["value"], tuple(rows[name]["window"])) for name in names_of(costs)
    ]


def cost_metrics(
    costs: Sequence[CostTerm], multipliers: Sequence[Multiplier], groups: Sequence[Group]
) -> dict[str, float]:
    """By cost, with its NAME: the rollout's mean (`cost/`), the share of answers that lack one
    (`missing_cost/`), the mean over the window (`cost_window/`), and `multiplier/`."""
    answers = sum(len(group.answers) for group in groups)
    found = {}
    for place, (name, own) in enumerate(zip(names_of(costs), multipliers, strict=True)):
        known = _known_costs(groups, place)
        if known:
            found[f"cost/{name}"] = math.fsum(known) / len(known)
        if own.window:
            found[f"cost_window/{name}"] = math.fsum(own.window) / len(own.window)
        found[f"missing_cost/{name}"] = 1 - len(known) / answers
        found[f"multiplier/{name}"] = own.value
    return found


def acting_places(costs: Sequence[CostTerm]) -> list[int]:
    """The places of the costs that change what is learned."""
    return [place for place, cost in enumerate(costs) if cost.acts]


def without_unknown_costs(groups: Sequence[Group], costs: Sequence[CostTerm]) -> list[Group]:
    """The groups as far as their answers can be learned from: one that lacks a cost has no reward,
    and is in no mean that rewards are made with."""
    places = acting_places(costs)
    return [
        replace(
            group,
            answers=tuple(
                replace(answer, values=(None,) * len(answer.values), idle=frozenset())
                if any(answer.costs[place] is None for place in places)
                else answer
                for answer in group.answers
            ),
        )
        for group in groups
    ]


def add_costs(
    rollout: Rollout, costs: Sequence[CostTerm], multipliers: Sequence[Multiplier]
) -> None:
    """Give the rollout the costs that act, NaN for answers without a reward, and their
    multipliers."""
    places = acting_places(costs)
    rollout.multipliers = [multipliers[place].value for place in places]
    rollout.cost_names = [names_of(costs)[place] for place in places]
    rollout.costs = [
        [
            _costs_of(group, place, rewards)
            for group, rewards in zip(rollout.groups, rollout.rewards, strict=True)
        ]
        for place in places
    ]


def _costs_of(group: Group, place: int, rewards: Tensor) -> Tensor:
    """(S,) fp64 costs of a group's answers, NaN where the answer has no reward."""
    known = [math.nan if a.costs[place] is None else a.costs[place] for a in group.answers]
    return torch.tensor(known, dtype=torch.float64).masked_fill(rewards.isnan(), math.nan)
