"""From hidden states to logits: what an architecture does behind its output head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Head:
    """What happens to the logits after the output head: times `scale`, then `softcap`."""

    scale: float = 1.0
    softcap: float | None = None

    def finish(self, logits: Tensor) -> Tensor:
        """The model's logits from the product with its head's weights."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is None:
            return logits
        return torch.tanh(logits / self.softcap) * self.softcap


PLAIN = Head()


def head_of(config: Any) -> Head:
    """The head that a model's text config describes."""
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(scale, getattr(config, "final_logit_softcapping", None))
