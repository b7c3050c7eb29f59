"""When a reward model of an earlier round is still good enough to be kept.

Policies move away from the pairs that a reward model learned from (Gemini and Llama 3 train it anew
in every round). Its accuracy is measured on prompts that it is never trained on: on the pairs of
the round in which it was trained, and on the newest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rlaif.config.distill import DistillStep, FitStep
from rlaif.core.checksums import NAME, add, publish, read_sealed, write_sealed
from rlaif.core.errors import RlaifError, StoreError
from rlaif.core.records import Preference, content_hash
from rlaif.engines.base import Engine, RewardRequest
from rlaif.metrics.intervals import Interval
from rlaif.metrics.metrics import per_prompt, value_interval
from rlaif.train.reward_model import conditioned

RECORD = "refresh.json"
PARTS = 1000


@dataclass(frozen=True, slots=True)
class Trained:
    """What a reward model could do when it was trained: its accuracy on held-out pairs of `round`,
    with its interval over `n` prompts."""

    round: int
    mean: float
    low: float | None
    high: float | None
    n: int


def split(
    preferences: Sequence[Preference], share: float
) -> tuple[list[Preference], list[Preference]]:
    """The pairs to train on, and those of the newest round to measure on: of prompts that are held
    out in every round, drawn by the hash of their ids. Raises RlaifError where either is empty."""
    most = int(share * PARTS)
    held = {
        p.prompt_id
        for p in preferences
        if int(content_hash("refresh", p.prompt_id), 16) % PARTS < most
    }
    newest = max(p.round for p in preferences)
    training = [p for p in preferences if p.prompt_id not in held]
    measured = [
        p for p in preferences if p.prompt_id in held and p.round == newest and p.prob != 0.5
    ]
    if not training or not measured:
        prompts = len({p.prompt_id for p in preferences})
        what = "train" if not training else "measure"
        raise RlaifError(
            f"refresh: of the pairs of {prompts} prompts, with {share:g} of the prompts held out, "
            f"none is left to {what} on. Set `held_out` otherwise, or take more prompts."
        )
    return training, measured


def accuracy(
    engine: Engine, pairs: Sequence[Preference], options: DistillStep | FitStep
) -> Interval:
    """How often the better answer of decided `pairs` has the higher reward, a tie counting one
    half, with its interval over prompts. Raises RlaifError where no answer could be scored."""
    requests = [
        RewardRequest(f"{p.preference_id}/{side}", p.prompt, answer[0])
        for p in conditioned(pairs, options)
        for side, answer in (("chosen", p.chosen), ("rejected", p.rejected))
    ]
    found = {r.request_id: r.reward for rows in engine.reward(requests) for r in rows}
    rows = []
    for p in pairs:
        chosen, rejected = (found[f"{p.preference_id}/{side}"] for side in ("chosen", "rejected"))
        if chosen is not None and rejected is not None:
            gap = (chosen - rejected) * (1.0 if p.prob > 0.5 else -1.0)
            rows.append((p.prompt_id, 0.5 if gap == 0 else float(gap > 0)))
    interval = value_interval("accuracy", per_prompt(rows))
    if interval is None:
        raise RlaifError("refresh: no held-out pair fits the reward model's context")
    return interval


def write_trained(folder: Path, number: int, found: Interval) -> None:
    """Keep beside a checkpoint what it could do in round `number`, in which it was trained."""
    record = Trained(number, found.mean, found.low, found.high, found.n)
    write_sealed(folder / RECORD, asdict(record))
    add(folder, RECORD)


def read_trained(folder: Path) -> Trained:
    """What `write_trained` kept. Raises StoreError where it is damaged."""
    advice = f"Delete the folder {folder} to train this model again."
    row = read_sealed(folder / RECORD, advice, required=False)
    try:
        return Trained(**(row or {}))
    except TypeError:
        raise StoreError(f"{folder / RECORD}: missing or damaged. {advice}") from None


def is_stale(trained: Trained, newest: Interval, drop: float) -> bool:
    """Whether accuracy has fallen by more than `drop`."""
    return trained.mean - newest.mean > drop


def keep(last: Path, out: Path) -> None:
    """Make `out` the same model as `last`, complete or not at all; files are shared where the file
    system can."""
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(last, temporary, copy_function=_share)
    if (temporary / NAME).exists():
        shutil.rmtree(out, ignore_errors=True)
        temporary.rename(out)
    else:
        publish(temporary, out)


def _share(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
