"""From token ids to tensors, and from examples to an order of batches.

A `Layout` is all that a loss needs to know: which hidden states predict which target tokens, and
how many targets each sequence has. The padded layout below is one way to make it; any other way of
placing sequences in rows only has to fill in the same fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlaif.records import content_hash


@dataclass(frozen=True, slots=True)
class Layout:
    """Token ids in rows and where the completions lie in them.

    input_ids (R, T) int64. attention_mask None means plain causal attention. position_ids (R, T)
    int64 or None for 0..T-1. predict (N,) int64 indexes the R*T flattened hidden states whose next
    token is targets (N,) int64. Targets are grouped by sequence: `lengths` counts them. `tokens`
    counts real (not padding) tokens.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    predict: Tensor
    targets: Tensor
    lengths: list[int]
    tokens: int

    def to(self, device: torch.device) -> Layout:
        """The same layout on another device."""
        moved = {
            name: value.to(device)
            for name in ("input_ids", "attention_mask", "position_ids", "predict", "targets")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved)


def padded_layout(sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Layout:
    """One row per (prompt_ids, completion_ids), padded on the right with token 0.

    No mask is needed: under causal attention the padding comes too late to be seen. Prompts must
    not be empty, since the first completion token is predicted from the last prompt token.
    """
    width = max(len(prompt) + len(completion) for prompt, completion in sequences)
    ids = torch.zeros((len(sequences), width), dtype=torch.int64)
    predict: list[Tensor] = []
    targets: list[int] = []
    lengths: list[int] = []
    tokens = 0
    for row, (prompt, completion) in enumerate(sequences):
        if not prompt:
            raise ValueError("a sequence needs at least one prompt token")
        whole = [*prompt, *completion]
        ids[row, : len(whole)] = torch.tensor(whole, dtype=torch.int64)
        first = row * width + len(prompt) - 1
        predict.append(torch.arange(first, first + len(completion)))
        targets += completion
        lengths.append(len(completion))
        tokens += len(whole)
    return Layout(
        ids,
        None,
        None,
        torch.cat(predict),
        torch.tensor(targets, dtype=torch.int64),
        lengths,
        tokens,
    )


def sequence_sums(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """(N,) values grouped by sequence -> (S,) sums, in an order of addition that never changes."""
    return torch.stack([part.sum() for part in torch.split(values, list(lengths))])


def plan_epoch(
    lengths: Sequence[int], batch_size: int, micro_batch_size: int, seed: int, epoch: int
) -> list[list[list[int]]]:
    """The examples of one epoch as batches of micro-batches of indices.

    The order is a pure function of (seed, epoch). Within a batch, examples of similar length share
    a micro-batch. The last batch may be smaller; no example is dropped.
    """
    key = int(content_hash("data order", seed, epoch, length=15), 16)
    generator = torch.Generator().manual_seed(key)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = []
    for start in range(0, len(order), batch_size):
        batch = sorted(order[start : start + batch_size], key=lambda i: (-lengths[i], i))
        micro = range(0, len(batch), micro_batch_size)
        batches.append([batch[m : m + micro_batch_size] for m in micro])
    return batches
