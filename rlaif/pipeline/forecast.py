"""The size of every planned step before it runs: records, calls, tokens, time, money, at most.

`rlaif run --dry-run` prints it as a table or as JSON, with what the budget allows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from rlaif.config.models import REMOTE
from rlaif.config.on_policy import RolloutTrain
from rlaif.core.errors import ConfigError
from rlaif.core.store import StepFolder, Store
from rlaif.engines.base import Model
from rlaif.engines.model_folders import BUILTIN, locate
from rlaif.engines.remote.decode import Usage
from rlaif.engines.remote.meter import run_account
from rlaif.pipeline.experiment import unfinished
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.flops import count_flops, device_seconds
from rlaif.pipeline.lengths import (
    answer_tokens,
    mean_tokens,
    question_texts,
    request_texts,
)
from rlaif.pipeline.memory import Device, Sizes, estimate_memory, held_models, planned_device
from rlaif.pipeline.memory_table import advise_memory, list_memory, make_memory_table
from rlaif.pipeline.plan.base import Known, PlanInputs, Planned, Size
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.remarks import list_remarks, refuse_remarks
from rlaif.pipeline.steps import step_module

TRAINS = ("train", "distill")
COUNTED = (*TRAINS, "filter", "judge", "logprobs", "pair", "revise")
"""Kinds of steps whose size is that of what they read; on-policy training has its own prompts."""
SMALL_BYTES = 600_000_000
"""Of a model's weights: about the 135M model in 32 bits, which the guessed rates are of."""


@dataclass(frozen=True)
class Forecast:
    """One planned step. `units` are completions, calls, pairs or optimiser examples, at most; None
    where they depend on a file that is read when a step runs, as `calls` and `tokens` may.
    `cost` is what the calls to a priced server come to when every answer is as long as it may be;
    None where no priced server is asked. `cost_known` is false where a judge asks several models,
    one of them priced: which is asked how much shows in the answers; `cost` is then the rest's.
    `seconds` follow from parameters, tokens and a stated FLOP/s, or are measured in this run
    folder, or guessed for models as small as the built-in one; None where none of these can be."""

    seed: int
    arms: str
    stage: str
    round: int
    number: int
    id: str
    kind: str
    records: str
    hash: str
    reused: bool
    units: int | None
    calls: int | None
    tokens: int | None
    seconds: float | None
    measured: bool
    cost: float | None
    cost_known: bool


def forecast(
    inputs: PlanInputs,
    store: Store,
    plan: Sequence[Planned] | None = None,
    speed: float | None = None,
) -> list[Forecast]:
    """Every step with its size, and whether its output is there already; `plan` is that of the
    inputs, where it is made already, and `speed` the FLOP/s of a device, where that is stated."""
    plan = make_plan(inputs) if plan is None else plan
    inputs = inputs.with_slots(plan)
    missing = unfinished(plan, store)
    known = Known()
    rates = _measured_rates(store)
    rows = []
    steps: dict[str, Planned] = {}
    unread: set[str] = set()
    sizes = Sizes()
    for planned in plan:
        module = step_module(planned.kind)
        size: Size = module.size(inputs, planned, known)
        known.add(planned, size)
        is_known = not _reads_unread(planned, unread)
        if not is_known:
            unread.add(planned.hash)
        asks = is_known or planned.kind in TRAINS or not planned.models
        to_do = planned.hash in missing
        steps[planned.hash] = planned
        cost, cost_known = (None, True)
        seconds: float | None = 0.0
        stated = speed is not None and _is_all_held(planned)
        if to_do:
            cost, cost_known = _estimate_cost(inputs, planned, size, answer_tokens(planned, steps))
            seconds = _estimate_rate(planned, size, rates)
            if speed is not None and stated:
                flops = count_flops(inputs, planned, size, steps, sizes)
                seconds = None if flops is None else device_seconds(planned, flops, speed)
            if planned.models and not is_known:
                seconds, cost_known = None, cost_known and cost is None
        rows.append(
            Forecast(
                planned.seed,
                " ".join(planned.arms),
                planned.stage,
                planned.round,
                planned.number,
                planned.id,
                planned.kind,
                module.MAKES,
                planned.hash,
                not to_do,
                size.units if is_known else None,
                size.calls if asks else None,
                size.tokens if asks else None,
                None if seconds is None else round(seconds, 1),
                planned.kind in rates and not stated,
                cost,
                cost_known,
            )
        )
    return rows


def _reads_unread(planned: Planned, unread: AbstractSet[str]) -> bool:
    """Whether the size of a step depends on a file that is read when a step runs: of one that loads
    it, or that reads what one of the steps `unread` makes."""
    if planned.kind == "load":
        return bool(planned.step.type != "pairs")
    counts = planned.kind in COUNTED and not isinstance(planned.step, RolloutTrain)
    return counts and not unread.isdisjoint(planned.inputs.values())


def _estimate_rate(planned: Planned, size: Size, rates: Mapping[str, float]) -> float | None:
    """Seconds at the rate of the step's kind, measured or guessed; None where neither is known."""
    if planned.kind == "judge" and not planned.models:
        return 0.0
    if planned.kind not in rates and not _is_guessable(planned):
        return None
    rate: float = rates.get(planned.kind, step_module(planned.kind).SECONDS_PER_UNIT)
    return size.units * rate


def _is_all_held(planned: Planned) -> bool:
    """Whether the step computes with models, and all of them are on devices of ours."""
    asked = [role for role in planned.models if role != "made"]
    return bool(asked) and len(held_models(planned)) == len(asked)


def _is_guessable(planned: Planned) -> bool:
    """Whether the guessed rates say anything of a step: they are those of a small model here."""
    return all(
        spec.engine == "fake" or spec.engine in REMOTE or _is_small(spec.path)
        for spec in (model.spec for model in planned.models.values())
    )


@cache
def _is_small(path: str) -> bool:
    folder = locate(path)
    if folder is None:
        return path in BUILTIN
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= SMALL_BYTES


def _measured_rates(store: Store) -> dict[str, float]:
    """Seconds per unit of each kind, from the finished steps of this run folder."""
    totals: dict[str, list[float]] = {}
    for marker_path in sorted((store.root / "steps").glob("*/done.json")):
        marker = StepFolder(marker_path.parent).done() or {}
        counts = marker.get("counts", {})
        units = counts.get("completions") or counts.get("calls") or counts.get("scored")
        units = units or counts.get("preferences")
        if units and "kind" in marker and (marker["kind"] != "judge" or marker["seconds"] > 1):
            entry = totals.setdefault(marker["kind"], [0.0, 0.0])
            entry[0] += marker["seconds"]
            entry[1] += units
    return {kind: seconds / units for kind, (seconds, units) in totals.items()}


def _estimate_cost(
    inputs: PlanInputs, planned: Planned, size: Size, answer_tokens: int
) -> tuple[float | None, bool]:
    """What the priced calls come to, as far as it is known, and whether it is: calls times the
    length of some real prompts, and answers as long as they may be."""
    prompts = inputs.some_prompts()
    model = planned.models.get("by")
    if planned.kind in ("sample", "revise"):
        if model is None or model.spec.price is None:
            return None, True
        texts = request_texts(inputs, planned, answer_tokens)
        return _price_calls(model, texts, size.calls, size.tokens), True
    costs: list[float] = []
    known = True
    for ask in size.judges:
        if all(model.spec.price is None for model in ask.models.values()):
            continue
        if set(ask.models) != {"by"}:
            known = False
            continue
        texts = question_texts(ask, prompts, answer_tokens, planned.seed)
        costs.append(_price_calls(ask.models["by"], texts, ask.calls, ask.tokens))
    return (sum(costs) if costs else None), known


def _price_calls(model: Model, texts: Sequence[str], calls: int, tokens: int) -> float:
    read = round(calls * mean_tokens(texts))
    return Usage(read, max(tokens, calls)).cost(model.spec.price)


def dry_run_report(
    path: Path,
    out: Path,
    overrides: Sequence[str],
    as_json: bool,
    profile: str | None = None,
    strict: bool = False,
    flops: float | None = None,
    device_memory: float | None = None,
) -> str:
    """The plan as a table, or as JSON. Nothing is run, fetched or written. `flops` is what one
    device computes in a second and `device_memory` what it holds, in GiB, where they are stated.

    With `strict`, raises ConfigError for what the plan makes for nothing and for steps that take
    more memory than is stated.
    """
    inputs = prepare(path, overrides, fetch=False, profile=profile, out=out)
    plan = make_plan(inputs)
    if strict:
        refuse_remarks(inputs, plan)
    rows = forecast(inputs, Store(out), plan, flops)
    device = planned_device(device_memory, flops)
    to_do = {row.hash for row in rows if not row.reused}
    memory = list_memory(estimate_memory(plan, to_do, device))
    too_large = advise_memory(memory, plan, device)
    if strict and too_large:
        raise ConfigError("--strict: " + "\n".join(too_large), inputs.path)
    notes = [*inputs.notes, *list_remarks(inputs, plan), *too_large]
    if as_json:
        steps = [asdict(row) for row in rows]
        said = {"out": str(out), "provisional": inputs.provisional, "notes": notes}
        assumed = {"device": asdict(device), "memory": [one.to_json() for one in memory]}
        return json.dumps({**said, **assumed, "steps": steps})
    provisional = [f"provisional: {text}" for text in inputs.provisional]
    table = _make_table(inputs.experiment, rows, out, device)
    shown = make_memory_table(memory, device)
    return "\n".join([table, *shown, *provisional, *(f"note: {note}" for note in notes)])


def _place_of(experiment: Experiment, row: Forecast) -> str:
    """The round; in several stages, the stage and the round within it."""
    many = len(experiment.all_stages) > 1
    return f"{row.stage} {row.number}" if many else str(row.round)


def _step_name(experiment: Experiment, row: Forecast) -> str:
    """The step, and the arms that it is for where they are not all."""
    some = len(row.arms.split()) < len(experiment.arm_names)
    return f"{row.id} ({row.arms})" if some else row.id


def _make_table(experiment: Experiment, rows: Sequence[Forecast], out: Path, device: Device) -> str:
    width = max([28, *(len(_step_name(experiment, row)) for row in rows)])
    places = {row.hash: _place_of(experiment, row) for row in rows}
    wide = max([5, *map(len, places.values())])
    lines = [
        f"{experiment.name}: {len(rows)} steps into {out}; nothing is run",
        f"{'seed':>6} {'round':>{wide}}  {'step':{width}} {'makes':12} {'count':>6} {'calls':>6} "
        f"{'tokens':>8} {'time':>7} {'cost':>9}  state",
    ]
    for row in rows:
        time = f"{row.seconds:.0f} s" if row.seconds else "-"
        time = "unknown" if row.seconds is None else time
        cost = "-" if row.cost is None else f"{row.cost:.4g}"
        cost = cost if row.cost_known else "unknown"
        state = "reused" if row.reused else "to do"
        name = _step_name(experiment, row)
        count, calls, tokens = (
            "?" if number is None else number for number in (row.units, row.calls, row.tokens)
        )
        lines.append(
            f"{row.seed:>6} {places[row.hash]:>{wide}}  {name:{width}} {row.records:12} "
            f"{count:>6} {calls:>6} {tokens:>8} {time:>7} {cost:>9}  {state}"
        )
    todo = [row for row in rows if not row.reused]
    guess = (
        "measured in this run folder"
        if any(r.measured for r in todo)
        else ("a rough guess for a 135M model on two CPU cores")
    )
    if device.flops is not None:
        guess = f"models on devices of ours at {device.flops:.4g} FLOP/s, as stated; else {guess}"
    calls, tokens = (sum(getattr(r, key) or 0 for r in todo) for key in ("calls", "tokens"))
    more = " and those about loaded records" if any(r.calls is None for r in todo) else ""
    lines.append(
        f"{len(rows) - len(todo)} steps reused, {len(todo)} to do: at most {calls} model calls"
        f"{more}, {tokens} new tokens, {_describe_time(todo, guess)}"
    )
    if any(row.cost is not None or not row.cost_known for row in todo):
        lines.append(_describe_cost(experiment, todo, out))
    return "\n".join(lines)


def _describe_time(todo: Sequence[Forecast], guess: str) -> str:
    unknown = [row for row in todo if row.seconds is None]
    known = f"about {sum(row.seconds or 0.0 for row in todo) / 60:.1f} min ({guess})"
    if not unknown:
        return known
    why = []
    if any(row.units is None for row in unknown):
        why.append("how many records a loaded file has is known when it is read")
    if any(row.units is not None for row in unknown):
        why.append(
            "no rate is known for a model of its size until steps of its kind have run here, or "
            "--flops and the model's `parameters` are given"
        )
    some = f"{known} and " if any(row.seconds for row in todo) else ""
    return f"{some}an unknown time in {len(unknown)} steps: {'; '.join(why)}"


def _describe_cost(experiment: Experiment, todo: Sequence[Forecast], out: Path) -> str:
    cost = sum(row.cost or 0.0 for row in todo)
    unknown = sum(not row.cost_known for row in todo)
    line = f"at most about {cost:.4g} for calls to servers, without retries and cached answers"
    if unknown:
        line += f", and an unknown cost in {unknown} steps whose judge asks several models"
    if experiment.budget is None:
        return line
    left = experiment.budget - run_account(out).spent
    if cost > left:
        verdict = "NOT ENOUGH: the run would stop with exit code 3"
    else:
        verdict = "whether that is enough is unknown" if unknown else "enough"
    return f"{line}; {left:.4g} of the budget of {experiment.budget:g} are left: {verdict}"
