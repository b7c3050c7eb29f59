"""Packed rows through a transformers model: branch attention as an attention implementation of its
own.

Score requests that begin alike, such as both orders of a pair or all that a judge asks, are
computed as one packed row: the common prefix of the row once, the common prefix of neighbours once
for each group. No padding, and one pass for all labels.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rlaif.engines.local.branch_cache import BranchCache
from rlaif.engines.local.encoding import Row
from rlaif.kernels.attention import branch_attention
from rlaif.kernels.batching import Branches, Layout, fill_batches, packed_layout, padded_layout

NAME = "rlaif_branches"
GROUPS = "branch_groups"
KEEP = "branch_keep"
CACHE = "branch_cache"

# Arguments of transformers' attention functions that change the result in ways not handled here.
UNKNOWN = ("s_aux", "position_bias", "cache")


def _compute_attention(
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
    """The part of a transformers model that returns its last hidden states. In some classes (Llama
    4) `base_model` is the model itself, since its prefix names no attribute."""
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
    """Give `module`, which is known to take it, branch attention, and its own attention back
    afterwards."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _compute_attention)
    before = module.config._attn_implementation
    module.set_attn_implementation(NAME)
    try:
        yield
    finally:
        module.set_attn_implementation(before)


@dataclass(frozen=True, slots=True)
class States:
    """Hidden states of requests, in the order of `rows`: `ends` (B, H) predict the token after
    each prompt, `tails` (N, H) the tokens of the requests' continuations, one after the other."""

    rows: list[Row]
    ends: Tensor
    tails: Tensor


def batches(rows: Sequence[Row], tails: Mapping[str, int], budget: int) -> list[list[Row]]:
    """Requests that begin alike together, each batch of about `budget` tokens to compute at most.
    `tails` counts the continuation tokens at the end of each request's ids."""
    ordered = sorted(rows, key=lambda row: (row.ids, row.request_id))
    sizes = [len(row.ids) for row in ordered]
    for i, shared in enumerate(_count_shared(ordered, tails), start=1):
        sizes[i] -= shared
    return [[ordered[i] for i in part] for part in fill_batches(range(len(ordered)), sizes, budget)]


def states(model: Any, batch: Sequence[Row], tails: Mapping[str, int], packed: bool) -> States:
    """One pass over a batch, as one packed row or as rows of their own."""
    groups = grouped(batch, tails) if packed else [[row] for row in batch]
    rows = [row for group in groups for row in group]
    examples = [example(group, tails) for group in groups]
    layout = (packed_layout(examples) if packed else padded_layout(examples)).to(model.device)
    extra = {} if layout.groups is None else {GROUPS: layout.groups}
    hidden = body_of(model)(
        input_ids=layout.input_ids, position_ids=layout.position_ids, use_cache=False, **extra
    ).last_hidden_state.flatten(0, 1)
    ends, spans, stop = [], [], 0
    for row, length, last in zip(rows, layout.lengths, layout.last, strict=True):
        stop += length
        tail = layout.predict[stop - tails[row.request_id] : stop]
        ends.append(tail[0] if len(tail) else last)
        spans.append(tail)
    return States(rows, hidden[torch.stack(ends)], hidden[torch.cat(spans)])


def grouped(batch: Sequence[Row], tails: Mapping[str, int]) -> list[list[Row]]:
    """Neighbours that share more than the whole batch does, and about as much as the neighbours
    around them do. `batch` is sorted by token ids."""
    shared = _count_shared(batch, tails)
    stem = min(shared, default=0)
    extra = [count - stem for count in shared]
    groups = [[batch[0]]]
    for i, row in enumerate(batch[1:]):
        around = max([0, *extra[max(0, i - 1) : i], *extra[i + 1 : i + 2]])
        if extra[i] and 2 * extra[i] >= around:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _count_shared(rows: Sequence[Row], tails: Mapping[str, int]) -> list[int]:
    """How many tokens of its prompt each row has in common with the row before it, from the
    second on."""
    found = []
    for before, row in pairwise(rows):
        limit = min(len(r.ids) - tails[r.request_id] for r in (before, row))
        pairs = zip(before.ids[:limit], row.ids[:limit], strict=True)
        found.append(next((i for i, (a, b) in enumerate(pairs) if a != b), limit))
    return found


def example(group: Sequence[Row], tails: Mapping[str, int]) -> Branches:
    """What the group begins with, and what each of its rows goes on with."""
    first = group[0]
    common = min(_count_shared(group, tails), default=len(first.ids) - tails[first.request_id])
    return first.ids[:common], [row.ids[common:] for row in group]
