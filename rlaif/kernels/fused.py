"""The element-wise parts of a decoder layer with backward passes of their own.

Plain autograd keeps every intermediate tensor of a norm or a gate, and walks over memory once for
each operation. Here the inputs alone are kept, and passes work in place, or on a GPU are compiled
into one. `rlaif.engines.local.proof` says which of a model's parts they may stand for.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlaif.kernels.device import compiled_on
from rlaif.kernels.logprobs import add_product


def _normalise_rows(x: Tensor, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
    """The normed rows, and 1 / rms of each in fp32."""
    wide = x.to(_widen_dtype(x.dtype))
    inverse = (wide.square().mean(-1, keepdim=True) + eps).rsqrt_()  # [..., 1]
    normed = wide * inverse
    # Gemma rounds after the product with the weight, Llama before it.
    gemma = offset != 0.0
    out = normed.mul_(weight + offset).to(x.dtype) if gemma else normed.to(x.dtype) * weight
    return out, inverse


def _norm_slopes(
    grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, offset: float, need_weight: bool
) -> tuple[Tensor, Tensor | None]:
    # Computed again: one pass over memory costs less than keeping another tensor of this size.
    normed = x.to(inverse.dtype) * inverse
    grad = grad.to(inverse.dtype)
    along = grad * normed
    # Summed over all rows in fp32 and rounded once.
    grad_weight = along.flatten(0, -2).sum(0).to(weight.dtype) if need_weight else None
    scale = weight + offset if offset else weight
    # d/dx of x * inverse: what points along the normed vector drops out.
    mean = along.mul_(scale).mean(-1, keepdim=True)
    grad_x = (grad * scale).sub_(normed.mul_(mean)).mul_(inverse)
    return grad_x.to(x.dtype), grad_weight


class _RmsNorm(torch.autograd.Function):
    """x / rms(x) * (offset + weight), with the root mean square in fp32 over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        out: Tensor
        out, inverse = compiled_on(x.device, _normalise_rows)(x, weight, eps, offset)
        ctx.save_for_backward(x, weight, inverse)
        ctx.offset = offset
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, inverse = ctx.saved_tensors
        slopes = compiled_on(x.device, _norm_slopes)
        found = slopes(grads[0], x, weight, inverse, ctx.offset, ctx.needs_input_grad[1])
        return *found, None, None


def _apply_gate(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate).mul_(up)


def _gated_slopes(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


class _GatedSilu(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        out: Tensor = compiled_on(gate.device, _apply_gate)(gate, up)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        gate, up = ctx.saved_tensors
        return compiled_on(gate.device, _gated_slopes)(grads[0], gate, up)


def _rotate_positions(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # Where a model keeps its tables in fp32, the products are in fp32 too.
    width = cos.shape[-1]
    half = width // 2
    turning = x[..., :width].to(torch.promote_types(x.dtype, cos.dtype))
    out = turning * cos
    out[..., :half].addcmul_(turning[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(turning[..., :half], sin[..., half:])
    return _with_rest(out.to(x.dtype), x, width)


def _turned_back(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = cos.shape[-1]
    half = width // 2
    turning = grad[..., :width].to(torch.promote_types(grad.dtype, cos.dtype))
    # The transpose of the rotation: each half gets back what it gave to the other, by the other's
    # sine.
    out = turning * cos
    out[..., :half].addcmul_(turning[..., half:], sin[..., half:])
    out[..., half:].addcmul_(turning[..., :half], sin[..., :half], value=-1)
    return _with_rest(out.to(grad.dtype), grad, width)


def _with_rest(turned: Tensor, x: Tensor, width: int) -> Tensor:
    return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], -1)


class _Rotary(torch.autograd.Function):
    """x * cos + (-x2, x1) * sin, where x1 and x2 are the halves of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        out: Tensor = compiled_on(x.device, _rotate_positions)(x, cos, sin)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        cos, sin = ctx.saved_tensors
        return compiled_on(cos.device, _turned_back)(grads[0], cos, sin), None, None


class _Embedding(torch.autograd.Function):
    """Rows of a table whose gradient goes straight into `into`: a dense gradient of the vocabulary
    would be made, added and thrown away for a few hundred rows."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None, into: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.padding, ctx.into = padding, into
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (ids,) = ctx.saved_tensors
        ids, grad = ids.flatten(), grads[0].flatten(0, -2).to(ctx.into.dtype)
        # As in `nn.Embedding`, the row of the padding token gets no gradient.
        if ctx.padding is not None:
            keep = ids != ctx.padding
            ids, grad = ids[keep], grad[keep]
        ctx.into.index_add_(0, ids, grad)
        return None, None, None, None


class _Linear(torch.autograd.Function):
    """x W^T + b whose weight gradient is added to `into` by the matrix product itself, instead of
    being made, added and thrown away for every micro-batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, into: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.into = into
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight = ctx.saved_tensors
        grad = grads[0].flatten(0, -2)
        add_product(ctx.into, grad.T, x.flatten(0, -2))
        grad_x = (grad @ weight).view_as(x) if ctx.needs_input_grad[0] else None
        grad_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, None, grad_bias, None


def _widen_dtype(dtype: torch.dtype) -> torch.dtype:
    # The proof compares in fp64, which must stay as wide as it is.
    return torch.float64 if dtype == torch.float64 else torch.float32


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """Root-mean-square norm (arXiv 1910.07467) over the last dimension: (..., H), (H,) -> (..., H)
    in x's dtype. `offset` is 1 where a model stores weight - 1, as Gemma does."""
    out: Tensor = _RmsNorm.apply(x, weight, eps, offset)  # type: ignore[no-untyped-call]
    return out


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202), of equal shape and dtype."""
    out: Tensor = _GatedSilu.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


def rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Rotary position embedding (arXiv 2104.09864) of queries (B, H, T, D) and keys (B, K, T, D)
    with cos and sin (B, T, R), R <= D: what lies after the first R stays. transformers' signature;
    the results have the dtypes of q and k, and are computed in that of cos."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    rotated: tuple[Tensor, Tensor] = (_Rotary.apply(q, cos, sin), _Rotary.apply(k, cos, sin))  # type: ignore[no-untyped-call]
    return rotated


def multiply_into(linear: nn.Linear, into: Tensor) -> None:
    """Let the weight's gradient go into `into`, a tensor of its shape, instead of its `.grad`."""

    def forward(self: nn.Linear, input: Tensor) -> Tensor:
        # Nothing would go into `into`; the plain product then keeps no input for a weight's
        # gradient.
        if not torch.is_grad_enabled() or not self.weight.requires_grad:
            return F.linear(input, self.weight, self.bias)
        out: Tensor = _Linear.apply(input, self.weight, self.bias, into)  # type: ignore[no-untyped-call]
        return out

    linear.forward = types.MethodType(forward, linear)  # type: ignore[method-assign]


def embed_into(embedding: nn.Embedding, into: Tensor) -> None:
    """Let the table's gradient go into `into`, a tensor of its shape, instead of its `.grad`."""

    def forward(self: nn.Embedding, input: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or not self.weight.requires_grad:
            return F.embedding(input, self.weight)
        rows: Tensor = _Embedding.apply(  # type: ignore[no-untyped-call]
            self.weight, input, self.padding_idx, into
        )
        return rows

    embedding.forward = types.MethodType(forward, embedding)  # type: ignore[method-assign]
