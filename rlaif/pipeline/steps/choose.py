"""choose: the policy of a stage's best round, by a judge's mean on validation prompts.

A stage with `until` has its policies judged after each round, and no further round once the mean
has not risen for some of them. All rounds are planned, so that every hash is known beforehand;
those that are not needed never run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.core.errors import ConfigError, RlaifError
from rlaif.core.store import StepFolder, Store
from rlaif.engines.base import Model
from rlaif.engines.model_folders import weights_hash
from rlaif.pipeline.plan.base import Known, PlanInputs, Planned, Size, Walk
from rlaif.pipeline.stages import Stage, Until
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext
from rlaif.pipeline.steps.validation import check_judge, measured_mean, plan_measurement

VERSION = 1
MAKES = "model"
SECONDS_PER_UNIT = 0.0

ROUND = "round/"
"""What the names of a round's model and judgements begin with."""


def name_choice(stage: Stage) -> str:
    """What the step and the model are called, and what the ids of the steps begin with that judge
    each round for it."""
    return f"{stage.id}-best"


def check_until(walk: Walk, stage: Stage, until: Until) -> None:
    """Raises ConfigError where the stage cannot be judged by `until`, or has one round alone."""

    def fail(message: str) -> ConfigError:
        """The error, at the stage."""
        return walk.inputs.fail_stage(stage, f"until: {message}")

    check_judge(walk, until.by, stage.prompts, fail)
    if stage.rounds < 2:
        raise fail("give the stage `rounds`, the most that may run")


def plan_round(walk: Walk, stage: Stage, until: Until) -> tuple[Model, Planned]:
    """The round's policy and its verdicts on the validation prompts."""
    name = name_choice(stage)
    return walk.policy, plan_measurement(walk, walk.policy, until.by, stage.prompts, name)


def plan_choice(
    walk: Walk, stage: Stage, until: Until, rounds: Sequence[tuple[Model, Planned]]
) -> None:
    """The step that makes the policy of the best round the stage's."""
    identities = [[model.identity(), judged.hash] for model, judged in rounds]
    digest = step_hash(
        "choose", identities, until.stops_rising, walk.yardstick_weights(), walk.seed
    )
    name = name_choice(stage)
    made = Model(f"train:{digest}", name, walk.policy.spec, digest)
    models = {f"{ROUND}{number}": model for number, (model, _) in enumerate(rounds, 1)}
    judgements = {f"{ROUND}{number}": judged.hash for number, (_, judged) in enumerate(rounds, 1)}
    walk.add(
        Planned(
            digest,
            "choose",
            name,
            walk.seed,
            walk.round,
            until,
            judgements,
            models={**models, "made": made},
            options={"principle_weights": walk.yardstick_weights()},
        )
    )
    walk.policy = made


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """Nothing is computed: a model is kept."""
    return Size(0)


def run(context: StepContext) -> dict[str, Any]:
    """Keep the model of the round whose mean is highest, of several the first. Raises RlaifError
    where no round has a value."""
    # Imported where it is needed, so that a plan needs no tensor library.
    from rlaif.train.reward_model import keep

    planned, store = context.planned, context.store
    means = round_means(planned, store)
    best = best_round(means)
    if best is None:
        raise RlaifError(
            f"until: judge {planned.step.by} gave no value to any answer of the {len(means)} "
            "rounds, so none of them is the best. Look at its verdicts"
        )
    model = planned.models[f"{ROUND}{best}"]
    out = store.model_path(planned.hash)
    assert model.train_hash is not None, "a stage with `until` trains"
    keep(store.model_path(model.train_hash), out)
    return {
        "counts": {"rounds": len(means), "best_round": best},
        "summary": {f"mean_of_round_{n}": mean for n, mean in means.items() if mean is not None},
        "weights_hash": weights_hash(out),
        "stopped_after": len(means),
    }


def round_means(planned: Planned, store: Store) -> dict[int, float | None]:
    """By round the judge's mean over prompts, up to the last that is needed or done; None where the
    judge gave no value."""
    found: dict[int, float | None] = {}
    for number in range(1, len(planned.inputs) + 1):
        folder = store.step(planned.inputs[f"{ROUND}{number}"])
        if folder.done() is None:
            break
        found[number] = _mean_of(planned, folder)
        if has_stopped(found, planned.step.stops_rising):
            break
    return found


def _mean_of(planned: Planned, folder: StepFolder) -> float | None:
    return measured_mean(folder, planned.step.by, planned.options["principle_weights"])


def best_round(means: Mapping[int, float | None]) -> int | None:
    """The round of the highest mean, the first of several."""
    known = {number: mean for number, mean in means.items() if mean is not None}
    return max(known, key=lambda number: (known[number], -number), default=None)


def has_stopped(means: Mapping[int, float | None], stops_rising: int) -> bool:
    """Whether the last rounds brought no new best."""
    return max(means) - (best_round(means) or 0) >= stops_rising


def is_needless(kind: str, arms: Sequence[str], stopped: Sequence[str]) -> bool:
    """Whether a step of these arms is not needed where some have stopped: arms are compared in
    rounds that all of them have."""
    over = set(arms) & set(stopped)
    return bool(over) if kind == "compare" else over == set(arms)
