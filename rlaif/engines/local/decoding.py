"""The rows of a batch while they are decoded, one token at a time.

`BranchRows` computes prompts as packed rows and holds their keys and values once for all samples.
`PaddedRows` is transformers' own way, for models whose attention cannot keep branches apart.

A token is drawn row by row: temperature, top-k, top-p, and one uniform number per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rlaif.engines.base import Sampling
from rlaif.engines.local.encoding import PASS_TOKENS, bucket
from rlaif.engines.local.forward import (
    CACHE,
    GROUPS,
    KEEP,
    BranchCache,
    body_of,
    empty_rows,
    packing,
)
from rlaif.kernels.batching import fill_batches, packed_layout

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
        hidden, keys, values = _prefill_prompts(model, prompts)
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


def _prefill_prompts(model: Any, prompts: Prompts) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """(P, H) hidden states of the prompts' last tokens, and for each layer their keys and values
    (P, K, L, D), zero behind a prompt's end."""
    budget = PASS_TOKENS.get(model.device.type, PASS_TOKENS["cpu"])
    hidden: list[Tensor] = []
    keys: list[Tensor] = []
    values: list[Tensor] = []
    longest = max(map(len, prompts))
    for part in fill_batches(range(len(prompts)), [len(p) for p in prompts], budget):
        # With one empty branch each, `last` is the end of each prompt.
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
        # Where each prompt's tokens lie in the row: the stem at its beginning, the rest in the
        # group. Places behind a prompt's end repeat the first token; the cache masks them.
        index = torch.zeros((len(part), longest), dtype=torch.int64)
        for row, group in enumerate(layout.groups):
            end = group.stem + group.prompt
            index[row, : group.stem] = torch.arange(group.stem)
            index[row, group.stem : end] = torch.arange(group.start, group.start + group.prompt)
        index = index.to(model.device)
        # How many key heads a layer has, and of which width, is known once it has run.
        if not keys:
            shape = (len(prompts), kept[0][0].shape[1], longest, kept[0][0].shape[3])
            keys, values = ([t.new_empty(shape) for t in pair] for pair in zip(*kept, strict=True))
        for layer, pair in enumerate(kept):
            for held, made in zip((keys, values), pair, strict=True):
                # [k, t, d] -> [k, prompts, longest, d] -> [prompts, k, longest, d]
                held[layer][part[0] : part[-1] + 1] = made[0][:, index].transpose(0, 1)
    return torch.cat(hidden), keys, values


class PaddedRows:
    """Rows padded on the left, with transformers' own cache."""

    def __init__(self, model: Any, prompts: Prompts, owner: Sequence[int], pad: int):
        self.model = model
        width = bucket(max(len(ids) for ids in prompts))
        ids = torch.full((len(prompts), width), pad)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        # Padded on the left, the last column is the last token of every prompt.
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        ids, mask = ids.to(model.device), mask.to(model.device)
        # Padding would stand at -1, which no table of positions has.
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        result = body_of(model)(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True
        )
        rows = torch.tensor(owner, device=model.device)
        self.cache = result.past_key_values
        # Each prompt is computed once; its cache is then repeated for each of its rows.
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
    # All that the cache tells apart: a stem, prompts of unlike length, and one with two rows.
    prompts, owner = [ids[:5], [*ids[:2], *ids[12:20]]], [0, 0, 1]
    tokens = [torch.tensor(ids[i : i + 3], device=model.device) for i in (6, 9, 20)]
    try:
        with packing(model):
            found = _decode_rows(BranchRows(model, prompts, owner, len(tokens) + 1), tokens)
        wanted = _decode_rows(PaddedRows(model, prompts, owner, 0), tokens)
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        return str(error).splitlines()[0]
    gap = float((found - wanted).abs().max() / wanted.abs().max())
    return None if gap <= TOLERANCE[model.dtype] else f"decoded states differ by {gap:.2g}"


def _decode_rows(rows: Rows, tokens: Sequence[Tensor]) -> Tensor:
    """The hidden states of every step while `tokens` are added; the second row is dropped after the
    first of them."""
    states = [rows.first(), rows.after(tokens[0])]
    left = torch.tensor([0, 2], device=tokens[0].device)
    rows.keep(left)
    states += [rows.after(more[left]) for more in tokens[1:]]
    return torch.cat(states).float()


# More than nearly any nucleus holds: only where it does not, the whole vocabulary is sorted.
TOP_P_CANDIDATES = 2048
BLOCK = 256


def sample_tokens(
    logits: torch.Tensor, uniform: torch.Tensor, sampling: Sequence[Sampling]
) -> torch.Tensor:
    """One token per row: (rows,) int64 from fp32 `logits` (rows, vocabulary).

    `uniform` (rows,) in [0, 1) picks by inverse CDF, so a token depends on its row alone.
    Temperature 0 is the argmax.
    """
    picked = torch.empty(len(sampling), dtype=torch.int64, device=logits.device)
    greedy = [i for i, s in enumerate(sampling) if s.temperature == 0]
    limited = [i for i, s in enumerate(sampling) if s.temperature and (s.top_k or s.top_p < 1)]
    others = [i for i, s in enumerate(sampling) if s.temperature and not (s.top_k or s.top_p < 1)]
    if greedy:
        picked[greedy] = _select_rows(logits, greedy).argmax(-1)
    if others:
        # These apart: a row without limits must not notice what its batch asks for.
        scaled = _scale_logits(_select_rows(logits, others), [sampling[i] for i in others])
        picked[others] = _inverse_cdf(scaled.softmax(-1), _select_rows(uniform, others))
    if limited:
        asked = [sampling[i] for i in limited]
        scaled = _scale_logits(_select_rows(logits, limited), asked)
        picked[limited] = _sample_filtered(scaled, _select_rows(uniform, limited), asked)
    return picked


def _select_rows(values: torch.Tensor, rows: list[int]) -> torch.Tensor:
    return values if len(rows) == len(values) else values[rows]


def _scale_logits(logits: torch.Tensor, sampling: Sequence[Sampling]) -> torch.Tensor:
    if all(s.temperature == 1 for s in sampling):
        return logits
    return logits / torch.tensor([[s.temperature] for s in sampling], device=logits.device)


def _inverse_cdf(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Where the running sum of each row of `probs` (rows, n), not normalised, passes its uniform's
    share of the whole: in two steps, since a running sum is slow and a sum is not."""
    rows, count = probs.shape
    width = min(BLOCK, count)
    # [rows, blocks, width], filled up with zeros
    blocks = torch.nn.functional.pad(probs, (0, -count % width)).view(rows, -1, width)
    ends = blocks.sum(-1).cumsum(-1)  # [rows, blocks]
    target = (uniform * ends[:, -1])[:, None]
    # Rounding can put the target on the very end; a block or token of no mass is never picked.
    block = _first_above(ends, target)
    before = torch.where(block > 0, ends.gather(-1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks[torch.arange(rows, device=probs.device), block[:, 0]].cumsum(-1)
    # Sums over blocks and within them round differently: the target must stay in its block.
    place = _first_above(inside, torch.minimum(target - before, inside[:, -1:]))
    return (block * width + place)[:, 0]


def _first_above(running: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(rows, 1) index of the first running sum (rows, n) above `target` (rows, 1); where none is,
    of the first that is as large as the last."""
    last = torch.searchsorted(running, running[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(running, target, right=True), last)


def _sample_filtered(
    scaled: torch.Tensor, uniform: torch.Tensor, sampling: Sequence[Sampling]
) -> torch.Tensor:
    vocabulary = scaled.shape[-1]
    probs = scaled.softmax(-1)
    top_p = torch.tensor([s.top_p for s in sampling], device=scaled.device)
    top_k = torch.tensor([s.top_k or vocabulary for s in sampling], device=scaled.device)
    count = min(vocabulary, max(TOP_P_CANDIDATES, *(s.top_k for s in sampling)))
    values, tokens = probs.topk(count, dim=-1)
    # Where the candidates hold too little mass for some row's nucleus, all tokens are sorted.
    unbounded = top_k > count
    if bool((unbounded & (values.sum(-1) < top_p)).any()):
        values, tokens = probs.sort(dim=-1, descending=True)
    ranks = torch.arange(values.shape[-1], device=scaled.device)
    # A token stays while the mass before it is below top_p: the first always does.
    before = values.cumsum(-1) - values
    keep = (before < top_p[:, None]) & (ranks[None] < top_k[:, None])
    index = _inverse_cdf(values * keep, uniform)
    return tokens.gather(-1, index[:, None])[:, 0]
