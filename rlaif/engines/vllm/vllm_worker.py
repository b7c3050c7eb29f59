"""What runs inside vLLM's workers."""

from __future__ import annotations

from typing import Any


class InPlace:
    """Methods that vLLM adds to its worker (`worker_extension_cls`)."""

    model_runner: Any
    reload_weights: Any

    def take_weights(self, folder: str) -> None:
        """Replace the model's weights by those in `folder`."""
        self.reload_weights(weights_path=folder)
        config = self.model_runner.model_config.hf_config.get_text_config()
        if config.tie_word_embeddings:
            _tie_again(self.model_runner.get_model())


def _tie_again(model: Any) -> None:
    """Give the output head the new embedding. A head that is the embedding has no weights of its
    own in a checkpoint: reloading leaves out what vLLM made of them at the start, such as a copy
    that is packed for a CPU's matrix products."""
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    parts = list(model.modules())
    heads = [part for part in parts if isinstance(part, ParallelLMHead)]
    tables = [part for part in parts if isinstance(part, VocabParallelEmbedding)]
    # An output head is a kind of embedding table for vLLM, so it is not to be taken for one here.
    table = next((part for part in tables if part not in heads), None)
    for head in heads:
        if table is not None:
            head.weight.data.copy_(table.weight.data)
            head.quant_method.process_weights_after_loading(head)
