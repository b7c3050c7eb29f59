"""The forward pass of a transformers model: packed rows, shared prompts, fused parts.

Score requests that begin alike, such as both orders of a pair or everything that a judge asks, are
computed as one packed row: the common prefix of the row once, the common prefix of neighbours once
for each group. No padding, and one pass for all labels. Branch attention is registered as an
attention implementation of its own.

`BranchCache` keeps a prompt's keys and values once for all its samples. What a row sees of its
prompt and of what it has written itself are two attention results, joined by their log-sum-exps; so
nothing is copied for each sample, and nothing grows by concatenation.

`fast_paths` gives one model object the backward passes of `rlaif.kernels.fused` for its norms,
gates and rotary embeddings. Which of these compute what the model's own code computes is proved in
`rlaif.engines.local.proof`.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rlaif.engines.local.encoding import Row
from rlaif.kernels.attention import branch_attention
from rlaif.kernels.batching import Branches, Layout, fill_batches, packed_layout, padded_layout
from rlaif.kernels.fused import gated_silu, rms_norm, rotate

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
            # What raises here is caught where the forms are proved, and the model gets padded rows.
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
        # Layers come in their order, so the list is by layer.
        kept.append((key, value))
    out = branch_attention(query, key, value, groups, scaling, sliding_window, softcap)
    # transformers wants (B, T, H, D) back.
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
    # Sorted by token ids, so that what begins alike lies side by side.
    ordered = sorted(rows, key=lambda row: (row.ids, row.request_id))
    sizes = [len(row.ids) for row in ordered]
    for i, shared in enumerate(_count_shared(ordered, tails), start=1):
        # What a row shares with the one before it is not computed again.
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
        # A branch may begin with prompt tokens: the continuation is the last of its targets.
        tail = layout.predict[stop - tails[row.request_id] : stop]
        # What predicts the continuation's first token is the prompt's end.
        ends.append(tail[0] if len(tail) else last)
        spans.append(tail)
    return States(rows, hidden[torch.stack(ends)], hidden[torch.cat(spans)])


def grouped(batch: Sequence[Row], tails: Mapping[str, int]) -> list[list[Row]]:
    """Neighbours that share more than the whole batch does, and about as much as the neighbours
    around them do. `batch` is sorted by token ids."""
    shared = _count_shared(batch, tails)
    # The stem is computed once in any case: what counts is what neighbours share beyond it.
    stem = min(shared, default=0)
    extra = [count - stem for count in shared]
    groups = [[batch[0]]]
    for i, row in enumerate(batch[1:]):
        # `extra[i]` lies between rows i and i + 1 of the batch.
        around = max([0, *extra[max(0, i - 1) : i], *extra[i + 1 : i + 2]])
        # A row that shares much less would shorten the prompt of the whole group.
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
        # A continuation is scored token by token, so it must stay in its branch.
        limit = min(len(r.ids) - tails[r.request_id] for r in (before, row))
        pairs = zip(before.ids[:limit], row.ids[:limit], strict=True)
        found.append(next((i for i, (a, b) in enumerate(pairs) if a != b), limit))
    return found


def example(group: Sequence[Row], tails: Mapping[str, int]) -> Branches:
    """What the group begins with, and what each of its rows goes on with."""
    first = group[0]
    common = min(_count_shared(group, tails), default=len(first.ids) - tails[first.request_id])
    return first.ids[:common], [row.ids[common:] for row in group]


ROTARY = "apply_rotary_pos_emb"
PartKind = Literal["norm", "shifted norm", "gate", "rotary"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a model may take: packed rows or not, and by the name of a part's class its fused form.
    `reasons` say what was left as it is, and why."""

    packed: bool
    parts: dict[str, PartKind]
    reasons: tuple[str, ...] = ()


PLAIN = Choice(False, {})


@contextmanager
def fast_paths(module: Any, choice: Choice) -> Iterator[None]:
    """Let `module` compute in the forms of `choice`, and in its own again afterwards."""
    with ExitStack() as stack:
        if choice.packed:
            stack.enter_context(packing(module))
        stack.enter_context(fused_parts(module, choice.parts))
        yield


@contextmanager
def fused_parts(module: nn.Module, parts: dict[str, PartKind]) -> Iterator[int]:
    """Give the parts of `module` their fused forms, and their own forms back afterwards. Yields how
    many parts have them."""
    forms = [
        (part, form_of(part, parts[n]))
        for part in module.modules()
        if (n := class_name(part)) in parts
    ]
    # A part that has a forward of its own, such as one in training, is put back with that.
    before = [vars(part).get("forward") for part, _ in forms]
    for part, forward in forms:
        vars(part)["forward"] = types.MethodType(forward, part)
    try:
        yield len(forms)
    finally:
        for (part, _), own in zip(forms, before, strict=True):
            if own is None:
                vars(part).pop("forward", None)
            else:
                vars(part)["forward"] = own


def class_name(part: nn.Module) -> str:
    """The name of the part's class, by which forms are chosen."""
    return type(part).__name__


def form_of(part: Any, kind: PartKind) -> Callable[..., Any]:
    """The forward of a part's fused form."""
    if kind == "rotary":
        return with_rotary(type(part).forward, rotate)
    if kind == "gate":

        def gated_forward(self: Any, hidden_states: Tensor) -> Tensor:
            gated = gated_silu(self.gate_proj(hidden_states), self.up_proj(hidden_states))
            down: Tensor = self.down_proj(gated)
            return down

        return gated_forward
    offset, eps = float(kind == "shifted norm"), epsilon_of(part)

    def norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, self.weight, eps, offset)

    return norm_forward


def epsilon_of(part: Any) -> Any:
    """What a norm adds to the mean square, or None where that is not known."""
    return getattr(part, "variance_epsilon", getattr(part, "eps", None))


def with_rotary(forward: Any, turn: Callable[..., Any]) -> Callable[..., Any]:
    """The function `forward`, but that what it calls ROTARY is `turn`: transformers has rotary
    embeddings as a function of a Python module, which other models of the process use as well."""
    changed = types.FunctionType(
        forward.__code__,
        {**forward.__globals__, ROTARY: turn},
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    # Before Python 3.13 `FunctionType` takes no keyword-only defaults.
    changed.__kwdefaults__ = forward.__kwdefaults__
    return changed


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
        # Rows of a prompt are neighbours: a slot is a row's distance from the first of them.
        slot = torch.arange(len(self.owner), device=self.owner.device) - first[self.owner]
        self._slots = int(counts.max())
        self._place = self.owner * self._slots + slot
        # Masks are by prompt, and some prompts may be gone.
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
                # The rest is room for tokens to come.
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
        # The window counts the new token too.
        seen = slice(0 if window is None else max(0, self.step + 1 - window), self.step + 1)
        # All rows are at the same step, so nothing is to be masked.
        own, own_sum = attention(
            query,
            self.keys[layer][:, :, seen],
            self.values[layer][:, :, seen],
            None,
            scale,
            softcap,
        )
        shared, shared_sum = self._of_prompts(layer, query, scale, window, softcap)
        # As in `rlaif.kernels.attention`: each part counts by its share of the joint sum.
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
        # Prompts with fewer rows leave slots empty, of which nothing is read.
        grid = query.new_zeros((prompts * slots, groups, heads, width))
        grid[self._place] = query
        # [prompts, key heads, slots, queries of a key head, width]
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
                # The new token stands at position `ends + step`.
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
    # One query for each row: its scores are small enough to be made.
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
