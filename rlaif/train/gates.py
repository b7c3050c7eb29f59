"""The gates of on-policy training: what a rollout is like, before anything is learned from it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rlaif.config.gates import Gates, reached
from rlaif.core.errors import GateStopped
from rlaif.core.integrity import write_sealed

log = logging.getLogger(__name__)

METRICS = {
    "flat_groups": "flat_groups",
    "kl": "kl_reference",
    "entropy": "rollout_entropy",
    "length": "answer_tokens",
    "reward_spread": "reward_spread",
}
"""The metric of a rollout that each gate looks at."""
WORDS = {
    "flat_groups": "the share of prompts whose answers all have the same reward",
    "kl": "the KL to the reference (nats per answer)",
    "entropy": "the policy's entropy (nats per token)",
    "length": "the mean length of an answer (tokens)",
    "reward_spread": "the standard deviation of the rewards",
}
REMEDIES = {
    ("flat_groups", "high"): "the judges no longer tell answers apart: sample more answers (`n`), "
    "raise `temperature`, or take a reward that does",
    ("kl", "high"): "the policy has moved far from the reference: raise `beta`, or lower "
    "`learning_rate`",
    ("entropy", "low"): "the policy writes the same again and again: lower `learning_rate`, or "
    "raise `beta` or `temperature`",
    ("entropy", "high"): "the policy is falling apart: lower `learning_rate`, or raise `beta`",
    ("length", "low"): "short answers are rewarded: look at them, and at the judges",
    ("length", "high"): "long answers are rewarded: add a term against length, or set "
    "`missing_eos_penalty`",
    ("reward_spread", "low"): "the rewards hardly differ: look at the judges, or set `normalise`",
}
STOPPED_FILE = "stopped.json"


def figures(metrics: Mapping[str, float]) -> dict[str, float]:
    """What the gates look at, by gate, of a rollout's metrics."""
    return {gate: metrics[name] for gate, name in METRICS.items() if name in metrics}


def look(gates: Gates, metrics: Mapping[str, float], rollout: int) -> dict[str, Any] | None:
    """The gate that stops at this rollout (from 1), with its `value`, `side` and `limit`; None
    where none does. A limit of `warn` is said in the log."""
    known = figures(metrics)
    for gate, side, limit in reached(gates, known, "warn"):
        log.warning("rollout %d: %s", rollout, _say_hit(gate, side, limit, known[gate], "warn"))
    for gate, side, limit in reached(gates, known, "stop"):
        return {
            "gate": gate,
            "side": side,
            "limit": limit,
            "value": known[gate],
            "rollout": rollout,
            "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
        }
    return None


def _say_hit(gate: str, side: str, limit: float, value: float, level: str) -> str:
    past = "at or above" if side == "high" else "at or below"
    return f"{WORDS[gate]} is {value:.4g}, {past} the limit of {limit:g} (gates.{gate}.{level})"


def raise_stopped(work: Path, stopped: Mapping[str, Any], done: int) -> NoReturn:
    """Raise GateStopped, and keep why beside the checkpoint of the first `done` rollouts."""
    gate, side = stopped["gate"], stopped["side"]
    said = _say_hit(gate, side, stopped["limit"], stopped["value"], "stop")
    remedy = REMEDIES.get((gate, side), "look at the answers and their judgements")
    kept = f"The {done} rollouts before it are kept" if done else "Nothing was trained yet"
    message = (
        f"training stopped at rollout {stopped['rollout']}, before it was learned from: {said}. "
        f"Most likely {remedy}. {kept}: with another limit, or none, the same command goes on from "
        "there; with other keys it starts anew."
    )
    write_sealed(work / STOPPED_FILE, {**stopped, "message": message})
    raise GateStopped(message)


def warnings_of(gates: Gates, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each limit of `warn` that rollouts reached, from the rows of metrics.jsonl."""
    by_rollout = {int(row["rollout"]): figures(row) for row in rows}
    found: dict[tuple[str, str, float], list[tuple[int, float]]] = {}
    for number, known in by_rollout.items():
        for gate, side, limit in reached(gates, known, "warn"):
            found.setdefault((gate, side, limit), []).append((number, known[gate]))
    sentences = []
    for (gate, side, limit), hits in found.items():
        number, value = (max if side == "high" else min)(hits, key=lambda hit: hit[1])
        sentences.append(
            f"rollout {number}: {_say_hit(gate, side, limit, value, 'warn')}, as in {len(hits)} of "
            f"{len(by_rollout)} rollouts"
        )
    return sentences
