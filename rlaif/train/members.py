"""Reward ensembles of adapters on one body: as many trainings as members, one after the other.

Members that start from one model share its errors. What tells them apart are the first weights of
their adapters and the order of the pairs (Lakshminarayanan et al. 2017, 1612.01474; of adapters,
2401.00243).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from rlaif.config.distill import DistillStep
from rlaif.core.chat import KEEP, ChatSettings
from rlaif.core.records import Preference, content_hash
from rlaif.train.export import export_members
from rlaif.train.loop import TrainOutcome, TrainProgress, read_outcome, write_outcome
from rlaif.train.run import train


def train_members(
    options: DistillStep,
    preferences: Sequence[Preference],
    token_ids: Mapping[str, list[int]],
    start: Path,
    out: Path,
    work: Path,
    seed: int,
    device: str = "auto",
    progress: Callable[[TrainProgress], None] | None = None,
    chat: ChatSettings = KEEP,
) -> TrainOutcome:
    """Train `options.members` adapters of `start` and write them to `out` with its body.

    The outcome has all their steps and the means of their figures. A rerun goes on with the member
    that was under way. `out` is complete or absent. Raises as `train`.
    """
    known = read_outcome(work, out)
    if known is not None:
        return known
    adapters, outcomes = [], []
    for number in range(options.members):
        own = work / f"member{number}"
        outcome = train(
            options,
            preferences,
            token_ids,
            start,
            None,
            own / "adapter",
            own / "work",
            int(content_hash("member", seed, number, length=8), 16),
            device,
            _told(progress, number, options.members),
            chat,
            merge=False,
        )
        adapters.append(own / "adapter")
        outcomes.append(outcome)
    together = _together(outcomes)
    export_members(start, adapters, out)
    write_outcome(work, together)
    for adapter in adapters:
        shutil.rmtree(adapter.parent)
    return together


def _told(
    progress: Callable[[TrainProgress], None] | None, number: int, count: int
) -> Callable[[TrainProgress], None] | None:
    """Progress of one member as a part of all."""
    if progress is None:
        return None

    def tell(own: TrainProgress) -> None:
        """Steps count on over the members."""
        total = own.total_steps
        progress(replace(own, step=number * total + own.step, total_steps=count * total))

    return tell


def _together(outcomes: Sequence[TrainOutcome]) -> TrainOutcome:
    first = outcomes[0]
    return replace(
        first,
        steps=sum(o.steps for o in outcomes),
        tokens=sum(o.tokens for o in outcomes),
        metrics={name: fmean(o.metrics[name] for o in outcomes) for name in first.metrics},
        seconds=sum(o.seconds for o in outcomes),
    )
