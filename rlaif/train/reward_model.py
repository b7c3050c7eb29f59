"""Distilling preferences into a reward model with a Bradley-Terry head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlaif.config import DistillStep
from rlaif.losses.reward import bradley_terry
from rlaif.train.loop import Sums
from rlaif.train.model import TrainModel
from rlaif.train.tokenise import Example


class RewardTask:
    """Pairs, scored at the last token of each answer. See `rlaif.train.loop.Task`."""

    def __init__(self, examples: Sequence[Example], options: DistillStep):
        self.examples = examples
        self.options = options

    def total(self, batch: Sequence[int]) -> float:
        """Pairs in the batch."""
        return float(len(batch))

    def loss(
        self, model: TrainModel, micro: Sequence[int], total: float, step: int
    ) -> tuple[Tensor, Sums, int]:
        """See `Task.loss`."""
        rows = [self.examples[i] for i in micro]
        layout = model.layout([e.branches for e in rows])
        chosen, rejected = model.rewards(layout).view(-1, 2).unbind(1)
        soft = any(e.prob != 1.0 for e in rows)
        asked = self.options.margin == "score"
        loss = bradley_terry(
            chosen,
            rejected,
            margin=_column([e.margin for e in rows], chosen) if asked else None,
            prob=_column([e.prob for e in rows], chosen) if soft else None,
            **self.options.loss_options,
        )
        gap = (chosen - rejected).detach()
        metrics = {
            "accuracy": (gap > 0).float() + 0.5 * (gap == 0).float(),
            "margin": gap,
            "reward_chosen": chosen.detach(),
            "reward_rejected": rejected.detach(),
        }
        sums = {k: (float(v.sum()), float(len(rows))) for k, v in metrics.items()}
        weight = _column([e.weight for e in rows], chosen)
        return (loss * weight).sum() / total, sums, layout.tokens


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)
