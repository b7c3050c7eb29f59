"""Training on pairs: one task for every method that compares two answers; the losses are pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlaif.config.training import DpoTrain, ReferenceTrain, TrainStep
from rlaif.core.errors import RlaifError
from rlaif.kernels.batching import Layout
from rlaif.train.loop import Sums
from rlaif.train.losses import preference as losses
from rlaif.train.losses.preference import PairLogprobs
from rlaif.train.model import TrainModel
from rlaif.train.reference import Reference
from rlaif.train.tokenise import Example

PAIR_LOSSES: dict[str, Callable[..., Tensor]] = {
    "dpo": losses.dpo,
    "robust": losses.robust_dpo,
    "ipo": losses.ipo,
    "hinge": losses.hinge,
    "apo_zero": losses.apo_zero,
    "nca": losses.nca,
    "slic": losses.slic,
    "simpo": losses.simpo,
    "orpo": losses.orpo,
}


class PreferenceTask:
    """Pairs, and the reference's log-probs where the method has one. See `rlaif.train.loop.Task`.

    With `same_start` the reference is the starting model, and the first step asserts that the
    policy's log-probs equal the stored ones: exactly on CPU, to rounding elsewhere.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        reference: Reference,
        options: TrainStep,
        same_start: bool = False,
    ):
        self.examples = examples
        self.reference = reference
        self.options = options
        self.same_start = same_start

    def total(self, batch: Sequence[int]) -> float:
        """Pairs in the batch."""
        return float(len(batch))

    def loss(
        self, model: TrainModel, micro: Sequence[int], total: float, step: int
    ) -> tuple[Tensor, Sums, int]:
        """See `Task.loss`."""
        rows = [self.examples[i] for i in micro]
        layout = model.layout([e.branches for e in rows])
        policy = model.logprobs(layout).view(len(rows), 2)
        stored = self._stored(rows, policy)
        if step == 0 and self.same_start and stored is not None:
            assert_equal(policy, stored, model)
        pairs = pair_logprobs(policy, stored, layout)
        weight = torch.tensor([e.weight for e in rows], device=model.device)
        loss, extra = self._losses(pairs, rows)
        metrics = {**self._metrics(pairs), **extra}
        sums = {k: (float(v.sum()), float(len(rows))) for k, v in metrics.items()}
        return (loss * weight).sum() / total, sums, layout.tokens

    def _metrics(self, pairs: PairLogprobs) -> dict[str, Tensor]:
        """In the quantity that is trained: per token where the loss is."""
        options = self.options
        per_token = options.method in ("simpo", "orpo")
        per_token = per_token or bool(getattr(options, "length_normalise", False))
        beta = float(getattr(options, "beta", 1.0))
        return losses.pair_metrics(pairs, beta, length_normalise=per_token)

    def _stored(self, rows: Sequence[Example], policy: Tensor) -> Tensor | None:
        if not isinstance(self.options, ReferenceTrain):
            return None
        values = [self.reference[e.example_id] for e in rows]
        return torch.tensor(values, dtype=torch.float32, device=policy.device)

    def _losses(
        self, pairs: PairLogprobs, rows: Sequence[Example]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) losses, and metrics that only this method has."""
        options = self.options
        soft = any(e.prob != 1.0 for e in rows)
        where = pairs.policy_chosen.device
        prob = torch.tensor([e.prob for e in rows], device=where) if soft else None
        loss = PAIR_LOSSES[options.method](pairs, prob=prob, **options.loss_options)
        if not isinstance(options, DpoTrain) or not options.nll_weight:
            return loss, {}
        nll = losses.nll_loss(pairs.policy_chosen, pairs.len_chosen)
        return loss + options.nll_weight * nll, {"nll_chosen": nll.detach()}


def pair_logprobs(policy: Tensor, stored: Tensor | None, layout: Layout) -> PairLogprobs:
    """What the pair losses take, from (B, 2) summed log-probs of chosen and rejected answers by the
    policy and by the reference."""
    lengths = torch.tensor(layout.lengths, device=policy.device).view(policy.shape)
    return PairLogprobs(
        policy[:, 0],
        policy[:, 1],
        None if stored is None else stored[:, 0],
        None if stored is None else stored[:, 1],
        lengths[:, 0],
        lengths[:, 1],
    )


def assert_equal(policy: Tensor, reference: Tensor, model: TrainModel) -> None:
    """Raise RlaifError unless the starting policy's log-probs are its stored reference's."""
    # Other than ours on a CPU, kernels of attention may be others once gradients are wanted.
    tolerance = 0.0 if policy.device.type == "cpu" and model.packed else 2e-2
    gap = (policy.detach() - reference).abs()
    if bool((gap > tolerance * reference.abs().clamp(min=1.0)).any()):
        raise RlaifError(
            f"the reference log-probs differ by up to {float(gap.max()):.3g} from the starting "
            "model's, which is the reference. They were computed on another machine or version: "
            "delete the train step's work folder and run again."
        )
