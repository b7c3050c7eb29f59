"""Where the hidden states are from which score requests are answered.

Requests that begin alike, such as both orders of a pair or all that a judge asks, are computed as
one packed row: what all of the row begin with once, what neighbours begin with once for each of
them. No padding, and one pass for all labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rlaif.engines.local.layout import Row
from rlaif.engines.local.packing import GROUPS, body_of
from rlaif.kernels.batching import Branches, fill, packed_layout, padded_layout


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
    for i, shared in enumerate(_shared(ordered, tails), start=1):
        sizes[i] -= shared
    return [[ordered[i] for i in part] for part in fill(range(len(ordered)), sizes, budget)]


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
    shared = _shared(batch, tails)
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


def _shared(rows: Sequence[Row], tails: Mapping[str, int]) -> list[int]:
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
    common = min(_shared(group, tails), default=len(first.ids) - tails[first.request_id])
    return first.ids[:common], [row.ids[common:] for row in group]
