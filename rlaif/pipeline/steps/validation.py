"""Choosing between models by a judge's mean on validation prompts. No reported figure is of these.

Each model answers every validation prompt once, with the same seed. The answers and verdicts are
steps of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean

from rlaif.config.steps import SampleStep
from rlaif.core.errors import ConfigError
from rlaif.core.records import Judgement
from rlaif.core.store import StepFolder
from rlaif.core.yamlio import suggest
from rlaif.engines.base import Model
from rlaif.metrics.metrics import judge_values, to_shares
from rlaif.pipeline.plan.base import Planned, Walk
from rlaif.pipeline.steps.judge import judged
from rlaif.pipeline.steps.sample import sampled


def check_judge(walk: Walk, by: str, prompts: str, fail: Callable[[str], ConfigError]) -> None:
    """Raises what `fail` makes of a message where judge `by` cannot measure on validation prompts
    of the set `prompts`."""
    judges = walk.experiment.all_judges()
    if by not in judges:
        raise fail(f"by: {by!r} is no judge{suggest(by, sorted(judges))}")
    if walk.yardstick.judges[by].comparative:
        raise fail(f"judge {by!r} compares answers; it takes one that scores each")
    if not walk.inputs.set_named(prompts).validation:
        raise fail(
            f"no prompts of the set {prompts!r} are for validation: set `validation` beside its "
            "`holdout`"
        )


def plan_measurement(walk: Walk, model: Model, by: str, prompts: str, name: str) -> Planned:
    """The verdicts of judge `by` on the model's answers to the validation prompts of a set. The
    steps' ids begin with `name`."""
    ids = sorted(p.prompt_id for p in walk.inputs.set_named(prompts).validation)
    samples = (e.sample for e in walk.yardstick.experiment.entries)
    template = next(filter(None, samples), SampleStep())
    plain = dict.fromkeys(("pool", "principles", "system_prompt"))
    step = template.model_copy(update={"n": 1, "id": f"{name}.sample", **plain})
    answers = sampled(walk, step, model, ids, f"validation/{walk.seed}", step.id)
    judge = walk.yardstick.experiment.all_judges()[by]
    models = walk.frozen_models(judge)
    own = walk.yardstick.judges[by]
    return judged(walk, judge, [answers], models, f"{name}.{by}", judge=own)


def measured_mean(folder: StepFolder, by: str, weights: Mapping[str, float]) -> float | None:
    """The mean over prompts of what judge `by` said in its step's folder, with these weights of
    principles; None where it gave no value."""
    judgements = list(folder.records(Judgement))
    subjects = {judgement.subject for judgement in judgements}
    values = judge_values(by, judgements, weights, subjects).get(f"score/{by}", {})
    by_prompt = to_shares(values)
    return fmean(by_prompt.values()) if by_prompt else None
