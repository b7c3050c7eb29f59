"""What is learned from Quark's pool: a task of the training loop (arXiv 2205.13636)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlaif.config.on_policy import RolloutTrain
from rlaif.core.resources import find_object
from rlaif.kernels.batching import Layout
from rlaif.train.distillation import TILE, Read, read_frozen, refuse_other_width
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
        names: list[str] = []
        frozen = self._read_reference(model, micro)
        values = model.compute(lambda: self._token_losses(model, layout, frozen, names))
        tokens = float(values.shape[1])
        means = dict(zip(names, values[1:].detach().sum(1).tolist(), strict=True))
        sums = {name: (value, tokens) for name, value in means.items()}
        return values[0].sum() / total, sums, layout.tokens

    def _token_losses(
        self,
        model: TrainModel,
        layout: Layout,
        frozen: tuple[Tensor, Read] | None,
        names: list[str],
    ) -> Tensor:
        """(1 + parts, N) the tokens' losses and what these are made of, whose names it leaves in
        `names`. `frozen` are the reference's hidden states and its `read_vocabulary`."""
        hidden = model.predicting(layout)  # [tokens, width]
        size = max(1, TILE // max(1, model.vocabulary))
        own = torch.split(hidden, size)
        states: Sequence[Tensor | None] = [None] * len(own)
        if frozen is not None:
            states = torch.split(frozen[0].to(hidden.device), size)
        tiles = zip(own, states, torch.split(layout.targets, size), strict=True)
        compute = self._tile_losses(model, None if frozen is None else frozen[1], names)
        # Only hidden states are kept for the backward pass, which makes the logits again.
        return torch.cat([checkpoint(compute, *tile, use_reentrant=False) for tile in tiles], 1)

    def _tile_losses(
        self, model: TrainModel, read_reference: Read | None, names: list[str]
    ) -> Callable[[Tensor, Tensor | None, Tensor], Tensor]:
        """A function of some tokens' hidden states, those of the reference and the tokens, with
        what `_token_losses` gives for all."""
        read = model.read_vocabulary(self.options.temperature)

        def compute(own: Tensor, other: Tensor | None, targets: Tensor) -> Tensor:
            policy, reference = read(own), None
            if other is not None and read_reference is not None:
                with torch.no_grad():
                    reference = read_reference(other)
                refuse_other_width(policy, reference)
            loss, parts = self.quark_loss(policy, reference, targets, **self.options.loss_options)
            names[:] = parts
            return torch.stack([loss, *parts.values()])

        return compute

    def _read_reference(
        self, model: TrainModel, micro: Sequence[int]
    ) -> tuple[Tensor, Read] | None:
        """The reference's hidden states and its `read_vocabulary`: of the prompts without a
        token."""
        if self.reference is None:
            return None
        plain = [(self.pool[i].prompt_ids, (self.pool[i].ids,)) for i in micro]
        return read_frozen(model, self.reference, plain, self.options.temperature)
