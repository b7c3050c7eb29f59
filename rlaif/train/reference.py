"""A reference model's log-probs of the training answers, computed once, before the first step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from rlaif.batching import plan_epoch
from rlaif.config import TrainStep
from rlaif.train import parallel
from rlaif.train.model import TrainModel
from rlaif.train.tokenise import Example

Reference = dict[str, tuple[float, ...]]
"""Example id to the reference's summed log-prob of each of its branches, in nats."""


def read_reference(path: Path) -> Reference:
    """The reference log-probs stored so far; a torn last line is dropped from the file."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith("\n"):
        lines = lines[:-1]
        if parallel.rank() == 0:
            path.write_text("".join(lines))
    rows = [json.loads(line) for line in lines]
    return {row["example_id"]: tuple(row["logprobs"]) for row in rows}


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
    parallel.wait()
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
            lines = [{"example_id": name, "logprobs": values} for name, values in new.items()]
            with path.open("a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
    return known
