"""Training on answers: a task for each family of methods; the losses are pure.

`PreferenceTask` compares two answers. KTO (Kahneman-Tversky optimisation) takes every answer for
itself, of a pair or standing alone, against a baseline from answers to other prompts. SFT is the
mean negative log-likelihood over the global batch's answer tokens. A reference model's log-probs of
the training answers are computed once, before the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlaif.config.training import TrainStep
from rlaif.core import integrity
from rlaif.core.errors import RlaifError
from rlaif.core.resources import find_object
from rlaif.core.rowfiles import read_rows
from rlaif.core.store import StepFolder
from rlaif.kernels.batching import Layout, plan_epoch
from rlaif.train import parallel
from rlaif.train.loop import Sums
from rlaif.train.losses import preference as losses
from rlaif.train.losses.preference import PairLogprobs, sft_loss
from rlaif.train.model import TrainModel
from rlaif.train.tokenise import Example

Reference = dict[str, tuple[float, ...]]
"""Example id to the reference's summed log-prob of each of its branches, in nats."""


class AnswerTask:
    """Examples, and the reference's log-probs where there is one. See `rlaif.train.loop.Task`.

    With `same_start` the reference is the starting model, and the first step asserts that the
    policy's log-probs equal the stored ones: exactly on CPU, to rounding elsewhere.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        reference: Reference | None = None,
        options: Any = None,
        same_start: bool = False,
    ):
        self.examples = examples
        self.reference = reference or {}
        self.options = options
        self.same_start = same_start

    def total(self, batch: Sequence[int]) -> float:
        """Examples in the batch."""
        return float(len(batch))

    def compare_logprobs(
        self, rows: Sequence[Example], policy: Tensor, model: TrainModel, step: int
    ) -> Tensor:
        """(S,) fp32 log-probs of the rows' branches by the reference, beside the policy's."""
        values = [value for e in rows for value in self.reference[e.example_id]]
        stored = torch.tensor(values, dtype=torch.float32, device=policy.device)
        if step == 0 and self.same_start:
            assert_equal(policy, stored, model)
        return stored


class PreferenceTask(AnswerTask):
    """Pairs of a chosen and a rejected answer, compared by the method's `LOSS`."""

    def __init__(
        self,
        examples: Sequence[Example],
        reference: Reference | None,
        options: TrainStep,
        same_start: bool = False,
    ):
        super().__init__(examples, reference, options, same_start)
        self.pair_loss = partial(find_object(options.LOSS), **options.loss_options)

    def loss(
        self, model: TrainModel, micro: Sequence[int], total: float, step: int
    ) -> tuple[Tensor, Sums, int]:
        """See `Task.loss`."""
        options = self.options
        rows = [self.examples[i] for i in micro]
        layout = model.layout([e.branches for e in rows])
        policy = model.logprobs(layout)  # [branches]
        stored = self.compare_logprobs(rows, policy, model, step) if options.compares else None
        pairs = pair_logprobs(policy, stored, layout)
        # Without soft labels the loss takes its plain form, and no tensor is made.
        soft = any(e.prob != 1.0 for e in rows)
        prob = torch.tensor([e.prob for e in rows], device=policy.device) if soft else None
        loss = self.pair_loss(pairs, prob=prob)
        metrics = losses.pair_metrics(
            pairs, options.reward_scale, length_normalise=options.per_token
        )
        if options.added_nll:
            nll = losses.nll_loss(pairs.policy_chosen, pairs.len_chosen)
            loss = loss + options.added_nll * nll
            metrics["nll_chosen"] = nll.detach()
        sums = {k: (float(v.sum()), float(len(rows))) for k, v in metrics.items()}
        weight = torch.tensor([e.weight for e in rows], device=model.device)
        return (loss * weight).sum() / total, sums, layout.tokens


def pair_logprobs(policy: Tensor, stored: Tensor | None, layout: Layout) -> PairLogprobs:
    """What the pair losses take, from (2B,) summed log-probs of chosen and rejected answers, in
    turns, by the policy and by the reference."""
    lengths = torch.tensor(layout.lengths, device=policy.device)
    return PairLogprobs(
        policy[::2],
        policy[1::2],
        None if stored is None else stored[::2],
        None if stored is None else stored[1::2],
        lengths[::2],
        lengths[1::2],
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


class SftTask(AnswerTask):
    """Trains on the first completion of every example."""

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
        # Negated: `nll` is a sum over tokens, and the metric is a log-prob per example.
        sums = {"logprob_chosen": (-float(nll.detach()), float(len(micro)))}
        return nll / total, sums, layout.tokens


class KtoTask(AnswerTask):
    """Examples whose last branch is the answer to another prompt (`add_mismatched`). An example
    counts once, with the mean over its one or two answers."""

    def loss(
        self, model: TrainModel, micro: Sequence[int], total: float, step: int
    ) -> tuple[Tensor, Sums, int]:
        """See `Task.loss`."""
        rows = [self.examples[i] for i in micro]
        layout = model.layout([e.branches for e in rows])
        policy = model.logprobs(layout)  # [branches]
        rho = policy - self.compare_logprobs(rows, policy, model, step)
        own, other = _branch_places(rows)
        good = torch.tensor([d for e in rows for d in e.desirable], device=policy.device)
        share = [e.weight / len(e.desirable) for e in rows for _ in e.desirable]
        # Over this micro-batch: the one term of the loss that depends on how a batch is cut.
        z = losses.kto_baseline(rho[other])
        loss = losses.kto(rho[own], good, z, **self.options.loss_options)
        rewards = self.options.beta * rho.detach()
        sums = _answer_metrics(rows, rewards[own], policy.detach()[own], good)
        sums["kl_baseline"] = (float(z) * len(rows), float(len(rows)))
        weight = torch.tensor(share, device=policy.device)
        return (loss * weight).sum() / total, sums, layout.tokens


def _branch_places(rows: Sequence[Example]) -> tuple[list[int], list[int]]:
    """Where the rows' own answers lie among all branches, and where those to other prompts."""
    own: list[int] = []
    other: list[int] = []
    for row in rows:
        start = len(own) + len(other)  # Branches before this row.
        own += range(start, start + len(row.desirable))
        other.append(start + len(row.desirable))
    return own, other


def _answer_metrics(
    rows: Sequence[Example], rewards: Tensor, logprobs: Tensor, good: Tensor
) -> Sums:
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


def refuse_soft_labels(examples: Sequence[Example]) -> None:
    """Raise RlaifError when a pair has a soft label, which no answer has by itself."""
    if any(e.prob != 1.0 for e in examples):
        raise RlaifError(
            "kto learns from each answer for itself and has no use for a pair's soft label "
            "(`prob`): take another method, or leave `consistency` out of `pair`"
        )


def refuse_one_class(examples: Sequence[Example]) -> None:
    """Raise RlaifError when all answers are good or all are bad: kto tells the two apart."""
    classes = {good for example in examples for good in example.desirable}
    if len(classes) == 1:
        said = "good" if True in classes else "bad"
        raise RlaifError(
            f"all {len(examples)} answers are {said}, and kto learns to tell good from bad: add "
            "rows with the other `label`. Good answers alone are for sft."
        )


def add_mismatched(examples: Sequence[Example]) -> list[Example]:
    """Each pair with the chosen answer of the next prompt as a third branch: KTO's baseline looks
    at answers that do not belong to their prompts (arXiv 2402.01306, section 4.2).

    Raises RlaifError when there is only one prompt.
    """
    # By id and not in the order given, so that shuffled data gets the same partners.
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


def read_reference(path: Path) -> Reference:
    """The reference log-probs in whole batches of `path`; what a kill left after them is dropped
    from the file. Raises StoreError where they are damaged."""
    # The first rank mends the file before any of them reads it.
    if parallel.rank() == 0 and path.exists():
        integrity.settle_file(
            path, f"Delete the folder {path.parent} to train again from the start."
        )
    parallel.wait()
    return {row["example_id"]: tuple(row["logprobs"]) for row in read_rows(path)}


@torch.no_grad()
def compute_reference(
    model: TrainModel, examples: Sequence[Example], options: TrainStep, seed: int, path: Path
) -> Reference:
    """Append what is missing in `path` and return all of it.

    The micro-batches are those of the first epoch: in bf16 a result depends on the shape of its
    batch, and a reference equal to the start must give exactly equal numbers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    known = read_reference(path)
    sizes = [model.size(e.branches) for e in examples]
    plan = plan_epoch(sizes, options.batch_size, model.token_budget(options), seed, 0)
    for batch in plan:
        # A micro-batch that is partly there is computed again as a whole: its shape decides its
        # bits.
        missing = [
            [examples[i] for i in micro]
            for micro in batch
            if not all(examples[i].example_id in known for i in micro)
        ]
        own: Reference = {}
        mine = parallel.share(missing)
        # All ranks must run a split model equally often; what a filler gives, another rank gives as
        # well.
        if model.sharded:
            mine += parallel.filler(missing)
        for rows in mine:
            values = iter(model.logprobs(model.layout([e.branches for e in rows])).tolist())
            for example in rows:
                own[example.example_id] = tuple(next(values) for _ in example.completions)
        new = {name: values for part in parallel.gather(own) for name, values in part.items()}
        known |= new
        # Batch by batch, so that a kill costs one.
        if parallel.rank() == 0 and new:
            lines = [{"example_id": name, "logprobs": list(values)} for name, values in new.items()]
            StepFolder(path.parent).append(path.stem, lines)
    return known
