"""Kahneman-Tversky optimisation: every answer for itself, of a pair or standing alone, against a
baseline from answers to other prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlaif.config.training import KtoTrain
from rlaif.core.errors import RlaifError
from rlaif.train.loop import Sums
from rlaif.train.losses import preference as losses
from rlaif.train.model import TrainModel
from rlaif.train.preference import assert_equal
from rlaif.train.reference import Reference
from rlaif.train.tokenise import Example


class KtoTask:
    """Examples whose last branch is the answer to another prompt (`add_mismatched`). An example
    counts once, with the mean over its one or two answers. See `rlaif.train.loop.Task`."""

    def __init__(
        self,
        examples: Sequence[Example],
        reference: Reference,
        options: KtoTrain,
        same_start: bool = False,
    ):
        self.examples = examples
        self.reference = reference
        self.options = options
        self.same_start = same_start

    def total(self, batch: Sequence[int]) -> float:
        """Pairs, or answers that stand alone, in the batch."""
        return float(len(batch))

    def loss(
        self, model: TrainModel, micro: Sequence[int], total: float, step: int
    ) -> tuple[Tensor, Sums, int]:
        """See `Task.loss`."""
        rows = [self.examples[i] for i in micro]
        layout = model.layout([e.branches for e in rows])
        policy = model.logprobs(layout)
        values = [value for e in rows for value in self.reference[e.example_id]]
        stored = torch.tensor(values, dtype=torch.float32, device=policy.device)
        if step == 0 and self.same_start:
            assert_equal(policy, stored, model)
        rho = policy - stored
        own, other = _places(rows)
        good = torch.tensor([d for e in rows for d in e.desirable], device=policy.device)
        share = [e.weight / len(e.desirable) for e in rows for _ in e.desirable]
        z = losses.kto_baseline(rho[other])
        loss = losses.kto(rho[own], good, z, **self.options.loss_options)
        rewards = self.options.beta * rho.detach()
        sums = _metrics(rows, rewards[own], policy.detach()[own], good)
        sums["kl_baseline"] = (float(z) * len(rows), float(len(rows)))
        weight = torch.tensor(share, device=policy.device)
        return (loss * weight).sum() / total, sums, layout.tokens


def _places(rows: Sequence[Example]) -> tuple[list[int], list[int]]:
    """Where the rows' own answers lie among all branches, and where those to other prompts."""
    own: list[int] = []
    other: list[int] = []
    for row in rows:
        start = len(own) + len(other)
        own += range(start, start + len(row.desirable))
        other.append(start + len(row.desirable))
    return own, other


def _metrics(rows: Sequence[Example], rewards: Tensor, logprobs: Tensor, good: Tensor) -> Sums:
    """Reward and log-prob of the good and of the bad answers; the margin where there are pairs."""
    sums: Sums = {}
    for name, mask in (("chosen", good), ("rejected", ~good)):
        count = float(mask.sum())
        sums[f"reward_{name}"] = (float(rewards[mask].sum()), count)
        sums[f"logprob_{name}"] = (float(logprobs[mask].sum()), count)
    parts = torch.split(rewards, [len(e.desirable) for e in rows])
    margins = [float(part[0] - part[1]) for part in parts if len(part) == 2]
    sums["margin"] = (sum(margins), float(len(margins)))
    sums["accuracy"] = (float(sum(m > 0 for m in margins)), float(len(margins)))
    return sums


def add_mismatched(examples: Sequence[Example]) -> list[Example]:
    """Each pair with the chosen answer of the next prompt as a third branch: KTO's baseline looks
    at answers that do not belong to their prompts (arXiv 2402.01306, section 4.2).

    Raises RlaifError when there is only one prompt.
    """
    ordered = sorted(examples, key=lambda e: (e.prompt_id, e.example_id))
    if len({e.prompt_id for e in ordered}) < 2:
        raise RlaifError(
            "kto needs answers to at least two different prompts: its baseline is how the policy "
            "rates an answer to another prompt"
        )
    partner = {}
    for i, example in enumerate(ordered):
        later = (ordered[(i + k) % len(ordered)] for k in range(1, len(ordered)))
        other = next(e for e in later if e.prompt_id != example.prompt_id)
        partner[example.example_id] = other.completions[0]
    return [replace(e, completions=(*e.completions, partner[e.example_id])) for e in examples]
