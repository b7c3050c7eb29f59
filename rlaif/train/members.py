"""Reward ensembles of adapters on one body: as many trainings as members, one after the other.

Members that start from one model share its errors. What tells them apart are the first weights of
their adapters and the order of the pairs (Lakshminarayanan et al. 2017, 1612.01474; of adapters,
2401.00243).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

from rlaif.config.distill import DistillStep
from rlaif.core.records import content_hash
from rlaif.train.checkpoint import export_members
from rlaif.train.loop import TrainJob, TrainOutcome, TrainProgress, write_outcome
from rlaif.train.run import find_trainer


def train_members(job: TrainJob[DistillStep]) -> TrainOutcome:
    """Train the options' `members`, adapters of the job's start, and write them to `out` with its
    body.

    The outcome has all their steps and the means of their figures. A rerun goes on with the member
    that was under way. Raises as `rlaif.train.run.train_on_preferences`.
    """
    folders, outcomes = [], []
    for number in range(job.options.members):
        folder = job.work / f"member{number}"
        own = replace(
            job,
            out=folder / "adapter",
            work=folder / "work",
            seed=int(content_hash("member", job.seed, number, length=8), 16),
            progress=_count_on(job.progress, number, job.options.members),
            member=True,
        )
        outcomes.append(find_trainer(own)(own))
        folders.append(folder)
    together = _join_outcomes(outcomes)
    export_members(job.start, [folder / "adapter" for folder in folders], job.out)
    write_outcome(job.work, together)
    for folder in folders:
        shutil.rmtree(folder)
    return together


def _count_on(
    progress: Callable[[TrainProgress], None] | None, number: int, count: int
) -> Callable[[TrainProgress], None] | None:
    """Progress of one member as a part of all."""
    if progress is None:
        return None

    def report_step(own: TrainProgress) -> None:
        """Steps count on over the members."""
        total = own.total_steps
        progress(replace(own, step=number * total + own.step, total_steps=count * total))

    return report_step


def _join_outcomes(outcomes: Sequence[TrainOutcome]) -> TrainOutcome:
    first = outcomes[0]
    return replace(
        first,
        steps=sum(o.steps for o in outcomes),
        tokens=sum(o.tokens for o in outcomes),
        metrics={name: fmean(o.metrics[name] for o in outcomes) for name in first.metrics},
        seconds=sum(o.seconds for o in outcomes),
    )
