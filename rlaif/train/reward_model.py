"""Distilling preferences into a reward model with a head of one number, all weights trained.

Out-of-distribution statistics of the training features are saved with the model, so that each
reward reports its Mahalanobis distance. `refresh` decides when a reward model of an earlier round
is still good enough to be kept: policies move away from the pairs that it learned from (Gemini and
Llama 3 train it anew in every round), so its accuracy is measured on prompts that it is never
trained on, of the round in which it was trained and of the newest.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from msgspec import structs
from torch import Tensor

from rlaif.config.distill import DistillStep, FitStep
from rlaif.config.training import TextStep
from rlaif.core.errors import RlaifError, StoreError
from rlaif.core.integrity import CHECKSUMS_NAME, add_file, publish_folder, read_sealed, write_sealed
from rlaif.core.records import Preference, content_hash
from rlaif.core.yamlio import suggest
from rlaif.engines.base import Engine, RewardRequest
from rlaif.engines.local.distance import Region, fit_region
from rlaif.kernels.batching import fill_batches
from rlaif.metrics.intervals import Interval
from rlaif.metrics.metrics import per_prompt, value_interval
from rlaif.train.loop import Sums
from rlaif.train.model import TrainModel
from rlaif.train.preference import AnswerTask
from rlaif.train.tokenise import Example, Ranked

REPLAY_PARTS = 1000


@dataclass(frozen=True, slots=True)
class RankedRewards:
    """P pairs as their losses take them, each tensor (P,).

    `chosen` and `rejected` are rewards; scores are fp64, NaN where an answer has none; `margin` is
    0 where nobody gave any, `prob` is the probability that the chosen answer is really better.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_scores: Tensor
    rejected_scores: Tensor
    margin: Tensor
    prob: Tensor | None


class RewardMethod(Protocol):
    """What a reward model's task asks of its method."""

    def pair_losses(self, pairs: RankedRewards) -> Tensor:
        """(P,) the loss of each pair."""


class RewardTask(AnswerTask):
    """Answers scored at their last token, and compared pair by pair. An example counts once,
    however many pairs it has."""

    options: RewardMethod

    def loss(
        self, model: TrainModel, micro: Sequence[int], total: float, step: int
    ) -> tuple[Tensor, Sums, int]:
        """See `Task.loss`."""
        rows = [self.examples[i] for i in micro]
        layout = model.layout([e.branches for e in rows])
        rewards = model.rewards(layout)  # [answers]
        pairs = list(_place_pairs(rows))
        chosen = rewards[[p.chosen for p in pairs]]
        rejected = rewards[[p.rejected for p in pairs]]
        soft = any(p.prob != 1.0 for p in pairs)
        scores = _gather_scores(rows).to(chosen.device)  # [answers]
        ranked = RankedRewards(  # [pairs] each
            chosen,
            rejected,
            scores[[p.chosen for p in pairs]],
            scores[[p.rejected for p in pairs]],
            _make_column((p.margin or 0.0 for p in pairs), chosen),
            # None lets a loss take its form without soft labels.
            _make_column((p.prob for p in pairs), chosen) if soft else None,
        )
        loss = self.options.pair_losses(ranked)
        gap = (chosen - rejected).detach()
        metrics = {
            # A tie counts half, as it does where accuracy is measured.
            "accuracy": (gap > 0).float() + 0.5 * (gap == 0).float(),
            "margin": gap,
            "reward_chosen": chosen.detach(),
            "reward_rejected": rejected.detach(),
        }
        sums = {k: (float(v.sum()), float(len(pairs))) for k, v in metrics.items()}
        weight = _make_column((p.weight for p in pairs), chosen)
        return (loss * weight).sum() / total, sums, layout.tokens


def _place_pairs(rows: Iterable[Example]) -> Iterable[Ranked]:
    """All pairs, their answers by place among those of all rows. Those of one example share its
    weight evenly."""
    start = 0
    for example in rows:
        for pair in example.pairs:
            yield pair._replace(
                chosen=start + pair.chosen,
                rejected=start + pair.rejected,
                weight=pair.weight / len(example.pairs),
            )
        start += len(example.completions)


def _gather_scores(rows: Iterable[Example]) -> Tensor:
    """(A,) fp64 scores of all rows' answers, NaN where there is none."""
    scores = [s for e in rows for s in e.scores or [None] * len(e.completions)]
    return torch.tensor([math.nan if s is None else s for s in scores], dtype=torch.float64)


def _make_column(values: Iterable[float], like: Tensor) -> Tensor:
    return torch.tensor(list(values), dtype=like.dtype, device=like.device)


def by_prompt(examples: Sequence[Example]) -> list[Example]:
    """One example for each prompt, in order of first appearance: its different answers, and all
    pairs among them. Its id is that of its first pair."""
    groups: dict[tuple[int, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(tuple(example.prompt_ids), []).append(example)
    return [_join_group(group) for group in groups.values()]


def _join_group(group: Sequence[Example]) -> Example:
    place: dict[tuple[int, ...], int] = {}
    ranked, ids, scores = [], [], []
    for example in group:
        own = []
        for k, branch in enumerate(example.completions):
            key = tuple(branch)
            if key not in place:
                place[key] = len(place)
                ids.append(example.ids[k])
                scores.append(example.scores[k])
            own.append(place[key])
        if own[0] != own[1]:
            ranked.append(Ranked(own[0], own[1], example.prob, example.margin, example.weight))
    return replace(
        group[0],
        completions=tuple(list(key) for key in place),
        ids=tuple(ids),
        scores=tuple(scores),
        ranked=tuple(ranked),
    )


def prepared(
    preferences: Sequence[Preference], options: DistillStep | FitStep
) -> tuple[list[Preference], int]:
    """The pairs as a reward model learns from them: weighted by source, under the system prompt of
    their source where the model is conditional, each id once; and how many were repeats.

    Raises RlaifError where two pairs share an id and are not the same, where every pair is a tie,
    where a source that is named does not occur or one that occurs has no condition.
    """
    unique = _refuse_conflicts(preferences)
    once = _draw_replay(unique, options.replay)
    if all(p.prob == 0.5 for p in once):
        raise RlaifError(
            f"all {len(once)} pairs are ties (prob 0.5): there is nothing to rank. Lower "
            "`min_margin` in `pair`, or look at the judges' scores."
        )
    sources = sorted({p.source for p in once})
    for name in options.source_weights:
        if name not in sources:
            raise RlaifError(
                f"source_weights: no pair has the source {name!r}{suggest(name, sources)}; there "
                f"are {', '.join(sources)}"
            )
    weights = options.source_weights
    weighted = [
        structs.replace(p, weight=p.weight * weights.get(p.source, 1.0))
        for p in options.condition(once)
    ]
    kept = [p for p in weighted if p.weight > 0]
    if not kept:
        raise RlaifError("every pair has weight 0: look at `source_weights`")
    return kept, len(preferences) - len(unique)


def _draw_replay(preferences: Sequence[Preference], share: float) -> list[Preference]:
    """The newest round's pairs, and of earlier ones this share, drawn by the hash of their ids."""
    newest = max((p.round for p in preferences), default=0)
    most = int(share * REPLAY_PARTS)
    return [
        p
        for p in preferences
        if p.round == newest
        or int(content_hash("replay", p.preference_id), 16) % REPLAY_PARTS < most
    ]


def _refuse_conflicts(preferences: Sequence[Preference]) -> list[Preference]:
    known: dict[str, Preference] = {}
    for preference in preferences:
        first = known.setdefault(preference.preference_id, preference)
        if (first.prompt, first.chosen, first.rejected) != (
            preference.prompt,
            preference.chosen,
            preference.rejected,
        ):
            raise RlaifError(
                f"two different pairs have the id {preference.preference_id}: give every pair an "
                "id of its own, or leave ids out and they are made from the texts"
            )
    return list(known.values())


MOST = 256
"""Examples whose answers are looked at: one more pass over these, whatever the training's size."""


@torch.no_grad()
def region_of(model: TrainModel, examples: Sequence[Example], options: TextStep) -> Region:
    """The region of the answers of at most `MOST` examples, taken evenly from all, by the trained
    model's hidden states at their ends. The model is in evaluation mode afterwards."""
    model.module.eval()
    step = -(-len(examples) // MOST)
    chosen = examples[::step]
    sizes = [model.size(e.branches) for e in chosen]
    # As in an epoch: what is of like size shares a pass.
    order = sorted(range(len(chosen)), key=lambda i: (-sizes[i], i))
    states = [
        model.ends(model.layout([chosen[i].branches for i in micro])).cpu()
        for micro in fill_batches(order, [sizes[i] for i in order], model.token_budget(options))
    ]
    return fit_region(torch.cat(states).double().numpy())


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
        for p in options.condition(pairs)
        for side, answer in (("chosen", p.chosen), ("rejected", p.rejected))
    ]
    found = {r.request_id: r.reward for rows in engine.reward(requests) for r in rows}
    rows = []
    for p in pairs:
        chosen, rejected = (found[f"{p.preference_id}/{side}"] for side in ("chosen", "rejected"))
        if chosen is not None and rejected is not None:
            # A soft label below one half says that the other answer is the better one.
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
    add_file(folder, RECORD)


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
    shutil.copytree(last, temporary, copy_function=_link_or_copy)
    # Its checksums came along and hold for what was linked.
    if (temporary / CHECKSUMS_NAME).exists():
        shutil.rmtree(out, ignore_errors=True)
        temporary.rename(out)
    else:
        publish_folder(temporary, out)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
