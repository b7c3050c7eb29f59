"""Token log-probabilities straight from hidden states: the logits tensor is never made.

The vocabulary is walked in blocks and the tokens in tiles: the forward pass keeps a running
log-sum-exp and the target's logit, the backward pass recomputes each tile. The memory beyond inputs
and gradients is one tile of logits, whatever the vocabulary and however many tokens. On a GPU the
work on a tile is compiled, and cut cross-entropy's kernel takes its place where it is installed and
computes what is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlaif.kernels.device import compiled_on

# Tokens and vocabulary entries of one tile of logits. On a CPU a tile should stay in the cache.
CPU_TILE = (512, 4096)
NARROW = (torch.bfloat16, torch.float16)
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
    return _compute_logprobs(hidden, weight, targets, bias, options)[0]


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
    return _compute_logprobs(hidden, weight, targets, bias, options)


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
        return _widen_dtype(weight.dtype) if self.fp32_head else weight.dtype

    def tile_on(self, device: torch.device) -> tuple[int, int]:
        """Tokens and vocabulary entries of one tile."""
        return self.tile or (GPU_TILE if device.type == "cuda" else CPU_TILE)


def _compute_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    options: _Options,
) -> tuple[Tensor, Tensor]:
    if hidden.shape[0] == 0:
        # A sum and no new tensor, so that it stays in the graph and `backward` works on it.
        empty = hidden.sum(-1).to(_widen_dtype(weight.dtype))
        return empty, empty
    if hidden.is_cuda and _cut_cross_entropy() and _cut_fits(weight, bias, options):
        cut = _run_cut_cross_entropy(hidden, weight, targets, options)
        # Nobody looks at it: the kernel is not taken where the entropy is asked for.
        return cut, torch.zeros_like(cut)
    result: tuple[Tensor, Tensor] = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, options
    )
    return result


@functools.cache
def _cut_cross_entropy() -> Any:
    """Cut cross-entropy's kernel (arXiv 2411.09009) where that package is installed, else None."""
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError:
        return None
    return linear_cross_entropy


def uses_cut_cross_entropy(dtype: torch.dtype) -> bool:
    """Whether a GPU leaves plain log-probs in `dtype` to cut cross-entropy's kernel."""
    return _cut_cross_entropy() is not None and dtype in NARROW


def _cut_fits(weight: Tensor, bias: Tensor | None, options: _Options) -> bool:
    """Whether that kernel computes what is asked for."""
    plain = bias is None and options.temperature == 1.0 and options.tile is None
    narrow = weight.dtype in NARROW and not options.fp32_head
    return plain and narrow and not options.with_entropy


def _run_cut_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, options: _Options
) -> Tensor:
    # The kernel makes a whole gradient of its own, which is added to `into` afterwards.
    if options.weight_grad_into is not None and weight.requires_grad:
        weight = _GradientInto.apply(weight, options.weight_grad_into)  # type: ignore[no-untyped-call]
    # By default the kernel leaves out gradients that are too small for bf16.
    loss = _cut_cross_entropy()(
        hidden.to(weight.dtype),
        weight,
        targets,
        softcap=options.softcap,
        reduction="none",
        filter_eps=None,
    )
    result: Tensor = -loss.float()
    return result


class _GradientInto(torch.autograd.Function):
    """A tensor as it is, whose gradient is added to `into`."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, into: Tensor) -> Tensor:
        ctx.into = into
        # A view, so that the output is a tensor of its own, with this function in its history.
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.into.add_(grads[0])
        return None, None


def _widen_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _split_spans(count: int, width: int) -> Iterator[slice]:
    for start in range(0, count, width):
        yield slice(start, min(start + width, count))


def _compute_logits(
    inputs: Tensor, block: Tensor, bias: Tensor | None, options: _Options
) -> Tensor:
    """One tile of logits in fp32, as they enter the softmax."""
    logits = (inputs @ block.T).to(_widen_dtype(inputs.dtype))  # [tokens, vocabulary]
    if bias is not None:
        logits += bias
    if options.softcap is not None:
        logits.div_(options.softcap).tanh_().mul_(options.softcap)
    return logits if options.temperature == 1.0 else logits.div_(options.temperature)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, without a tensor in between where the dtypes allow."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _locate_targets(targets: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(N, 1) each target's column in a tile of `width` columns, and (N,) whether it is there."""
    # Clamped so that `gather` stays in bounds; the mask drops what belongs to another tile.
    return targets.clamp(0, width - 1)[:, None], (targets >= 0) & (targets < width)


def _reduce_tile(
    logits: Tensor, targets: Tensor, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of one tile (N, W), each (N,): its log-sum-exp, the target's logit or 0 where the target is
    not here, and the mean logit under the tile's own softmax. `targets` count from the tile."""
    total = logits.logsumexp(-1)
    column, here = _locate_targets(targets, logits.shape[1])
    picked = logits.gather(1, column)[:, 0].masked_fill(~here, 0.0)
    mean = None
    if with_entropy:
        mean = ((logits - total[:, None]).exp_() * logits).sum(-1)
    return total, picked, mean


def _compute_gradient(
    logits: Tensor,
    targets: Tensor,
    total: Tensor,
    scale: Tensor,
    entropy: Tensor,
    scale_entropy: Tensor | None,
    softcap: float | None,
    temperature: float,
) -> Tensor:
    """The gradient (N, W) with respect to what the matrix product gave, in place of `logits`.

    `total` (N,) is the log-sum-exp over the whole vocabulary; `scale` and `scale_entropy` (N,) are
    the gradients of the log-probs and entropies.
    """
    # The slope of the cap needs the capped logits, which the next line overwrites.
    capped = logits.clone() if softcap is not None else logits
    shifted = logits.sub_(total[:, None])
    if scale_entropy is None:
        # d logprob / d logit = onehot - p; the one-hot part follows below.
        grad = shifted.exp_().mul_(-scale[:, None])
    else:
        # dH / d logit = -p (log p + H).
        slope = (shifted + entropy[:, None]).mul_(-scale_entropy[:, None])
        grad = shifted.exp_().mul_(slope.sub_(scale[:, None]))
    column, here = _locate_targets(targets, logits.shape[1])
    grad.scatter_add_(1, column, scale.masked_fill(~here, 0.0)[:, None])
    if softcap is not None:
        # tanh' = 1 - tanh^2. `capped` has been divided by the temperature, which is undone here.
        grad.mul_(1.0 - (capped * (temperature / softcap)).square_())
    return grad if temperature == 1.0 else grad.div_(temperature)


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
        sums, with_entropy = compiled_on(hidden.device, _reduce_tile), options.with_entropy
        inputs = hidden.to(dtype)
        # Of each token, over the vocabulary seen so far.
        total = torch.full(
            (len(inputs),), -torch.inf, dtype=_widen_dtype(dtype), device=hidden.device
        )
        picked, mean = torch.zeros_like(total), torch.zeros_like(total)
        # The vocabulary in the outer loop: each block of weights is cast once for all tokens.
        for words in _split_spans(len(weight), tile[1]):
            block = weight[words].to(dtype)
            for tokens in _split_spans(len(inputs), tile[0]):
                part = None if bias is None else bias[words]
                logits = _compute_logits(inputs[tokens], block, part, options)
                here, found, inside = sums(logits, targets[tokens] - words.start, with_entropy)
                picked[tokens] += found
                joined = torch.logaddexp(total[tokens], here)
                # Both parts of the mean are weighed anew by their shares of the joint sum. In the
                # first block `total` is -inf, and its share 0.
                if inside is not None:
                    mean[tokens] = mean[tokens] * (total[tokens] - joined).exp()
                    mean[tokens] += inside * (here - joined).exp()
                total[tokens] = joined
        # H = log-sum-exp - E[logit].
        entropy = total - mean if with_entropy else torch.zeros_like(total)
        # The gradient of an unused output is then None, and the backward pass leaves its terms out.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, targets, total, entropy)
        ctx.options = options
        return picked - total, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden, weight, bias, targets, total, entropy = ctx.saved_tensors
        options: _Options = ctx.options
        dtype, tile = options.dtype(weight), options.tile_on(hidden.device)
        slopes = compiled_on(hidden.device, _compute_gradient)
        inputs = hidden.to(dtype)
        scale = torch.zeros_like(total) if grads[0] is None else grads[0].to(total.dtype)
        scale_entropy = None if grads[1] is None else grads[1].to(total.dtype)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        # Summed over the blocks of the vocabulary in fp32.
        grad_hidden = torch.zeros_like(inputs, dtype=total.dtype) if need_hidden else None
        into = options.weight_grad_into
        # Not zeroed: every block of it is written below.
        grad_weight = torch.empty_like(weight) if need_weight and into is None else None
        grad_bias = torch.empty_like(bias) if need_bias else None
        for words in _split_spans(len(weight), tile[1]):
            block = weight[words].to(dtype)
            # Summed over the tiles in fp32 and rounded once.
            sum_weight = None
            if need_weight and into is not None:
                sum_weight = into[words]
            elif need_weight:
                sum_weight = torch.zeros_like(block, dtype=total.dtype)
            sum_bias = torch.zeros(len(block), dtype=total.dtype, device=block.device)
            for tokens in _split_spans(len(inputs), tile[0]):
                part = None if bias is None else bias[words]
                logits = _compute_logits(inputs[tokens], block, part, options)
                grad = slopes(
                    logits,
                    targets[tokens] - words.start,
                    total[tokens],
                    scale[tokens],
                    entropy[tokens],
                    None if scale_entropy is None else scale_entropy[tokens],
                    options.softcap,
                    options.temperature,
                )
                if need_bias:
                    sum_bias += grad.sum(0)
                # Back to the dtype of the products, in which they are fast.
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
