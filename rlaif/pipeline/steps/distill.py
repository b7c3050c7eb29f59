"""distill: a reward model from preferences."""

from __future__ import annotations

from rlaif.config.distill import DistillStep, FitStep
from rlaif.pipeline.plan.base import Walk
from rlaif.pipeline.steps.train import plan_training, run, size
from rlaif.pipeline.steps.training_data import choose_data

__all__ = ["MAKES", "SECONDS_PER_UNIT", "VERSION", "plan", "run", "size"]

VERSION = 3
MAKES = "reward model"
SECONDS_PER_UNIT = 1.0


def plan(walk: Walk, index: int, step: DistillStep | FitStep) -> None:
    """A reward model from preferences, known to judges by the step's id. From its own id it goes on
    from the last round's, and in the first round from M0. With `refresh` the last round's may be
    kept."""
    used = choose_data(walk, index, step)
    last = walk.made_by(step.id)
    kept = {"last": last} if step.refresh is not None and last is not None else {}
    alone = len(walk.yardstick.experiment.all_stages) == 1
    label = f"{step.id}{walk.round}" if alone else walk.label_made(step.id)
    plan_training(walk, index, "distill", step, used, label, more=kept)
