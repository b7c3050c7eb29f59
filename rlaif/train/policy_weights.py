"""The weights of the moment, for an engine that samples with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlaif.engines.checkpoints import WEIGHTS
from rlaif.train.model import TrainModel, causal


@dataclass(frozen=True)
class PolicyWeights:
    """The weights of this moment as a plain checkpoint has them: in the compute dtype, adapters
    merged; of a split model those of the copy for sampling. The model stays as it is. See
    `rlaif.engines.base.ModelWeights`.

    `folder` is where they are written to, which may not exist.
    """

    model: TrainModel
    folder: Path

    def list_tensors(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """See `ModelWeights.list_tensors`."""
        parameters = _plain_parameters(self._module)
        return [(name, param.dtype, tuple(param.shape)) for name, param in parameters.items()]

    def read_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """See `ModelWeights.read_tensors`. Of merged ones one is in memory at a time."""
        adapted = _adapted_layers(self._module)
        for name, param in _plain_parameters(self._module).items():
            yield name, _merge_layer(adapted[name]) if name in adapted else param.detach()

    def write(self) -> Path:
        """Write `model.safetensors` in the folder, whole or not at all; the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / "weights.partial"
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.read_tensors()}
        save_file(tensors, temporary, metadata={"format": "pt"})
        temporary.replace(self.folder / WEIGHTS)
        return self.folder

    @property
    def _module(self) -> Any:
        whole = self.model if self.model.copy is None else self.model.copy
        return causal(whole.module)


def _plain_parameters(module: Any) -> dict[str, Tensor]:
    """The parameters without those of adapters, under the names that they have without any."""
    named = module.named_parameters()
    return {n.replace(".base_layer.", "."): param for n, param in named if "lora_" not in n}


def _adapted_layers(module: Any) -> dict[str, Any]:
    """The layers with an adapter, by the plain names of their weights."""
    parts = module.named_modules()
    return {
        f"{name}.weight": part
        for name, part in parts
        if hasattr(part, "base_layer") and hasattr(part, "merge")
    }


@torch.no_grad()
def _merge_layer(layer: Any) -> Tensor:
    """The layer's weight with its adapter. Taking the adapter off again by subtraction would leave
    rounding errors, so the weight is put back."""
    weight = layer.base_layer.weight
    kept = weight.detach().clone()
    layer.merge()
    merged: Tensor = weight.detach().clone()
    # For peft too it is not merged any more, since the weight is put back next.
    layer.merged_adapters.clear()
    weight.data.copy_(kept)
    return merged
