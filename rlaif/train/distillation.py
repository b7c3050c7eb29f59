"""What a student learns from its teacher's whole distributions: a task of the training loop.

At every token of the answers both models say how likely each token of the vocabulary is; the loss
is the divergence of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlaif.core.errors import EngineError
from rlaif.kernels.batching import Branches, Layout
from rlaif.train.loop import Sums
from rlaif.train.losses import distillation as losses
from rlaif.train.methods.on_policy_distillation import OnPolicyDistillationTrain
from rlaif.train.model import TrainModel
from rlaif.train.tokenise import Example

Read = Callable[[Tensor], Tensor]
"""From hidden states (N, width) to the log-probabilities (N, V) of the whole vocabulary."""
TILE = 2**22
"""So many logits of a model are in memory at once, at least those of one token."""


class DistillTask:
    """The divergence between student and teacher at each token of the examples' completions, the
    mean over all tokens of a batch. `teacher` is the student itself where its adapters are to be
    switched off for it."""

    def __init__(
        self,
        examples: Sequence[Example],
        options: OnPolicyDistillationTrain,
        teacher: TrainModel,
    ):
        self.examples = examples
        self.options = options
        self.teacher = teacher

    def total(self, batch: Sequence[int]) -> float:
        """Tokens of the batch's completions."""
        tokens = sum(len(ids) for i in batch for ids in self.examples[i].completions)
        return float(max(1, tokens))

    def loss(
        self, model: TrainModel, micro: Sequence[int], total: float, step: int
    ) -> tuple[Tensor, Sums, int]:
        """See `Task.loss`."""
        branches = [self.examples[i].branches for i in micro]
        layout = model.layout(branches)
        teacher = read_frozen(model, self.teacher, branches, self.options.temperature)
        values, kl = model.compute(lambda: self._diverge(model, layout, *teacher))
        tokens = float(len(kl))
        return (
            values.sum() / total,
            {"kl_teacher": (float(kl.detach().sum()), tokens)},
            layout.tokens,
        )

    def _diverge(
        self, model: TrainModel, layout: Layout, given: Tensor, read_teacher: Read
    ) -> Tensor:
        """(2, N) the loss and the KL to the teacher of all tokens; `given` (N, width) are the
        teacher's hidden states."""
        hidden = model.predicting(layout)  # [tokens, width]
        given = given.to(hidden.device)
        read = model.read_vocabulary(self.options.temperature)

        def diverge(own: Tensor, other: Tensor) -> Tensor:
            """(2, N) the loss and the KL to the teacher of some tokens, by their hidden states."""
            student = read(own)
            with torch.no_grad():
                teacher = read_teacher(other)
            refuse_other_width(student, teacher)
            kl = losses.full_kl(student.detach(), teacher)
            return torch.stack([self._divergence(student, teacher), kl])

        size = max(1, TILE // max(1, model.vocabulary))
        pairs = zip(torch.split(hidden, size), torch.split(given, size), strict=True)
        # Only hidden states are kept for the backward pass, which makes the logits again.
        parts = [checkpoint(diverge, *pair, use_reentrant=False) for pair in pairs]
        return torch.cat(parts, 1)

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.options.divergence == "reverse_kl":
            return losses.reverse_kl(student, teacher)
        return losses.jsd(student, teacher, self.options.beta)


@torch.no_grad()
def read_frozen(
    model: TrainModel, frozen: TrainModel, branches: Sequence[Branches], temperature: float
) -> tuple[Tensor, Read]:
    """(N, width) the frozen model's hidden states that predict the branches' tokens, and its
    `read_vocabulary`. `frozen` is `model` itself where its adapters are to be switched off."""
    off: Callable[[], AbstractContextManager[object]] = (
        model.without_adapter if frozen is model else nullcontext
    )
    layout = frozen.layout(branches)
    with off():
        return frozen.compute(
            lambda: (frozen.predicting(layout), frozen.read_vocabulary(temperature))
        )


def refuse_other_width(student: Tensor, teacher: Tensor) -> None:
    """Raise EngineError where log-probs (N, V) are over vocabularies of different sizes."""
    if student.shape[1] != teacher.shape[1]:
        raise EngineError(
            f"the student has {student.shape[1]} logits and the teacher {teacher.shape[1]}: their "
            "embeddings are padded to different sizes. Take `divergence: reverse_kl` without "
            "`given`, which compares sampled tokens alone, or resize one of the two"
        )
