"""Token log-probabilities straight from hidden states: the logits tensor is never made.

The vocabulary is walked in blocks: the forward pass keeps a running log-sum-exp and the target's
logit, the backward pass recomputes each block. Memory is tokens x block, whatever the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 8192


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    chunk: int = BLOCK,
    fp32_head: bool = False,
) -> Tensor:
    """Natural log-probability of each target token.

    hidden (N, H), weight (V, H), targets (N,) int64, bias (V,) or None -> (N,) fp32 (fp64 for fp64
    weights). The matrix products run in the weight's dtype, or in fp32 with `fp32_head`; the
    log-sum-exp is always fp32. At most (N, chunk) logits exist at a time. Differentiable in
    `hidden`, `weight` and `bias`; under `torch.no_grad` nothing is kept.
    """
    if hidden.shape[0] == 0:
        return hidden.sum(-1).to(_wide(weight.dtype))
    result: Tensor = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, chunk, fp32_head
    )
    return result


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, start: int, stop: int) -> Tensor:
    """(N, stop - start) logits in fp32 of one block; `hidden` has the dtype of the product."""
    block = (hidden @ weight[start:stop].to(hidden.dtype).T).to(_wide(hidden.dtype))
    return block if bias is None else block.add_(bias[start:stop])


def _target_columns(targets: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Rows whose target lies in the block, and its column there."""
    rows = ((targets >= start) & (targets < stop)).nonzero()[:, 0]
    return rows, targets[rows] - start


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk: int,
        fp32_head: bool,
    ) -> Tensor:
        compute = _wide(weight.dtype) if fp32_head else weight.dtype
        inputs = hidden.to(compute)
        wide = _wide(compute)
        total = torch.full((len(inputs),), -torch.inf, dtype=wide, device=hidden.device)
        picked = torch.zeros_like(total)
        for start in range(0, len(weight), chunk):
            stop = min(start + chunk, len(weight))
            logits = _logits(inputs, weight, bias, start, stop)
            rows, columns = _target_columns(targets, start, stop)
            picked[rows] = logits[rows, columns]
            total = torch.logaddexp(total, logits.logsumexp(-1))
        ctx.save_for_backward(hidden, weight, bias, targets, total)
        ctx.chunk, ctx.compute = chunk, compute
        return picked - total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden, weight, bias, targets, total = ctx.saved_tensors
        inputs = hidden.to(ctx.compute)
        scale = grads[0].to(total.dtype)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(inputs, dtype=total.dtype) if need_hidden else None
        grad_weight = torch.empty_like(weight) if need_weight else None
        grad_bias = torch.empty_like(bias) if need_bias else None
        for start in range(0, len(weight), ctx.chunk):
            stop = min(start + ctx.chunk, len(weight))
            block = _logits(inputs, weight, bias, start, stop)
            block.sub_(total[:, None]).exp_().mul_(-scale[:, None])
            rows, columns = _target_columns(targets, start, stop)
            block[rows, columns] += scale[rows]
            if grad_bias is not None:
                grad_bias[start:stop] = block.sum(0)
            narrow = block.to(ctx.compute)
            if grad_hidden is not None:
                grad_hidden += narrow @ weight[start:stop].to(ctx.compute)
            if grad_weight is not None:
                grad_weight[start:stop] = narrow.T @ inputs
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None
