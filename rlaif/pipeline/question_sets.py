"""The sets of prompts that `questions` steps make, which a plan needs before anything runs.

What a judge asks about pairs of a file needs no model, so it is known when the file is read, as the
prompts of a file are. Answers that a run itself samples are not known then: no set is made of them.
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
from rlaif.judges.posed import pose_questions, scores_alone, unreadable
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.stages import Stage


def find_loads(experiment: Experiment, step: QuestionsStep) -> list[LoadStep]:
    """The loads of labelled pairs that a `questions` step asks about: those that it names, or those
    of its stage before it. Raises ConfigError for a name of something else."""
    before = _loads_before(experiment, step)
    if step.pair_names is None:
        stage = _stage_of(experiment, step)
        found = [load for place, load in before.values() if place == stage.id]
        if not found:
            raise ConfigError(
                "no labelled pairs are loaded before it in its stage: add "
                "`load: {type: pairs, path: FILE}`, or name some with `uses`"
            )
        return found
    for name in step.pair_names:
        if name not in before:
            raise ConfigError(
                f"uses: {name!r} is no load of labelled pairs before this step"
                f"{suggest(name, sorted(before))}. Questions are prompts, which are known before "
                "anything runs; answers that this run samples are not. Put them into a file of "
                "labelled pairs, and load that"
            )
    return [before[name][1] for name in step.pair_names]


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


def make_question_set(
    experiment: Experiment,
    step: QuestionsStep,
    judges: Mapping[str, Judge],
    sets: Mapping[str, PromptSet],
    beside: Path,
) -> tuple[PromptSet, str | None]:
    """The questions of a step, in order of their pairs, and a sentence on the pairs that gave none.
    Raises ConfigError where there are none at all."""
    if step.judge not in judges:
        known = suggest(step.judge, sorted(judges))
        raise ConfigError(f"judge: {step.judge!r} is no judge of this file{known}")
    judge = judges[step.judge]
    fault = unreadable(judge)
    if fault is not None:
        raise ConfigError(f"judge: judge {step.judge!r} {fault}")
    if scores_alone(judge) and step.orders != "both":
        raise ConfigError(
            f"orders: judge {step.judge!r} scores each answer alone, so that no order is shown: "
            "leave it out"
        )
    pairs: list[LabelledPair] = []
    for load in find_loads(experiment, step):
        train = {p.prompt_id for p in sets[load.id if load.makes_set else MAIN].train}
        read = read_pairs(experiment, load, beside)
        pairs += [pair for pair in read if pair.prompt.prompt_id in train]
    posed, left_out = pose_questions(judge, pairs, step.orders, experiment.all_seeds[0])
    why = ", ".join(f"{count} {name}" for name, count in left_out.items())
    if not posed:
        raise ConfigError(
            f"judge {step.judge!r} asks about none of the {len(pairs)} pairs of training prompts"
            + (f" ({why})" if why else "")
        )
    return PromptSet(posed, [], 0), f"questions {step.id}: no question about {why}" if why else None
