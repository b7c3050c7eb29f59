"""From hidden states to logits: what an architecture does behind its output head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlaif.core.errors import EngineError
from rlaif.engines.local.packing import body_of, hidden_states, without_cache
from rlaif.kernels.batching import padded_layout

CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What architectures call the cap in their configs."""
SNAP = {torch.float32: 1e-5, torch.float64: 1e-9}
"""How near a measured scale must be to one that the config can mean; else `SNAP_HALF`."""
SNAP_HALF = 5e-3
TOLERANCE = 2e-2
"""The most that logits may differ in norm; bf16 alone makes half a hundredth."""


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


@torch.no_grad()
def head_of(module: Any) -> Head:
    """How the logits of a transformers model follow from its last hidden states, found on its own
    logits. Raises EngineError where they are not the product with a linear head's weights, times a
    number and softly capped."""
    name = type(module).__name__
    output = module.get_output_embeddings()
    if not isinstance(output, nn.Linear):
        raise EngineError(f"{name}: its output head is no plain linear layer, and it must be")
    words = int(output.weight.shape[0])
    ids = [i % words for i in range(9, 26)]
    layout = padded_layout([(ids[:1], [ids[1:]])]).to(output.weight.device)
    with reading_tokens(module):
        states = hidden_states(body_of(module), layout).float()
        given = module(input_ids=layout.input_ids, **without_cache(module.__class__))
        own = given.logits[0].float()
    raw = F.linear(states, output.weight.float())
    bias = 0.0 if output.bias is None else output.bias.float()
    config = module.config.get_text_config()
    cap = next((c for n in CAPS if (c := getattr(config, n, None))), None)
    before = own
    if cap is not None:
        # Where the cap is near, its inverse has no digits.
        near = own.abs() < cap / 2
        raw_part, before = raw * near, torch.atanh((own / cap) * near) * cap
    else:
        raw_part = raw
    scale = float(((before - bias * (raw_part != 0)) * raw_part).sum() / raw_part.square().sum())
    head = Head(_meant(scale, config, output.weight.dtype), cap)
    found = Head(1.0, cap).finish(raw * head.scale + bias)
    if not float((found - own).norm()) <= TOLERANCE * float(own.norm()):
        raise EngineError(
            f"{name}: its logits are more than the product of its last hidden states with its "
            "output head, times a number and softly capped; no other form is computed here"
        )
    return head


def _meant(scale: float, config: Any, dtype: torch.dtype) -> float:
    """The number that the config means by a measured scale, without its rounding."""
    numbers = [v for v in config.to_dict().values() if type(v) in (int, float) and v > 0]
    width = getattr(config, "hidden_size", None) or 1
    meant = [1.0, *numbers, *(1 / v for v in numbers), *(v / width for v in numbers)]
    nearest = min(meant, key=lambda value: abs(value - scale))
    known = abs(nearest - scale) <= SNAP.get(dtype, SNAP_HALF) * abs(scale)
    return float(nearest) if known else scale


@contextmanager
def reading_tokens(module: Any) -> Iterator[None]:
    """Raise EngineError for what a model's own code raises on token ids."""
    try:
        yield
    except (EngineError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        raise EngineError(
            f"{type(module).__name__}: it does not compute from token ids alone: "
            f"{type(error).__name__}: {said}"
        ) from error
