"""The in-process engine of reward models: a transformers body with a reward head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from rlaif.config.models import ModelSpec
from rlaif.core.answers import AnswerTurn, encode_after, list_special_tokens
from rlaif.core.chat import count_lost
from rlaif.core.errors import EngineError, explain_library
from rlaif.core.records import Message
from rlaif.core.store import read_json
from rlaif.engines.base import DISTANCE, MEMBER, SPREAD, RewardRequest, RewardResult
from rlaif.engines.local import encoding
from rlaif.engines.local.distance import REGION, Region, load_region
from rlaif.engines.local.encoding import pass_tokens
from rlaif.engines.model_folders import (
    MEMBERS,
    limits_of,
    member_folders,
    no_embedding,
    weights_hash,
    with_members,
)
from rlaif.kernels.device import keep_freed_memory, pick_device, pick_dtype, release_freed_memory
from rlaif.kernels.heads import CONFIG, GatedHead, Head, HeadConfig, LinearHead, Scores, load_head

Position = Literal["last", "end_of_turn"]
POSITION = "reward_position"
"""The key of a checkpoint's config that says where its reward is read."""
OWN_FILES = (REGION, CONFIG, MEMBERS, "masters")
"""What only this package puts beside a reward model."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that are computed together, and how many of each one's ids are the prompt's; or results
    that say why there is no reward."""

    rows: list[encoding.Row]
    prompts: list[int]
    refused: list[RewardResult] = field(default_factory=list)


def load(spec: ModelSpec, folder: Path, name: str) -> RewardEngine:
    """Load the reward model in `folder`. Raises EngineError when it has no head that gives one
    number."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    keep_freed_memory()
    device = pick_device(spec.device)
    dtype = pick_dtype(spec.dtype, device)
    with explain_library(f"reward model {name!r} in {folder} cannot be loaded", EngineError):
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    if not getattr(tokenizer, "chat_template", None):
        raise EngineError(
            f"model {name!r} in {folder} has no chat template. Put chat_template.jinja into the "
            "folder."
        )
    body = Body(model.to(device), name, folder)
    position = reward_position(folder)
    digest = weights_hash(folder)
    return RewardEngine(body, load_region(folder), tokenizer, spec, name, digest, position)


def reward_position(folder: Path) -> Position:
    """Where the model in `folder` was trained to be read: `last`, the last token of the rendered
    conversation, as everybody's are; or `end_of_turn`, as those that this package made before it
    wrote so in their config. Raises EngineError for any other word."""
    said = (read_json(folder / "config.json") or {}).get(POSITION)
    if said is None:
        return "end_of_turn" if any((folder / name).exists() for name in OWN_FILES) else "last"
    if said not in ("last", "end_of_turn"):
        raise EngineError(f"{folder}: {POSITION} in its config is {said!r}; expected last")
    return said  # type: ignore[no-any-return]


class Body:
    """The transformers model, once in memory, with one head, or with a head and an adapter for each
    member of an ensemble. Raises EngineError where the checkpoint has no head of one number."""

    def __init__(self, model: Any, name: str, folder: Path):
        self.config, self.device = model.config, model.device
        self._layers = model.base_model
        self._adapters: Any = None
        self._heads: dict[str, Head] = {}
        members = member_folders(folder)
        if members:
            self._adapters = with_members(model, members, name)
            scores = model.score.modules_to_save
            self._heads = {m.name: _make_linear_head(scores[m.name]) for m in members}
        else:
            self._heads[""] = load_head(folder) or _make_linear_head(
                _plain_score(model, name, folder)
            )
        for part in (model.eval(), *self._heads.values()):
            part.to(self.device)

    @property
    def gated(self) -> bool:
        """Whether a gate sees the prompt."""
        return any(isinstance(head, GatedHead) for head in self._heads.values())

    def __call__(
        self, ids: Tensor, mask: Tensor, ends: Tensor, starts: Tensor
    ) -> tuple[Scores, Tensor | None]:
        """The rewards of R rows, `ids` and `mask` (R, T) padded on the right, read at `ends` (R,);
        `starts` (R,) are the last tokens of their prompts. And the hidden states (R, H) that a
        single head has read them from.

        An ensemble passes once for each member: their mean is the reward.
        """
        rows = torch.arange(len(ids), device=ids.device)
        found: dict[str, Scores] = {}
        for name, head in self._heads.items():
            if self._adapters is not None:
                # Otherwise peft would make the adapter's weights trainable again.
                self._adapters.set_adapter(name, inference_mode=True)
            states = self._layers(input_ids=ids, attention_mask=mask).last_hidden_state
            last = states[rows, ends].float()
            found[name] = head(last, states[rows, starts].float())
        if self._adapters is None:
            return found[""], last
        rewards = torch.stack([scores.reward for scores in found.values()])
        parts = {f"{MEMBER}{name}": scores.reward for name, scores in found.items()}
        return Scores(rewards.mean(0), parts | {SPREAD: rewards.std(0, correction=0)}), None


def _plain_score(model: Any, name: str, folder: Path) -> torch.nn.Linear:
    if model.config.num_labels != 1:
        raise EngineError(
            f"model {name!r} in {folder} has {model.config.num_labels} outputs; a reward model has "
            "one"
        )
    score = getattr(model, "score", None)
    if not isinstance(score, torch.nn.Linear) or score.bias is not None:
        raise EngineError(
            f"model {name!r} in {folder}: {type(model).__name__} has no plain `score` head"
        )
    return score


@torch.no_grad()
def _make_linear_head(score: torch.nn.Linear) -> LinearHead:
    """A checkpoint's own row of weights in fp32: bf16 would round rewards to hundredths."""
    head = LinearHead(HeadConfig("linear", score.in_features))
    head.weight.copy_(score.weight)
    return head


class RewardEngine:
    """A loaded reward model. See `rlaif.engines.base.Engine`."""

    capabilities = frozenset({"reward"})
    concurrent = False

    def __init__(
        self,
        body: Body,
        region: Region | None,
        tokenizer: Any,
        spec: ModelSpec,
        name: str,
        digest: str,
        position: Position = "last",
    ):
        self.body: Body | None = body
        self.region = region
        self.tokenizer = tokenizer
        self.spec = spec
        self.name = name
        self.weights_hash = digest
        self.position = position
        self.limits = limits_of(body.config)
        limit = self.limits.positions or 1 << 30
        self.context = min(spec.max_context or limit, limit)

    @property
    def reads_prompt(self) -> bool:
        """Whether the reward needs to be told where the prompt ends: a gate looks there."""
        return self.body is not None and self.body.gated

    def generate(self, requests: Any, done: Any = frozenset()) -> NoReturn:
        """A reward model writes nothing."""
        raise EngineError(f"{self.name} is a reward model: it cannot generate")

    def score(self, requests: Any, done: Any = frozenset()) -> NoReturn:
        """A reward model has no token probabilities."""
        raise EngineError(f"{self.name} is a reward model: it has no token probabilities")

    def render(self, messages: list[Message], prefill: str = "") -> tuple[str, list[int]]:
        """The exact text and token ids of a prompt, or of a prompt and its answer, to where the
        reward is read."""
        text, ids, _ = self.rendered(messages)
        more, _ = encode_after(self.tokenizer, text, ids, prefill) if prefill else ([], False)
        return text + prefill, [*ids, *more]

    def rendered(self, messages: Sequence[Message]) -> tuple[str, list[int], int]:
        """`render` of a conversation, and how many of the ids are the prompt's. Raises EngineError
        where the chat template refuses it."""
        prompt, answer = list(messages), None
        if prompt and prompt[-1]["role"] == "assistant":
            answer = prompt.pop()
        whole = self.position == "last" and answer is not None
        turn = AnswerTurn(self.tokenizer, prompt, self.spec.chat, whole)
        text, ids = turn.given, turn.prompt_ids
        if answer is None:
            return text, ids, len(ids)
        found = turn.tokens(answer, "all" if whole else "turn").ids
        own, suffix = turn.text(answer)
        return text + own + (suffix if whole else ""), [*ids, *found], len(ids)

    def lost(self, messages: Sequence[Message]) -> Counter[str]:
        """See `rlaif.engines.base.Losing`."""
        return count_lost(self.tokenizer, messages, self.spec.chat, generation=False)

    @cached_property
    def _end(self) -> str:
        """What the chat template writes after an answer."""
        turn = AnswerTurn(self.tokenizer, [{"role": "user", "content": "?"}], self.spec.chat, True)
        return turn.text({"role": "assistant", "content": "!"})[1]

    def text_row(self, text: str, prompt: str) -> tuple[list[int], int]:
        """The ids of a rendered conversation to where the reward is read, and how many of them are
        those of the `prompt` that it begins with."""
        if self.position == "end_of_turn" and text.rstrip().endswith(
            list_special_tokens(self.tokenizer)
        ):
            text = text.rstrip()
        elif self.position == "last":
            # Callers end a text with the end token, and the template may write more after it.
            text += next(
                (
                    self._end[k:]
                    for k in range(len(self._end), 0, -1)
                    if text.endswith(self._end[:k])
                ),
                "",
            )
        start: list[int] = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        more, _ = encode_after(self.tokenizer, prompt, start, text[len(prompt) :])
        return [*start, *more], max(1, len(start))

    def reward(
        self, requests: Iterable[RewardRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[RewardResult]]:
        """See `Engine.reward`. What does not fit the context fails alone."""
        for batch in self.lay_out(list(requests), done):
            yield self.answer(batch)

    def reward_ids(
        self, rows: Mapping[str, tuple[list[int], int]], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[RewardResult]]:
        """As `reward`, of token ids by request id, each with how many of them are the prompt's."""
        for batch in self._lay_out_ids(rows, done):
            yield self.answer(batch)

    def lay_out(
        self, requests: Sequence[RewardRequest], done: AbstractSet[str] = frozenset()
    ) -> list[Batch]:
        """See `rlaif.engines.base.Divisible`. What does not fit is a batch of its own, the
        first."""
        rows = {r.request_id: self.rendered([*r.messages, r.answer])[1:] for r in requests}
        return self._lay_out_ids(rows, done)

    def _lay_out_ids(
        self, rows: Mapping[str, tuple[list[int], int]], done: AbstractSet[str]
    ) -> list[Batch]:
        self._refuse_unknown(ids for ids, _ in rows.values())
        refused = [
            RewardResult(
                name,
                None,
                len(ids),
                f"{len(ids)} tokens do not fit the context of {self.context}",
            )
            for name, (ids, _) in rows.items()
            if len(ids) > self.context and name not in done
        ]
        fitting = [
            encoding.Row(n, ids, 0) for n, (ids, _) in rows.items() if len(ids) <= self.context
        ]
        assert self.body is not None
        return [
            *([Batch([], [], refused)] if refused else []),
            *(
                Batch(batch, [rows[row.request_id][1] for row in batch])
                for batch in encoding.batches(fitting, pass_tokens(self.spec, self.body.device))
                # A batch that is partly done is computed again as a whole, so that a rerun has the
                # same batches.
                if not all(row.request_id in done for row in batch)
            ),
        ]

    @torch.inference_mode()
    def answer(self, batch: Batch) -> list[RewardResult]:
        """See `rlaif.engines.base.Divisible`."""
        assert self.body is not None
        if not batch.rows:
            return batch.refused
        return self._score_batch(self.body, batch.rows, batch.prompts)

    def _refuse_unknown(self, rows: Iterable[list[int]]) -> None:
        token = self.limits.unknown(chain.from_iterable(rows))
        if token is not None:
            text = str(self.tokenizer.convert_ids_to_tokens(token))
            raise EngineError(f"model {self.name!r}: {no_embedding(token, text, self.limits)}")

    def _score_batch(
        self, body: Body, batch: list[encoding.Row], prompts: list[int]
    ) -> list[RewardResult]:
        width = encoding.bucket(max(len(row.ids) for row in batch))
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        # Right padding: with causal attention the pads come too late to matter.
        for i, row in enumerate(batch):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            mask[i, : len(row.ids)] = 1
        ends = torch.tensor([len(row.ids) - 1 for row in batch])
        starts = torch.tensor([length - 1 for length in prompts])
        scores, last = body(*(t.to(body.device) for t in (ids, mask, ends, starts)))
        rewards = scores.reward.tolist()
        parts = {name: value.tolist() for name, value in scores.parts.items()}
        if self.region is not None and last is not None:
            parts[DISTANCE] = self.region.distance(last.cpu().double().numpy()).tolist()
        return [
            RewardResult(
                row.request_id,
                rewards[i],
                len(row.ids),
                parts={name: values[i] for name, values in parts.items()},
            )
            for i, row in enumerate(batch)
        ]

    def close(self) -> None:
        """Free the model's memory."""
        self.body = None
        release_freed_memory()
