"""The plan: an experiment unrolled into steps whose hashes are known before anything runs.

A step's hash covers what can change its output and nothing else, so a finished step is found again
after an edit that does not concern it, and an edit redoes exactly what it must. Pure: nothing is
read here but what `PlanInputs` holds.
"""

from rlaif.pipeline.plan.base import DRIFT_PROMPTS, VERSIONS, PlanInputs, Planned, round_prompts
from rlaif.pipeline.plan.unroll import make_plan

__all__ = ["DRIFT_PROMPTS", "VERSIONS", "PlanInputs", "Planned", "make_plan", "round_prompts"]
