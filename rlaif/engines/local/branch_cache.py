"""Keys and values of rows that go on from shared prompts.

A prompt's keys and values are held once for all its samples. What a row sees of its prompt and of
what it has written itself are two attention results, joined by their log-sum-exps; so nothing is
copied for each sample, and nothing grows by concatenation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(slots=True)
class BranchCache:
    """P prompts, and R rows that go on from them; the rows of a prompt are neighbours.

    prompt_keys and prompt_values hold (P, K, L, D) for each layer, padded on the right; keys and
    values (R, K, new, D), of which the first `step` are written. lengths (P,) int64 counts each
    prompt's tokens; row r goes on from prompt owner[r].
    """

    prompt_keys: list[Tensor]
    prompt_values: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    lengths: Tensor
    owner: Tensor
    step: int = 0
    _place: Tensor | None = None
    _slots: int = 0
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._arrange_rows()

    def _arrange_rows(self) -> None:
        """Place each row in a grid of prompts times the most rows of any."""
        counts = torch.bincount(self.owner, minlength=len(self.lengths))
        first = counts.cumsum(0) - counts
        slot = torch.arange(len(self.owner), device=self.owner.device) - first[self.owner]
        self._slots = int(counts.max())
        self._place = self.owner * self._slots + slot
        self._masks = {}

    def positions(self) -> Tensor:
        """(R, 1) int64: the position of the token that each row computes next."""
        return (self.lengths[self.owner] + self.step)[:, None]

    def advance(self) -> None:
        """Go on to the next token, once every layer has computed this one."""
        self.step += 1
        # Masks of layers without a window stay as they are.
        self._masks = {w: m for w, m in self._masks.items() if w is None}

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but `rows` (int64, ascending), and the prompts that none goes on from."""
        prompts, self.owner = torch.unique(self.owner[rows], return_inverse=True)
        if len(prompts) < len(self.lengths):
            self.lengths = self.lengths[prompts]
            for held in (self.prompt_keys, self.prompt_values):
                for layer, old in enumerate(held):
                    held[layer] = old[prompts]
        for held in (self.keys, self.values):
            for layer, old in enumerate(held):
                held[layer] = old.new_empty((len(rows), *old.shape[1:]))
                held[layer][:, :, : self.step] = old[rows, :, : self.step]
        self._arrange_rows()

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Store the new tokens' keys and values (R, K, 1, D) and attend to all that each row sees:
        query (R, H, 1, D), with K dividing H -> (R, 1, H, D).

        `window` and `softcap` are those of `rlaif.kernels.attention.branch_attention`.
        """
        rows, heads, _, width = query.shape
        groups = key.shape[1]
        self.keys[layer][:, :, self.step] = key[:, :, 0]
        self.values[layer][:, :, self.step] = value[:, :, 0]
        # The heads that share a key are queries of one attention: keys are not repeated.
        query = query.reshape(rows, groups, heads // groups, width)
        seen = slice(0 if window is None else max(0, self.step + 1 - window), self.step + 1)
        own, own_sum = attention(
            query,
            self.keys[layer][:, :, seen],
            self.values[layer][:, :, seen],
            None,
            scale,
            softcap,
        )
        shared, shared_sum = self._of_prompts(layer, query, scale, window, softcap)
        total = torch.logaddexp(own_sum, shared_sum)
        out = own * (own_sum - total).exp_()[..., None]
        out += shared * (shared_sum - total).exp_()[..., None]
        return out.to(query.dtype).reshape(rows, 1, heads, width)

    def _of_prompts(
        self,
        layer: int,
        query: Tensor,
        scale: float | None,
        window: int | None,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor]:
        """What each row sees of its prompt, all rows of a prompt in one go: query (R, K, G, D) ->
        (R, K, G, D) and log-sum-exps (R, K, G)."""
        _, groups, heads, width = query.shape
        prompts, slots = len(self.lengths), self._slots
        grid = query.new_zeros((prompts * slots, groups, heads, width))
        grid[self._place] = query
        grid = grid.view(prompts, slots, groups, heads, width).transpose(1, 2)
        out, log_sum = attention(
            grid.reshape(prompts, groups, slots * heads, width),
            self.prompt_keys[layer],
            self.prompt_values[layer],
            self._mask_prompts(window, query.dtype),
            scale,
            softcap,
        )
        out = out.reshape(prompts, groups, slots, heads, width).transpose(1, 2)
        log_sum = log_sum.reshape(prompts, groups, slots, heads).transpose(1, 2)
        return out.flatten(0, 1)[self._place], log_sum.flatten(0, 1)[self._place]

    def _mask_prompts(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """(P, 1, 1, L) to add to the scores of the prompts' positions; None where all are seen."""
        if window not in self._masks:
            at = torch.arange(self.prompt_keys[0].shape[2], device=self.lengths.device)[None]
            ends = self.lengths[:, None]
            unseen = at >= ends
            if window is not None:
                unseen = unseen | (ends + self.step - at >= window)
            mask = torch.zeros(unseen.shape, dtype=dtype, device=unseen.device)
            # Finite: a row that sees nothing of its prompt would have NaN. Next to a real score its
            # weight is 0 all the same.
            mask.masked_fill_(unseen, torch.finfo(dtype).min)
            self._masks[window] = mask[:, None, None] if bool(unseen.any()) else None
        return self._masks[window]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exps: query (B, H, Q, D), key and value (B, H, L, D), mask added to
    the scores -> (B, H, Q, D) and fp32 (B, H, Q)."""
    if query.device.type == "cpu" and softcap is None:
        found: tuple[Tensor, Tensor] = _flash(
            query, key, value, 0.0, False, attn_mask=mask, scale=scale
        )
        return found
    scores = (query @ key.mT).float() * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    total = scores.logsumexp(-1)
    return (scores - total[..., None]).exp().to(value.dtype) @ value, total


def empty_rows(like: Sequence[Tensor], rows: int, new: int) -> list[Tensor]:
    """For each layer room for `new` tokens of each row, of which nothing is written."""
    return [t.new_empty((rows, t.shape[1], new, t.shape[3])) for t in like]
