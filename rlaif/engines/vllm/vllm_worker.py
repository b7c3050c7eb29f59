"""What runs inside vLLM's workers: the transport of weights by a file, in vLLM's own protocol.

vLLM loads this module where an engine of ours asks for it (`rlaif.engines.vllm.transfer`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader import get_model_loader
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from rlaif.engines.checkpoints import list_weight_files


@dataclass
class FileInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing is connected."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """`folder` has the weights, as the workers see it."""

    folder: str


class FileWeightTransferEngine(WeightTransferEngine):  # type: ignore[misc]
    """Each worker reads its part of a checkpoint.

    Nothing changes before the files are known to be whole. A failure after that leaves the model
    with weights of both: it is an error, and every later update of this engine is one too.
    """

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo
    supports_draft_weight_update = False
    torn = False

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """There is nothing to connect."""

    def start_weight_update(self) -> None:
        """Refuse a model that an earlier update has left with old and new weights."""
        if self.torn:
            raise RuntimeError(
                "an earlier update failed midway, and the model has old and new weights: start the "
                "engine again"
            )

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Take the weights in the folder."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Take the weights in the folder. Raises where it has nothing for one of the model's
        parameters; of one that vLLM joins from several tensors some may be absent unnoticed."""
        folder = Path(update_info.folder)
        _check_files(folder)
        loader = get_model_loader(self.vllm_config.load_config)
        if not hasattr(loader, "get_all_weights"):
            raise RuntimeError(f"{type(loader).__name__} cannot read a checkpoint again")
        names = {name for name, _ in self.model.named_parameters()}
        self.torn = True
        initialize_layerwise_reload(self.model)
        loaded = self.model.load_weights(self._read_tensors(loader, folder))
        # A quantised model has other weights than the checkpoint.
        known = loaded is not None and self.model_config.quantization is None
        if known and (lacking := names - loaded):
            raise RuntimeError(f"{folder} has no weights for {', '.join(sorted(lacking))}")

    def finish_weight_update(self) -> None:
        """Make what the model computes with from what was read."""
        finalize_layerwise_reload(self.model, self.model_config)
        if self.model_config.hf_config.get_text_config().tie_word_embeddings:
            _tie_again(self.model)
        self.torn = False

    def shutdown(self) -> None:
        """There is nothing to release."""

    def _read_tensors(self, loader: Any, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
        config = copy.copy(self.model_config)
        config.model, config.model_weights, config.revision = str(folder), "", None
        yield from loader.get_all_weights(config, self.model)


def _check_files(folder: Path) -> None:
    """Raise where a file of the weights is absent or shorter than it says."""
    for path in list_weight_files(folder):
        try:
            with safe_open(path, framework="pt"):
                pass
        except Exception as error:
            raise RuntimeError(f"{path} is absent or not whole: {error}") from None


def _tie_again(model: Any) -> None:
    """Give the output head the new embedding. A head that is the embedding has no weights of its
    own in a checkpoint: reloading leaves out what vLLM made of them at the start, such as a copy
    that is packed for a CPU's matrix products."""
    parts = list(model.modules())
    heads = [part for part in parts if isinstance(part, ParallelLMHead)]
    tables = [part for part in parts if isinstance(part, VocabParallelEmbedding)]
    # An output head is a kind of embedding table for vLLM, so it is not to be taken for one here.
    table = next((part for part in tables if part not in heads), None)
    for head in heads:
        if table is not None:
            head.weight.data.copy_(table.weight.data)
            head.quant_method.process_weights_after_loading(head)
