"""The gates of on-policy training: what a rollout is like, before anything is learned from it.

A rollback returns to an earlier checkpoint and draws the rollouts after it anew. Which one is a
function of the rollout, `checkpoint_every` and the rollbacks before, so that a training that was
killed or stopped in between goes back to the same.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rlaif.config.gates import Gates, Level, reached
from rlaif.core.errors import GateStopped
from rlaif.core.integrity import read_sealed, write_sealed

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
ROLLBACKS_FILE = "rollbacks.json"
"""The rollbacks of a training in their order: what `look` gave, with `to`, the number of rollouts
that were kept; and `applied`, whether the checkpoints after the last of them are gone."""
Hit = dict[str, Any]
"""A limit that a rollout reached; see `look`."""


def figures(metrics: Mapping[str, float]) -> dict[str, float]:
    """What the gates look at, by gate, of a rollout's metrics."""
    return {gate: metrics[name] for gate, name in METRICS.items() if name in metrics}


def look(gates: Gates, metrics: Mapping[str, float], rollout: int) -> Hit | None:
    """The gate that stops or rolls back at this rollout (from 1), with its `level`, `value`, `side`
    and `limit`; None where none does. A limit of `warn` is said in the log."""
    known = figures(metrics)
    for gate, side, limit in reached(gates, known, "warn"):
        log.warning("rollout %d: %s", rollout, _say_hit(gate, side, limit, known[gate], "warn"))
    levels: tuple[Level, ...] = ("stop", "rollback")
    for level in levels:
        for gate, side, limit in reached(gates, known, level):
            return {
                "gate": gate,
                "level": level,
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


def _say_own_hit(hit: Mapping[str, Any]) -> str:
    # Trainings of earlier versions could only be stopped.
    level = hit.get("level", "stop")
    return _say_hit(hit["gate"], hit["side"], hit["limit"], hit["value"], level)


def raise_stopped(work: Path, stopped: Mapping[str, Any], done: int) -> NoReturn:
    """Raise GateStopped, and keep why beside the checkpoint of the first `done` rollouts."""
    remedy = REMEDIES.get(
        (stopped["gate"], stopped["side"]), "look at the answers and their scores"
    )
    kept = f"The {done} rollouts before it are kept" if done else "Nothing was trained yet"
    why = f"{_say_own_hit(stopped)}. Most likely {remedy}. {kept}"
    if stopped.get("level") == "rollback":
        past = len(read_rollbacks(work))
        how = f"after {past} rollbacks (gates.max_rollbacks)" if past else "at the start policy"
        onward = "with a higher `max_rollbacks` the same command goes on from there" if past else ""
        anew = "with other limits of `rollback` the training starts anew"
        message = f"training stopped {how}, at rollout {stopped['rollout']}: {why}: "
        message += "; ".join(filter(None, [onward, anew])) + "."
    else:
        message = (
            f"training stopped at rollout {stopped['rollout']}, before it was learned from: {why}: "
            "with another limit, or none, the same command goes on from there; with other keys it "
            "starts anew."
        )
    write_sealed(work / STOPPED_FILE, {**stopped, "message": message})
    raise GateStopped(message)


def last_good(done: int, every: int, past: Sequence[Mapping[str, Any]] = ()) -> int:
    """The number of rollouts of the checkpoint that is gone back to when the rollout after `done`
    ones reaches a limit: a multiple of `every` below `done`, since the policy of a later one drew
    this rollout, and none before that of the last rollback. 0 is the start policy."""
    before = (done - 1) // every * every if done else 0
    return max(before, past[-1]["to"] if past else 0)


def read_rollbacks(work: Path) -> list[Hit]:
    """The rollbacks of the training so far, in their order."""
    row = read_sealed(work / ROLLBACKS_FILE, f"Delete {work} to train again.", required=False)
    return [] if row is None else list(row["rollbacks"])


def is_applied(work: Path) -> bool:
    """Whether the checkpoints after the last rollback's are gone."""
    row = read_sealed(work / ROLLBACKS_FILE, f"Delete {work} to train again.", required=False)
    return row is None or bool(row["applied"])


def write_rollbacks(work: Path, rollbacks: Sequence[Mapping[str, Any]], applied: bool) -> None:
    """Keep the rollbacks so far."""
    write_sealed(work / ROLLBACKS_FILE, {"rollbacks": list(rollbacks), "applied": applied})


def describe_rollbacks(rollbacks: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each rollback."""
    return [
        f"rollout {hit['rollout']}: {_say_own_hit(hit)}: went back to "
        f"{'the policy after rollout ' + str(hit['to']) if hit['to'] else 'the start policy'} and "
        f"drew new answers from there (rollback {number})"
        for number, hit in enumerate(rollbacks, 1)
    ]


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
