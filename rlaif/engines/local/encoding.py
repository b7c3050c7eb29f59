"""From requests to token ids: what every engine that runs a model on this machine does first.

Requests are laid out in batches by a pure function of the request set: sorted by length and cut at
a token budget, which the memory of the device decides. So a resumed run makes exactly the same
batches, and in bf16 exactly the same numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rlaif.config.models import ModelSpec
from rlaif.core.answers import AnswerTurn, encode_after
from rlaif.core.chat import (
    ChatSettings,
    count_lost,
    marker_texts,
    opens_thinking,
    render_opening,
    render_prompt,
    thinks_from,
)
from rlaif.core.errors import EngineError, explain_library
from rlaif.core.records import Message
from rlaif.engines.base import THINKS, GenerateRequest, ScoreRequest, overflow, refusal
from rlaif.engines.model_folders import NO_LIMITS, Limits, limits_of, no_embedding
from rlaif.kernels.device import total_memory


@dataclass(frozen=True, slots=True)
class Encoded:
    """`rows` are ready to run; `texts` are their rendered prompts by request id, and `tails` how
    many ids at their end are a score request's continuation; `failed` maps the other request ids to
    why they cannot run, and to their prompt's tokens."""

    rows: list[Row] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    tails: dict[str, int] = field(default_factory=dict)
    failed: dict[str, tuple[str, int]] = field(default_factory=dict)

    def part(self, rows: list[Row]) -> Encoded:
        """What concerns some of the rows alone."""
        names = [row.request_id for row in rows]
        return Encoded(rows, {n: self.texts[n] for n in names}, {n: self.tails[n] for n in names})

    def names(self) -> list[str]:
        """The ids of the requests."""
        return [*(row.request_id for row in self.rows), *self.failed]


@dataclass(frozen=True)
class Encoding:
    """A model's tokenizer and chat template. `context` is the longest prompt plus answer, `limits`
    are the model's own, and `lead` is a token of a policy in training that stands before every
    prompt."""

    tokenizer: Any
    chat: ChatSettings
    context: int
    name: str
    limits: Limits = NO_LIMITS
    lead: int | None = None

    def render(self, messages: list[Message], prefill: str = "") -> tuple[str, list[int]]:
        """The exact text and token ids the model sees."""
        text = render_prompt(self.tokenizer, messages, self.chat) + prefill
        return text, self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def lost(self, messages: Sequence[Message]) -> Counter[str]:
        """See `rlaif.core.chat.count_lost`."""
        return count_lost(self.tokenizer, messages, self.chat)

    def opening(self, messages: list[Message]) -> tuple[str, list[int]]:
        """The exact text and token ids up to where the next user turn begins."""
        text = render_opening(self.tokenizer, messages, self.chat)
        return text, self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def followed_by(
        self, messages: Sequence[Message], sampled: Sequence[int], reply: Message
    ) -> list[int]:
        """See `rlaif.core.answers.AnswerTurn.followed_by`."""
        return AnswerTurn(self.tokenizer, messages, self.chat).followed_by(reply, sampled)

    def encode(self, requests: Iterable[GenerateRequest | ScoreRequest]) -> Encoded:
        """The requests as token ids: the prompt's, and with a score request's continuation. Raises
        EngineError where the chat template refuses a conversation, and for a token id that the
        model has no embedding for."""
        made = Encoded()
        for request in requests:
            name = request.request_id
            why = refusal(request)
            if why is not None:
                made.failed[name] = (why, 0)
                continue
            if isinstance(request, GenerateRequest) and request.ids is not None:
                text, ids = str(self.tokenizer.decode(request.ids)), request.ids
            elif isinstance(request, GenerateRequest) and request.writes == "user":
                text, ids = self.opening(request.messages)
            else:
                text, ids = self.render(request.messages, request.prefill)
            new = 0
            tail: list[int] = []
            if isinstance(request, GenerateRequest):
                new = request.sampling.max_new_tokens
            else:
                tail = self._encode_continuation(request, text, ids)
                ids = ids + tail
            self._refuse_unknown(ids)
            ids = ids if self.lead is None else [self.lead, *ids]
            why = overflow(len(ids), new, self.context)
            if why is None and isinstance(request, ScoreRequest) and request.labels:
                # No label stands at the next token where the template has just begun to think.
                why = THINKS if thinks_from(text, self.chat) else None
            if why is not None:
                made.failed[name] = (why, len(ids))
                continue
            made.texts[name] = text
            made.tails[name] = len(tail)
            made.rows.append(Row(name, ids, new))
        return made

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled tokens: without special tokens, but for those that tell thinking from
        answer."""
        if not self.markers:
            return str(self.tokenizer.decode(ids, skip_special_tokens=True))
        # `skip_special_tokens` would drop the markers as well, so the others are taken out first.
        dropped = self._list_added_tokens(special=True).keys() - self.markers
        left = [i for i in ids if i not in dropped]
        return str(self.tokenizer.decode(left, skip_special_tokens=False))

    @cached_property
    def markers(self) -> frozenset[int]:
        """The special tokens that tell thinking from answer."""
        known = marker_texts(self.chat)
        return frozenset(i for i, t in self._list_added_tokens(special=True).items() if t in known)

    @cached_property
    def opens_thinking(self) -> bool:
        """Whether the chat template opens the model's thinking where its turn begins."""
        prompt, _ = self.render([{"role": "user", "content": "Hello."}])
        return thinks_from(prompt, self.chat)

    @cached_property
    def openings(self) -> list[int]:
        """The single tokens that open thinking."""
        return sorted(
            i for i, t in self._list_added_tokens().items() if opens_thinking(t, self.chat)
        )

    def _list_added_tokens(self, special: bool = False) -> dict[int, str]:
        """The tokens that were added to the vocabulary; with `special` those alone."""
        added = self.tokenizer.added_tokens_decoder
        return {i: t.content for i, t in added.items() if t.special or not special}

    def _encode_continuation(self, request: ScoreRequest, text: str, ids: list[int]) -> list[int]:
        """The token ids whose log-probs are asked, after a prompt's `text` and its `ids`."""
        if request.continuation_ids is not None:
            return request.continuation_ids
        if request.continuation is None:
            return []
        if request.prefill:
            # After a prefill the text goes on within the turn, and the template has no part in it.
            return encode_after(self.tokenizer, text, ids, request.continuation)[0]
        turn = AnswerTurn(self.tokenizer, request.messages, self.chat)
        answer: Message = {"role": "assistant", "content": request.continuation}
        return turn.tokens(answer, "none").ids

    def _refuse_unknown(self, ids: list[int]) -> None:
        token = self.limits.unknown(ids)
        if token is not None:
            text = str(self.tokenizer.convert_ids_to_tokens(token))
            raise EngineError(f"model {self.name!r}: {no_embedding(token, text, self.limits)}")

    def label_tokens(self, label: str, forms: Sequence[str]) -> list[int]:
        """The ids of the label's surface forms that are single tokens. Raises EngineError when
        none is."""
        single = set()
        for form in forms:
            ids = self.tokenizer(form, add_special_tokens=False)["input_ids"]
            if len(ids) == 1:
                single.add(ids[0])
        if not single:
            raise EngineError(
                f"label {label!r}: none of its forms {list(forms)} is a single token of "
                f"{self.name}; choose labels such as letters or digits"
            )
        return sorted(single)


def load_encoding(folder: Path, spec: ModelSpec, config: Any, name: str) -> Encoding:
    """The encoding of the model in `folder`, of which `config` is transformers'. Raises EngineError
    when it has no chat template."""
    from transformers import AutoTokenizer

    what = f"model {name!r} in {folder}: its tokenizer cannot be loaded"
    with explain_library(what, EngineError):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    if not getattr(tokenizer, "chat_template", None):
        raise EngineError(
            f"model {name!r} in {folder} has no chat template. Put chat_template.jinja into the "
            "folder, or use an instruct model."
        )
    limits = limits_of(config)
    return Encoding(tokenizer, spec.chat, context_of(config, spec), name, limits)


def context_of(config: Any, spec: ModelSpec) -> int:
    """Tokens of prompt and answer that the model can take, `max_context` included."""
    limit = limits_of(config).positions or 1 << 30
    return min(spec.max_context or limit, limit)


def end_ids(generation: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a turn, from the generation config and the tokenizer."""
    ends: set[int] = set()
    for value in (generation.eos_token_id, tokenizer.eos_token_id):
        ends |= set(value) if isinstance(value, list) else {value} if value is not None else set()
    return frozenset(ends)


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
    # Rows of the same prompt become neighbours, which can share it.
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


CACHE_SHARE = {"cpu": 1 / 8, "cuda": 1 / 2}
"""What part of the memory, on a GPU of what the weights leave, keys and values may take."""
MOST_TOKENS = {"cpu": 16384, "cuda": 1 << 18}
"""Beyond this a batch gets no faster, and a kill loses more of it."""
LEAST_TOKENS = 1024
PASS_TOKENS = {"cpu": 2048, "cuda": 32768}
"""Tokens of one pass that keeps no keys: on a CPU it needs no more to be fast."""


def batch_tokens(spec: ModelSpec, model: Any) -> int:
    """The token budget of a batch that is decoded by a causal language model. `auto` goes by the
    memory that the device has, and not by what is free, so that batches are the same every time."""
    if spec.batch_tokens != "auto":
        return spec.batch_tokens
    device: torch.device = model.device
    memory = total_memory(device)
    if device.type == "cuda":
        memory -= sum(parameter.nbytes for parameter in model.parameters())
    share = CACHE_SHARE.get(device.type, CACHE_SHARE["cpu"]) * memory
    tokens = int(share / token_bytes(model.config.get_text_config(), model.dtype))
    most = MOST_TOKENS.get(device.type, MOST_TOKENS["cpu"])
    # A power of two: machines of nearly the same memory then make the same batches.
    return min(most, max(LEAST_TOKENS, 1 << max(0, tokens.bit_length() - 1)))


def pass_tokens(spec: ModelSpec, device: torch.device) -> int:
    """The token budget of one forward pass."""
    most = PASS_TOKENS.get(device.type, PASS_TOKENS["cpu"])
    return most if spec.batch_tokens == "auto" else min(most, spec.batch_tokens)


def token_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values in all layers."""
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * groups * width * dtype.itemsize)
