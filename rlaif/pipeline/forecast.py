"""The size of every planned step before it runs: records, calls, tokens, time, money, at most.

`rlaif run --dry-run` prints it as a table or as JSON, with what the budget allows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from rlaif.config.models import REMOTE
from rlaif.config.on_policy import OnPolicyTrain
from rlaif.config.steps import SampleStep
from rlaif.core.records import Completion
from rlaif.core.store import StepFolder, Store
from rlaif.engines.base import GenerateRequest, Model, ScoreRequest
from rlaif.engines.model_folders import BUILTIN, locate
from rlaif.engines.remote.decode import Usage
from rlaif.engines.remote.meter import run_account
from rlaif.pipeline.experiment import unfinished
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.plan.base import Known, PlanInputs, Planned, Size
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.remarks import list_remarks, refuse_remarks
from rlaif.pipeline.steps import step_module

BYTES_PER_TOKEN = 4.0
SMALL_BYTES = 600_000_000
"""Of a model's weights: about the 135M model in 32 bits, which the guessed rates are of."""
PRICED_PROMPTS = 16
"""English text has about 4 bytes in a token; prompts that the mean length is taken from."""


@dataclass(frozen=True)
class Forecast:
    """One planned step. `units` are completions, calls, pairs or optimiser examples, at most.
    `cost` is what the calls to a priced server come to when every answer is as long as it may be;
    None where no priced server is asked. `cost_known` is false where a judge asks several models,
    one of them priced: which is asked how much shows in the answers; `cost` is then the rest's.
    `seconds` are measured in this run folder, or guessed for models as small as the built-in one;
    None where neither can be."""

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
    units: int
    calls: int
    tokens: int
    seconds: float | None
    measured: bool
    cost: float | None
    cost_known: bool


def forecast(
    inputs: PlanInputs, store: Store, plan: Sequence[Planned] | None = None
) -> list[Forecast]:
    """Every step with its size, and whether its output is there already; `plan` is that of the
    inputs, where it is made already."""
    plan = make_plan(inputs) if plan is None else plan
    missing = unfinished(plan, store)
    known = Known()
    rates = _measured_rates(store)
    rows = []
    steps: dict[str, Planned] = {}
    for planned in plan:
        module = step_module(planned.kind)
        size: Size = module.size(inputs, planned, known)
        known.prompts[planned.hash] = planned.prompts
        known.units[planned.hash] = size.units
        rate = rates.get(planned.kind, module.SECONDS_PER_UNIT)
        asks = planned.kind != "judge" or bool(planned.models)
        timed = planned.kind in rates or _is_guessable(planned)
        to_do = planned.hash in missing
        steps[planned.hash] = planned
        cost, cost_known = (None, True)
        if to_do:
            cost, cost_known = _estimate_cost(inputs, planned, size, _answer_tokens(planned, steps))
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
                size.units,
                size.calls,
                size.tokens,
                (round(size.units * rate, 1) if timed else None) if asks and to_do else 0.0,
                planned.kind in rates,
                cost,
                cost_known,
            )
        )
    return rows


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
    prompts = inputs.every_prompt()[:PRICED_PROMPTS]
    model = planned.models.get("by")
    if planned.kind == "sample":
        if model is None or model.spec.price is None:
            return None, True
        texts = ["".join(m["content"] for m in p.messages) for p in prompts]
        return _price_calls(model, texts, size.calls, size.tokens), True
    costs: list[float] = []
    known = True
    for ask in size.judges:
        if all(model.spec.price is None for model in ask.models.values()):
            continue
        if set(ask.models) != {"by"}:
            known = False
            continue
        longest = _longest_answers(answer_tokens)
        texts = [
            "".join(m["content"] for m in call.request.messages)
            for prompt in prompts
            for call in ask.judge.calls(prompt, longest, planned.seed)
            if isinstance(call.request, GenerateRequest | ScoreRequest)
        ]
        costs.append(_price_calls(ask.models["by"], texts, ask.calls, ask.tokens))
    return (sum(costs) if costs else None), known


def _price_calls(model: Model, texts: Sequence[str], calls: int, tokens: int) -> float:
    size = sum(len(text.encode()) for text in texts) / max(len(texts), 1) / BYTES_PER_TOKEN
    return Usage(round(calls * size), max(tokens, calls)).cost(model.spec.price)


def _answer_tokens(planned: Planned, steps: Mapping[str, Planned]) -> int:
    """How long the answers that a step has judged may be; of given answers, as long as a sample
    step's."""
    if isinstance(planned.step, OnPolicyTrain):
        return planned.step.max_new_tokens
    read = [steps[digest] for digest in planned.inputs.values() if digest in steps]
    lengths = [one.step.max_new_tokens for one in read if one.kind == "sample"]
    return max(lengths, default=SampleStep().max_new_tokens)


def _longest_answers(tokens: int) -> list[Completion]:
    """Two different answers of so many tokens."""
    size = round(tokens * BYTES_PER_TOKEN)
    return [
        Completion(
            completion_id=name,
            prompt_id="",
            sample_index=index,
            messages=[{"role": "assistant", "content": name * size}],
            model="",
            weights_hash="",
            sampling={},
            finish_reason="length",
        )
        for index, name in enumerate("ab")
    ]


def dry_run_report(
    path: Path,
    out: Path,
    overrides: Sequence[str],
    as_json: bool,
    profile: str | None = None,
    strict: bool = False,
) -> str:
    """The plan as a table, or as JSON. Nothing is run, fetched or written. With `strict`, what the
    plan makes for nothing is refused."""
    inputs = prepare(path, overrides, fetch=False, profile=profile)
    plan = make_plan(inputs)
    if strict:
        refuse_remarks(inputs, plan)
    rows = forecast(inputs, Store(out), plan)
    notes = [*inputs.notes, *list_remarks(inputs, plan)]
    if as_json:
        steps = [asdict(row) for row in rows]
        said = {"out": str(out), "provisional": inputs.provisional, "notes": notes}
        return json.dumps({**said, "steps": steps})
    provisional = [f"provisional: {text}" for text in inputs.provisional]
    table = _make_table(inputs.experiment, rows, out)
    return "\n".join([table, *provisional, *(f"note: {note}" for note in notes)])


def _place_of(experiment: Experiment, row: Forecast) -> str:
    """The round; in several stages, the stage and the round within it."""
    many = len(experiment.all_stages) > 1
    return f"{row.stage} {row.number}" if many else str(row.round)


def _step_name(experiment: Experiment, row: Forecast) -> str:
    """The step, and the arms that it is for where they are not all."""
    some = len(row.arms.split()) < len(experiment.arm_names)
    return f"{row.id} ({row.arms})" if some else row.id


def _make_table(experiment: Experiment, rows: Sequence[Forecast], out: Path) -> str:
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
        lines.append(
            f"{row.seed:>6} {places[row.hash]:>{wide}}  {name:{width}} {row.records:12} "
            f"{row.units:>6} {row.calls:>6} {row.tokens:>8} {time:>7} {cost:>9}  {state}"
        )
    todo = [row for row in rows if not row.reused]
    guess = (
        "measured in this run folder"
        if any(r.measured for r in todo)
        else ("a rough guess for a 135M model on two CPU cores")
    )
    lines.append(
        f"{len(rows) - len(todo)} steps reused, {len(todo)} to do: at most "
        f"{sum(r.calls for r in todo)} model calls, {sum(r.tokens for r in todo)} new tokens, "
        + _describe_time(todo, guess)
    )
    if any(row.cost is not None or not row.cost_known for row in todo):
        lines.append(_describe_cost(experiment, todo, out))
    return "\n".join(lines)


def _describe_time(todo: Sequence[Forecast], guess: str) -> str:
    unknown = sum(row.seconds is None for row in todo)
    known = f"about {sum(row.seconds or 0.0 for row in todo) / 60:.1f} min ({guess})"
    if not unknown:
        return known
    why = "no rate is known for a model of its size until steps of its kind have run here"
    some = f"{known} and " if any(row.seconds for row in todo) else ""
    return f"{some}an unknown time in {unknown} steps: {why}"


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
