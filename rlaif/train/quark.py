"""What is learned from Quark's pool: a task of the training loop (arXiv 2205.13636)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlaif.config.on_policy import RolloutTrain
from rlaif.core.resources import find_object
from rlaif.train.distillation import TILE, frozen_states, refuse_other_width
from rlaif.train.loop import Sums
from rlaif.train.model import TrainModel
from rlaif.train.pool import Scored
from rlaif.train.quantile_tokens import quantile_id
from rlaif.train.tokenise import Example


class QuarkTask:
    """Quark's loss of every answer in the pool after the token of its quantile, the mean over all
    tokens of a batch. `reference`, which never sees the token, is the model itself where its
    adapters are to be switched off."""

    def __init__(
        self,
        pool: Sequence[Scored],
        quantiles: Sequence[int],
        model: TrainModel,
        options: RolloutTrain,
        reference: TrainModel | None,
    ):
        self.pool = pool
        self.options = options
        self.reference = reference
        self.quark_loss = find_object(options.LOSS)
        self.examples: Sequence[Example] = [
            Example(
                f"{answer.prompt_id}:{place}",
                answer.prompt_id,
                [quantile_id(model, quantile), *answer.prompt_ids],
                (answer.ids,),
            )
            for place, (answer, quantile) in enumerate(zip(pool, quantiles, strict=True))
        ]

    def total(self, batch: Sequence[int]) -> float:
        """Tokens of the batch's answers."""
        return float(sum(len(self.pool[i].ids) for i in batch))

    def loss(
        self, model: TrainModel, micro: Sequence[int], total: float, step: int
    ) -> tuple[Tensor, Sums, int]:
        """See `Task.loss`."""
        layout = model.layout([self.examples[i].branches for i in micro])
        hidden = model.predicting(layout)  # [tokens, width]
        size = max(1, TILE // max(1, model.vocabulary))
        tiles = zip(
            torch.split(hidden, size),
            self._reference_tiles(model, micro, hidden, size),
            torch.split(layout.targets, size),
            strict=True,
        )
        names: list[str] = []
        compute = self._tile_losses(model, names)
        # Only hidden states are kept for the backward pass, which makes the logits again.
        values = torch.cat([checkpoint(compute, *tile, use_reentrant=False) for tile in tiles], 1)
        tokens = float(values.shape[1])
        means = dict(zip(names, values[1:].detach().sum(1).tolist(), strict=True))
        sums = {name: (value, tokens) for name, value in means.items()}
        return values[0].sum() / total, sums, layout.tokens

    def _tile_losses(
        self, model: TrainModel, names: list[str]
    ) -> Callable[[Tensor, Tensor | None, Tensor], Tensor]:
        """A function of some tokens' hidden states, those of the reference and the tokens: (1 +
        parts, N) their losses and what these are made of, whose names it leaves in `names`."""
        read = model.read_vocabulary(self.options.temperature)
        with torch.no_grad():
            frozen = self.reference
            read_frozen = (
                None if frozen is None else frozen.read_vocabulary(self.options.temperature)
            )

        def compute(own: Tensor, other: Tensor | None, targets: Tensor) -> Tensor:
            policy, reference = read(own), None
            if other is not None and read_frozen is not None:
                with torch.no_grad():
                    reference = read_frozen(other)
                refuse_other_width(policy, reference)
            loss, parts = self.quark_loss(policy, reference, targets, **self.options.loss_options)
            names[:] = parts
            return torch.stack([loss, *parts.values()])

        return compute

    def _reference_tiles(
        self, model: TrainModel, micro: Sequence[int], hidden: Tensor, size: int
    ) -> Sequence[Tensor | None]:
        """The reference's hidden states by tile: of the prompts without a token."""
        if self.reference is None:
            return [None] * len(torch.split(hidden, size))
        plain = [(self.pool[i].prompt_ids, (self.pool[i].ids,)) for i in micro]
        given = frozen_states(model, self.reference, plain)
        return torch.split(given.to(hidden.device), size)
