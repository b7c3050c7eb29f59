"""The sets of prompts that `questions` steps make of files, which a plan needs before it is made.

What a judge asks about pairs of a file needs no model, so it is known when the file is read, as the
prompts of a file are. Of answers that a run itself samples the plan knows how many questions there
may be, and what they say comes later (`rlaif.pipeline.steps.run_questions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rlaif.config.arms import MAIN
from rlaif.config.judge_training import QuestionsStep
from rlaif.config.steps import LoadStep
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.yamlio import suggest
from rlaif.data.readers import read_labelled
from rlaif.data.sources import PromptSet, loaded_source
from rlaif.judges.base import Judge
from rlaif.judges.posed import pose_questions, unreadable
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.stages import Stage


def find_loads(experiment: Experiment, step: QuestionsStep) -> list[LoadStep]:
    """The loads of labelled pairs that a `questions` step asks about: those that it names, or those
    of its stage before it; none where it asks about what the run makes. Raises ConfigError where
    it names both."""
    before = _loads_before(experiment, step)
    if step.pair_names is None:
        stage = _stage_of(experiment, step)
        return [load for place, load in before.values() if place == stage.id]
    loaded = [name for name in step.pair_names if name in before]
    others = [name for name in step.pair_names if name not in before]
    if loaded and others:
        raise ConfigError(
            f"uses: {loaded[0]!r} loads labelled pairs, and {others[0]!r} does not: ask about each "
            "in a `questions` step of its own"
        )
    return [before[name][1] for name in loaded]


def _loads_before(experiment: Experiment, step: QuestionsStep) -> dict[str, tuple[str, LoadStep]]:
    found: dict[str, tuple[str, LoadStep]] = {}
    for stage in experiment.all_stages:
        for entry in stage.steps:
            if entry.step is step:
                return found
            if entry.load is not None and entry.load.type == "pairs":
                found[entry.load.id] = (stage.id, entry.load)
    return found


def _stage_of(experiment: Experiment, step: QuestionsStep) -> Stage:
    return next(s for s in experiment.all_stages if any(e.step is step for e in s.steps))


def read_pairs(experiment: Experiment, load: LoadStep, beside: Path) -> list[LabelledPair]:
    """The labelled pairs that a step loads. Raises ConfigError."""
    source = loaded_source(load, experiment.loaded_name(load), beside)
    return list(read_labelled(source, load.format, load.columns, load.on_error))


def find_judge(step: QuestionsStep, judges: Mapping[str, Judge]) -> Judge:
    """The judge that a step asks with. Raises ConfigError where it is none or its answers cannot be
    read, and for `orders` of a judge that shows none."""
    if step.judge not in judges:
        known = suggest(step.judge, sorted(judges))
        raise ConfigError(f"judge: {step.judge!r} is no judge of this file{known}")
    judge = judges[step.judge]
    fault = unreadable(judge)
    if fault is not None:
        raise ConfigError(f"judge: judge {step.judge!r} {fault}")
    if not judge.comparative and step.orders != "both":
        raise ConfigError(
            f"orders: judge {step.judge!r} is asked about each answer alone, so that no order is "
            "shown: leave it out"
        )
    return judge


def make_question_set(
    experiment: Experiment,
    step: QuestionsStep,
    judges: Mapping[str, Judge],
    sets: Mapping[str, PromptSet],
    beside: Path,
) -> tuple[PromptSet, str | None]:
    """The questions of a step, in order of their pairs, and a sentence on the pairs that gave none;
    an empty set where it asks about what the run makes. Raises ConfigError where there are none."""
    judge = find_judge(step, judges)
    loads = find_loads(experiment, step)
    if not loads:
        return PromptSet([], [], 0), None
    pairs: list[LabelledPair] = []
    for load in loads:
        train = {p.prompt_id for p in sets[load.id if load.makes_set else MAIN].train}
        read = read_pairs(experiment, load, beside)
        pairs += [pair for pair in read if pair.prompt.prompt_id in train]
    posed, left_out = pose_questions(judge, pairs, step.orders, experiment.all_seeds[0])
    why = count_left_out(left_out)
    if not posed:
        raise ConfigError(
            f"judge {step.judge!r} asks about none of the {len(pairs)} pairs of training prompts"
            + (f" ({why})" if why else "")
        )
    return PromptSet(posed, [], 0), f"questions {step.id}: no question about {why}" if why else None


def count_left_out(left_out: Mapping[str, int]) -> str:
    """How many pairs gave no question, by why."""
    return ", ".join(f"{count} {name}" for name, count in left_out.items())
