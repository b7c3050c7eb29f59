"""The OpenAI wire format, as pure functions: from requests to bodies, and from answers to results.

Chat (`/chat/completions`) and plain completions (`/completions`) differ in where the prompt, the
text and the log-probs stand; nothing else in the package knows of either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlaif.config import LIMIT_KEYS, ModelSpec, Price
from rlaif.engines.base import (
    GenerateRequest,
    GenerateResult,
    ScoreRequest,
    ScoreResult,
    refusal,
)
from rlaif.engines.labels import label_probabilities
from rlaif.engines.thinking import ADVICE, Said, split
from rlaif.errors import EngineError
from rlaif.records import content_hash

Request = GenerateRequest | ScoreRequest
Result = GenerateResult | ScoreResult

LabelTokens = Callable[[ScoreRequest], list[int]]
"""From a request to the ids of its labels' tokens, for vLLM's `logprob_token_ids`."""

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
TEMPLATE_TOKENS = 16
"""More than a chat template adds to one message."""


class Malformed(Exception):
    """An answer that is no answer: not JSON, cut short, or of another shape."""


@dataclass(frozen=True, slots=True)
class ApiCall:
    """One HTTP call. It answers `requests`: one, or as many as it asks choices for. With `refusal`
    it is not made, and that is why."""

    requests: tuple[Request, ...]
    body: dict[str, Any]
    key: str
    refusal: str | None = None

    def failed(self, why: str) -> list[Result]:
        """The results of a call that has no answer."""
        return [_failed(request, why) for request in self.requests]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a server counts and bills. `cached` input tokens are among `input`."""

    input: int
    output: int
    cached: int = 0

    def cost(self, price: Price | None) -> float:
        """Money in the price's currency; 0 without a price."""
        if price is None:
            return 0.0
        cached = price.input if price.cached_input is None else price.cached_input
        whole = (self.input - self.cached) * price.input + self.cached * cached
        return (whole + self.output * price.output) / 1e6


def capabilities(spec: ModelSpec) -> frozenset[str]:
    """What a server may be asked for; whether it serves log-probs shows when it is."""
    prefill = {"prefill"} if spec.prefill or spec.api == "completions" else set()
    return frozenset({"generate", "label_logprobs"} | prefill)


def _failed(request: Request, why: str) -> Result:
    if isinstance(request, GenerateRequest):
        return GenerateResult(request.request_id, "", [], "failed", 0, why)
    return ScoreResult(request.request_id, {}, None, [], 0, why)


def calls(
    spec: ModelSpec,
    identity: str,
    requests: Iterable[Request],
    label_tokens: LabelTokens | None = None,
) -> Iterator[ApiCall]:
    """The calls that answer `requests`, drawn as they are needed. `identity` is the model's.
    `label_tokens`, where the server's tokenizer is known, says which tokens to ask for.

    Neighbours that differ in their seed alone share a call of up to `samples_per_call` choices,
    whose seed is the first one's.
    """
    group: list[Request] = []
    for request in requests:
        full = len(group) >= spec.samples_per_call
        if group and (full or not _same_but_seed(group[0], request)):
            yield _call(spec, identity, group, label_tokens)
            group = []
        group.append(request)
    if group:
        yield _call(spec, identity, group, label_tokens)


def _same_but_seed(first: Request, second: Request) -> bool:
    if not isinstance(first, GenerateRequest) or not isinstance(second, GenerateRequest):
        return False
    if first.sampling.temperature == 0:
        # Equal greedy requests are one call anyway, and vLLM refuses several greedy choices.
        return False
    sampling = replace(second.sampling, seed=first.sampling.seed)
    return first == replace(second, request_id=first.request_id, sampling=sampling)


def _call(
    spec: ModelSpec, identity: str, group: Sequence[Request], label_tokens: LabelTokens | None
) -> ApiCall:
    first = group[0]
    why = refusal(first)
    if why is not None:
        return ApiCall(tuple(group), {}, "", why)
    if isinstance(first, GenerateRequest):
        body = _generate_body(spec, first, len(group))
    else:
        body = _score_body(spec, first)
        if label_tokens is not None:
            # Every label's, where the likeliest tokens may leave some out.
            body["logprob_token_ids"] = label_tokens(first)
    changed = {**body, **spec.extra_body}
    body = {k: v for k, v in changed.items() if v is not None or k not in spec.extra_body}
    return ApiCall(tuple(group), body, content_hash(identity, spec.api, body))


def _generate_body(spec: ModelSpec, request: GenerateRequest, count: int) -> dict[str, Any]:
    sampling = request.sampling
    body = _prompt_body(spec, request)
    body |= {spec.max_tokens_key: sampling.max_new_tokens, "temperature": sampling.temperature}
    if sampling.temperature > 0:
        # Without a seed, equal greedy requests are one entry of the cache.
        body["seed"] = sampling.seed
    if sampling.top_p < 1:
        body["top_p"] = sampling.top_p
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if count > 1:
        body["n"] = count
    if request.json_schema is not None:
        # A server in strict mode refuses schemas that leave other keys open.
        strict = request.json_schema.get("additionalProperties") is False
        schema = {"name": "answer", "schema": request.json_schema, "strict": strict}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _score_body(spec: ModelSpec, request: ScoreRequest) -> dict[str, Any]:
    # At temperature 1 the distribution is the model's own, before or after the server's sampler.
    # The token that it draws is not looked at, so it needs no seed.
    body = _prompt_body(spec, request) | {spec.max_tokens_key: 1, "temperature": 1.0}
    if spec.api == "chat":
        return body | {"logprobs": True, "top_logprobs": spec.top_logprobs}
    return body | {"logprobs": spec.top_logprobs}


def _prompt_body(spec: ModelSpec, request: Request) -> dict[str, Any]:
    messages = [{"role": m["role"], "content": m["content"]} for m in request.messages]
    given = any(m["role"] == "system" for m in messages)
    if spec.system_prompt != "keep" and not given:
        messages.insert(0, {"role": "system", "content": spec.system_prompt})
    if spec.api == "completions":
        text = "\n\n".join(m["content"] for m in messages) + "\n\n" + request.prefill
        return {"model": spec.path, "prompt": text}
    body: dict[str, Any] = {"model": spec.path, "messages": messages}
    if request.prefill:
        messages.append({"role": "assistant", "content": request.prefill})
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body


def without_schema(call: ApiCall) -> ApiCall:
    """The same call for a server that knows no JSON schema; its answer counts for the same key."""
    body = {key: value for key, value in call.body.items() if key != "response_format"}
    return replace(call, body=body)


def most_usage(body: dict[str, Any]) -> Usage:
    """The most that a call can use: a token is a byte at least, and every choice runs to its
    limit, the higher one where two are given. A priced model has one (see ModelSpec)."""
    if "prompt" in body:
        size = len(body["prompt"].encode())
    else:
        size = sum(len(m["content"].encode()) + TEMPLATE_TOKENS for m in body["messages"])
    size += sum(len(json.dumps(body[key])) for key in ("response_format", "tools") if key in body)
    limit = max((body[key] for key in LIMIT_KEYS if key in body), default=0)
    return Usage(size, limit * body.get("n", 1))


def parse_answer(text: str) -> dict[str, Any]:
    """Choices and usage of an answer's text. Raises Malformed."""
    try:
        data = json.loads(text)
    except ValueError:
        raise Malformed("the answer is not JSON") from None
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list) or not choices:
        raise Malformed("the answer has no choices")
    for choice in choices:
        if not isinstance(choice, dict) or not isinstance(choice.get("message", choice), dict):
            raise Malformed("a choice of the answer has no message")
        if "message" not in choice and not isinstance(choice.get("text"), str):
            raise Malformed("a choice of the answer has no text")
    usage = data.get("usage")
    return {"choices": choices, "usage": usage if isinstance(usage, dict) else None}


def usage_of(answer: dict[str, Any], most: Usage) -> Usage:
    """What the server counted, or `most` where it does not say."""
    counted = answer["usage"]
    if counted is None:
        return most
    details = counted.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") or 0
    return Usage(counted.get("prompt_tokens") or 0, counted.get("completion_tokens") or 0, cached)


def read(
    spec: ModelSpec, call: ApiCall, answer: dict[str, Any], usage: Usage, seconds: float | None
) -> list[Result]:
    """The results of a call. Raises EngineError where the server knows no `n`."""
    cost = usage.cost(spec.price) / len(call.requests) if spec.price is not None else None
    choices = sorted(answer["choices"], key=lambda choice: choice.get("index") or 0)
    if len(choices) < len(call.requests):
        raise EngineError(
            f"{spec.base_url} gave {len(choices)} of {len(call.requests)} choices: it does not "
            "serve `n`. Leave out `samples_per_call`."
        )
    made = usage.output // len(call.requests)
    return [
        _generated(spec, request, choice, usage.input, made, seconds, cost)
        if isinstance(request, GenerateRequest)
        else _scored(spec, request, choice, usage.input, seconds, cost)
        for request, choice in zip(call.requests, choices, strict=False)
    ]


def _generated(
    spec: ModelSpec,
    request: GenerateRequest,
    choice: dict[str, Any],
    prompt_tokens: int,
    made: int,
    seconds: float | None,
    cost: float | None,
) -> GenerateResult:
    reasoning = _reasoning(choice)
    why = _withheld(choice)
    if why is not None:
        return GenerateResult(
            request.request_id,
            "",
            [],
            "failed",
            prompt_tokens,
            why,
            new_tokens=made,
            reasoning=reasoning,
            seconds=seconds,
            cost=cost,
        )
    text = _text(choice) or ""
    # Servers that do not know `stop` leave the string in.
    cuts = [text.find(stop) for stop in request.sampling.stop if stop in text]
    reason: Literal["stop", "length"] = "length"
    if cuts or choice.get("finish_reason") != "length":
        text, reason = text[: min(cuts, default=len(text))], "stop"
    said = _parted(spec, request, text, reasoning, reason == "length")
    return GenerateResult(
        request.request_id,
        said.answer,
        [],
        reason,
        prompt_tokens,
        new_tokens=made,
        reasoning=said.reasoning,
        seconds=seconds,
        cost=cost,
        cut=said.cut,
    )


def _parted(spec: ModelSpec, request: GenerateRequest, text: str, apart: str, cut: bool) -> Said:
    """Thinking and answer: `apart` is the thinking that the server gave apart, which is all there
    is where the limit `cut` it."""
    if apart:
        return Said(apart, text, cut and not text.strip())
    return split(text, spec.thinking, request.prefill)


def _reasoning(choice: dict[str, Any]) -> str:
    """The thinking that the server gives apart; empty where it gives none."""
    message = choice.get("message", choice)
    return _clean(message.get("reasoning_content") or message.get("reasoning"))


def _text(choice: dict[str, Any]) -> str | None:
    """The text of a choice, the text parts joined where it came in parts; None where it has none,
    which is not the empty text of a model that ends at once."""
    content = choice["message"].get("content") if "message" in choice else choice["text"]
    if isinstance(content, list):
        parts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") == "text"]
        texts = [part for part in parts if isinstance(part, str)]
        return _clean("".join(texts)) if texts else None
    return _clean(content) if isinstance(content, str) else None


def _withheld(choice: dict[str, Any]) -> str | None:
    """Why a choice is no answer, or None where it is one. A refusal that the server sets apart is
    no answer of the model's: as a text it would be judged, or be read as a verdict."""
    reason = choice.get("finish_reason")
    if reason == "content_filter":
        return "the server's content filter withheld the answer"
    if _text(choice):
        return None
    message = choice.get("message", choice)
    parts = message.get("content") if isinstance(message.get("content"), list) else []
    apart = [p.get("refusal") for p in parts if isinstance(p, dict)]
    refused = next((r for r in [message.get("refusal"), *apart] if isinstance(r, str) and r), None)
    if refused:
        return f"the server refused to answer: {_clean(refused)}"
    if _text(choice) is not None or (reason == "length" and _reasoning(choice)):
        # The limit cut its thinking: there is a reason, and it is another one.
        return None
    return f"the answer has no text (finish reason {reason})"


def _scored(
    spec: ModelSpec,
    request: ScoreRequest,
    choice: dict[str, Any],
    prompt_tokens: int,
    seconds: float | None,
    cost: float | None,
) -> ScoreResult:
    tops = _top_tokens(choice)
    if _reasoning(choice) and not (_text(choice) or "").strip():
        probs: dict[str, float] | str = f"the model thinks before it answers: {ADVICE}"
    elif not tops:
        reason = choice.get("finish_reason")
        probs = f"the server answered without log-probs (finish reason {reason})"
    else:
        probs = label_probabilities(tops, request.labels, spec.thinking)
    if isinstance(probs, str):
        return ScoreResult(
            request.request_id, {}, None, [], prompt_tokens, probs, seconds=seconds, cost=cost
        )
    return ScoreResult(
        request.request_id,
        probs,
        min(1.0, math.fsum(probs.values())),
        [],
        prompt_tokens,
        seconds=seconds,
        cost=cost,
    )


def serves_log_probs(call: ApiCall, answer: dict[str, Any]) -> bool | None:
    """Whether a server that was asked for log-probs serves them. None where this answer does not
    tell: nothing was asked, or its text was withheld, which leaves none to any server."""
    if "logprobs" not in call.body:
        return None
    choice = answer["choices"][0]
    if _top_tokens(choice):
        return True
    withheld = not _text(choice) or _withheld(choice) is not None
    return None if withheld or choice.get("logprobs") is not None else False


def _top_tokens(choice: dict[str, Any]) -> list[tuple[str, float]]:
    """The likeliest first tokens with their natural log-probs; empty where there are none."""
    logprobs = choice.get("logprobs") or {}
    if logprobs.get("content"):
        first = logprobs["content"][0]
        return [(top["token"], top["logprob"]) for top in first.get("top_logprobs") or []]
    rows = logprobs.get("top_logprobs") or []
    return list(rows[0].items()) if rows else []


def _clean(text: Any) -> str:
    """`text` without half surrogate pairs, which JSON can escape and no file can hold."""
    if not isinstance(text, str):
        return ""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
