"""The supervised loss, with its normaliser explicit."""

from __future__ import annotations

from torch import Tensor


def sft_loss(token_logprobs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood summed over the tokens that `mask` keeps, and how many those are.

    token_logprobs and mask (bool or 0/1) share any shape. Returns two scalars: the sum in nats and
    the count. Divide by the count over the whole global batch, so that the result does not depend
    on how the batch was cut into micro-batches.
    """
    keep = mask.bool()
    return -token_logprobs.masked_fill(~keep, 0.0).sum(), keep.sum()
