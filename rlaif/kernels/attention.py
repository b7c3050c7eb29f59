"""Attention over packed rows: branches of one prompt see that prompt and themselves, nothing else.
A prompt sees itself and the stem, what all prompts of the row begin with.

On a CPU every group is computed at its own exact size, so masked blocks cost nothing. On a GPU one
FlexAttention call skips them by a block mask; where that cannot be compiled, groups are computed
one by one there too, and a warning says why.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from rlaif.kernels.batching import Group

log = logging.getLogger(__name__)

STEM = -1
"""The number that stands for a group in the stem, which belongs to all of them."""
PADDING = -2
"""The number that stands for a group in what fills a row up to whole blocks."""
BLOCK = 128
"""Tokens in a block of FlexAttention's mask."""
LEAST_BLOCKS = 2
"""A row of one block would have a graph of its own: a dimension of size 1 is never dynamic."""
GRAPHS = 64
"""Graphs that torch may compile of one function before it gives up: one for each dtype, grad mode,
ratio of heads, window and soft cap that a process meets."""


def branch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Sequence[Group],
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of one packed row: query (1, H, T, D), key and value (1, K, T, D) with K dividing
    H -> (1, H, T, D).

    `window` limits how many positions back a token sees, itself included; positions are those in
    its own sequence. `softcap` c replaces each score s by c tanh(s / c).
    """
    if uses_flex(query.device):
        try:
            return _attend_flex(query, key, value, tuple(groups), scale, window, softcap)
        except torch.OutOfMemoryError:
            # Running out of memory is about this row alone, and giving up is for the whole process.
            raise
        except Exception as error:
            # Whatever keeps a kernel from being compiled, the groups can be computed without it.
            give_up_flex(error)
    # The kernel behind it has no soft cap, and a window would need a mask for every piece.
    if query.device.type == "cpu" and window is None and softcap is None:
        mixed: Tensor = _BranchAttention.apply(query, key, value, groups, scale)  # type: ignore[no-untyped-call]
        return mixed
    repeat = query.shape[1] // key.shape[1]
    # Head h of the queries belongs to key head h // repeat, hence interleaved copies.
    if repeat > 1:
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    stem = slice(0, groups[0].stem)
    parts = [query[:, :, stem]]
    if groups[0].stem:
        parts = [
            _attend_causally(
                query[:, :, stem], key[:, :, stem], value[:, :, stem], scale, window, softcap
            )
        ]
    for group in groups:
        prompt = slice(group.start, group.start + group.prompt)
        # The prompt and the first branch are one plain causal sequence.
        first = slice(group.start, prompt.stop + sum(group.branches[:1]))
        spans: list[tuple[tuple[slice, ...], slice]] = [((stem, first), first)]
        stop = first.stop
        for length in group.branches[1:]:
            own = slice(stop, stop + length)
            stop += length
            spans.append(((stem, prompt, own), own))
        for seen, own in spans:
            keys = torch.cat([key[:, :, span] for span in seen], 2)
            values = torch.cat([value[:, :, span] for span in seen], 2)
            parts.append(_attend_causally(query[:, :, own], keys, values, scale, window, softcap))
    return torch.cat(parts, 2)


SHORT = 256
"""Keys up to which the kernel's backward is two to five times slower in bf16 than in fp32, the
casts included: it packs each block of a few rows anew."""
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True)
class _Piece:
    """One call of the attention kernel: which queries look at which keys, and whether both are the
    same span, seen causally. `adds`: its result joins an earlier piece's."""

    queries: slice
    keys: slice
    causal: bool
    adds: bool


def _split_pieces(groups: Sequence[Group]) -> Iterator[_Piece]:
    after = groups[0].stem > 0
    # Each later piece then joins what its queries have seen of the stem.
    if after:
        stem = slice(0, groups[0].stem)
        last = groups[-1]
        yield _Piece(stem, stem, causal=True, adds=False)
        # All groups see the whole stem, so one call without a mask serves them all.
        rest = slice(stem.stop, last.start + last.prompt + sum(last.branches))
        yield _Piece(rest, stem, causal=False, adds=False)
    for group in groups:
        prompt = slice(group.start, group.start + group.prompt)
        # The prompt and the first branch are one plain causal sequence.
        first = slice(group.start, prompt.stop + sum(group.branches[:1]))
        yield _Piece(first, first, causal=True, adds=after)
        rest = slice(first.stop, prompt.stop + sum(group.branches))
        # With one branch or none the causal call above was the whole group.
        if rest.start == rest.stop:
            continue
        # The other branches all see the whole prompt: again one call without a mask.
        yield _Piece(rest, prompt, causal=False, adds=after)
        stop = rest.start
        for length in group.branches[1:]:
            own = slice(stop, stop + length)
            stop += length
            # An empty branch has no queries to compute.
            if length:
                yield _Piece(own, own, causal=True, adds=True)


class _BranchAttention(torch.autograd.Function):
    """Nothing is masked, concatenated or repeated: what a branch sees of its prompt and of itself
    are two results, joined by their log-sum-exps, and the kernel's own backward takes the joined
    ones for each part (as in Ring Attention, arXiv 2310.01889)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        groups: Sequence[Group],
        scale: float | None,
    ) -> Tensor:
        batch, heads, tokens, width = query.shape
        # The layout in which the output projection reads it.
        out = query.new_empty((batch, tokens, heads, width)).transpose(1, 2)
        # In fp32: in bf16 a log-sum-exp is off by hundredths, and the weights of joined parts by
        # percents.
        total = query.new_empty((batch, heads, tokens), dtype=_sum_dtype(query.dtype))
        for piece in _split_pieces(groups):
            # Fewer key heads than query heads are taken as they are.
            part, log_sum = _flash(
                query[:, :, piece.queries],
                key[:, :, piece.keys],
                value[:, :, piece.keys],
                0.0,
                piece.causal,
                scale=scale,
            )
            if piece.adds:
                # The softmax over both spans: each part was normalised over its own keys, so it now
                # counts by its share of the joint sum.
                before = total[:, :, piece.queries]
                joined = torch.logaddexp(before, log_sum)
                kept = out[:, :, piece.queries] * (before - joined).exp_()[..., None]
                part = kept + part * (log_sum - joined).exp_()[..., None]
                log_sum = joined
            out[:, :, piece.queries] = part
            total[:, :, piece.queries] = log_sum
        ctx.save_for_backward(query, key, value, out, total)
        ctx.groups, ctx.scale = groups, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, out, total = ctx.saved_tensors
        # In fp32: a prompt's keys collect gradients from all branches, and bf16 would lose small
        # ones.
        sums = tuple(_zeros_by_token(t) for t in (query, key, value))
        for piece in _split_pieces(ctx.groups):
            inputs = (
                grads[0][:, :, piece.queries],
                query[:, :, piece.queries],
                key[:, :, piece.keys],
                value[:, :, piece.keys],
                out[:, :, piece.queries],
            )
            if piece.keys.stop - piece.keys.start <= SHORT:
                inputs = tuple(t.to(sums[0].dtype) for t in inputs)
            parts = _flash_backward(
                *inputs, total[:, :, piece.queries], 0.0, piece.causal, scale=ctx.scale
            )
            spans = (piece.queries, piece.keys, piece.keys)
            for whole, part, span in zip(sums, parts, spans, strict=True):
                whole[:, :, span] += part
        return *(t.to(query.dtype) for t in sums), None, None


def _zeros_by_token(like: Tensor) -> Tensor:
    """Zeros of (B, H, T, D) to sum in, whose memory is in the order of a projection's output."""
    batch, heads, tokens, width = like.shape
    shape = (batch, tokens, heads, width)
    return like.new_zeros(shape, dtype=_sum_dtype(like.dtype)).transpose(1, 2)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _attend_causally(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """The queries are the last of the keys' positions."""
    queries, keys = query.shape[2], key.shape[2]
    narrow = window is not None and window < keys
    if queries == keys and not narrow and softcap is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    seen = _build_mask(queries, keys, window if narrow else None, query.device)
    if softcap is None:
        bias = torch.zeros_like(seen, dtype=query.dtype).masked_fill_(~seen, -torch.inf)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.tanh(query @ key.mT * (factor / softcap)) * softcap
    # The softmax runs in fp32 at least, as the fused kernels have it.
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    weights = wide.masked_fill(~seen, -torch.inf).softmax(-1)
    return weights.to(value.dtype) @ value


def _build_mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """(queries, keys) bool: what each of the last positions sees."""
    ahead = torch.arange(keys - queries, keys, device=device)[:, None]
    back = ahead - torch.arange(keys, device=device)[None]
    return (back >= 0) if window is None else (back >= 0) & (back < window)


def locate_tokens(groups: Sequence[Group]) -> tuple[Tensor, Tensor, Tensor]:
    """(T,) int64 each: the group of every token (STEM for the stem), its branch (0 for the prompt)
    and its position."""
    stem = groups[0].stem
    group_of, branch_of = [torch.full((stem,), STEM)], [torch.full((stem,), 0)]
    position = [torch.arange(stem)]
    for number, group in enumerate(groups):
        for branch, length in enumerate((group.prompt, *group.branches)):
            group_of.append(torch.full((length,), number))
            branch_of.append(torch.full((length,), branch))
            # Branches are alternatives: each goes on at the position after the prompt.
            first = stem if branch == 0 else stem + group.prompt
            position.append(torch.arange(first, first + length))
    return torch.cat(group_of), torch.cat(branch_of), torch.cat(position)


@functools.lru_cache(maxsize=4)
# Inference tensors would make graphs of their own, and the mask outlives the mode it is made in.
@torch.inference_mode(False)
def block_mask(groups: tuple[Group, ...], window: int | None, device: str) -> Any:
    """FlexAttention's block mask of a packed row, filled up to whole blocks."""
    from torch.nn.attention.flex_attention import create_block_mask

    parts = locate_tokens(groups)
    filling = fill_to_blocks(len(parts[0])) - len(parts[0])
    # What fills the row sees itself alone, so that its softmax is over something.
    fillers = (torch.full((filling,), PADDING), torch.zeros(filling, dtype=torch.int64))
    ends = (*fillers, torch.arange(filling))
    group_of, branch_of, position = (
        torch.cat(pair).to(device) for pair in zip(parts, ends, strict=True)
    )

    def sees_key(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        # Branches of a group share positions, so the order of positions alone would not keep them
        # apart.
        shared = (branch_of[k] == 0) | (branch_of[k] == branch_of[q])
        own = (group_of[q] == group_of[k]) | (group_of[k] == STEM)
        visible = own & shared & (position[q] >= position[k])
        if window is not None:
            visible = visible & (position[q] - position[k] < window)
        return visible

    tokens = len(position)
    return create_block_mask(sees_key, None, None, tokens, tokens, device=device, BLOCK_SIZE=BLOCK)


@functools.cache
@torch.inference_mode(False)
def make_scalar(value: float, device: str) -> Tensor:
    """() fp32: a number as a tensor. A float that a graph captures becomes a symbol, with which
    FlexAttention's backward cannot be compiled."""
    return torch.tensor(value, dtype=torch.float32, device=device)


def fill_to_blocks(tokens: int) -> int:
    """The length of a row of so many tokens once it is filled up to whole blocks."""
    return max(LEAST_BLOCKS, -(-tokens // BLOCK)) * BLOCK


def uses_flex(device: torch.device) -> bool:
    """Whether packed rows on `device` go through one FlexAttention call."""
    return device.type == "cuda" and _Flex.failure is None


class _Flex:
    """Why FlexAttention is not used in this process any more; None while it is."""

    failure: str | None = None


def flex_failure() -> str | None:
    """Why a GPU computes packed rows group by group, or None where one fused kernel does."""
    return _Flex.failure


def give_up_flex(error: BaseException) -> None:
    """Compute packed rows without FlexAttention from here on, and say so once."""
    if _Flex.failure is None:
        _Flex.failure = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        log.warning(
            "FlexAttention cannot be used, so packed rows are computed group by group, which is "
            "slower: %s",
            _Flex.failure,
        )


@functools.cache
def compiled_flex(backend: str = "inductor") -> Any:
    """FlexAttention in graphs of torch's compiler. It raises where it cannot be compiled: left to
    itself torch would run it unfused, and hold the scores of all heads in memory at once."""
    from torch._dynamo import config
    from torch.fx.experimental import _config as shapes
    from torch.nn.attention.flex_attention import flex_attention

    config.recompile_limit = max(config.recompile_limit, GRAPHS)

    def attend_flex(*inputs: Tensor, **options: Any) -> Any:
        return cast(Any, flex_attention)(*inputs, **options)

    compiled = torch.compile(attend_flex, dynamic=True, fullgraph=True, backend=backend)

    def call_compiled(*inputs: Tensor, **options: Any) -> Any:
        # Else a row of as many blocks as there are heads would make a graph for that number alone.
        with shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            return compiled(*inputs, **options)

    return call_compiled


def _attend_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: tuple[Group, ...],
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    limit = make_scalar(softcap or 1.0, str(query.device))

    def cap_score(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return torch.tanh(score / limit) * limit

    tokens = query.shape[2]
    # Whole blocks are what every length has in common, so one graph serves them all.
    filling = fill_to_blocks(tokens) - tokens
    query, key, value = (
        F.pad(t, (0, 0, 0, filling)) if filling else t for t in (query, key, value)
    )
    result: Tensor = compiled_flex()(
        query,
        key,
        value,
        score_mod=None if softcap is None else cap_score,
        block_mask=block_mask(groups, window, str(query.device)),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return result[:, :, :tokens]
