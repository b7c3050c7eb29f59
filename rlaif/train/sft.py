"""Supervised fine-tuning: mean negative log-likelihood over the global batch's answer tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlaif.train.loop import Sums
from rlaif.train.losses.sft import sft_loss
from rlaif.train.model import TrainModel
from rlaif.train.tokenise import Example


class SftTask:
    """Trains on the first completion of every example. See `rlaif.train.loop.Task`."""

    def __init__(self, examples: Sequence[Example]):
        self.examples = examples

    def total(self, batch: Sequence[int]) -> float:
        """Completion tokens of the batch."""
        return float(sum(len(self.examples[i].completions[0]) for i in batch))

    def loss(
        self, model: TrainModel, micro: Sequence[int], total: float, step: int
    ) -> tuple[Tensor, Sums, int]:
        """See `Task.loss`."""
        chosen = [self.examples[i] for i in micro]
        layout = model.layout([(e.prompt_ids, e.completions[:1]) for e in chosen])
        logprobs = model.token_logprobs(layout)
        nll, _ = sft_loss(logprobs, torch.ones_like(logprobs))
        sums = {"logprob_chosen": (-float(nll.detach()), float(len(micro)))}
        return nll / total, sums, layout.tokens
