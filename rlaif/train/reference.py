"""A reference model's log-probs of the training answers, computed once, before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rlaif.config.training import TrainStep
from rlaif.core import commits
from rlaif.core.rowfiles import read_rows
from rlaif.core.store import StepFolder
from rlaif.kernels.batching import plan_epoch
from rlaif.train import parallel
from rlaif.train.model import TrainModel
from rlaif.train.tokenise import Example

Reference = dict[str, tuple[float, ...]]
"""Example id to the reference's summed log-prob of each of its branches, in nats."""


def read_reference(path: Path) -> Reference:
    """The reference log-probs in whole batches of `path`; what a kill left after them is dropped
    from the file. Raises StoreError where they are damaged."""
    if parallel.rank() == 0 and path.exists():
        commits.settle(path, f"Delete the folder {path.parent} to train again from the start.")
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
        missing = [
            [examples[i] for i in micro]
            for micro in batch
            if not all(examples[i].example_id in known for i in micro)
        ]
        own: Reference = {}
        mine = parallel.share(missing)
        if model.sharded:
            mine += parallel.filler(missing)
        for rows in mine:
            values = iter(model.logprobs(model.layout([e.branches for e in rows])).tolist())
            for example in rows:
                own[example.example_id] = tuple(next(values) for _ in example.completions)
        new = {name: values for part in parallel.gather(own) for name, values in part.items()}
        known |= new
        if parallel.rank() == 0 and new:
            lines = [{"example_id": name, "logprobs": list(values)} for name, values in new.items()]
            StepFolder(path.parent).append(path.stem, lines)
    return known
