"""Direct preference optimisation, with the reference's log-probs computed before the first step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlaif.batching import plan_epoch
from rlaif.config import TrainStep
from rlaif.errors import RlaifError
from rlaif.losses.preference import dpo_loss, nll_loss
from rlaif.train.loop import Sums
from rlaif.train.model import TrainModel
from rlaif.train.tokenise import Example

Reference = dict[str, tuple[float, float]]
"""Example id to the reference's summed log-probs of (chosen, rejected), in nats."""


def read_reference(path: Path) -> Reference:
    """The reference log-probs stored so far; a torn last line is dropped from the file."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith("\n"):
        path.write_text("".join(lines[:-1]))
        lines = lines[:-1]
    rows = [json.loads(line) for line in lines]
    return {row["example_id"]: (row["chosen"], row["rejected"]) for row in rows}


@torch.no_grad()
def compute_reference(
    model: TrainModel, examples: Sequence[Example], options: TrainStep, seed: int, path: Path
) -> Reference:
    """Append what is missing in `path` and return all of it.

    The micro-batches are those of the first epoch: in bf16 a row's result depends on the shape of
    its batch, and a reference equal to the start must give exactly equal numbers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    known = read_reference(path)
    sizes = [model.size(e.branches) for e in examples]
    plan = plan_epoch(sizes, options.batch_size, options.micro_batch_tokens, seed, 0)
    with path.open("a") as file:
        for micro in (m for batch in plan for m in batch):
            rows = [examples[i] for i in micro]
            if all(e.example_id in known for e in rows):
                continue
            values = model.logprobs(model.layout([e.branches for e in rows])).view(-1, 2).tolist()
            for example, pair in zip(rows, values, strict=True):
                known[example.example_id] = (pair[0], pair[1])
                row = {"example_id": example.example_id, "chosen": pair[0], "rejected": pair[1]}
                file.write(json.dumps(row) + "\n")
            file.flush()
    return known


class DpoTask:
    """Pairs and their reference log-probs. See `rlaif.train.loop.Task`.

    With `same_start` the reference is the starting model, and the first step asserts that the
    policy's log-probs equal the stored ones: exactly on CPU, to rounding elsewhere.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        reference: Reference,
        options: TrainStep,
        same_start: bool,
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
        policy_chosen, policy_rejected = model.logprobs(layout).view(-1, 2).unbind(1)
        stored = torch.tensor(
            [self.reference[e.example_id] for e in rows], dtype=torch.float32, device=model.device
        )
        ref_chosen, ref_rejected = stored.unbind(1)
        if step == 0 and self.same_start:
            _assert_equal(policy_chosen, ref_chosen)
            _assert_equal(policy_rejected, ref_rejected)
        loss, metrics = dpo_loss(
            policy_chosen,
            policy_rejected,
            ref_chosen,
            ref_rejected,
            self.options.beta,
            self.options.label_smoothing,
            weight=torch.tensor([e.weight for e in rows], device=model.device),
        )
        if self.options.nll_weight:
            counts = torch.tensor(layout.lengths[::2], device=model.device)
            nll = nll_loss(policy_chosen, counts)
            metrics["nll_chosen"] = nll.detach()
            loss = loss + self.options.nll_weight * nll
        sums = {k: (float(v.sum()), float(len(rows))) for k, v in metrics.items()}
        return loss.sum() / total, sums, layout.tokens


def _assert_equal(policy: Tensor, reference: Tensor) -> None:
    # CUDA may pick another attention kernel once gradients are wanted.
    tolerance = 0.0 if policy.device.type == "cpu" else 2e-2
    gap = (policy.detach() - reference).abs()
    if bool((gap > tolerance * reference.abs().clamp(min=1.0)).any()):
        raise RlaifError(
            f"the reference log-probs differ by up to {float(gap.max()):.3g} from the starting "
            "model's, which is the reference. They were computed on another machine or version: "
            "delete the train step's work folder and run again."
        )
