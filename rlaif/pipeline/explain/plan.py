"""The `Flow` of an experiment's file, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rlaif.config.arms import MAIN
from rlaif.core.errors import ConfigError
from rlaif.core.store import Store
from rlaif.core.yamlio import suggest
from rlaif.pipeline.explain.build import make_flow
from rlaif.pipeline.explain.facts import list_facts, list_unasked, list_undrawn
from rlaif.pipeline.explain.rows import Counts, read_rows
from rlaif.pipeline.explain.words import count_words
from rlaif.pipeline.forecast import Forecast, forecast
from rlaif.pipeline.manifest import manifest_row
from rlaif.pipeline.plan.base import PlanInputs, Planned
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.remarks import list_kept
from rlaif.report.flow import Flow

_UNITS = {"model": "examples", "reward model": "examples"}
"""What the sizes of trainings count."""


def explain_file(
    path: Path, overrides: Sequence[str] = (), profile: str | None = None, arm: str | None = None
) -> Flow:
    """What the plan of an experiment does, or what it does in one arm. Nothing is run, fetched or
    written. Raises ConfigError."""
    inputs = prepare(path, overrides, fetch=False, profile=profile)
    return explain_plan(inputs, arm)


def explain_plan(inputs: PlanInputs, arm: str | None = None) -> Flow:
    """See `explain_file`."""
    whole = plan = make_plan(inputs)
    known = list(dict.fromkeys(name for planned in plan for name in planned.arms))
    if arm is not None and arm not in known:
        raise ConfigError(
            f"--arm: {arm!r} is no arm{suggest(arm, known)}; known here: {', '.join(known)}",
            inputs.path,
        )
    plan = [planned for planned in plan if arm is None or arm in planned.arms]
    # A folder that is not there: what may be finished somewhere changes nothing in the plan.
    counts = _planned_counts(plan, forecast(inputs, Store(Path("runs") / "none"), whole))
    rows = read_rows([manifest_row(planned) for planned in plan], counts)
    if arm is not None:
        rows = [replace(row, arms=(arm,)) for row in rows]
    sets = {MAIN: inputs.prompts, **inputs.sets}
    prompts = {
        name: (len(one.train), len(one.heldout))
        for name, one in sets.items()
        if any(True for _ in one.every())
    }
    facts = list_facts(inputs.experiment, prompts, arm)
    total = sum(row.counts.get("calls", 0) for row in rows)
    facts["In all"] = (
        f"{count_words(len(rows), 'planned step')}, at most {count_words(total, 'model call')}",
    )
    if inputs.provisional:
        facts["Provisional"] = inputs.provisional
    idle, kept = _list_idle(inputs, plan), list_kept(inputs.experiment)
    return make_flow(inputs.experiment.name, rows, facts, idle, kept, planned=True)


def _planned_counts(plan: Sequence[Planned], sizes: Sequence[Forecast]) -> Mapping[str, Counts]:
    """How much every step makes and asks at most, by hash. What is loaded has no count here, since
    the file is read when the step runs."""
    loads = {planned.hash for planned in plan if planned.kind == "load"}
    return {
        size.hash: ({} if size.calls is None else {"calls": size.calls})
        | ({} if size.units is None or size.hash in loads else {_name_units(size): size.units})
        for size in sizes
    }


def _name_units(size: Forecast) -> str:
    return _UNITS.get(size.records, size.records)


def _list_idle(inputs: PlanInputs, plan: Sequence[Planned]) -> list[str]:
    """What is given and that no step of the plan uses."""
    experiment = inputs.experiment
    inputs = inputs.with_slots(plan)
    every = (inputs.prompts, *inputs.sets.values())
    train = {prompt.prompt_id for one in every for prompt in one.train}
    heldout = {prompt.prompt_id for one in every for prompt in one.heldout}
    judging = (p for p in plan if p.kind == "judge")
    asked = {p.step.id for p in judging} | {p.step.judge for p in plan if p.kind == "arena"}
    used = {m.key for p in plan for role, m in p.models.items() if role != "made"}
    for planned in plan:
        asked |= set(getattr(planned.step, "reward_judges", ()))
    models = {name for name in experiment.models if inputs.keys[name] in used}
    drawn = {name for p in plan for name in p.prompts} & train
    measured = any(p.kind in ("evaluate", "arena") for p in plan)
    counts = list_undrawn(len(train), len(drawn), len(heldout), measured)
    return counts + list_unasked(experiment, asked, models)
