"""What `rlaif run --dry-run` says: the plan as a table or as JSON, and what the budget allows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rlaif.config.experiment import Experiment
from rlaif.core.store import Store
from rlaif.engines.remote.account import run_account
from rlaif.pipeline.forecast import Forecast, forecast
from rlaif.pipeline.prepare import prepare


def dry_run_report(path: Path, out: Path, overrides: Sequence[str], as_json: bool) -> str:
    """The plan as a table, or as JSON. Nothing is run, fetched or written."""
    inputs = prepare(path, overrides, fetch=False)
    rows = forecast(inputs, Store(out))
    if as_json:
        return json.dumps({"out": str(out), "steps": [asdict(row) for row in rows]})
    return _table(inputs.experiment, rows, out)


def _step_name(experiment: Experiment, row: Forecast) -> str:
    """The step, and the arms that it is for where they are not all."""
    some = len(row.arms.split()) < len(experiment.arm_names)
    return f"{row.id} ({row.arms})" if some else row.id


def _table(experiment: Experiment, rows: Sequence[Forecast], out: Path) -> str:
    width = max([28, *(len(_step_name(experiment, row)) for row in rows)])
    lines = [
        f"{experiment.name}: {len(rows)} steps into {out}; nothing is run",
        f"{'seed':>6} {'round':>5}  {'step':{width}} {'makes':12} {'count':>6} {'calls':>6} "
        f"{'tokens':>8} {'time':>7} {'cost':>9}  state",
    ]
    for row in rows:
        time = f"{row.seconds:.0f} s" if row.seconds else "-"
        cost = "-" if row.cost is None else f"{row.cost:.4g}"
        cost = cost if row.cost_known else "unknown"
        state = "reused" if row.reused else "to do"
        name = _step_name(experiment, row)
        lines.append(
            f"{row.seed:>6} {row.round:>5}  {name:{width}} {row.records:12} {row.units:>6} "
            f"{row.calls:>6} {row.tokens:>8} {time:>7} {cost:>9}  {state}"
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
        f"about {sum(r.seconds for r in todo) / 60:.1f} min ({guess})"
    )
    if any(row.cost is not None or not row.cost_known for row in todo):
        lines.append(_money(experiment, todo, out))
    return "\n".join(lines)


def _money(experiment: Experiment, todo: Sequence[Forecast], out: Path) -> str:
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
