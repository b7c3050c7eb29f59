"""What is read of a server's answer, and that nothing that it sends ends in a traceback."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import tracemalloc
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError
from rlaif.engines.base import GenerateRequest, Sampling, ScoreRequest
from rlaif.engines.remote.api import Result, calls, most_usage, read, serves_log_probs
from rlaif.engines.remote.connection import Limit, without_key
from rlaif.engines.remote.decode import (
    Answer,
    Malformed,
    Usage,
    decode_answer,
    decode_stored,
    encode_answer,
    is_silent,
)
from rlaif.engines.remote.failures import Again, Refused, SchemaRefused, failure_of
from rlaif.engines.remote.server_errors import ServerError, decode_error

SPEC = ModelSpec.model_validate(
    {
        "path": "m",
        "engine": "openai",
        "base_url": "http://host/v1",
        "price": {"input": 1, "output": 2},
    }
)
MESSAGES: list[Any] = [{"role": "user", "content": "Is it?"}]
GENERATE = GenerateRequest("g", MESSAGES, Sampling(8, stop=("!",)), json_schema={"type": "object"})
SCORE = ScoreRequest("s", MESSAGES, labels={"yes": ("Yes",), "no": ("No",)})
RIGHT: dict[str, Any] = {
    "id": "a1",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {
                "role": "assistant",
                "content": [{"type": "text", "text": "Yes"}],
                "reasoning_content": "Hm.",
                "refusal": None,
            },
            "logprobs": {
                "content": [
                    {
                        "token": "Yes",
                        "logprob": -0.1,
                        "top_logprobs": [
                            {"token": "Yes", "logprob": -0.1},
                            {"token": "No", "logprob": -2.5},
                        ],
                    }
                ]
            },
        }
    ],
    "usage": {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 2},
    },
}
ERROR = {"error": {"message": "Slow down", "type": "x", "code": 429, "metadata": {"raw": "busy"}}}

ODD = st.sampled_from(
    [
        *(None, True, 0, -1, 7, 0.5, 1e-3, 10**9, 10**400, -(10**400)),
        *(math.nan, math.inf, -math.inf, 1e308),
        *("", "error", "stop", "length", "content_filter", "429", "None", "\ud800", "é" * 5),
        *({}, [], [None], [[]], [1, "a"], {"a": 1}, {"text": 1}, {"message": None}),
        *({"code": 429}, {"type": "text", "text": 5}, {"token": 1, "logprob": "x"}),
    ]
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a JSON value."""
    if not isinstance(value, dict | list):
        return [at]
    inner: Iterable[Any] = value.items() if isinstance(value, dict) else enumerate(value)
    return [at, *(place for key, part in inner for place in places(part, (*at, key)))]


def changed(value: Any, at: tuple[Any, ...], to: Any) -> Any:
    """`value` with `to` at a place; without it where `to` is `...`."""
    if not at:
        return None if to is ... else to
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(at) == 1 and to is ...:
        del copy[at[0]]
    else:
        copy[at[0]] = changed(value[at[0]], at[1:], to)
    return copy


@st.composite
def bodies(draw: st.DrawFn) -> str:
    """A right answer or an error, changed in some places, or cut, or nested, or no JSON at all."""
    value: Any = draw(st.sampled_from([RIGHT, RIGHT, RIGHT, ERROR, {"detail": ["no"]}]))
    for _ in range(draw(st.integers(1, 3))):
        found = places(value)
        value = changed(value, draw(st.sampled_from(found)), draw(ODD | st.just(...)))
        if not isinstance(value, dict | list):
            break
    text = json.dumps(value)
    kind = draw(st.sampled_from(["whole"] * 8 + ["cut", "deep", "stream", "joined"]))
    if kind == "cut":
        return text[: draw(st.integers(0, len(text)))]
    if kind == "deep":
        return text.replace("null", "[" * 5000 + "]" * 5000)
    return {"stream": f"data: {text}\n\n", "joined": text + text}.get(kind, text)


def outcome(text: str, request: Any) -> Result | str:
    """What becomes of a body that came for a request: its result, or the name of what failed."""
    (call,) = calls(SPEC, "m", [request])
    try:
        answer = decode_answer(text)
    except Malformed:
        return "malformed"
    if isinstance(answer, ServerError):
        failure = failure_of(answer, SPEC, "m", call.body, answered=True)
        assert isinstance(failure, Again | Refused | SchemaRefused | EngineError)
        str(failure).encode()
        return "error"
    if any(c.error is not None or is_silent(c) for c in answer.choices):
        return "again"
    (result,) = read(SPEC, call, answer, 0.1)
    serves_log_probs(call, answer)
    stored = decode_stored(json.loads(json.dumps(encode_answer(answer))))
    assert stored is not None
    assert read(SPEC, call, stored, 0.1) == [result]
    return result


@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=bodies(), label=st.booleans())
def test_no_body_ends_in_a_traceback_or_an_impossible_record(text: str, label: bool) -> None:
    found = outcome(text, SCORE if label else GENERATE)
    if isinstance(found, str):
        return
    json.dumps([found.cost, found.prompt_tokens], allow_nan=False)
    assert found.cost is None or 0 <= found.cost < math.inf
    assert found.prompt_tokens is None or 0 <= found.prompt_tokens <= 10**8
    if found.error is None and found.request_id == "g":
        found.text.encode()  # type: ignore[union-attr]


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=40) | bodies(), status=st.integers(300, 599))
def test_every_error_is_a_failure_with_words(text: str, status: int) -> None:
    error = decode_error(status, text)
    assert error.status == status
    for answered in (False, True):
        failure = failure_of(error, SPEC, "m", {"max_tokens": 1, "logprobs": True}, answered)
        assert isinstance(failure, Again | Refused | EngineError)
        str(failure).encode()


def usage_of(value: Any) -> Usage | None:
    answer = decode_answer(json.dumps(RIGHT | {"usage": value}))
    assert isinstance(answer, Answer)
    return answer.usage


@pytest.mark.parametrize(
    ("value", "usage"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 3}, Usage(7, 3)),
        (
            {"prompt_tokens": 7.0, "completion_tokens": 3, "prompt_tokens_details": None},
            Usage(7, 3),
        ),
        (RIGHT["usage"], Usage(7, 3, 2)),
        ({"prompt_tokens": 7}, None),
        ({"prompt_tokens": "7", "completion_tokens": "3"}, None),
        ({"prompt_tokens": True, "completion_tokens": 3}, None),
        ({"prompt_tokens": -7, "completion_tokens": 3}, None),
        ({"prompt_tokens": 7.5, "completion_tokens": 3}, None),
        ({"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": [1]}, None),
        ([7, 3], None),
    ],
)
def test_usage_is_what_was_counted_or_unknown(value: Any, usage: Usage | None) -> None:
    assert usage_of(value) == usage


@pytest.mark.parametrize("count", [math.nan, math.inf, -math.inf, 10**9, 10**400])
def test_counts_that_cannot_be_are_no_answer_and_unknown_where_they_were_kept(count: Any) -> None:
    value = {"prompt_tokens": count, "completion_tokens": 3}
    with pytest.raises(Malformed, match="the usage counts"):
        usage_of(value)
    stored = decode_stored(RIGHT | {"usage": value})
    assert stored is not None
    assert stored.usage is None


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "x", "code": "429"}, 429),
        ({"message": "x", "code": None, "type": "rate_limit_error"}, 429),
        ({"message": "x", "type": "invalid_request_error", "code": "model_not_found"}, 404),
        ({"message": "x", "type": "invalid_request_error", "code": None}, 400),
        ({"message": "x", "status": "RESOURCE_EXHAUSTED"}, 429),
        ({"error": {"message": "x", "code": 502}}, 502),
        ("Too Many Requests", 429),
        ("Unexpected endpoint or method. (POST /chat/completions)", 404),
        ("It went wrong", None),
        ({"message": "x", "code": 20}, None),
    ],
)
def test_the_error_in_a_200_has_its_own_status(error: Any, status: int | None) -> None:
    found = decode_answer(json.dumps({"choices": None, "error": error}))
    assert isinstance(found, ServerError)
    assert found.status == status


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"message": "Unauthorized"}, 401, "Unauthorized"),
        ({"detail": "Rate limit exceeded"}, 429, "Rate limit exceeded"),
        ({"detail": [{"loc": ["body", "n"], "msg": "too many"}]}, None, "n: too many"),
        ({"object": "error", "message": "No such model", "code": 404}, 404, "No such model"),
        ({"success": False, "errors": [{"message": "Authentication error"}]}, 401, "Authen"),
    ],
)
def test_a_200_without_choices_that_says_something_is_an_error(
    body: Any, status: int | None, words: str
) -> None:
    found = decode_answer(json.dumps(body))
    assert isinstance(found, ServerError)
    assert found.status == status and words in found.words


def test_an_error_beside_choices_is_that_error() -> None:
    found = decode_answer(json.dumps(RIGHT | {"error": {"message": "died", "code": 502}}))
    assert isinstance(found, ServerError)
    assert (found.status, found.words) == (502, "died")
    for nothing in (None, {}, ""):
        assert isinstance(decode_answer(json.dumps(RIGHT | {"error": nothing})), Answer)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "the words"}},
        {"detail": "the words"},
        {"detail": [{"msg": "the words", "loc": ["body"]}]},
        {"message": {"error": "the words"}},
        {"errors": ["the words"]},
        {"error": {"code": 1, "metadata": {"raw": "the words"}}},
    ],
)
def test_the_words_of_an_error_are_found_wherever_they_stand(body: Any) -> None:
    assert "the words" in decode_error(400, json.dumps(body)).words


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        *((r, "length") for r in ("length", "MAX_TOKENS", "max_tokens", "model_length")),
        *((r, "content_filter") for r in ("content_filter", "SAFETY", "RECITATION")),
        *((r, "error") for r in ("error", "ERROR", "abort", "insufficient_system_resource")),
        *((r, r) for r in ("stop", "STOP", "tool_calls", "")),
    ],
)
def test_finish_reasons_of_other_servers_have_the_usual_words(reason: str, said: str) -> None:
    choice = RIGHT["choices"][0] | {"finish_reason": reason}
    answer = decode_answer(json.dumps(RIGHT | {"choices": [choice]}))
    assert isinstance(answer, Answer)
    (found,) = answer.choices
    assert found.finish == said
    assert (found.error is not None) == (said == "error")
    assert found.error is None or reason in found.error.words


@pytest.mark.parametrize(
    ("message", "reasoning", "text"),
    [
        ({"content": "b", "reasoning_content": "a"}, "a", "b"),
        ({"content": "b", "thinking": "a"}, "a", "b"),
        ({"content": [{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "b"}]},
         "a", "b"),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}]},
         "a", None),
        ({"content": [{"type": "thinking", "thinking": 5}, {"type": "text", "text": "b"}]},
         "", "b"),
    ],
)  # fmt: skip
def test_thinking_that_a_server_gives_apart_is_no_answer(
    message: Any, reasoning: str, text: str | None
) -> None:
    choice = RIGHT["choices"][0] | {"message": message}
    answer = decode_answer(json.dumps(RIGHT | {"choices": [choice]}))
    assert isinstance(answer, Answer)
    assert (answer.choices[0].reasoning, answer.choices[0].text) == (reasoning, text)


def test_an_error_in_a_list_is_that_error_and_another_list_none() -> None:
    said = decode_answer('[{"error": {"code": 429, "message": "exhausted"}}]')
    assert isinstance(said, ServerError)
    assert (said.status, said.words) == (429, "exhausted")
    for text in ("[]", "[{}]", "[1]", json.dumps([RIGHT]), '[{"error": null}]'):
        with pytest.raises(Malformed, match="no JSON object"):
            decode_answer(text)
    assert isinstance(decode_answer("\ufeff" + json.dumps(RIGHT)), Answer)
    for text in ("data: {}", "event: error\ndata: {}", ": busy\n\ndata: {}"):
        with pytest.raises(Malformed, match="event stream"):
            decode_answer(text)


REFUSALS = {
    "Response format is not supported": SchemaRefused,
    "This model does not support JSON output": SchemaRefused,
    "outlines backend error: unsupported regex": SchemaRefused,
    "json_schema is not known": SchemaRefused,
    "this schema is too deep": SchemaRefused,
    "structured outputs are not enabled": SchemaRefused,
    "failed to compile the grammar": SchemaRefused,
    "guided decoding failed": SchemaRefused,
    "guidance is not installed": SchemaRefused,
    "constrained decoding is off": SchemaRefused,
    "The prompt is too long": Refused,
}


@pytest.mark.parametrize("words", REFUSALS)
def test_a_schema_is_refused_in_many_words(words: str) -> None:
    (call,) = calls(SPEC, "m", [GENERATE])
    error = decode_error(400, json.dumps({"error": {"message": words}}))
    assert type(failure_of(error, SPEC, "m", call.body, True)) is REFUSALS[words]
    plain = {key: value for key, value in call.body.items() if key != "response_format"}
    assert type(failure_of(error, SPEC, "m", plain, True)) is Refused


@pytest.mark.parametrize(
    ("body", "remedy"),
    [
        ({"error": {"message": "Only user and assistant roles are supported!"}}, "system_role"),
        (
            {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]},
            "extra_body: {seed: null}",
        ),
    ],
)
def test_what_mends_a_refusal_is_named(body: Any, remedy: str) -> None:
    (call,) = calls(SPEC, "m", [GENERATE])
    failure = failure_of(decode_error(422, json.dumps(body)), SPEC, "m", call.body, True)
    assert remedy in str(failure)


@pytest.mark.parametrize(
    ("url", "hint"),
    [("http://host:1234", True), ("http://host/api/", True), ("http://h/v1", False)],
)
def test_an_address_without_v1_is_pointed_out(url: str, hint: bool) -> None:
    spec = SPEC.model_copy(update={"base_url": url})
    said = decode_answer('{"error": "Unexpected endpoint or method. (POST /chat/completions)"}')
    assert isinstance(said, ServerError)
    words = str(failure_of(said, spec, "m", {}, False))
    assert "Unexpected endpoint" in words
    assert (f"lack /v1 at its end? Try {url.rstrip('/')}/v1" in words) == hint


@pytest.mark.parametrize(
    "changed",
    [
        {"error": {"code": 502, "message": "died"}},
        {"finish_reason": "error"},
        {"message": {"content": None}, "logprobs": None},
    ],
)
def test_what_is_no_answer_is_none_where_it_was_kept(changed: dict[str, Any]) -> None:
    assert decode_stored(RIGHT) is not None
    assert decode_stored(RIGHT | {"choices": [RIGHT["choices"][0] | changed]}) is None


@pytest.mark.parametrize(
    "odd",
    [
        None,
        {"token": "No", "logprob": None},
        {"token": "No", "logprob": "-2"},
        {"token": "No", "logprob": math.nan},
        {"token": "No"},
        {"logprob": -2.0},
        {"token": 5, "logprob": -2.0},
    ],
)
def test_with_one_alternative_that_cannot_be_read_none_is(odd: Any) -> None:
    tops = [{"token": "Yes", "logprob": -0.1}, odd]
    choice = RIGHT["choices"][0] | {"logprobs": {"content": [{"top_logprobs": tops}]}}
    answer = decode_answer(json.dumps(RIGHT | {"choices": [choice]}))
    assert isinstance(answer, Answer)
    assert answer.choices[0].tops == ()


@pytest.mark.parametrize("odd", [None, "0", True, -1, 0.5, 10**30, [1]])
def test_choices_without_a_place_stand_where_they_came(odd: Any) -> None:
    texts = ["a", "b", "c"]
    choices = [{"index": odd, "message": {"content": text}} for text in texts]
    answer = decode_answer(json.dumps({"choices": choices}))
    assert isinstance(answer, Answer)
    assert [(c.index, c.text) for c in answer.choices] == list(enumerate(texts))
    placed = [{"index": 1, "message": {"content": "b"}}, {"index": 0, "message": {"content": "a"}}]
    answer = decode_answer(json.dumps({"choices": placed}))
    assert isinstance(answer, Answer)
    assert [c.text for c in answer.choices] == ["a", "b"]


@pytest.mark.parametrize(
    "error",
    [
        {"message": "no", "metadata": {"flagged_input": "..."}},
        {"message": "no", "metadata": {"reasons": ["violence"]}},
        {"message": "Your input was flagged"},
        {"message": "the prompt triggers the content management policy"},
        {"message": "no", "code": "content_filter"},
    ],
)
@pytest.mark.parametrize("status", [400, 403])
def test_a_moderation_is_known_by_its_metadata_or_its_words(error: Any, status: int) -> None:
    found = decode_error(status, json.dumps({"error": error}))
    assert found.flagged
    failure = failure_of(found, SPEC, "m", {}, False)
    assert isinstance(failure, Refused) and failure.status is None
    plain = decode_error(status, '{"error": {"message": "no", "metadata": {"raw": "no"}}}')
    assert not plain.flagged


@pytest.mark.parametrize("status", [401, 402])
@pytest.mark.parametrize("answered", [False, True])
def test_no_key_and_no_money_stop_whenever_they_come(status: int, answered: bool) -> None:
    error = decode_error(status, '{"error": {"message": "no"}}')
    assert isinstance(failure_of(error, SPEC, "m", {}, answered), EngineError)


@pytest.mark.parametrize("key", ["sk-0123456789", 'sk-0123"456\\789'])
def test_a_key_goes_out_of_a_text_also_as_json_has_it(key: str) -> None:
    said = without_key(json.dumps({"message": f"wrong key {key}!"}), key)
    assert json.loads(said) == {"message": "wrong key [key]!"}
    assert without_key(f"{key}{key}", key) == "[key][key]"
    assert without_key("there is none", "none") == "there is none"


def test_what_is_packed_is_not_unpacked_beyond_the_limit() -> None:
    packed = gzip.compress(b" " * 50_000_000)

    class Packed(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield packed

    limit = Limit()
    limit.most = 1_000_000
    response = httpx2.Response(200, headers={"content-encoding": "gzip"}, stream=Packed())

    async def read() -> None:
        await limit.watch(response)
        async for _ in response.stream:  # type: ignore[union-attr]
            pass

    tracemalloc.start()
    try:
        with pytest.raises(Malformed, match="longer than 1 MB"):
            asyncio.run(read())
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_an_unpriced_call_without_usage_costs_nothing_and_a_priced_one_is_unknown() -> None:
    (call,) = calls(SPEC, "m", [GENERATE])
    answer = decode_answer(json.dumps(RIGHT | {"usage": None}))
    assert isinstance(answer, Answer)
    (result,) = read(SPEC, call, answer, 0.1)
    assert (result.prompt_tokens, result.cost) == (None, None)
    assert most_usage(call.body).cost(SPEC.price) > 0
