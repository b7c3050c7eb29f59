"""Token log-probabilities straight from hidden states: the logits tensor is never made.

The vocabulary is walked in blocks and the tokens in tiles: the forward pass keeps a running
log-sum-exp and the target's logit, the backward pass recomputes each tile. The memory beyond inputs
and gradients is one tile of logits, whatever the vocabulary and however many tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Tokens and vocabulary entries of one tile of logits. On a CPU a tile should stay in the cache.
CPU_TILE = (512, 4096)
GPU_TILE = (4096, 16384)


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    fp32_head: bool = False,
    tile: tuple[int, int] | None = None,
    weight_grad_into: Tensor | None = None,
) -> Tensor:
    """Natural log-probability of each target token.

    hidden (N, H), weight (V, H), targets (N,) int64, bias (V,) or None -> (N,) fp32 (fp64 for fp64
    weights). Logits z become softcap * tanh(z / softcap) where `softcap` is given, and are then
    divided by `temperature`. The matrix products run in the weight's dtype, or in fp32 with
    `fp32_head`; the log-sum-exp is always fp32. Differentiable in `hidden`, `weight` and `bias`;
    under `torch.no_grad` nothing is kept. The weight's gradient is added to `weight_grad_into`
    (V, H) where that is given, and the weight then gets none of its own.
    """
    options = _Options(
        temperature, softcap, fp32_head, tile, with_entropy=False, weight_grad_into=weight_grad_into
    )
    return _apply(hidden, weight, targets, bias, options)[0]


def token_logprobs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    fp32_head: bool = False,
    tile: tuple[int, int] | None = None,
    weight_grad_into: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`token_logprobs`, and the entropy in nats of each token's whole distribution (N,), both
    differentiable; an entropy that no loss uses costs nothing in the backward pass."""
    options = _Options(
        temperature, softcap, fp32_head, tile, with_entropy=True, weight_grad_into=weight_grad_into
    )
    return _apply(hidden, weight, targets, bias, options)


@dataclass(frozen=True, slots=True)
class _Options:
    temperature: float
    softcap: float | None
    fp32_head: bool
    tile: tuple[int, int] | None
    with_entropy: bool
    weight_grad_into: Tensor | None = None

    def dtype(self, weight: Tensor) -> torch.dtype:
        """Of the matrix products."""
        return _wide(weight.dtype) if self.fp32_head else weight.dtype

    def tile_on(self, device: torch.device) -> tuple[int, int]:
        """Tokens and vocabulary entries of one tile."""
        return self.tile or (GPU_TILE if device.type == "cuda" else CPU_TILE)


def _apply(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    options: _Options,
) -> tuple[Tensor, Tensor]:
    if hidden.shape[0] == 0:
        empty = hidden.sum(-1).to(_wide(weight.dtype))
        return empty, empty
    result: tuple[Tensor, Tensor] = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, options
    )
    return result


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _spans(count: int, width: int) -> Iterator[slice]:
    for start in range(0, count, width):
        yield slice(start, min(start + width, count))


def _logits(inputs: Tensor, block: Tensor, bias: Tensor | None, options: _Options) -> Tensor:
    """One tile of logits in fp32, as they enter the softmax."""
    logits = (inputs @ block.T).to(_wide(inputs.dtype))
    if bias is not None:
        logits += bias
    if options.softcap is not None:
        logits.div_(options.softcap).tanh_().mul_(options.softcap)
    return logits if options.temperature == 1.0 else logits.div_(options.temperature)


def _through_cap(grad: Tensor, logits: Tensor, options: _Options) -> Tensor:
    """The gradient in place, taken back through temperature and soft-capping."""
    if options.softcap is not None:
        capped = logits * (options.temperature / options.softcap)
        grad.mul_(1.0 - capped.square_())
    return grad if options.temperature == 1.0 else grad.div_(options.temperature)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without a tensor in between where the dtypes allow."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _columns(targets: Tensor, span: slice) -> tuple[Tensor, Tensor]:
    """Rows whose target lies in the block, and its column there."""
    rows = ((targets >= span.start) & (targets < span.stop)).nonzero()[:, 0]
    return rows, targets[rows] - span.start


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        options: _Options,
    ) -> tuple[Tensor, Tensor]:
        dtype, tile = options.dtype(weight), options.tile_on(hidden.device)
        inputs = hidden.to(dtype)
        total = torch.full((len(inputs),), -torch.inf, dtype=_wide(dtype), device=hidden.device)
        picked, mean = torch.zeros_like(total), torch.zeros_like(total)
        for words in _spans(len(weight), tile[1]):
            block = weight[words].to(dtype)
            for tokens in _spans(len(inputs), tile[0]):
                part = None if bias is None else bias[words]
                logits = _logits(inputs[tokens], block, part, options)
                rows, columns = _columns(targets[tokens], words)
                picked[tokens][rows] = logits[rows, columns]
                here = logits.logsumexp(-1)
                joined = torch.logaddexp(total[tokens], here)
                if options.with_entropy:
                    inside = ((logits - here[:, None]).exp_() * logits).sum(-1)
                    mean[tokens] = mean[tokens] * (total[tokens] - joined).exp()
                    mean[tokens] += inside * (here - joined).exp()
                total[tokens] = joined
        entropy = total - mean if options.with_entropy else torch.zeros_like(total)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, targets, total, entropy)
        ctx.options = options
        return picked - total, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden, weight, bias, targets, total, entropy = ctx.saved_tensors
        options: _Options = ctx.options
        dtype, tile = options.dtype(weight), options.tile_on(hidden.device)
        inputs = hidden.to(dtype)
        scale = torch.zeros_like(total) if grads[0] is None else grads[0].to(total.dtype)
        scale_entropy = None if grads[1] is None else grads[1].to(total.dtype)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(inputs, dtype=total.dtype) if need_hidden else None
        into = options.weight_grad_into
        grad_weight = torch.empty_like(weight) if need_weight and into is None else None
        grad_bias = torch.empty_like(bias) if need_bias else None
        for words in _spans(len(weight), tile[1]):
            block = weight[words].to(dtype)
            # Summed over the tiles in fp32 and rounded once.
            sum_weight = None
            if need_weight and into is not None:
                sum_weight = into[words]
            elif need_weight:
                sum_weight = torch.zeros_like(block, dtype=total.dtype)
            sum_bias = torch.zeros(len(block), dtype=total.dtype, device=block.device)
            for tokens in _spans(len(inputs), tile[0]):
                part = None if bias is None else bias[words]
                logits = _logits(inputs[tokens], block, part, options)
                capped = logits.clone() if options.softcap is not None else logits
                shifted = logits.sub_(total[tokens][:, None])
                if scale_entropy is not None:
                    slope = (shifted + entropy[tokens][:, None]).mul_(
                        -scale_entropy[tokens][:, None]
                    )
                    grad = shifted.exp_()
                    grad.mul_(slope.sub_(scale[tokens][:, None]))
                else:
                    grad = shifted.exp_().mul_(-scale[tokens][:, None])
                rows, columns = _columns(targets[tokens], words)
                grad[rows, columns] += scale[tokens][rows]
                grad = _through_cap(grad, capped, options)
                if need_bias:
                    sum_bias += grad.sum(0)
                narrow = grad.to(dtype)
                if grad_hidden is not None:
                    add_product(grad_hidden[tokens], narrow, block)
                if sum_weight is not None:
                    add_product(sum_weight, narrow.T, inputs[tokens])
            if grad_weight is not None and sum_weight is not None:
                grad_weight[words] = sum_weight
            if grad_bias is not None:
                grad_bias[words] = sum_bias
        if grad_hidden is not None:
            grad_hidden = grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None
