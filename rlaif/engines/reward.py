"""The in-process engine of reward models: a transformers body with a head of one number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
from rlaif.records import Message


def load(spec: ModelSpec, folder: Path, name: str) -> RewardEngine:
    """Load the reward model in `folder`. Raises EngineError when its head is not one number."""
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
    if model.config.num_labels != 1:
        raise EngineError(
            f"model {name!r} in {folder} has {model.config.num_labels} outputs; a reward model has "
            "one"
        )
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        raise EngineError(
            f"model {name!r} in {folder}: {type(model).__name__} has no plain `score` head"
        )
    if not getattr(tokenizer, "chat_template", None):
        raise EngineError(
            f"model {name!r} in {folder} has no chat template. Put chat_template.jinja into the "
            "folder."
        )
    return RewardEngine(model.to(device).eval(), tokenizer, spec, name, weights_hash(folder))


class RewardEngine:
    """A loaded reward model. See `rlaif.engines.base.Engine`."""

    capabilities = frozenset({"reward"})
    concurrent = False

    def __init__(self, model: Any, tokenizer: Any, spec: ModelSpec, name: str, digest: str):
        self.model = model
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

    @torch.inference_mode()
    def reward(
        self, requests: Iterable[RewardRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[RewardResult]]:
        """See `Engine.reward`. What does not fit the context fails alone."""
        rows, refused = [], []
        for request in requests:
            _, ids = self.render([*request.messages, request.answer])
            if len(ids) > self.context:
                why = f"{len(ids)} tokens do not fit the context of {self.context}"
                refused.append(RewardResult(request.request_id, None, len(ids), why))
            else:
                rows.append(layout.Row(request.request_id, ids, 0))
        refused = [result for result in refused if result.request_id not in done]
        if refused:
            yield refused
        for batch in layout.batches(rows, pass_tokens(self.spec, self.model.device)):
            if all(row.request_id in done for row in batch):
                continue
            yield self._batch(batch)

    def _batch(self, batch: list[layout.Row]) -> list[RewardResult]:
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
        ends = torch.tensor([len(row.ids) - 1 for row in batch], device=device)
        last = hidden[torch.arange(len(batch), device=device), ends].float()
        rewards = (last @ self.model.score.weight.float().T)[:, 0].tolist()
        return [
            RewardResult(row.request_id, reward, len(row.ids))
            for row, reward in zip(batch, rewards, strict=True)
        ]

    def close(self) -> None:
        """Free the model's memory."""
        self.model = None
        release_freed_memory()
