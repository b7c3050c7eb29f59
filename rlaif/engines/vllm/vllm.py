"""vLLM in this process's charge: continuous batching, cached prefixes, new weights in place.

vLLM runs in processes of its own, which end with this one (`rlaif.engines.vllm.keeper`). Answers
come in the order in which they are finished, and their bits can depend on what else was running: a
resumed run keeps what it has and samples the rest, which need not equal an uninterrupted run's.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlaif.config.models import ModelSpec
from rlaif.core.chat import split
from rlaif.core.errors import EngineError, explain_library
from rlaif.core.records import Message, content_hash
from rlaif.engines.base import (
    Capability,
    GenerateRequest,
    GenerateResult,
    ModelWeights,
    ScoreRequest,
    ScoreResult,
    thinks_first,
)
from rlaif.engines.local.encoding import Encoding, Row, end_ids, load_encoding
from rlaif.engines.model_folders import adapter_folder, model_hash
from rlaif.engines.vllm.keeper import owned
from rlaif.engines.vllm.transfer import (
    LocalClient,
    Transfer,
    choose_transport,
    needed_environment,
    require_plugin,
)
from rlaif.engines.vllm.vllm_options import environment, options, trains_beside, within

log = logging.getLogger(__name__)

IN_FLIGHT = 1024
"""Requests given to vLLM at once: more than it computes together, so that it never waits."""
COMMIT = 32
"""Finished answers that are yielded together."""


def load(spec: ModelSpec, folder: Path, name: str) -> VllmEngine:
    """Start vLLM with the model in `folder`. Raises EngineError when it cannot."""
    on_gpu = torch.cuda.is_available()
    adapter = adapter_folder(spec)
    encoding, ends = read_tokenizer(spec, folder, name)
    values = options(spec, encoding.context, on_gpu, adapter)
    transport = choose_transport(spec, on_gpu)
    values["weight_transfer_config"] = {"backend": transport}
    # Its processes inherit what is set while they start.
    with within(environment(spec, on_gpu) | needed_environment(transport)), owned():
        llm = _start_llm(name, folder, values)
    transfer = Transfer(transport, LocalClient(llm), spec, name)
    engine = VllmEngine(llm, encoding, spec, ends, model_hash(folder, spec), on_gpu, transfer)
    if adapter is not None:
        engine.add_adapter(adapter)
    return engine


def _start_llm(name: str, folder: Path, values: dict[str, Any]) -> Any:
    try:
        from vllm import LLM
    except ImportError as error:
        raise EngineError(
            f"model {name!r}: engine vllm needs the package vllm ({error}). Run: pip install vllm"
        ) from None
    require_plugin(name)
    try:
        return LLM(model=str(folder), **values)
    # Its classes of errors move from version to version.
    except Exception as error:
        raise EngineError(f"model {name!r}: vLLM does not start: {error}") from None


def read_tokenizer(spec: ModelSpec, folder: Path, name: str) -> tuple[Encoding, frozenset[int]]:
    """The model's encoding and the tokens that end its turns. Raises EngineError."""
    from transformers import AutoConfig, GenerationConfig

    with explain_library(f"model {name!r} in {folder} cannot be loaded", EngineError):
        config = AutoConfig.from_pretrained(folder)
        encoding = load_encoding(folder, spec, config, name)
        if (folder / "generation_config.json").exists():
            config = GenerationConfig.from_pretrained(folder)
    return encoding, end_ids(config, encoding.tokenizer)


class VllmEngine:
    """A model in vLLM. See `rlaif.engines.base.Engine`."""

    capabilities: frozenset[Capability] = frozenset(
        {
            "generate",
            "token_logprobs",
            "label_logprobs",
            "prefill",
            "json_schema",
            "user_turn",
            "token_ids",
        }
    )
    concurrent = False

    def __init__(
        self,
        llm: Any,
        encoding: Encoding,
        spec: ModelSpec,
        ends: frozenset[int],
        digest: str,
        on_gpu: bool,
        transfer: Transfer,
    ):
        self.llm = llm
        self.transfer = transfer
        self.encoding = encoding
        self.spec = spec
        self.ends = ends
        self.name = encoding.name
        self.weights_hash = digest
        self.on_gpu = on_gpu
        self.lora: Any = None
        self.schemas_refused: set[str] = set()
        self.asleep = False

    def add_adapter(self, folder: Path) -> None:
        """Answer with the adapter in `folder` from here on. Raises EngineError, and ends vLLM,
        where it does not take it."""
        from vllm.lora.request import LoRARequest

        self.lora = LoRARequest("adapter", 1, str(folder))
        try:
            # Here, and not in the midst of the first answers.
            self.llm.llm_engine.add_lora(self.lora)
        # Its classes of errors move from version to version.
        except Exception as error:
            self.close()
            raise EngineError(f"model {self.name!r}: no such adapter for vLLM: {error}") from None
        self.capabilities = self.capabilities - {"token_logprobs"}

    def render(self, messages: list[Message], prefill: str = "") -> tuple[str, list[int]]:
        """The exact text and token ids the model sees."""
        return self.encoding.render(messages, prefill)

    def lost(self, messages: Sequence[Message]) -> Counter[str]:
        """See `rlaif.engines.base.Losing`."""
        return self.encoding.lost(messages)

    def generate(
        self, requests: Iterable[GenerateRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[GenerateResult]]:
        """See `Engine.generate`. A prompt that does not fit the context fails alone."""
        # What is done is left out: vLLM's batches differ from run to run anyway.
        by_id = {r.request_id: r for r in requests if r.request_id not in done}
        encoded = self.encoding.encode(list(by_id.values()))
        refused = [
            GenerateResult(i, "", [], "failed", n, why) for i, (why, n) in encoded.failed.items()
        ]
        if refused:
            yield refused
        asked = ((r, self._sampling_params(by_id[r.request_id])) for r in encoded.rows)
        for outputs in self._run_requests(asked):
            yield [self._read_generate_result(o, encoded.texts[o.request_id]) for o in outputs]

    def _sampling_params(self, request: GenerateRequest) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        sampling, schema = request.sampling, request.json_schema
        greedy = sampling.temperature == 0
        return SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or -1,
            seed=None if greedy else sampling.seed,
            stop=list(sampling.stop) or None,
            stop_token_ids=sorted(self.ends),
            # Those that tell thinking from answer may be special tokens.
            skip_special_tokens=not self.encoding.markers,
            logprobs=0,  # Of the sampled token alone.
            structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
            # Otherwise vLLM makes an output of every request at every token.
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _read_generate_result(self, output: Any, rendered: str) -> GenerateResult:
        made = output.outputs[0]
        ids = list(made.token_ids)
        if made.finish_reason not in ("stop", "length"):
            why = f"vLLM stopped it: {made.finish_reason}"
            count = len(output.prompt_token_ids)
            return GenerateResult(output.request_id, "", [], "failed", count, why)
        logprobs = [at[token].logprob for token, at in zip(ids, made.logprobs, strict=True)]
        said = split(made.text, self.spec.thinking, rendered)
        return GenerateResult(
            output.request_id,
            said.answer,
            ids,
            made.finish_reason,
            len(output.prompt_token_ids),
            logprobs=logprobs,
            rendered_hash=content_hash(rendered),
            reasoning=said.reasoning,
            cut=said.cut,
        )

    def score(
        self, requests: Iterable[ScoreRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[ScoreResult]]:
        """See `Engine.score`. The head computes in the model's own dtype: in bfloat16 close labels
        can tie, which the in-process engine's fp32 head tells apart."""
        by_id = {r.request_id: r for r in requests if r.request_id not in done}
        encoded = self.encoding.encode(list(by_id.values()))
        refused = [ScoreResult(i, {}, None, [], n, why) for i, (why, n) in encoded.failed.items()]
        # One token is generated after what is scored, and thrown away.
        rows = {r.request_id: r for r in encoded.rows if len(r.ids) < self.encoding.context}
        full = [r for r in encoded.rows if r.request_id not in rows]
        why = f"fills the context of {self.encoding.context}, and vLLM wants one token more"
        refused += [ScoreResult(r.request_id, {}, None, [], len(r.ids), why) for r in full]
        if refused:
            yield refused
        tails = encoded.tails
        asked = (
            self._make_scoring_request(row, by_id[name], tails[name]) for name, row in rows.items()
        )
        for outputs in self._run_requests(asked):
            yield [
                self._read_score_result(o, by_id[o.request_id], tails[o.request_id])
                for o in outputs
            ]

    def _make_scoring_request(self, row: Row, request: ScoreRequest, tail: int) -> tuple[Row, Any]:
        """`tail` counts the tokens at the row's end whose log-probs are asked."""
        from vllm import SamplingParams

        if tail and request.labels:
            raise EngineError("ask for labels or for a continuation, not for both in one request")
        if tail and "token_logprobs" not in self.capabilities:
            raise EngineError(
                f"model {self.name!r}: vLLM gives no log-probs of a text beside an adapter. Use "
                "`engine: hf`, or merge the adapter into the weights."
            )
        tokens = sorted({t for ids in self._encode_labels(request).values() for t in ids})
        tokens += self.encoding.openings if tokens else []
        return row, SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0 if tail else None,
            logprob_token_ids=tokens or None,
            detokenize=False,
        )

    def _encode_labels(self, request: ScoreRequest) -> dict[str, list[int]]:
        return {
            label: self.encoding.label_tokens(label, forms)
            for label, forms in request.labels.items()
        }

    def _read_score_result(self, output: Any, request: ScoreRequest, tail: int) -> ScoreResult:
        ids = list(output.prompt_token_ids)
        start = len(ids) - tail
        probs: dict[str, float] = {}
        if request.labels:
            at = output.outputs[0].logprobs[0]
            for label, tokens in self._encode_labels(request).items():
                values = torch.tensor([at[token].logprob for token in tokens])
                probs[label] = float(values.exp().sum())
            thinking = sum(math.exp(at[token].logprob) for token in self.encoding.openings)
            why = thinks_first(thinking, sum(probs.values()))
            if why is not None:
                return ScoreResult(request.request_id, {}, None, [], start, why)
        found = output.prompt_logprobs or []
        # The first token of a prompt has none, and no tail begins there.
        logprobs = [found[i][ids[i]].logprob for i in range(start, len(ids))]
        mass = sum(probs.values()) if request.labels else None
        return ScoreResult(request.request_id, probs, mass, logprobs, start)

    def _run_requests(self, asked: Iterable[tuple[Row, Any]]) -> Iterator[list[Any]]:
        """Finished outputs as they come. Abandoning the iterator cancels what is running."""
        self._wake_engine()
        engine, asked = self.llm.llm_engine, iter(asked)
        running: set[str] = set()
        finished: list[Any] = []
        try:
            while True:
                while len(running) < IN_FLIGHT and (following := next(asked, None)) is not None:
                    self._add_request(*following)
                    running.add(following[0].request_id)
                if not running:
                    break
                ended = [o for o in self._step_engine(running) if o.finished]
                running -= {o.request_id for o in ended}
                finished += ended
                if len(finished) >= COMMIT:
                    yield finished
                    finished = []
        finally:
            if running:
                engine.abort_request(list(running))
        if finished:
            yield finished

    def _add_request(self, row: Row, sampling: Any) -> None:
        from vllm.inputs import TokensPrompt

        prompt = TokensPrompt(prompt_token_ids=row.ids)
        add = partial(self.llm.llm_engine.add_request, row.request_id, prompt)
        try:
            add(sampling, lora_request=self.lora)
        # Its classes of errors move from version to version.
        except Exception as error:
            if sampling.structured_outputs is None:
                raise EngineError(f"{self.name}: vLLM takes no such request: {error}") from None
            # It knows a part of JSON schema only; the answer is then read as text.
            self._give_up_schema(str(error))
            sampling.structured_outputs = None
            add(sampling, lora_request=self.lora)

    def _give_up_schema(self, said: str) -> None:
        if said not in self.schemas_refused:
            self.schemas_refused.add(said)
            log.warning(
                "model %s: vLLM does not take a JSON schema, which is left out, and the answers "
                "are read as text: %s",
                self.name,
                said,
            )

    def _step_engine(self, running: set[str]) -> list[Any]:
        try:
            outputs: list[Any] = self.llm.llm_engine.step()
        # Its classes of errors move from version to version.
        except Exception as error:
            # There is nothing left to cancel.
            running.clear()
            raise EngineError(
                f"{self.name}: vLLM stopped: {error} What was stored is kept; run the same command "
                "again to go on. Where it was killed, another process may have taken the memory."
            ) from error
        return outputs

    def load_weights(self, weights: ModelWeights, digest: str) -> None:
        """Take weights of the same architecture in place, by the transport that the engine was
        started for. Raises EngineError where they do not arrive."""
        self._wake_engine()
        self.transfer.send(weights)
        # What was computed with the old weights must not be continued.
        if not self.llm.reset_prefix_cache():
            raise EngineError(f"{self.name}: vLLM keeps prefixes that the old weights computed")
        self.weights_hash = digest

    def rest(self, processes: int = 1) -> bool:
        """Give up the device's memory until the next call; False where only `close` does."""
        if trains_beside(self.spec, self.on_gpu, processes):
            return True
        if not self.spec.engine_args.get("enable_sleep_mode"):
            return False
        if not self.asleep:
            # At level 1 the weights move to main memory; level 2 would drop them.
            self.llm.sleep(level=1)
            self.asleep = True
        return True

    def _wake_engine(self) -> None:
        if self.asleep:
            self.llm.wake_up()
            self.asleep = False

    def close(self) -> None:
        """End vLLM's process."""
        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
            self.transfer.close()
        self.llm = None
