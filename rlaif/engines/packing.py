"""Packed rows through a transformers model: branch attention as an attention implementation of its
own, and the check that a model really keeps the branches apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rlaif.attention import branch_attention
from rlaif.batching import Branches, packed_layout, padded_layout
from rlaif.engines.branch_cache import BranchCache

NAME = "rlaif_branches"
GROUPS = "branch_groups"
KEEP = "branch_keep"
CACHE = "branch_cache"
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference between packed and padded hidden states, relative to their largest value."""

# Arguments of transformers' attention functions that change the result in ways not handled here.
UNKNOWN = ("s_aux", "position_bias", "cache")


class _Seen:
    """The windows that layers asked for, written down during a check."""

    windows: list[int | None] | None = None


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """See transformers' attention interface. One of two arguments says what the rows are: GROUPS
    of a packed row, whose keys and values go into the list KEEP where it is given, or the CACHE of
    rows that are at their next token."""
    for name in UNKNOWN:
        if arguments.get(name) is not None:
            raise ValueError(f"the attention uses {name}")
    cache: BranchCache | None = arguments.get(CACHE)
    if cache is not None:
        layer = module.layer_idx
        return cache.attend(layer, query, key, value, scaling, sliding_window, softcap), None
    groups = arguments.get(GROUPS)
    if groups is None:
        raise ValueError("the model does not hand its arguments on to attention")
    kept = arguments.get(KEEP)
    if kept is not None:
        kept.append((key, value))
    if _Seen.windows is not None:
        _Seen.windows.append(sliding_window)
    out = branch_attention(query, key, value, groups, scaling, sliding_window, softcap)
    return out.transpose(1, 2).contiguous(), None


def plain_attention(config: Any) -> str:
    """The implementation for padded rows: transformers' fast one leaves soft-capping out."""
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return "eager" if capped else "sdpa"


@contextmanager
def packing(module: Any) -> Iterator[None]:
    """Branch attention in `module`, which was found to take it, and its own again afterwards."""
    before = module.config._attn_implementation
    module.set_attn_implementation(NAME)
    try:
        yield
    finally:
        module.set_attn_implementation(before)


def use_packing(module: Any) -> str | None:
    """Switch `module`, a causal language model, to packed rows where they give what padded
    rows give; else leave it and return why not."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    before = module.config._attn_implementation
    device = next(module.parameters()).device
    padded = _hidden(module, padded_layout(_probe(module)).to(device), {})
    # The rows of the padded layout end in padding; `predict` and `last` point at the same tokens.
    problem = None
    try:
        module.set_attn_implementation(NAME)
        layout = packed_layout(_probe(module)).to(device)
        _Seen.windows = []
        packed = _hidden(module, layout, {GROUPS: layout.groups})
        problem = _difference(padded, packed, TOLERANCE[module.dtype]) or _windows(
            module, _Seen.windows
        )
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        problem = str(error).splitlines()[0]
    finally:
        _Seen.windows = None
    if problem is not None:
        module.set_attn_implementation(before)
    return problem


def _probe(module: Any) -> list[Branches]:
    """Two prompts that begin alike, with three and two branches."""
    vocabulary = int(module.config.get_text_config().vocab_size)
    ids = [(i * 37 + 11) % vocabulary for i in range(40)]
    return [
        (ids[:6], [ids[6:10], ids[10:13], ids[13:18]]),
        ([*ids[:2], *ids[20:24]], [ids[24:31], ids[31:33]]),
    ]


@torch.no_grad()
def _hidden(module: Any, layout: Any, extra: dict[str, Any]) -> Tensor:
    """The last hidden states that predict the layout's targets."""
    hidden = module.base_model(
        input_ids=layout.input_ids, position_ids=layout.position_ids, use_cache=False, **extra
    ).last_hidden_state
    states: Tensor = hidden.flatten(0, 1).index_select(0, layout.predict).float()
    return states


def _difference(padded: Tensor, packed: Tensor, tolerance: float) -> str | None:
    gap = float((padded - packed).abs().max() / padded.abs().max().clamp(min=1e-9))
    if gap <= tolerance:
        return None
    return f"packed and padded hidden states differ by {gap:.2g}"


def _windows(module: Any, seen: list[int | None]) -> str | None:
    """A short probe cannot show a window, so every layer that has one must have asked for it."""
    config = module.config.get_text_config()
    layers = int(config.num_hidden_layers)
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if types is None:
        wanted = layers if window and getattr(config, "use_sliding_window", True) else 0
    else:
        wanted = sum(kind != "full_attention" for kind in types)
    asked = sum(width is not None for width in seen)
    if asked == wanted and len(seen) == layers:
        return None
    return (
        f"{asked} of {len(seen)} attention layers asked for a window; {wanted} of {layers} have one"
    )
