"""A transformers model in memory, which engines of several settings may compute with."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

from rlaif.engines.local.decoding import no_branches
from rlaif.engines.local.fast_paths import fast_paths
from rlaif.engines.local.output_head import head_of
from rlaif.engines.local.prepacked import prepacked
from rlaif.engines.local.proof import choose

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
        """The model as it computes batches; as it was when nobody asks for any."""
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
