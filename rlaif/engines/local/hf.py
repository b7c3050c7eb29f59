"""The in-process engine: transformers models on CPU or one GPU.

Its own decoding loop rather than `generate`: every request has its own seed, finished rows leave
the batch, and the batch layout is reproducible. Label and token log-probs come from an fp32 output
head over the bf16 hidden state, since bf16 logits make false ties.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from rlaif.config.models import ModelSpec
from rlaif.core.chat import split
from rlaif.core.errors import EngineError, explain_library
from rlaif.core.records import Message, content_hash
from rlaif.engines.base import (
    GenerateRequest,
    GenerateResult,
    Sampling,
    ScoreRequest,
    ScoreResult,
    thinks_first,
)
from rlaif.engines.local import encoding, forward
from rlaif.engines.local.decoding import BranchRows, PaddedRows, Rows, sample_tokens
from rlaif.engines.local.encoding import (
    Encoded,
    Encoding,
    batch_tokens,
    end_ids,
    load_encoding,
    pass_tokens,
)
from rlaif.engines.local.forward import plain_attention
from rlaif.engines.local.weights import Weights
from rlaif.engines.model_folders import adapter_folder, merge_adapter, model_hash
from rlaif.kernels.device import keep_freed_memory, pick_device, pick_dtype, release_freed_memory
from rlaif.kernels.logprobs import token_logprobs

ENDED_SHARE = 1 / 16
"""Rows that have ended leave a batch when they are so many of it: leaving copies the others."""


def load(spec: ModelSpec, folder: Path, name: str) -> HfEngine:
    """Load the model in `folder`. Raises EngineError when it is not a causal language model."""
    # Loading bars of every round would tear up our own progress lines.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    keep_freed_memory()
    device = pick_device(spec.device)
    dtype = pick_dtype(spec.dtype, device)
    with explain_library(f"model {name!r} in {folder} cannot be loaded", EngineError):
        attention = plain_attention(AutoConfig.from_pretrained(folder))
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention
        )
    adapter = adapter_folder(spec)
    if adapter is not None:
        model = merge_adapter(model, adapter, name)
    weights = Weights(model.to(device).eval(), model_hash(folder, spec))
    return HfEngine(weights, _load_encoding(model, folder, spec, name), spec)


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests of one kind by id that are computed together, and what they are as token ids."""

    requests: dict[str, Any]
    encoded: Encoded


def _load_encoding(model: Any, folder: Path, spec: ModelSpec, name: str) -> Encoding:
    return load_encoding(folder, spec, model.config, name)


class HfEngine:
    """A loaded transformers model. See `rlaif.engines.base.Engine`."""

    capabilities = frozenset(
        {"generate", "token_logprobs", "label_logprobs", "prefill", "user_turn", "token_ids"}
    )
    concurrent = False

    def __init__(
        self,
        weights: Weights,
        encoding: Encoding,
        spec: ModelSpec,
        share: tuple[int, int] = (0, 1),
    ):
        """`share`: of several processes that compute the batches of the same requests, this one's
        number and how many there are. Batch i is that of process i mod their number."""
        self.weights = weights
        self.share = share
        self.encoding = encoding
        self.tokenizer = encoding.tokenizer
        self.spec = spec
        self.name = encoding.name
        self.weights_hash = weights.digest
        self.device = weights.model.device
        generation = weights.model.generation_config
        self.end_ids = end_ids(generation, self.tokenizer)
        # As transformers' own `generate` has it.
        self.suppressed: list[int] = list(generation.suppress_tokens or [])

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self.weights.model

    def sharing(self, spec: ModelSpec, folder: Path, name: str) -> HfEngine | None:
        """An engine of other settings over this one's model, where `spec` asks for the very weights
        that are here; None where it asks for others."""
        alike = all(
            getattr(spec, k) == getattr(self.spec, k) for k in ("engine", "device", "dtype")
        )
        if not alike or spec.engine != "hf" or model_hash(folder, spec) != self.weights_hash:
            return None
        return HfEngine(self.weights, _load_encoding(self.model, folder, spec, name), spec)

    def render(self, messages: list[Message], prefill: str = "") -> tuple[str, list[int]]:
        """The exact text and token ids the model sees."""
        return self.encoding.render(messages, prefill)

    def lost(self, messages: Sequence[Message]) -> Counter[str]:
        """See `rlaif.engines.base.Losing`."""
        return self.encoding.lost(messages)

    @torch.inference_mode()
    def generate(
        self, requests: Iterable[GenerateRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[GenerateResult]]:
        """See `Engine.generate`. A prompt that does not fit the context fails alone."""
        with self.weights.computing():
            for batch in self.lay_out(list(requests), done):
                yield self._generate_batch(batch)

    def lay_out(
        self,
        requests: Sequence[GenerateRequest] | Sequence[ScoreRequest],
        done: AbstractSet[str] = frozenset(),
    ) -> list[Batch]:
        """See `rlaif.engines.base.Divisible`. What cannot run is a batch of its own, the first."""
        by_id: dict[str, GenerateRequest | ScoreRequest] = {r.request_id: r for r in requests}
        encoded = self.encoding.encode(by_id.values())
        failed = {name: why for name, why in encoded.failed.items() if name not in done}
        if any(isinstance(request, ScoreRequest) for request in requests):
            number, processes = 0, 1
            batches = self._lay_out_scores(encoded)
        else:
            number, processes = self.share
            budget = batch_tokens(self.spec, self.model)
            batches = encoding.batches(encoded.rows, budget, self.weights.branches)
        # Dealt before any is left out, so that a batch is the same process's after a kill too.
        parts = [encoded.part(b) for b in _skip_done(batches[number::processes], done)]
        if failed and number == 0:
            parts.insert(0, Encoded(failed=failed))
        return [Batch({name: by_id[name] for name in part.names()}, part) for part in parts]

    def _lay_out_scores(self, encoded: Encoded) -> list[list[encoding.Row]]:
        budget = pass_tokens(self.spec, self.device)
        if self.weights.branches:
            return forward.batches(encoded.rows, encoded.tails, budget)
        return encoding.batches(encoded.rows, budget)

    @torch.inference_mode()
    def answer(self, batch: Batch) -> list[GenerateResult] | list[ScoreResult]:
        """See `rlaif.engines.base.Divisible`."""
        with self.weights.computing():
            if any(isinstance(request, ScoreRequest) for request in batch.requests.values()):
                return self._score_batch(batch)
            return self._generate_batch(batch)

    def _generate_batch(self, batch: Batch) -> list[GenerateResult]:
        encoded, requests = (
            batch.encoded,
            [batch.requests[r.request_id] for r in batch.encoded.rows],
        )
        if not encoded.rows:
            return [
                GenerateResult(name, "", [], "failed", count, why)
                for name, (why, count) in encoded.failed.items()
            ]
        tokens = self._decode_batch(encoded.rows, requests)
        return [
            self._make_generate_result(row, request, *sampled, encoded.texts[row.request_id])
            for row, request, sampled in zip(encoded.rows, requests, tokens, strict=True)
        ]

    def _decode_batch(
        self, batch: list[encoding.Row], requests: list[GenerateRequest]
    ) -> list[tuple[list[int], list[float]]]:
        """Each row's sampled tokens, the end token included when it was sampled, and their
        log-probs at temperature 1."""
        new = batch[0].new
        # (rows, new): drawn ahead, so that a row's randomness is its own whatever its batch does.
        uniform = torch.stack([_draw_uniform(r.sampling.seed, new) for r in requests]).to(
            self.device
        )
        rows = self._start_rows(batch)
        hidden = rows.first()
        output: list[list[int]] = [[] for _ in batch]
        logprobs: list[list[float]] = [[] for _ in batch]
        # The numbers of the rows that are computed; those that have ended leave in bunches.
        held = list(range(len(batch)))
        ended: set[int] = set()
        for step in range(new):
            sampling = [requests[i].sampling for i in held]
            picked, chosen = self._sample_step(hidden, uniform[held, step], sampling)
            for i, token, logprob in zip(held, picked.tolist(), chosen.tolist(), strict=True):
                if i not in ended:
                    output[i].append(token)
                    logprobs[i].append(logprob)
                    if self._is_finished(output[i], requests[i]):
                        ended.add(i)
            kept = [p for p, i in enumerate(held) if i not in ended]
            # Nothing follows the last token, so its states are not needed.
            if not kept or step == new - 1:
                break
            if len(held) - len(kept) >= len(held) * ENDED_SHARE:
                index = torch.tensor(kept, device=self.device)
                rows.keep(index)
                picked = picked[index]
                held = [held[p] for p in kept]
            hidden = rows.after(picked)
        return list(zip(output, logprobs, strict=True))

    def _start_rows(self, batch: list[encoding.Row]) -> Rows:
        """The batch after its prompts. Samples of one prompt share its forward pass."""
        number: dict[tuple[int, ...], int] = {}
        owner = [number.setdefault(tuple(row.ids), len(number)) for row in batch]
        prompts = list(number)
        if self.weights.branches:
            return BranchRows(self.model, prompts, owner, batch[0].new)
        return PaddedRows(self.model, prompts, owner, self.tokenizer.pad_token_id or 0)

    def _sample_step(
        self, hidden: torch.Tensor, uniform: torch.Tensor, sampling: list[Sampling]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One token for each row of hidden states (R, H), and its log-prob at temperature 1."""
        logits = self.weights.head.finish(self.model.get_output_embeddings()(hidden).float())
        if self.suppressed:
            logits[:, self.suppressed] = -math.inf
        picked = sample_tokens(logits, uniform, sampling)
        return picked, logits.gather(-1, picked[:, None])[:, 0] - logits.logsumexp(-1)

    def _is_finished(self, tokens: list[int], request: GenerateRequest) -> bool:
        if tokens[-1] in self.end_ids:
            return True
        if not request.sampling.stop:
            return False
        # All of it: a stop may begin in one token and end in another.
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return any(stop in text for stop in request.sampling.stop)

    def _make_generate_result(
        self,
        row: encoding.Row,
        request: GenerateRequest,
        ids: list[int],
        logprobs: list[float],
        rendered: str,
    ) -> GenerateResult:
        text = self.encoding.decode(ids)
        ended = bool(ids) and ids[-1] in self.end_ids
        cuts = [text.find(stop) for stop in request.sampling.stop if stop in text]
        if cuts:
            text, ended = text[: min(cuts)], True
        reason: Literal["stop", "length"] = "stop" if ended else "length"
        said = split(text, self.spec.thinking, rendered)
        return GenerateResult(
            row.request_id,
            said.answer,
            ids,
            reason,
            len(row.ids),
            logprobs=logprobs,
            rendered_hash=content_hash(rendered),
            reasoning=said.reasoning,
            cut=said.cut,
        )

    @torch.inference_mode()
    def score(
        self, requests: Iterable[ScoreRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[ScoreResult]]:
        """See `Engine.score`. All numbers from an fp32 output head."""
        with self.weights.computing():
            for batch in self.lay_out(list(requests), done):
                yield self._score_batch(batch)

    def _score_batch(self, batch: Batch) -> list[ScoreResult]:
        rows, tails = batch.encoded.rows, batch.encoded.tails
        if not rows:
            return [
                ScoreResult(name, {}, None, [], count, why)
                for name, (why, count) in batch.encoded.failed.items()
            ]
        states = forward.states(self.model, rows, tails, self.weights.branches)
        requests = [batch.requests[row.request_id] for row in states.rows]
        return self._make_score_results(states, requests, tails)

    def _make_score_results(
        self, states: forward.States, requests: list[ScoreRequest], tails: dict[str, int]
    ) -> list[ScoreResult]:
        lengths = [tails[row.request_id] for row in states.rows]
        targets = [
            token
            for row, n in zip(states.rows, lengths, strict=True)
            for token in _take_last(row, n)
        ]
        logprobs = self._token_logprobs(states.tails, targets)
        label_probs = self._label_probs(states.ends, requests)
        results, stop = [], 0
        for i, (row, length) in enumerate(zip(states.rows, lengths, strict=True)):
            stop += length
            count = len(row.ids) - length
            probs, thinking = label_probs.get(i, ({}, 0.0))
            mass = sum(probs.values()) if i in label_probs else None
            why = thinks_first(thinking, mass) if mass is not None else None
            # Where the model is about to think, labels at this token are not its answer.
            if why is not None:
                results.append(ScoreResult(row.request_id, {}, None, [], count, why))
                continue
            own = logprobs[stop - length : stop]
            results.append(ScoreResult(row.request_id, probs, mass, own, count))
        return results

    def _label_probs(
        self, hidden: torch.Tensor, requests: list[ScoreRequest]
    ) -> dict[int, tuple[dict[str, float], float]]:
        """Row number to the probability of each of its labels at the token after the prompt, and
        to that of beginning to think."""
        asked = [i for i, request in enumerate(requests) if request.labels]
        if not asked:
            return {}
        output, weight = self.weights.output()
        bias = None if output.bias is None else output.bias.float()
        logits = torch.nn.functional.linear(hidden[asked].float(), weight, bias)
        probs = self.weights.head.finish(logits).softmax(-1)  # [asked, vocabulary]
        return {
            i: (
                {
                    label: float(row[self.encoding.label_tokens(label, forms)].sum())
                    for label, forms in requests[i].labels.items()
                },
                float(row[self.encoding.openings].sum()),
            )
            for i, row in zip(asked, probs, strict=True)
        }

    def _token_logprobs(self, hidden: torch.Tensor, targets: list[int]) -> list[float]:
        output, weight = self.weights.output()
        values: list[float] = token_logprobs(
            # Into the hidden states: the kernel has no scale, and the bias is not scaled.
            hidden.float() * self.weights.head.scale,
            weight,
            torch.tensor(targets, dtype=torch.int64, device=self.device),
            output.bias,
            softcap=self.weights.head.softcap,
            fp32_head=True,
        ).tolist()
        return values

    def close(self) -> None:
        """Drop this engine's reference to the model; its memory is freed with the last one."""
        vars(self).pop("weights", None)
        release_freed_memory()


def _skip_done(
    batches: Iterable[list[encoding.Row]], done: AbstractSet[str]
) -> Iterator[list[encoding.Row]]:
    """The batches that are not wholly done."""
    return (b for b in batches if not all(row.request_id in done for row in b))


def _draw_uniform(seed: int, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float32)


def _take_last(row: encoding.Row, count: int) -> list[int]:
    return row.ids[len(row.ids) - count :]
