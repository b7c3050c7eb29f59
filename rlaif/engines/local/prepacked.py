"""Linear layers on a CPU with their weights laid out once as the matrix kernels read them.

Otherwise every product of few rows, which is what decoding consists of, lays the weights out anew:
up to half of its time.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlaif.kernels.device import total_memory

ROWS = 64
"""The number of rows that the layout is chosen for; others work with it too."""
MOST_MEMORY = 0.25
"""The largest part of the machine's memory that the second copy of the weights may take."""


@contextmanager
def prepacked(model: nn.Module) -> Iterator[None]:
    """Let the linear layers of `model` compute with a copy of their weights in the kernels' own
    layout, and drop the copy afterwards. On a GPU, or where the copy would be too large or the
    kernels do not take the dtype, nothing changes."""
    layers = [part for part in model.modules() if type(part) is nn.Linear]
    # A layer that has a forward of its own, such as one in training, is put back with that.
    before = [vars(layer).get("forward") for layer in layers]
    try:
        if _fits(layers):
            for layer in layers:
                _prepack(layer)
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is not None:
                vars(layer)["forward"] = forward
            else:
                vars(layer).pop("forward", None)


def _fits(layers: list[nn.Linear]) -> bool:
    if not layers or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if any(layer.weight.device.type != "cpu" for layer in layers):
        return False
    size = sum(layer.weight.nbytes for layer in layers)
    return size <= MOST_MEMORY * total_memory(torch.device("cpu"))


def _prepack(layer: nn.Linear) -> None:
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
