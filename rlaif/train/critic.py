"""The critic of on-policy training: values of a reward and of costs, learned with the policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlaif.kernels.batching import Layout
from rlaif.train.model import TrainModel


@dataclass(slots=True)
class Critic:
    """A value of the reward and of each cost for each token: a linear head on the policy's hidden
    states, or on those of a model of its own."""

    head: torch.nn.Linear
    model: TrainModel | None = None

    def values(self, layout: Layout, hidden: Tensor) -> Tensor:
        """(N, 1 + costs) fp32 values of the states before each target token; `hidden` (N, H) are
        the policy's, which a critic with a model of its own does not look at."""
        if self.model is not None:
            own = self.model
            hidden = own.compute(lambda: own.predicting(layout))
        values: Tensor = self.head(hidden.float())
        return values


def add_critic(model: TrainModel, own: TrainModel | None, costs: int = 0) -> Critic:
    """A critic whose weights are trained, checkpointed and resumed with the policy's, of the reward
    and of so many costs.

    With `own`, a model of its own; else a zero-initialised head on the policy's hidden states.
    """
    body = model.module if own is None else own.module
    width = body.config.get_text_config().hidden_size
    head = torch.nn.Linear(width, 1 + costs, dtype=torch.float32, device=model.device)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    extra = {f"value_head.{name}": param for name, param in head.named_parameters()}
    # In fp32 they are their own masters, with a gradient that is never None.
    for name, param in extra.items():
        param.grad = torch.zeros_like(param)
        model.masters[name] = model.params[name] = param
    if own is not None:
        if own.sharded:
            model.other_roots.append(own.root)
        model.masters |= {f"critic.{name}": master for name, master in own.masters.items()}
        model.params |= {f"critic.{name}": param for name, param in own.params.items()}
    return Critic(head, own)


def drop_critic(model: TrainModel) -> None:
    """Leave the policy's own weights alone in `model`, before it is exported."""
    for held in (model.masters, model.params):
        for name in [n for n in held if n.startswith(("value_head.", "critic."))]:
            del held[name]
