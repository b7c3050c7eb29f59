"""Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): prompts whose answers all have the same
reward teach nothing, and others are asked in their place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rlaif.train.losses.policy import is_flat
from rlaif.train.rollout import Group

Rewards = Sequence[Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Redraw:
    """The `place`-th time (from 1) that a rollout asks for `count` prompts besides those `asked`
    so far."""

    place: int
    count: int
    asked: frozenset[str]


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a rollout is learned from, and every group that was sampled for it."""

    groups: list[Group]
    every: list[Group]
    flat: float
    """The share of all groups whose rewards are equal."""


def draw_groups(
    draw: Callable[[Redraw | None], Sequence[Group]],
    reward: Callable[[Sequence[Group]], Rewards],
    most: int,
) -> Drawn:
    """The groups of a rollout, those with equal rewards replaced up to `most` times.

    `reward` gives each answer's reward before any penalty, which would make equal rewards look
    different (None: missing, and of one reward alone nothing can be said). Where prompts run out or
    `most` is reached, the rollout is smaller; where no group has different rewards, it is the first
    draw as it is.
    """
    first = list(draw(None))
    every, groups = first, _varied_groups(first, reward(first))
    for place in range(1, most + 1):
        missing = len(first) - len(groups)
        if missing <= 0:
            break
        asked = frozenset(group.prompt_id for group in every)
        fresh = list(draw(Redraw(place, missing, asked)))
        if not fresh:
            break
        every = every + fresh
        groups = groups + _varied_groups(fresh, reward(fresh))
    varied = len(_varied_groups(every, reward(every), whole=False))
    return Drawn(groups or first, every, 1 - varied / len(every))


def _varied_groups(groups: Sequence[Group], rewards: Rewards, whole: bool = True) -> list[Group]:
    """The groups whose rewards differ; with `whole` also those that are together with one of
    them."""
    varied = {
        group.prompt_id
        for group, own in zip(groups, rewards, strict=True)
        if not is_flat(torch.tensor([r for r in own if r is not None], dtype=torch.float64))
    }
    units: dict[str, set[str]] = defaultdict(set)
    for group in groups:
        units[(whole and group.together) or group.prompt_id].add(group.prompt_id)
    kept = set().union(*(members for members in units.values() if members & varied))
    return [group for group in groups if group.prompt_id in kept]
