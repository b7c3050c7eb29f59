"""What becomes of unusual answers of a server, and what a call may cost at most."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError, StoreError
from rlaif.engines.base import GenerateRequest, GenerateResult, Sampling, ScoreRequest, ScoreResult
from rlaif.engines.remote import attempt
from rlaif.engines.remote.api import calls, most_usage
from rlaif.engines.remote.cache import Entry, RequestCache, cache_path
from rlaif.engines.remote.meter import Account
from rlaif.engines.remote.openai import OpenAIEngine, load
from rlaif.pipeline.prepare import model_key
from tests.servers.scripted import ScriptedServer, prompt_text

LABELS = {"yes": ("Yes",), "no": ("No",)}
TOPS = {"Yes": -0.3, "No": -1.9}
PRICE = {"input": 1.0, "output": 4.0}
SCHEMA = {"type": "object", "properties": {"score": {"type": "number"}}}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(attempt, "FIRST_WAIT", 0.01)


class Changed(ScriptedServer):
    """Its first choice is changed for prompts that say "odd"."""

    def __init__(self, change: dict[str, Any], **keys: Any):
        super().__init__(tops=TOPS, **keys)
        self.change = change

    def respond(self, path: str, key: str, body: dict[str, Any]) -> Any:
        status, reply = super().respond(path, key, body)
        if "odd" in prompt_text(body):
            choice = reply["choices"][0]
            message = choice["message"] | self.change.get("message", {})
            choice |= self.change | {"message": message}
        return status, reply


def engine(url: str, **keys: Any) -> OpenAIEngine:
    data = {"path": "m", "engine": "openai", "base_url": url, **keys}
    return load(ModelSpec.model_validate(data), None, "m", Account())


def scored(made: OpenAIEngine, texts: list[str]) -> dict[str, ScoreResult]:
    asked = [ScoreRequest(t, [{"role": "user", "content": t}], labels=LABELS) for t in texts]
    return {r.request_id: r for batch in made.score(asked) for r in batch}


def generated(made: OpenAIEngine, text: str, count: int = 1, **keys: Any) -> list[GenerateResult]:
    sampling = {"max_new_tokens": 8} | keys.pop("sampling", {})
    asked = [
        GenerateRequest(
            f"{text}{i}",
            [{"role": "user", "content": text}],
            Sampling(**sampling, seed=i),
            **keys,
        )
        for i in range(count)
    ]
    return [result for batch in made.generate(asked) for result in batch]


@pytest.mark.parametrize(
    "change",
    [
        {"finish_reason": "content_filter", "logprobs": None},
        {"message": {"content": None}, "logprobs": None},
        {"logprobs": {"content": []}},
    ],
)
def test_one_answer_without_log_probs_fails_that_record_and_is_paid_once(
    change: dict[str, Any],
) -> None:
    with Changed(change) as server:
        made = engine(server.url, price=PRICE, limits={"concurrency": 1})
        for _ in range(2):
            results = scored(made, ["odd", "a", "b"])
            assert results["a"].label_mass and results["b"].label_mass
            assert "without log-probs" in (results["odd"].error or "")
            assert results["odd"].label_probs == {}
            assert results["odd"].cost
        assert server.calls == 3


def test_a_whole_text_without_log_probs_is_fatal_only_when_no_call_had_them() -> None:
    with Changed({"logprobs": None}) as server:
        made = engine(server.url, limits={"concurrency": 1})
        with pytest.raises(EngineError, match="answers for m without log-probs"):
            scored(made, ["odd", "a"])
        results = scored(made, ["a", "odd"])
        assert "without log-probs" in (results["odd"].error or "")


@pytest.mark.parametrize(
    ("extra", "most"),
    [
        ({"max_tokens": None, "max_completion_tokens": 4000}, 4000),
        ({"max_completion_tokens": 4000}, 4000),
        ({"max_tokens": 30, "n": 2}, 60),
        ({}, 8),
    ],
)
def test_the_most_that_a_call_may_use_knows_either_limit(extra: dict[str, Any], most: int) -> None:
    keys = {"path": "m", "engine": "openai", "base_url": "http://host/v1", "extra_body": extra}
    spec = ModelSpec.model_validate(keys | {"price": PRICE})
    request = GenerateRequest("r", [{"role": "user", "content": "hi"}], Sampling(8))
    (call,) = calls(spec, "m", [request])
    assert most_usage(call.body).output == most


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"max_tokens": None}, "with a `price` the budget needs one"),
        ({"max_completion_tokens": "many"}, "must be a number of tokens"),
        ({"n": 0}, "n must be a number of choices"),
    ],
)
def test_a_priced_call_without_a_limit_is_refused(extra: dict[str, Any], message: str) -> None:
    keys = {"path": "m", "engine": "openai", "base_url": "http://host/v1", "extra_body": extra}
    with pytest.raises(ValidationError, match=message):
        ModelSpec.model_validate(keys | {"price": PRICE})


@pytest.mark.parametrize("after", ["0", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_wait_of_nothing_is_no_reason_to_hurry(
    after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "FIRST_WAIT", 3.0)
    arrived: list[float] = []

    class Busy(ScriptedServer):
        def respond(self, path: str, key: str, body: dict[str, Any]) -> Any:
            arrived.append(time.monotonic())
            if len(arrived) == 1:
                return 429, {"error": {"message": "slow down"}}
            return super().respond(path, key, body)

    with Busy(headers=f"retry-after: {after}\r\n") as server:
        (result,) = generated(engine(server.url), "hi")
    assert result.finish_reason != "failed"
    # The first wait is a tenth of its bound at least.
    assert arrived[1] - arrived[0] >= 0.3


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "One "}, {"type": "text", "text": "two"}], "One two"),
        ([{"type": "reasoning", "text": "Hm."}, {"type": "text", "text": "Two"}], "Two"),
        ("", ""),
    ],
)
def test_the_text_parts_of_an_answer_are_joined(content: Any, text: str) -> None:
    with Changed({"message": {"content": content}, "finish_reason": "stop"}) as server:
        (result,) = generated(engine(server.url), "odd")
    assert (result.text, result.finish_reason) == (text, "stop")


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"content": None, "refusal": "I cannot."}, "the server refused to answer: I cannot."),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "the server refused to answer: No."),
        ({"content": None}, "the answer has no text (finish reason length)"),
        ({"content": []}, "the answer has no text (finish reason length)"),
    ],
)
def test_no_text_is_no_answer(message: dict[str, Any], error: str) -> None:
    with Changed({"message": message, "finish_reason": "length"}) as server:
        (result,) = generated(engine(server.url, price=PRICE), "odd")
    assert (result.finish_reason, result.text, result.error) == ("failed", "", error)
    assert result.cost


def test_paid_answers_are_given_out_when_the_cache_cannot_keep_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed: list[RequestCache] = []
    shut = RequestCache.close

    def full(self: RequestCache, *rows: Any) -> None:
        raise StoreError("the disk is full")

    def close(self: RequestCache) -> None:
        closed.append(self)
        shut(self)

    monkeypatch.setattr(RequestCache, "put", full)
    monkeypatch.setattr(RequestCache, "close", close)
    with ScriptedServer() as server:
        made = engine(server.url, limits={"concurrency": 1})
        asked = [GenerateRequest("r", [{"role": "user", "content": "hi"}], Sampling(8))]
        stream = made.generate(asked)
        assert [r.request_id for r in next(stream)] == ["r"]
        with pytest.raises(StoreError, match="the disk is full"):
            next(stream)
    assert len(closed) == 1


def test_other_weights_under_the_same_name_are_asked_again() -> None:
    with ScriptedServer() as server:
        first = engine(server.url, weights="sft-1")
        generated(first, "hi")
        generated(engine(server.url, weights="sft-1"), "hi")
        assert server.calls == 1
        second = engine(server.url, weights="sft-2")
        generated(second, "hi")
        assert server.calls == 2
    assert first.weights_hash != second.weights_hash
    assert model_key(first.spec, fetch=False) != model_key(second.spec, fetch=False)


@pytest.mark.parametrize(("temperature", "calls_made"), [(0.0, 1), (1.0, 2)])
def test_greedy_samples_ask_for_one_choice(temperature: float, calls_made: int) -> None:
    with ScriptedServer() as server:
        made = engine(server.url, samples_per_call=2, limits={"concurrency": 1})
        sampling = {"temperature": temperature}
        results = generated(made, "hi", 4, sampling=sampling)
        assert len(results) == 4
        assert len(server.asked) == calls_made
        assert {body.get("n", 1) for body in server.asked} == {1 if temperature == 0 else 2}
    if temperature == 0:
        assert len({r.text for r in results}) == 1


def test_a_kept_answer_that_lacks_choices_is_asked_for_again() -> None:
    with ScriptedServer() as server:
        made = engine(server.url, samples_per_call=2)
        assert len(generated(made, "hi", 2)) == 2
        cache = RequestCache(cache_path(), 10**9)
        (row,) = cache.rows()
        fewer = row["answer"] | {"choices": row["answer"]["choices"][:1]}
        cache.put([Entry(row["key"], row["model"], row["base_url"], row["request"], fewer)])
        cache.close()
        for _ in range(2):
            assert len(generated(made, "hi", 2)) == 2
            assert server.calls == 2


def test_a_refused_schema_needs_no_retry_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    class Strict(ScriptedServer):
        def respond(self, path: str, key: str, body: dict[str, Any]) -> Any:
            if "response_format" in body:
                return 400, {"error": {"message": "response_format is not supported"}}
            return super().respond(path, key, body)

    with Strict() as server:
        made = engine(server.url, limits={"retries": 0, "concurrency": 1})
        results = generated(made, "hi", 3, json_schema=SCHEMA, sampling={"temperature": 1.0})
        assert server.calls == 4
    assert {r.finish_reason for r in results} == {"length"}
    assert len([r for r in caplog.records if "JSON schema is left out" in r.message]) == 1


def test_template_variables_go_with_every_chat_request() -> None:
    keys = {"path": "m", "engine": "openai", "base_url": "http://host/v1"}
    chosen = {"enable_thinking": False}
    spec = ModelSpec.model_validate(keys | {"chat_template_kwargs": chosen})
    user = [{"role": "user", "content": "hi"}]
    asked = [
        GenerateRequest("r", user, Sampling(8)),
        ScoreRequest("s", user, labels={"yes": ("yes",)}),
    ]
    for request in asked:
        (call,) = calls(spec, "m", [request])
        assert call.body["chat_template_kwargs"] == chosen
        (plain,) = calls(ModelSpec.model_validate(keys), "m", [request])
        assert "chat_template_kwargs" not in plain.body
    for changed, message in (
        ({"api": "completions"}, "for `api: chat`"),
        ({"extra_body": {"chat_template_kwargs": {}}}, "not in both"),
        ({"chat_template_kwargs": {"tokenize": True}}, "`tokenize` is no variable"),
        ({"engine": "fake", "base_url": None}, "is read by engine"),
    ):
        with pytest.raises(ValidationError, match=message):
            ModelSpec.model_validate(keys | {"chat_template_kwargs": chosen} | changed)
