"""Quark's pool (arXiv 2205.13636): every scored answer of a training, each in a quantile of all.

It lies in a file of the training's work folder, to which each rollout adds; a checkpoint says how
much of it counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlaif.train import checkpoint
from rlaif.train.rollout import Rollout

POOL = "pool.jsonl"


@dataclass(frozen=True, slots=True)
class Scored:
    """An answer and its reward. `prompt_ids` are without any quantile token."""

    prompt_id: str
    prompt_ids: list[int]
    ids: list[int]
    reward: float


def read_pool(work: Path, state: Mapping[str, Any] | None) -> list[Scored]:
    """The pool that the checkpoint with this `state` counts on (None: an empty one); what was added
    later is dropped from the file. Raises StoreError where it is damaged."""
    log = None if state is None else state["pool"]
    return [Scored(**row) for row in checkpoint.keep_log(work / POOL, log)]


def scored_answers(rollout: Rollout) -> list[Scored]:
    """The rollout's answers that have a reward."""
    return [
        Scored(group.prompt_id, group.prompt_ids, answer.ids, reward)
        for group, rewards in zip(rollout.groups, rollout.rewards, strict=True)
        for answer, reward in zip(group.answers, rewards.tolist(), strict=True)
        if not math.isnan(reward)
    ]


def add_to_pool(work: Path, answers: Sequence[Scored]) -> None:
    """Append answers to the file."""
    with (work / POOL).open("a") as file:
        file.writelines(json.dumps(asdict(answer)) + "\n" for answer in answers)


def rank_quantiles(rewards: Sequence[float], count: int) -> list[int]:
    """The quantile of each reward among all, from 1, the best, to `count`.

    Each of them has as many rewards, rounded down, and the worst the remainder as well. Of equal
    rewards the earlier are the better, so that a later one takes no place from them.
    """
    size = len(rewards) // count
    order = sorted(range(len(rewards)), key=lambda place: -rewards[place])
    found = [count] * len(rewards)
    for rank, place in enumerate(order[: size * count]):
        found[place] = rank // size + 1
    return found


def pool_metrics(pool: Sequence[Scored], quantiles: Sequence[int]) -> dict[str, float]:
    """How many answers there are, and the mean reward of each quantile that has any."""
    by_quantile: dict[int, list[float]] = {}
    for answer, quantile in zip(pool, quantiles, strict=True):
        by_quantile.setdefault(quantile, []).append(answer.reward)
    found = {"pool": float(len(pool))}
    for quantile, rewards in sorted(by_quantile.items()):
        found[f"pool_reward/{quantile}"] = math.fsum(rewards) / len(rewards)
    return found
