"""What on-policy trainings did, rollout by rollout, read from a run folder: for its status and its
report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.config.gates import LEVELS, Gates, bounds, reached
from rlaif.config.rewards import CostTerm, names_of
from rlaif.core.integrity import read_sealed
from rlaif.core.store import Store
from rlaif.report.view import RolloutRow
from rlaif.train.gates import STOPPED_FILE, describe_rollbacks, figures, read_rollbacks

OF_TERMS = (
    *("value/", "missing/", "contribution/", "cost/", "missing_cost/", "multiplier/"),
    "pool_reward/",
)
"""How the metrics of a reward's terms, of costs and of quantiles begin: the rest is a name."""


def unfinished_notes(folder: Path) -> list[str]:
    """What gates did to the unfinished training in a step's folder: the rollbacks so far, and why
    it stopped, if it did."""
    row = read_sealed(folder / "work" / STOPPED_FILE, f"Delete the folder {folder}.")
    stopped = [] if row is None else [str(row["message"])]
    return describe_rollbacks(read_rollbacks(folder / "work")) + stopped


def latest_rollout(folder: Path) -> dict[str, Any] | None:
    """The number (from 1) and the figures of the last rollout that the training in a step's folder
    has learned from, and those of its first one; None before that."""
    rows = sorted(_by_rollout(folder / "work" / "metrics.jsonl").items())
    if not rows:
        return None
    (_, first), (number, last) = rows[0], rows[-1]
    return {"rollout": number, "first": _select_figures(first), "latest": _select_figures(last)}


def marks(folder: Path) -> list[Any]:
    """What tells whether the figures of an unfinished training have changed."""
    path = folder / "work" / "metrics.jsonl"
    size = path.stat().st_size if path.exists() else 0
    return [size, unfinished_notes(folder)]


def rollout_rows(
    store: Store, steps: Sequence[Mapping[str, Any]], config: Mapping[str, Any]
) -> list[RolloutRow]:
    """One row for each on-policy training that has begun. `steps` are those of the manifest."""
    gates, costs = _read_gates(config), _read_costs(config)
    found: list[RolloutRow] = []
    for step in steps:
        folder = store.step(step["hash"])
        by_rollout = _by_rollout(folder.path / "work" / "metrics.jsonl")
        stopped = read_sealed(folder.path / "work" / STOPPED_FILE, "Delete it.")
        if stopped is not None and folder.done() is None:
            # It was looked at and not learned from.
            by_rollout[int(stopped["rollout"])] = dict(stopped["metrics"])
        if step["kind"] != "train" or not by_rollout:
            continue
        own = gates.get(step["id"], Gates())
        rows = sorted(by_rollout.items())
        found.append(
            {
                "seed": step["seed"],
                "arms": step["arms"],
                "round": step["round"],
                "id": step["id"],
                "points": [(number, _select_figures(row)) for number, row in rows],
                "limits": _collect_limits(own),
                "reached": [
                    *describe_rollbacks(read_rollbacks(folder.path / "work")),
                    *_describe_reached(own, rows),
                ],
                "cost_limits": costs.get(step["id"], {}),
            }
        )
    return found


def _train_steps(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The train steps of an experiment as it is kept in a run folder."""
    lists = [config.get("steps", ()), *(stage["steps"] for stage in config.get("stages", ()))]
    return [entry["train"] for entries in lists for entry in entries if "train" in entry]


def _read_gates(config: Mapping[str, Any]) -> dict[str, Gates]:
    """The gates of each train step that has some."""
    steps = _train_steps(config)
    return {step["id"]: Gates.model_validate(step["gates"]) for step in steps if step.get("gates")}


def _read_costs(config: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The limit of each cost by its name, of each train step that has some."""
    found = {}
    for step in _train_steps(config):
        costs = [CostTerm.model_validate(cost) for cost in step.get("costs") or ()]
        if costs:
            limits = (cost.limit for cost in costs)
            found[step["id"]] = dict(zip(names_of(costs), limits, strict=True))
    return found


def _by_rollout(path: Path) -> dict[int, dict[str, Any]]:
    """The last row of each rollout; what a kill tore off is not one."""
    found: dict[int, dict[str, Any]] = {}
    for row in _read_rows(path):
        if "rollout" in row:
            found[int(row["rollout"])] = row
    return found


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            # A kill may have torn the last line, and a training may be writing it just now.
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def _select_figures(row: Mapping[str, Any]) -> dict[str, float]:
    """The reward or the KL to the teacher, what gates look at, and what is of one term, cost or
    quantile. The entropy is that of the steps where no gate asked."""
    own = {name: row[name] for name in ("reward", "kl_teacher", "entropy") if name in row}
    of_terms = {name: value for name, value in row.items() if name.startswith(OF_TERMS)}
    return {**own, **figures(row), **of_terms}


def _collect_limits(gates: Gates) -> dict[str, dict[str, list[float]]]:
    """By figure the limits of each level."""
    return {
        name: {
            level: [limit for limit in bounds(name, gate, level) if limit is not None]
            for level in LEVELS
        }
        for name, gate in gates.given().items()
    }


def _describe_reached(gates: Gates, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> Iterator[str]:
    """A sentence for each limit that was reached."""
    for level in LEVELS:
        hits: dict[tuple[str, str, float], list[int]] = {}
        for number, row in rows:
            for name, side, limit in reached(gates, figures(row), level):
                hits.setdefault((name, side, limit), []).append(number)
        for (name, side, limit), numbers in hits.items():
            past = "or more" if side == "high" else "or less"
            yield (
                f"gates.{name}.{level} ({limit:g} {past}) was reached in {len(numbers)} of "
                f"{len(rows)} rollouts, first in rollout {numbers[0]}"
            )
