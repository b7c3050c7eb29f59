"""From token ids to tensors, and from examples to an order of batches.

A `Layout` is all that a loss needs to know: which hidden states predict which target tokens, and
how many targets each sequence has. Two ways of placing examples in rows give the same fields: the
packed layout computes a prompt once for all of its branches, and what all prompts begin with once
for all of them, and pads nothing; the padded layout is the reference, and the way for models whose
attention cannot keep branches apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlaif.core.records import content_hash

Branches = tuple[Sequence[int], Sequence[Sequence[int]]]
"""The token ids of a prompt and of each answer to it."""


@dataclass(frozen=True, slots=True)
class Group:
    """Where one prompt and its branches lie in a packed row: `prompt` tokens from `start`, then one
    run of tokens for each branch. The prompt goes on after the row's first `stem` tokens, which all
    groups of the row have in common."""

    start: int
    prompt: int
    branches: tuple[int, ...]
    stem: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """Token ids in rows and where the completions lie in them.

    input_ids (R, T) int64. `groups` is None where a row is one sequence under plain causal
    attention; else R is 1 and the groups, after their stem, fill the row in order. position_ids
    (R, T) int64 or None for 0..T-1. predict (N,) int64 indexes the R*T flattened hidden states
    whose next token is targets (N,) int64. Targets are grouped by sequence (example by example,
    branch by branch): `lengths` counts them. `last` (S,) indexes the hidden state of each
    sequence's last token. `tokens` counts what a sequence-by-sequence pass would compute without
    padding.
    """

    input_ids: Tensor
    groups: tuple[Group, ...] | None
    position_ids: Tensor | None
    predict: Tensor
    targets: Tensor
    last: Tensor
    lengths: list[int]
    tokens: int

    def to(self, device: torch.device) -> Layout:
        """The same layout on another device."""
        moved = {
            name: value.to(device)
            for name in ("input_ids", "position_ids", "predict", "targets", "last")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **moved)


def padded_layout(examples: Sequence[Branches]) -> Layout:
    """One row per branch, padded on the right with token 0.

    No mask is needed: under causal attention the padding comes too late to be seen. Prompts must
    not be empty, since the first completion token is predicted from the last prompt token.
    """
    rows = [(prompt, branch) for prompt, branches in examples for branch in branches]
    width = max(len(prompt) + len(branch) for prompt, branch in rows)
    ids = torch.zeros((len(rows), width), dtype=torch.int64)
    predict: list[Tensor] = []
    last: list[int] = []
    for number, (prompt, branch) in enumerate(rows):
        _refuse_empty(prompt)
        ids[number, : len(prompt) + len(branch)] = torch.tensor([*prompt, *branch])
        # The flattened index of the prompt's last token, which predicts the answer's first.
        first = number * width + len(prompt) - 1
        predict.append(torch.arange(first, first + len(branch)))
        last.append(first + len(branch))
    return _build_layout(ids, None, None, predict, last, rows)


def packed_layout(examples: Sequence[Branches]) -> Layout:
    """One row of all prompts, each followed by its branches, without padding.

    Every branch goes on at the position after its prompt and sees that prompt and itself alone.
    What all prompts begin with, such as a system prompt, stands once at the start of the row.
    """
    stem = _common_start([prompt for prompt, _ in examples])
    ids: list[int] = list(examples[0][0][:stem])
    positions: list[Tensor] = [torch.arange(stem)]
    groups: list[Group] = []
    predict: list[Tensor] = []
    last: list[int] = []
    for prompt, branches in examples:
        _refuse_empty(prompt)
        groups.append(Group(len(ids), len(prompt) - stem, tuple(map(len, branches)), stem))
        ids += prompt[stem:]
        positions.append(torch.arange(stem, len(prompt)))
        end_of_prompt = len(ids) - 1
        for branch in branches:
            start = len(ids)
            before = torch.arange(start - 1, start + len(branch) - 1)
            # The token before it in the row belongs to another branch. A slice, since a branch may
            # be empty.
            before[:1] = end_of_prompt
            predict.append(before)
            # An empty answer is read at the end of its prompt.
            last.append(start + len(branch) - 1 if branch else end_of_prompt)
            ids += branch
            positions.append(torch.arange(len(prompt), len(prompt) + len(branch)))
    rows = [(prompt, branch) for prompt, branches in examples for branch in branches]
    position_ids = torch.cat(positions)[None]
    return _build_layout(torch.tensor([ids]), tuple(groups), position_ids, predict, last, rows)


def _build_layout(
    input_ids: Tensor,
    groups: tuple[Group, ...] | None,
    position_ids: Tensor | None,
    predict: list[Tensor],
    last: list[int],
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> Layout:
    return Layout(
        input_ids,
        groups,
        position_ids,
        torch.cat(predict),
        torch.tensor([token for _, branch in rows for token in branch], dtype=torch.int64),
        torch.tensor(last),
        [len(branch) for _, branch in rows],
        sum(len(prompt) + len(branch) for prompt, branch in rows),
    )


def keep_targets(layout: Layout, keep: Sequence[bool]) -> Layout:
    """The layout with the targets of which `keep` (N,) holds: the others are read and not
    predicted, as the environment's turns in an episode are."""
    mask = torch.tensor(keep, dtype=torch.bool)
    lengths = [int(part.sum()) for part in torch.split(mask, layout.lengths)]
    mask = mask.to(layout.targets.device)
    return replace(
        layout, predict=layout.predict[mask], targets=layout.targets[mask], lengths=lengths
    )


def _common_start(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with; every prompt keeps a token of its own."""
    if len(prompts) < 2:
        return 0
    # A prompt without a token of its own would end, in the row, in the group before it.
    limit = max(0, min(map(len, prompts)) - 1)
    first = prompts[0]
    for index in range(limit):
        if any(prompt[index] != first[index] for prompt in prompts):
            return index
    return limit


def _refuse_empty(prompt: Sequence[int]) -> None:
    if not prompt:
        raise ValueError("a sequence needs at least one prompt token")


def sequence_sums(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """(N,) values grouped by sequence -> (S,) sums, in an order of addition that never changes."""
    # Not `index_add`: on a GPU its order of addition differs from run to run.
    return torch.stack([part.sum() for part in torch.split(values, list(lengths))])


def plan_epoch(
    sizes: Sequence[int],
    batch_size: int,
    budget: int,
    seed: int,
    epoch: int,
    groups: Sequence[str | None] = (),
) -> list[list[list[int]]]:
    """The examples of one epoch as batches of micro-batches of indices.

    `sizes` counts each example's tokens; a micro-batch holds at most `budget` of them, or one
    example. The order is a pure function of (seed, epoch). Within a batch, examples of similar size
    share a micro-batch. The last batch may be smaller; no example is dropped.

    `groups`, where given, has a name for each example: those of one name are in one batch, which is
    then closed where the next ones would not fit. None stands alone.
    """
    # 60 bits, which `manual_seed` takes whatever they are.
    key = int(content_hash("data order", seed, epoch, length=15), 16)
    generator = torch.Generator().manual_seed(key)
    units: dict[str | int, list[int]] = {}
    for index in range(len(sizes)):
        name = groups[index] if groups else None
        units.setdefault(index if name is None else name, []).append(index)
    whole = list(units.values())
    order = torch.randperm(len(whole), generator=generator).tolist()
    batches = []
    for part in fill_batches(order, [len(whole[unit]) for unit in order], batch_size):
        batch = sorted((i for unit in part for i in whole[unit]), key=lambda i: (-sizes[i], i))
        batches.append(fill_batches(batch, [sizes[i] for i in batch], budget))
    return batches


def fill_batches(items: Sequence[int], sizes: Sequence[int], budget: int) -> list[list[int]]:
    """`items` in their order, cut where the next one would pass `budget` tokens."""
    parts: list[list[int]] = []
    held = 0
    for item, size in zip(items, sizes, strict=True):
        if not parts or held + size > budget:
            parts.append([])
            held = 0
        parts[-1].append(item)
        held += size
    return parts
