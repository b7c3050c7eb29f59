"""The in-process engine: transformers models on CPU or one GPU.

Its own decoding loop rather than `generate`: every request has its own seed, finished rows leave
the batch, and the batch layout is reproducible. Label and token log-probs come from an fp32 output
head over the bf16 hidden state, since bf16 logits make false ties.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from rlaif.config import ModelSpec
from rlaif.device import keep_freed_memory, pick_device, pick_dtype, release_freed_memory
from rlaif.engines import layout
from rlaif.engines.base import GenerateRequest, GenerateResult, ScoreRequest, ScoreResult
from rlaif.engines.builtin import weights_hash
from rlaif.engines.encoding import Encoding, context_of, end_ids, load_encoding
from rlaif.engines.sampling import sample_tokens
from rlaif.errors import EngineError
from rlaif.records import Message, content_hash

SCORE_CHUNK = 2048
CPU_SCORE_TOKENS = 2048


def load(spec: ModelSpec, folder: Path, name: str) -> HfEngine:
    """Load the model in `folder`. Raises EngineError when it is not a causal language model."""
    # Loading bars of every round would tear up our own progress lines.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    keep_freed_memory()
    device = pick_device(spec.device)
    dtype = pick_dtype(spec.dtype, device)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"model {name!r} in {folder} cannot be loaded: {error}") from None
    encoding = load_encoding(folder, spec.system_prompt, context_of(model.config, spec), name)
    return HfEngine(model.to(device).eval(), encoding, spec, weights_hash(folder))


class HfEngine:
    """A loaded transformers model. See `rlaif.engines.base.Engine`."""

    capabilities = frozenset({"generate", "token_logprobs", "label_logprobs", "prefill"})
    concurrent = False

    def __init__(self, model: Any, encoding: Encoding, spec: ModelSpec, digest: str):
        self.model = model
        self.encoding = encoding
        self.tokenizer = encoding.tokenizer
        self.spec = spec
        self.name = encoding.name
        self.weights_hash = digest
        self.device = model.device
        self.end_ids = end_ids(model.generation_config, self.tokenizer)
        self._head: torch.Tensor | None = None

    def render(self, messages: list[Message], prefill: str = "") -> tuple[str, list[int]]:
        """The exact text and token ids the model sees."""
        return self.encoding.render(messages, prefill)

    @torch.inference_mode()
    def generate(
        self, requests: Iterable[GenerateRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[GenerateResult]]:
        """See `Engine.generate`. A prompt that does not fit the context fails alone."""
        by_id = {r.request_id: r for r in requests}
        encoded = self.encoding.encode(by_id.values())
        refused = [
            GenerateResult(i, "", [], "failed", n, why)
            for i, (why, n) in encoded.failed.items()
            if i not in done
        ]
        if refused:
            yield refused
        for batch in layout.batches(encoded.rows, self.spec.batch_tokens):
            if all(row.request_id in done for row in batch):
                continue
            tokens = self._decode_batch(batch, [by_id[row.request_id] for row in batch])
            yield [
                self._result(row, by_id[row.request_id], *sampled, encoded.texts[row.request_id])
                for row, sampled in zip(batch, tokens, strict=True)
            ]

    def _decode_batch(
        self, batch: list[layout.Row], requests: list[GenerateRequest]
    ) -> list[tuple[list[int], list[float]]]:
        """Each row's sampled tokens, the end token included when it was sampled, and their
        log-probs at temperature 1."""
        new = batch[0].new
        # (rows, new): drawn ahead, so that a row's randomness is its own whatever its batch does.
        uniform = torch.stack([_uniform(r.sampling.seed, new) for r in requests]).to(self.device)
        logits, cache, mask, positions = self._prefill(batch)
        output: list[list[int]] = [[] for _ in batch]
        logprobs: list[list[float]] = [[] for _ in batch]
        alive = list(range(len(batch)))
        for step in range(new):
            sampling = [requests[i].sampling for i in alive]
            picked = sample_tokens(logits, uniform[alive, step], sampling)
            chosen = logits.gather(-1, picked[:, None])[:, 0] - logits.logsumexp(-1)
            for i, token, logprob in zip(alive, picked.tolist(), chosen.tolist(), strict=True):
                output[i].append(token)
                logprobs[i].append(logprob)
            keep = [p for p, i in enumerate(alive) if not self._finished(output[i], requests[i])]
            if not keep or step == new - 1:
                break
            if len(keep) < len(alive):
                index = torch.tensor(keep, device=self.device)
                cache.batch_select_indices(index)
                mask, positions, picked = mask[index], positions[index], picked[index]
                alive = [alive[p] for p in keep]
            mask = torch.cat([mask, mask.new_ones((len(alive), 1))], dim=1)
            positions = positions[:, -1:] + 1
            result = self.model(
                input_ids=picked[:, None],
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            logits = result.logits[:, -1].float()
        return list(zip(output, logprobs, strict=True))

    def _prefill(
        self, batch: list[layout.Row]
    ) -> tuple[torch.Tensor, Any, torch.Tensor, torch.Tensor]:
        """First logits (rows, vocabulary), cache, mask and positions (rows, width).

        Samples of one prompt share its forward pass.
        """
        distinct = list(dict.fromkeys(tuple(row.ids) for row in batch))
        width = layout.bucket(max(len(ids) for ids in distinct))
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.full((len(distinct), width), pad)
        mask = torch.zeros((len(distinct), width), dtype=torch.long)
        for i, prompt in enumerate(distinct):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        result = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
        )
        number = {prompt: i for i, prompt in enumerate(distinct)}
        index = torch.tensor([number[tuple(row.ids)] for row in batch], device=self.device)
        cache = result.past_key_values
        cache.batch_select_indices(index)
        return result.logits[index, -1].float(), cache, mask[index], positions[index]

    def _finished(self, tokens: list[int], request: GenerateRequest) -> bool:
        if tokens[-1] in self.end_ids:
            return True
        if not request.sampling.stop:
            return False
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return any(stop in text for stop in request.sampling.stop)

    def _result(
        self,
        row: layout.Row,
        request: GenerateRequest,
        ids: list[int],
        logprobs: list[float],
        rendered: str,
    ) -> GenerateResult:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        ended = bool(ids) and ids[-1] in self.end_ids
        cuts = [text.find(stop) for stop in request.sampling.stop if stop in text]
        if cuts:
            text, ended = text[: min(cuts)], True
        reason: Literal["stop", "length"] = "stop" if ended else "length"
        digest = content_hash(rendered)
        return GenerateResult(
            row.request_id, text, ids, reason, len(row.ids), logprobs=logprobs, rendered_hash=digest
        )

    @torch.inference_mode()
    def score(
        self, requests: Iterable[ScoreRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[ScoreResult]]:
        """See `Engine.score`. All numbers from an fp32 output head."""
        by_id = {r.request_id: r for r in requests}
        encoded = self.encoding.encode(by_id.values())
        refused = [
            ScoreResult(i, {}, None, [], n, why)
            for i, (why, n) in encoded.failed.items()
            if i not in done
        ]
        if refused:
            yield refused
        budget = self.spec.batch_tokens
        if self.device.type == "cpu":
            # One pass needs no wide batch to be fast here, and narrow ones waste less on padding.
            budget = min(budget, CPU_SCORE_TOKENS)
        for batch in layout.batches(encoded.rows, budget):
            if all(row.request_id in done for row in batch):
                continue
            yield self._score_batch(batch, [by_id[row.request_id] for row in batch])

    def _score_batch(
        self, batch: list[layout.Row], requests: list[ScoreRequest]
    ) -> list[ScoreResult]:
        width = layout.bucket(max(len(r.ids) for r in batch))
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        # Right padding: with causal attention the pads come too late to matter.
        for i, row in enumerate(batch):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
            mask[i, : len(row.ids)] = 1
        hidden = self.model.base_model(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device)
        ).last_hidden_state
        tails = [len(self.encoding.continuation(request)) for request in requests]
        label_probs = self._label_probs(hidden, batch, requests, tails)
        results = []
        for i, (row, tail) in enumerate(zip(batch, tails, strict=True)):
            length = len(row.ids)
            start = length - tail
            logprobs = self._token_logprobs(hidden[i, start - 1 : length - 1], row.ids[start:])
            probs = label_probs.get(i, {})
            mass = sum(probs.values()) if i in label_probs else None
            results.append(ScoreResult(row.request_id, probs, mass, logprobs, start))
        return results

    def _label_probs(
        self,
        hidden: torch.Tensor,
        batch: list[layout.Row],
        requests: list[ScoreRequest],
        tails: list[int],
    ) -> dict[int, dict[str, float]]:
        """Row number to the probability of each of its labels at the token after the prompt."""
        asked = [i for i, request in enumerate(requests) if request.labels]
        if not asked:
            return {}
        ends = [len(batch[i].ids) - tails[i] - 1 for i in asked]
        probs = self._logits(hidden[asked, ends]).softmax(-1)
        return {
            i: {
                label: float(row[self.encoding.label_tokens(label, forms)].sum())
                for label, forms in requests[i].labels.items()
            }
            for i, row in zip(asked, probs, strict=True)
        }

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 logits (tokens, vocabulary) of hidden states (tokens, width)."""
        head = self.model.get_output_embeddings()
        if self._head is None:
            self._head = head.weight.detach().float()
        logits = hidden.float() @ self._head.T
        if getattr(head, "bias", None) is not None:
            logits = logits + head.bias.float()
        return _as_configured(logits, self.model.config)

    def _token_logprobs(self, hidden: torch.Tensor, targets: list[int]) -> list[float]:
        values: list[float] = []
        for start in range(0, len(targets), SCORE_CHUNK):
            logits = self._logits(hidden[start : start + SCORE_CHUNK])
            wanted = torch.tensor(targets[start : start + SCORE_CHUNK], device=logits.device)
            picked = logits.gather(-1, wanted[:, None])[:, 0] - logits.logsumexp(-1)
            values += picked.tolist()
        return values

    def close(self) -> None:
        """Free the model's memory."""
        self.model = None
        self._head = None
        release_freed_memory()


def _uniform(seed: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float32)


def _as_configured(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """The scaling and soft-capping that some architectures apply after the head."""
    if getattr(config, "logits_scaling", None):
        logits = logits / config.logits_scaling
    if getattr(config, "logit_scale", None):
        logits = logits * config.logit_scale
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits
