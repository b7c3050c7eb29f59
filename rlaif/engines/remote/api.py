"""The OpenAI wire format, as pure functions: from requests to bodies, and from answers to results.

Chat (`/chat/completions`) and plain completions (`/completions`) differ in where the prompt, the
text and the log-probs stand; nothing else in the package knows of either but `decode`, which reads
what servers send.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlaif.config.models import LIMIT_KEYS, ModelSpec
from rlaif.core.chat import Said, split, with_system_role
from rlaif.core.records import Message, content_hash, message_text
from rlaif.engines.base import (
    THINKING_ADVICE,
    GenerateRequest,
    GenerateResult,
    ScoreRequest,
    ScoreResult,
    refusal,
)
from rlaif.engines.remote.decode import Answer, Choice, Usage, label_probabilities

Request = GenerateRequest | ScoreRequest
Result = GenerateResult | ScoreResult

LabelTokens = Callable[[ScoreRequest], list[int]]
"""From a request to the ids of its labels' tokens, for vLLM's `logprob_token_ids`."""

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
TEMPLATE_TOKENS = 16
"""More than a chat template adds to one message."""
LEAST_LIMIT = 16_000_000
"""Bytes of an answer that are always read."""
TOKEN_BYTES = 160
"""Bytes that a token of an answer takes at most, and one of its likeliest tokens."""


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
        return [_make_failed_result(request, why) for request in self.requests]


def capabilities(spec: ModelSpec) -> frozenset[str]:
    """What a server may be asked for; whether it serves log-probs shows when it is."""
    prefill = {"prefill"} if spec.prefill or spec.api == "completions" else set()
    return frozenset({"generate", "label_logprobs"} | prefill)


def _make_failed_result(request: Request, why: str) -> Result:
    if isinstance(request, GenerateRequest):
        return GenerateResult(request.request_id, "", [], "failed", None, why)
    return ScoreResult(request.request_id, {}, None, [], None, why)


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
            yield _make_call(spec, identity, group, label_tokens)
            group = []
        group.append(request)
    if group:
        yield _make_call(spec, identity, group, label_tokens)


def _same_but_seed(first: Request, second: Request) -> bool:
    if not isinstance(first, GenerateRequest) or not isinstance(second, GenerateRequest):
        return False
    if first.sampling.temperature == 0:
        # Equal greedy requests are one call anyway, and vLLM refuses several greedy choices.
        return False
    sampling = replace(second.sampling, seed=first.sampling.seed)
    return first == replace(second, request_id=first.request_id, sampling=sampling)


def _make_call(
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
    messages = list(request.messages)
    given = any(m["role"] == "system" for m in messages)
    if spec.system_prompt != "keep" and not given:
        messages.insert(0, {"role": "system", "content": spec.system_prompt})
    messages = with_system_role(messages, spec.system_role)
    if spec.api == "completions":
        text = "\n\n".join(message_text(m) for m in messages) + "\n\n" + request.prefill
        return {"model": spec.path, "prompt": text}
    turns = wire_turns(messages)
    body: dict[str, Any] = {"model": spec.path, "messages": turns}
    if spec.chat_template_kwargs:
        body["chat_template_kwargs"] = spec.chat_template_kwargs
    if request.prefill:
        turns.append({"role": "assistant", "content": request.prefill})
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body


def wire_turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The turns as the chat API has them: arguments of tool calls as JSON texts, and every tool's
    turn with the id of the call that it answers, which is made up where a file gave none. The API
    has no place for reasoning."""
    turns: list[dict[str, Any]] = []
    waiting: list[str] = []
    for number, message in enumerate(messages):
        turn: dict[str, Any] = {"role": message["role"], "content": message["content"]}
        calls = message.get("tool_calls")
        if calls:
            turn["tool_calls"] = [_wire_call(c, f"call_{number}_{i}") for i, c in enumerate(calls)]
            turn["content"] = message["content"] or None
            waiting = [call["id"] for call in turn["tool_calls"]]
        if message["role"] == "tool":
            first = waiting[0] if waiting else f"call_{number}"
            turn["tool_call_id"] = own = message.get("tool_call_id", first)
            waiting = [name for name in waiting if name != own]
        if "name" in message:
            turn["name"] = message["name"]
        turns.append(turn)
    return turns


def _wire_call(call: Mapping[str, Any], name: str) -> dict[str, Any]:
    inside = call.get("function", call)
    arguments = inside.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    function = {"name": inside.get("name", ""), "arguments": text}
    return {"id": call.get("id", name), "type": "function", "function": function}


def lost(messages: Sequence[Message]) -> Counter[str]:
    """The turns of a conversation whose reasoning is not sent."""
    return +Counter(reasoning_lost=sum("reasoning_content" in message for message in messages))


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
        size = sum(_count_bytes(m) + TEMPLATE_TOKENS for m in body["messages"])
    size += sum(len(json.dumps(body[key])) for key in ("response_format", "tools") if key in body)
    limit = max((body[key] for key in LIMIT_KEYS if key in body), default=0)
    return Usage(size, limit * body.get("n", 1))


def _count_bytes(turn: Mapping[str, Any]) -> int:
    """The bytes of a turn's text and tool calls."""
    calls = json.dumps(turn["tool_calls"], ensure_ascii=False) if "tool_calls" in turn else ""
    return len(((turn["content"] or "") + calls).encode())


def most_bytes(body: dict[str, Any]) -> int:
    """The longest answer to `body` that is read, in bytes of its decompressed text."""
    limits = [body[key] for key in LIMIT_KEYS if isinstance(body.get(key), int)]
    asked = body.get("top_logprobs", body.get("logprobs"))
    tops = asked if isinstance(asked, int) else 0
    count = body.get("n", 1)
    tokens = max(limits, default=0) * (count if isinstance(count, int) else 1)
    return max(LEAST_LIMIT, 1_000_000 + tokens * (1 + tops) * TOKEN_BYTES)


def read(spec: ModelSpec, call: ApiCall, answer: Answer, seconds: float | None) -> list[Result]:
    """The results of a call, which has as many choices as it has requests, or more."""
    count, usage = len(call.requests), answer.usage
    priced = usage is not None and spec.price is not None
    told = _Told(
        usage.input if usage else None,
        usage.output // count if usage else None,
        seconds,
        usage.cost(spec.price) / count if usage and priced else None,
    )
    return [
        _read_generate_result(spec, request, choice, told)
        if isinstance(request, GenerateRequest)
        else _read_score_result(spec, request, choice, told)
        for request, choice in zip(call.requests, answer.choices, strict=False)
    ]


@dataclass(frozen=True, slots=True)
class _Told:
    """What is known of one result besides its choice; None where nobody counted."""

    read: int | None
    made: int | None
    seconds: float | None
    cost: float | None


def _read_generate_result(
    spec: ModelSpec, request: GenerateRequest, choice: Choice, told: _Told
) -> GenerateResult:
    why = withheld(choice)
    text, reason = choice.text or "", _finish_reason(choice)
    # Servers that do not know `stop` leave the string in.
    cuts = [text.find(stop) for stop in request.sampling.stop if stop in text]
    if cuts:
        text, reason = text[: min(cuts)], "stop"
    said = _separate_thinking(
        spec, request, "" if why else text, choice.reasoning, reason == "length"
    )
    return GenerateResult(
        request.request_id,
        said.answer,
        [],
        "failed" if why else reason,
        told.read,
        why,
        new_tokens=told.made,
        reasoning=said.reasoning,
        seconds=told.seconds,
        cost=told.cost,
        cut=said.cut and not why,
    )


def _separate_thinking(
    spec: ModelSpec, request: GenerateRequest, text: str, apart: str, cut: bool
) -> Said:
    """Thinking and answer: `apart` is the thinking that the server gave apart, which is all there
    is where the limit `cut` it."""
    if apart:
        return Said(apart, text, cut and not text.strip())
    return split(text, spec.thinking, request.prefill)


def _finish_reason(choice: Choice) -> Literal["stop", "length"]:
    return "length" if choice.finish == "length" else "stop"


def withheld(choice: Choice) -> str | None:
    """Why a choice is no answer, or None where it is one. A refusal that the server sets apart is
    no answer of the model's: as a text it would be judged, or be read as a verdict."""
    if choice.finish == "content_filter":
        return "the server's content filter withheld the answer"
    if choice.text:
        return None
    if choice.refusal:
        return f"the server refused to answer: {choice.refusal}"
    if choice.text is not None or (choice.reasoning and choice.finish == "length"):
        # The limit cut its thinking: there is a reason, and it is another one.
        return None
    return f"the answer has no text (finish reason {choice.finish})"


def _read_score_result(
    spec: ModelSpec, request: ScoreRequest, choice: Choice, told: _Told
) -> ScoreResult:
    found: dict[str, float] | str
    if choice.reasoning and not (choice.text or "").strip():
        found = f"the model thinks before it answers: {THINKING_ADVICE}"
    elif not choice.tops:
        found = f"the server answered without log-probs (finish reason {choice.finish})"
    else:
        found = label_probabilities(choice.tops, request.labels, spec.thinking)
    probs, why = ({}, found) if isinstance(found, str) else (found, None)
    return ScoreResult(
        request.request_id,
        probs,
        None if why else min(1.0, math.fsum(probs.values())),
        [],
        told.read,
        why,
        seconds=told.seconds,
        cost=told.cost,
    )


def serves_log_probs(call: ApiCall, answer: Answer) -> bool | None:
    """Whether a server that was asked for log-probs serves them. None where this answer does not
    tell: nothing was asked, or its text was withheld, which leaves none to any server."""
    if "logprobs" not in call.body:
        return None
    choice = answer.choices[0]
    if choice.tops:
        return True
    unknown = not choice.text or withheld(choice) is not None or choice.tops is not None
    return None if unknown else False
