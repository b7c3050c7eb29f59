"""Where the answers lie that a reward model was trained on, kept beside it: so it can say of each
answer that it judges how far that lies from them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlaif.config.training import TextStep
from rlaif.engines.local.distance import Region, fit_region
from rlaif.kernels.batching import fill
from rlaif.train.model import TrainModel
from rlaif.train.tokenise import Example

MOST = 256
"""Examples whose answers are looked at: one more pass over these, whatever the training's size."""


@torch.no_grad()
def region_of(model: TrainModel, examples: Sequence[Example], options: TextStep) -> Region:
    """The region of the answers of at most `MOST` examples, taken evenly from all, by the trained
    model's hidden states at their ends. The model is in evaluation mode afterwards."""
    model.module.eval()
    step = -(-len(examples) // MOST)
    chosen = examples[::step]
    sizes = [model.size(e.branches) for e in chosen]
    order = sorted(range(len(chosen)), key=lambda i: (-sizes[i], i))
    states = [
        model.ends(model.layout([chosen[i].branches for i in micro])).cpu()
        for micro in fill(order, [sizes[i] for i in order], model.token_budget(options))
    ]
    return fit_region(torch.cat(states).double().numpy())
