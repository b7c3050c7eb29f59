"""Packed rows through a transformers model: branch attention as an attention implementation of its
own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from rlaif.engines.local.branch_cache import BranchCache
from rlaif.kernels.attention import branch_attention
from rlaif.kernels.batching import Layout

NAME = "rlaif_branches"
GROUPS = "branch_groups"
KEEP = "branch_keep"
CACHE = "branch_cache"

# Arguments of transformers' attention functions that change the result in ways not handled here.
UNKNOWN = ("s_aux", "position_bias", "cache")


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
    out = branch_attention(query, key, value, groups, scaling, sliding_window, softcap)
    return out.transpose(1, 2).contiguous(), None


def plain_attention(config: Any) -> str | None:
    """The implementation for padded rows: transformers' choice (None) for the architecture, but
    `eager` where scores are capped, which its fast one leaves out."""
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return "eager" if capped else None


def body_of(module: Any) -> Any:
    """What of a transformers model gives its last hidden states. In some classes (Llama 4) the
    name that says where it is names nothing."""
    body = module.base_model
    return getattr(module, "model", module) if body is module else body


def hidden_states(body: Any, layout: Layout) -> Tensor:
    """(R*T, H) last hidden states of the layout's rows by a transformers body, which must be in
    `packing` for packed rows."""
    given: dict[str, Any] = {"input_ids": layout.input_ids}
    if layout.groups is not None:
        given |= {GROUPS: layout.groups, "position_ids": layout.position_ids}
    states: Tensor = body(**given, **without_cache(body.__class__)).last_hidden_state
    return states.flatten(0, 1)


@functools.cache
def without_cache(kind: Any) -> dict[str, bool]:
    """The argument that keeps a transformers class from keeping keys; none where it has no such."""
    parameters = inspect.signature(kind.forward).parameters
    takes = "use_cache" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {"use_cache": False} if takes else {}


@contextmanager
def packing(module: Any) -> Iterator[None]:
    """Branch attention in `module`, which was found to take it, and its own again afterwards."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    before = module.config._attn_implementation
    module.set_attn_implementation(NAME)
    try:
        yield
    finally:
        module.set_attn_implementation(before)
