"""A transformers model in memory, which engines of several settings may compute with.

On a CPU, linear layers have their weights laid out once as the matrix kernels read them. Otherwise
every product of few rows, which is what decoding consists of, lays the weights out anew: up to half
of its time. `output_head` is what an architecture does between hidden states and logits.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlaif.core.errors import EngineError
from rlaif.engines.local.decoding import no_branches
from rlaif.engines.local.forward import body_of, fast_paths, hidden_states, without_cache
from rlaif.engines.local.proof import choose
from rlaif.kernels.batching import padded_layout
from rlaif.kernels.device import total_memory

log = logging.getLogger(__name__)


class Weights:
    """`model` ready to be asked. `branches` says whether the samples of a prompt share its keys;
    `head` how logits follow from what the output layer gives; `digest` is the weights' hash."""

    def __init__(self, model: Any, digest: str):
        self.model = model
        self.digest = digest
        self.head = head_of(model)
        self._fp32_head: torch.Tensor | None = None
        self._asking = 0
        self._changes = ExitStack()
        self._choice = choose(model, model.dtype, model.device)
        if model.dtype != torch.float32:
            # Without gradients the fused parts gain nothing over bf16's own.
            self._choice = replace(self._choice, parts={})
        self.branches = self._choice.packed
        problem = no_branches(model) if self.branches else None
        if problem is not None:
            self.branches = False
            log.warning(
                "%s: the samples of a prompt do not share its keys, which is slower: %s",
                type(model).__name__,
                problem,
            )

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Keep the model in its fast form for as long as anybody computes with it."""
        # The first one to compute changes the model, and the last one changes it back.
        if self._asking == 0:
            self._changes.enter_context(prepacked(self.model))
            choice = replace(self._choice, packed=self.branches)
            self._changes.enter_context(fast_paths(self.model, choice))
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1
            if self._asking == 0:
                self._changes.close()

    def output(self) -> tuple[Any, torch.Tensor]:
        """The output layer, and its weight in fp32, which is made once."""
        output = self.model.get_output_embeddings()
        if self._fp32_head is None:
            self._fp32_head = output.weight.detach().float()
        return output, self._fp32_head


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
    # Least squares over the logits away from the cap; where `raw_part` is 0 nothing counts.
    scale = float(((before - bias * (raw_part != 0)) * raw_part).sum() / raw_part.square().sum())
    head = Head(_snap_scale(scale, config, output.weight.dtype), cap)
    found = Head(1.0, cap).finish(raw * head.scale + bias)
    if not float((found - own).norm()) <= TOLERANCE * float(own.norm()):
        raise EngineError(
            f"{name}: its logits are more than the product of its last hidden states with its "
            "output head, times a number and softly capped; no other form is computed here"
        )
    return head


def _snap_scale(scale: float, config: Any, dtype: torch.dtype) -> float:
    """The number that the config means by a measured scale, without its rounding."""
    numbers = [v for v in config.to_dict().values() if type(v) in (int, float) and v > 0]
    width = getattr(config, "hidden_size", None) or 1
    # Configs have a scale as a number, as its inverse, or as a number over the width (muP).
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


ROWS = 64
"""The number of rows that the layout is chosen for; others work with it too."""
MOST_MEMORY = 0.25
"""The largest part of the machine's memory that the second copy of the weights may take."""


@contextmanager
def prepacked(model: nn.Module) -> Iterator[None]:
    """Let the linear layers of `model` compute with a copy of their weights in the kernels' own
    layout, and drop the copy afterwards. On a GPU, or where the copy would be too large or the
    kernels do not take the dtype, nothing changes."""
    # A subclass may compute something else.
    layers = [part for part in model.modules() if type(part) is nn.Linear]
    # A layer that has a forward of its own, such as one in training, is put back with that.
    before = [vars(layer).get("forward") for layer in layers]
    try:
        if _fits_memory(layers):
            for layer in layers:
                _prepack_layer(layer)
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is not None:
                vars(layer)["forward"] = forward
            else:
                vars(layer).pop("forward", None)


def _fits_memory(layers: list[nn.Linear]) -> bool:
    if not layers or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if any(layer.weight.device.type != "cpu" for layer in layers):
        return False
    size = sum(layer.weight.nbytes for layer in layers)
    return size <= MOST_MEMORY * total_memory(torch.device("cpu"))


def _prepack_layer(layer: nn.Linear) -> None:
    ops: Any = torch.ops.mkldnn
    try:
        packed = ops._reorder_linear_weight(layer.weight.detach(), ROWS)
    except RuntimeError:
        # bfloat16 on a CPU without instructions for it.
        return

    def forward(self: nn.Linear, input: Tensor) -> Tensor:
        product: Tensor = ops._linear_pointwise(input, packed, self.bias, "none", [], "")
        return product

    vars(layer)["forward"] = types.MethodType(forward, layer)
