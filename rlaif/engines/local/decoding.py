"""The rows of a batch while they are decoded, one token at a time.

`BranchRows` computes prompts as packed rows and holds their keys and values once for all samples.
`PaddedRows` is transformers' own way, for models whose attention cannot keep branches apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rlaif.engines.local.branch_cache import BranchCache, empty_rows
from rlaif.engines.local.layout import bucket
from rlaif.engines.local.memory import PASS_TOKENS
from rlaif.engines.local.packing import CACHE, GROUPS, KEEP, body_of, packing
from rlaif.kernels.batching import fill, packed_layout

Prompts = Sequence[Sequence[int]]
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference between hidden states of the two kinds of rows, relative to the largest."""


class Rows(Protocol):
    """Rows that go on from prompts. All tensors are by row, in the rows' order."""

    def first(self) -> Tensor:
        """(R, H) the hidden states that predict each row's first token."""
        ...

    def after(self, tokens: Tensor) -> Tensor:
        """(R, H) the hidden states after `tokens` (R,) int64 were added, one to each row."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but `rows` (int64, ascending)."""
        ...


class BranchRows:
    """Rows over one `BranchCache`. `owner` gives the prompt of each row, in ascending order."""

    def __init__(self, model: Any, prompts: Prompts, owner: Sequence[int], new: int):
        self.model = model
        device = model.device
        hidden, keys, values = _prefill(model, prompts)
        # The last token that is sampled is never computed.
        room = max(1, new - 1)
        self.cache = BranchCache(
            keys,
            values,
            empty_rows(keys, len(owner), room),
            empty_rows(values, len(owner), room),
            torch.tensor([len(p) for p in prompts], device=device),
            torch.tensor(owner, device=device),
        )
        self._first = hidden[self.cache.owner]

    def first(self) -> Tensor:
        """See `Rows.first`."""
        return self._first

    def after(self, tokens: Tensor) -> Tensor:
        """See `Rows.after`."""
        hidden: Tensor = body_of(self.model)(
            input_ids=tokens[:, None],
            position_ids=self.cache.positions(),
            use_cache=False,
            **{CACHE: self.cache},
        ).last_hidden_state[:, 0]
        self.cache.advance()
        return hidden

    def keep(self, rows: Tensor) -> None:
        """See `Rows.keep`."""
        self.cache.keep(rows)


def _prefill(model: Any, prompts: Prompts) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """(P, H) hidden states of the prompts' last tokens, and for each layer their keys and values
    (P, K, L, D), zero behind a prompt's end."""
    budget = PASS_TOKENS.get(model.device.type, PASS_TOKENS["cpu"])
    hidden: list[Tensor] = []
    keys: list[Tensor] = []
    values: list[Tensor] = []
    longest = max(map(len, prompts))
    for part in fill(range(len(prompts)), [len(p) for p in prompts], budget):
        layout = packed_layout([(prompts[i], [[]]) for i in part]).to(model.device)
        assert layout.groups is not None
        kept: list[tuple[Tensor, Tensor]] = []
        states = body_of(model)(
            input_ids=layout.input_ids,
            position_ids=layout.position_ids,
            use_cache=False,
            **{GROUPS: layout.groups, KEEP: kept},
        ).last_hidden_state
        hidden.append(states[0, layout.last])
        index = torch.zeros((len(part), longest), dtype=torch.int64)
        for row, group in enumerate(layout.groups):
            end = group.stem + group.prompt
            index[row, : group.stem] = torch.arange(group.stem)
            index[row, group.stem : end] = torch.arange(group.start, group.start + group.prompt)
        index = index.to(model.device)
        if not keys:
            shape = (len(prompts), kept[0][0].shape[1], longest, kept[0][0].shape[3])
            keys, values = ([t.new_empty(shape) for t in pair] for pair in zip(*kept, strict=True))
        for layer, pair in enumerate(kept):
            for held, made in zip((keys, values), pair, strict=True):
                held[layer][part[0] : part[-1] + 1] = made[0][:, index].transpose(0, 1)
    return torch.cat(hidden), keys, values


class PaddedRows:
    """Rows padded on the left, with transformers' own cache."""

    def __init__(self, model: Any, prompts: Prompts, owner: Sequence[int], pad: int):
        self.model = model
        width = bucket(max(len(ids) for ids in prompts))
        ids = torch.full((len(prompts), width), pad)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        result = body_of(model)(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True
        )
        rows = torch.tensor(owner, device=model.device)
        self.cache = result.past_key_values
        self.cache.batch_select_indices(rows)
        self.mask, self.positions = mask[rows], positions[rows, -1:]
        self._first: Tensor = result.last_hidden_state[rows, -1]

    def first(self) -> Tensor:
        """See `Rows.first`."""
        return self._first

    def after(self, tokens: Tensor) -> Tensor:
        """See `Rows.after`."""
        self.mask = torch.cat([self.mask, self.mask.new_ones((len(tokens), 1))], dim=1)
        self.positions = self.positions + 1
        hidden: Tensor = body_of(self.model)(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        return hidden

    def keep(self, rows: Tensor) -> None:
        """See `Rows.keep`."""
        self.cache.batch_select_indices(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]


@torch.inference_mode()
def no_branches(model: Any) -> str | None:
    """None where `BranchRows` decodes what `PaddedRows` does, for a model that takes packed rows;
    else why not."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = [(i * 37 + 11) % vocabulary for i in range(24)]
    prompts, owner = [ids[:5], [*ids[:2], *ids[12:20]]], [0, 0, 1]
    tokens = [torch.tensor(ids[i : i + 3], device=model.device) for i in (6, 9, 20)]
    try:
        with packing(model):
            found = _decoded(BranchRows(model, prompts, owner, len(tokens) + 1), tokens)
        wanted = _decoded(PaddedRows(model, prompts, owner, 0), tokens)
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        return str(error).splitlines()[0]
    gap = float((found - wanted).abs().max() / wanted.abs().max())
    return None if gap <= TOLERANCE[model.dtype] else f"decoded states differ by {gap:.2g}"


def _decoded(rows: Rows, tokens: Sequence[Tensor]) -> Tensor:
    """All hidden states while `tokens` are added and the second row goes after the first."""
    states = [rows.first(), rows.after(tokens[0])]
    left = torch.tensor([0, 2], device=tokens[0].device)
    rows.keep(left)
    states += [rows.after(more[left]) for more in tokens[1:]]
    return torch.cat(states).float()
