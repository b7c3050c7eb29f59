"""The steps of an experiment, one module for each kind.

A step's module says all of its kind: `plan` adds it to a plan, with a hash of what decides its
output; `run` reads records, asks the rooms below and commits records; `size` says how much it is
before it runs. `VERSION` is raised when its code gives another output for the same inputs, `MAKES`
names its records, and `SECONDS_PER_UNIT` is a rough guess for a 135M model on two CPU cores.
A new kind is a module here and a row of `STEPS`, which names the spec of its keys.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rlaif.core.records import stream_hash

STEPS: dict[str, str | None] = {
    "sample": "rlaif.config.steps:SampleStep",
    "revise": "rlaif.config.revise:ReviseStep",
    "load": "rlaif.config.steps:LoadStep",
    "questions": "rlaif.config.judge_training:QuestionsStep",
    "filter": "rlaif.config.filters:FilterStep",
    "judge": "rlaif.judges.build:JudgeStep",
    "pair": "rlaif.config.steps:PairStep",
    "label": "rlaif.config.steps:LabelStep",
    "distill": "rlaif.config.methods:AnyDistill",
    "train": "rlaif.config.methods:AnyTrain",
    "average": "rlaif.config.average:AverageStep",
    "bench": "rlaif.config.judge_training:BenchStep",
    "arena": "rlaif.config.arena:ArenaStep",
    "evaluate": "rlaif.config.steps:EvaluateStep",
    # No steps of an experiment's file: evaluations and stages have them planned.
    "logprobs": None,
    "compare": None,
    "choose": None,
}
"""The spec of every kind, whose module here has its name."""


def step_module(kind: str) -> Any:
    """The module of a kind of step."""
    return import_module(f"rlaif.pipeline.steps.{kind}")


def step_hash(kind: str, *parts: Any) -> str:
    """The hash of a step of `kind` whose output `parts` decide."""
    return stream_hash(kind, step_module(kind).VERSION, *parts)
