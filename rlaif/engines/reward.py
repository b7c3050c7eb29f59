"""The in-process engine of reward models: a transformers body with a reward head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, NoReturn

import torch

from rlaif.chat import end_of_turn, render_answer, render_prompt
from rlaif.config import ModelSpec
from rlaif.device import keep_freed_memory, pick_device, pick_dtype, release_freed_memory
from rlaif.engines import layout
from rlaif.engines.base import RewardRequest, RewardResult
from rlaif.engines.builtin import weights_hash
from rlaif.engines.memory import pass_tokens
from rlaif.errors import EngineError
from rlaif.heads import Head, HeadConfig, LinearHead, load_head
from rlaif.records import Message


def load(spec: ModelSpec, folder: Path, name: str) -> RewardEngine:
    """Load the reward model in `folder`. Raises EngineError when it has no head that gives one
    number."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    keep_freed_memory()
    device = pick_device(spec.device)
    dtype = pick_dtype(spec.dtype, device)
    try:
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"reward model {name!r} in {folder} cannot be loaded: {error}") from None
    head = load_head(folder) or _plain_head(model, name, folder)
    if not getattr(tokenizer, "chat_template", None):
        raise EngineError(
            f"model {name!r} in {folder} has no chat template. Put chat_template.jinja into the "
            "folder."
        )
    head = head.to(device)
    return RewardEngine(model.to(device).eval(), head, tokenizer, spec, name, weights_hash(folder))


def _plain_head(model: Any, name: str, folder: Path) -> LinearHead:
    """The checkpoint's own row of weights in fp32: bf16 would round rewards to hundredths."""
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
    head = LinearHead(HeadConfig("linear", score.in_features))
    with torch.no_grad():
        head.weight.copy_(score.weight)
    return head


class RewardEngine:
    """A loaded reward model. See `rlaif.engines.base.Engine`."""

    capabilities = frozenset({"reward"})
    concurrent = False

    def __init__(
        self, model: Any, head: Head, tokenizer: Any, spec: ModelSpec, name: str, digest: str
    ):
        self.model = model
        self.head = head
        self.tokenizer = tokenizer
        self.spec = spec
        self.name = name
        self.weights_hash = digest
        limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
        self.context = min(spec.max_context or limit, limit)

    def generate(self, requests: Any, done: Any = frozenset()) -> NoReturn:
        """A reward model writes nothing."""
        raise EngineError(f"{self.name} is a reward model: it cannot generate")

    def score(self, requests: Any, done: Any = frozenset()) -> NoReturn:
        """A reward model has no token probabilities."""
        raise EngineError(f"{self.name} is a reward model: it has no token probabilities")

    def render(self, messages: list[Message], prefill: str = "") -> tuple[str, list[int]]:
        """The exact text and token ids of a prompt, or of a prompt and its answer: then with the
        end of turn, as reward training sees it."""
        prompt, answer = list(messages), None
        if prompt and prompt[-1]["role"] == "assistant":
            answer = prompt.pop()
        text = render_prompt(self.tokenizer, prompt, self.spec.system_prompt) + prefill
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if answer is None:
            return text, ids
        own, suffix = render_answer(self.tokenizer, prompt, answer)
        ids = ids + self.tokenizer(own, add_special_tokens=False)["input_ids"]
        end = end_of_turn(self.tokenizer, suffix)
        return text + own, ids if end is None else [*ids, end]

    def reward(
        self, requests: Iterable[RewardRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[RewardResult]]:
        """See `Engine.reward`. What does not fit the context fails alone."""
        rows = {
            r.request_id: (
                self.render([*r.messages, r.answer])[1],
                len(self.render(r.messages)[1]),
            )
            for r in requests
        }
        return self.reward_ids(rows, done)

    @torch.inference_mode()
    def reward_ids(
        self, rows: Mapping[str, tuple[list[int], int]], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[RewardResult]]:
        """As `reward`, of token ids by request id, each with how many of them are the prompt's."""
        refused = [
            RewardResult(
                name,
                None,
                len(ids),
                f"{len(ids)} tokens do not fit the context of {self.context}",
            )
            for name, (ids, _) in rows.items()
            if len(ids) > self.context
        ]
        fitting = [
            layout.Row(n, ids, 0) for n, (ids, _) in rows.items() if len(ids) <= self.context
        ]
        refused = [result for result in refused if result.request_id not in done]
        if refused:
            yield refused
        for batch in layout.batches(fitting, pass_tokens(self.spec, self.model.device)):
            if all(row.request_id in done for row in batch):
                continue
            yield self._batch(batch, [rows[row.request_id][1] for row in batch])

    def _batch(self, batch: list[layout.Row], prompts: list[int]) -> list[RewardResult]:
        width = layout.bucket(max(len(row.ids) for row in batch))
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        # Right padding: with causal attention the pads come too late to matter.
        for i, row in enumerate(batch):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            mask[i, : len(row.ids)] = 1
        device = self.model.device
        hidden = self.model.base_model(
            input_ids=ids.to(device), attention_mask=mask.to(device)
        ).last_hidden_state
        rows = torch.arange(len(batch), device=device)
        ends = torch.tensor([len(row.ids) - 1 for row in batch], device=device)
        starts = torch.tensor([length - 1 for length in prompts], device=device)
        scores = self.head(hidden[rows, ends].float(), hidden[rows, starts].float())
        rewards = scores.reward.tolist()
        parts = {name: value.tolist() for name, value in scores.parts.items()}
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
        self.model = None
        release_freed_memory()
