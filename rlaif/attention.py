"""Attention over packed rows: branches of one prompt see that prompt and themselves, nothing else.

On a CPU every group is computed at its own exact size, so masked blocks cost nothing. On a GPU one
FlexAttention call skips them by a block mask.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlaif.batching import Group


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
    if query.device.type == "cuda":
        return _flex(query, key, value, tuple(groups), scale, window, softcap)
    repeat = query.shape[1] // key.shape[1]
    if repeat > 1:
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    parts = []
    for group in groups:
        # The prompt and the first branch are one plain causal sequence.
        stop = group.start + group.prompt + sum(group.branches[:1])
        own = slice(group.start, stop)
        parts.append(
            _causal(query[:, :, own], key[:, :, own], value[:, :, own], scale, window, softcap)
        )
        prompt = slice(group.start, group.start + group.prompt)
        for length in group.branches[1:]:
            own = slice(stop, stop + length)
            stop += length
            keys = torch.cat((key[:, :, prompt], key[:, :, own]), 2)
            values = torch.cat((value[:, :, prompt], value[:, :, own]), 2)
            parts.append(_causal(query[:, :, own], keys, values, scale, window, softcap))
    return torch.cat(parts, 2)


def _causal(
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
    seen = _seen(queries, keys, window if narrow else None, query.device)
    if softcap is None:
        bias = torch.zeros_like(seen, dtype=query.dtype).masked_fill_(~seen, -torch.inf)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.tanh(query @ key.mT * (factor / softcap)) * softcap
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    weights = wide.masked_fill(~seen, -torch.inf).softmax(-1)
    return weights.to(value.dtype) @ value


def _seen(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """(queries, keys) bool: what each of the last positions sees."""
    ahead = torch.arange(keys - queries, keys, device=device)[:, None]
    back = ahead - torch.arange(keys, device=device)[None]
    return (back >= 0) if window is None else (back >= 0) & (back < window)


def segments(groups: Sequence[Group]) -> tuple[Tensor, Tensor, Tensor]:
    """(T,) int64 each: the group of every token, its branch (0 for the prompt) and its position."""
    group_of, branch_of, position = [], [], []
    for number, group in enumerate(groups):
        for branch, length in enumerate((group.prompt, *group.branches)):
            group_of.append(torch.full((length,), number))
            branch_of.append(torch.full((length,), branch))
            first = 0 if branch == 0 else group.prompt
            position.append(torch.arange(first, first + length))
    return torch.cat(group_of), torch.cat(branch_of), torch.cat(position)


@functools.lru_cache(maxsize=4)
def block_mask(groups: tuple[Group, ...], window: int | None, device: str) -> Any:
    """FlexAttention's block mask of a packed row."""
    from torch.nn.attention.flex_attention import create_block_mask

    group_of, branch_of, position = (t.to(device) for t in segments(groups))

    def seen(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        shared = (branch_of[k] == 0) | (branch_of[k] == branch_of[q])
        visible = (group_of[q] == group_of[k]) & shared & (position[q] >= position[k])
        if window is not None:
            visible = visible & (position[q] - position[k] < window)
        return visible

    tokens = len(position)
    return create_block_mask(seen, None, None, tokens, tokens, device=device)


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: tuple[Group, ...],
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    limit = softcap or 1.0

    def cap(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return torch.tanh(score / limit) * limit

    mask = block_mask(groups, window, str(query.device))
    result: Tensor = _compiled_flex()(
        query,
        key,
        value,
        score_mod=None if softcap is None else cap,
        block_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return result
