"""How requests are laid out in batches: a pure function of the request set.

Rows are sorted by length and cut into batches of a token budget, so a rerun or a resumed run makes
exactly the same batches, and in bf16 exactly the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH_STEP = 16


@dataclass(frozen=True, slots=True)
class Row:
    """One request, tokenised. `new` is how many tokens it may add."""

    request_id: str
    ids: list[int]
    new: int


def bucket(length: int, step: int = WIDTH_STEP) -> int:
    """`length` rounded up to a whole `step`."""
    return -(-length // step) * step


def batches(rows: Sequence[Row], batch_tokens: int, share_prompts: bool = False) -> list[list[Row]]:
    """Rows in batches of equal `new` and similar length; rows x (width + new) <= `batch_tokens`.
    With `share_prompts` equal prompts are held once: (prompts x width) + (rows x new).

    A row that alone exceeds the budget gets a batch of its own.
    """
    ordered = sorted(rows, key=lambda r: (r.new, len(r.ids), r.ids, r.request_id))
    result: list[list[Row]] = []
    current: list[Row] = []
    prompts = 0
    for row in ordered:
        fresh = not (share_prompts and current and row.ids == current[-1].ids)
        # Rows come by length: this one's width is the batch's.
        size = (prompts + fresh) * bucket(len(row.ids)) + (len(current) + 1) * row.new
        if current and (size > batch_tokens or row.new != current[0].new):
            result.append(current)
            current, prompts, fresh = [], 0, True
        current.append(row)
        prompts += fresh
    if current:
        result.append(current)
    return result
