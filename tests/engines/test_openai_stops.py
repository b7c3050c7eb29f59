"""What stops a step at a server, and what does not: first wave, breaker, silence, waits."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, seed, settings

from rlaif.config.models import ModelSpec
from rlaif.core.errors import ConfigError, EngineError, GateStopped
from rlaif.engines.base import GenerateRequest, GenerateResult, Sampling, ScoreRequest
from rlaif.engines.remote import attempt
from rlaif.engines.remote.api import calls, most_bytes
from rlaif.engines.remote.attempt import Breaker
from rlaif.engines.remote.cache import Entry, RequestCache, cache_limit, cache_path
from rlaif.engines.remote.meter import Account, Meter
from rlaif.engines.remote.openai import OpenAIEngine, load
from tests.engines.test_decode import bodies
from tests.servers.scripted import ScriptedServer, http, prompt_text
from tests.servers.shapes import ODD, SHAPES, ShapedServer, body, error, text, usage
from tests.support.judging import judged, server_model

TOPS = {"Yes": -0.3, "No": -1.9}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(attempt, "FIRST_WAIT", 0.001)


def engine(url: str, account: Account | None = None, **keys: Any) -> OpenAIEngine:
    limits = {"concurrency": 1, "retries": 1} | keys.pop("limits", {})
    data = {"path": "m", "engine": "openai", "base_url": url, "limits": limits, **keys}
    return load(ModelSpec.model_validate(data), None, "m", account or Account())


def requests(texts: list[str]) -> list[GenerateRequest]:
    return [
        GenerateRequest(f"{i}", [{"role": "user", "content": text}], Sampling(8, seed=i))
        for i, text in enumerate(texts)
    ]


def answered(made: OpenAIEngine, texts: list[str]) -> tuple[list[GenerateResult], str]:
    """The results, and what stopped the engine."""
    results: list[GenerateResult] = []
    try:
        for batch in made.generate(requests(texts)):
            results += batch
    except (EngineError, GateStopped) as stopped:
        return results, str(stopped)
    return results, ""


def test_twenty_refusals_in_a_row_stop_a_step_and_are_not_recorded() -> None:
    with ShapedServer() as server:
        server.set(error(400, message="model was unloaded"))
        results, why = answered(engine(server.url), ["fine", *[f"{ODD} {i}" for i in range(60)]])
        assert server.calls == 21
    assert "20 calls in a row were refused, the last with status 400: model was unloaded" in why
    assert [r.finish_reason for r in results] == ["stop"]


def test_a_model_that_is_unloaded_half_way_stops_the_step() -> None:
    with ShapedServer() as server:
        server.set(SHAPES["not here now"])
        results, why = answered(engine(server.url), ["fine", *[f"{ODD} {i}" for i in range(60)]])
    assert "20 calls in a row were refused" in why
    assert len(results) == 1


def test_nineteen_refusals_in_a_row_are_records_of_their_own() -> None:
    odd = [f"{ODD} {i}" for i in range(19)]
    with ShapedServer() as server:
        server.set(error(400, message="no"))
        results, why = answered(engine(server.url), ["one", *odd, "two", *odd])
    assert why == ""
    assert sum(r.finish_reason == "failed" for r in results) == 38


def test_more_than_half_of_the_last_hundred_stop_a_step() -> None:
    texts = [text for i in range(60) for text in (f"fine {i}", f"{ODD} {i}", f"{ODD} again {i}")]
    with ShapedServer() as server:
        server.set(error(400, message="no"))
        results, why = answered(engine(server.url), texts)
    assert "of the last 100 calls were refused" in why
    assert 30 < len(results) < 110


def test_moderation_never_stops_a_step() -> None:
    with ShapedServer() as server:
        server.set(SHAPES["flagged"], every=True)
        results, why = answered(engine(server.url), [f"{i}" for i in range(50)])
    assert why == ""
    assert {r.finish_reason for r in results} == {"failed"}


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_a_first_wave_is_no_larger_than_the_calls_that_may_be_open(concurrency: int) -> None:
    with ShapedServer(latency=0.02) as server:
        server.set(error(422, message="no"), every=True)
        made = engine(server.url, limits={"concurrency": concurrency})
        results, why = answered(made, [f"{i}" for i in range(100)])
        assert server.calls == max(4, concurrency)
    assert results == []
    assert "none was answered" in why


def test_every_step_has_a_first_wave_of_its_own(tmp_path: Path) -> None:
    account = Account()
    with ShapedServer() as server:
        made = engine(server.url, account)
        with account.meters.kept_in(tmp_path):
            assert answered(made, ["a", "b"])[1] == ""
        server.set(error(400, message="no"), every=True)
        again = tmp_path / "second"
        again.mkdir()
        with account.meters.kept_in(again):
            results, why = answered(made, [f"{i}" for i in range(40)])
        assert (results, server.calls) == ([], 4)
        assert "none was answered" in why
        with account.meters.kept_in(tmp_path):
            # A step that goes on has had answers.
            assert "20 calls in a row" in answered(made, [f"{i}" for i in range(40)])[1]


def test_a_first_wave_with_one_answer_is_gone_on_from() -> None:
    with ShapedServer(latency=0.02) as server:
        server.set(error(400, message="no"))
        texts = [*[f"{ODD} {i}" for i in range(7)], *[f"{i}" for i in range(20)]]
        results, why = answered(engine(server.url, limits={"concurrency": 8}), texts)
    assert why == ""
    assert sum(r.finish_reason == "failed" for r in results) == 7


def test_refusals_of_different_kinds_are_records() -> None:
    class Fickle(ScriptedServer):
        def respond(self, path: str, key: str, body: dict[str, Any]) -> Any:
            return (400, 413)[self.calls % 2], {"error": {"message": "no"}}

    with Fickle() as server:
        results, why = answered(engine(server.url), [f"{i}" for i in range(30)])
    assert why == ""
    assert len(results) == 30


def test_the_breaker_counts_over_sessions_of_an_engine() -> None:
    breaker = Breaker()
    breaker.succeeded()
    assert [breaker.refused(404, 8) for _ in range(19)] == [None] * 19
    assert "20 calls in a row" in (breaker.refused(404, 8) or "")
    breaker.succeeded()
    assert breaker.refused(404, 8) is None


def test_a_server_that_takes_calls_and_never_answers_stops_the_step() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        limits = {"concurrency": 6, "retries": 8, "read_seconds": 0.3}
        results, why = answered(engine(url, limits=limits), [f"{i}" for i in range(40)])
    assert results == []
    assert "takes calls and answers none: nothing came for 0.3 s, 6 times" in why
    assert "read_seconds" in why


def test_one_slow_call_among_answers_stops_nothing() -> None:
    class Stuck(ScriptedServer):
        def respond(self, path: str, key: str, body: dict[str, Any]) -> Any:
            status, reply = super().respond(path, key, body)
            return status, (b"" if ODD in prompt_text(body) else reply)

    with Stuck(context=10_000) as server:
        limits = {"concurrency": 4, "retries": 1, "read_seconds": 0.3}
        results, why = answered(engine(server.url, limits=limits), [ODD, "a", "b", "c"])
    assert why == ""
    assert [r.request_id for r in results if r.finish_reason == "failed"] == ["0"]


def test_a_wait_within_the_cap_is_said_where_it_is_long(caplog: pytest.LogCaptureFixture) -> None:
    assert attempt.in_words(45) == "45 s"
    assert attempt.in_words(600) == "10 min"
    assert attempt.in_words(86400) == "24 h"
    with ShapedServer() as server:
        server.set(error(429, "retry-after: 601\r\n", message="slow"), every=True)
        _, why = answered(engine(server.url), ["a"])
    assert "requires a wait of 10 min" in why


@pytest.mark.parametrize("said", ["There is none left", "1 and 1"])
@pytest.mark.parametrize("key", ["none", "1"])
def test_an_answer_is_never_redacted(
    key: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SHORT_KEY", key)
    with ScriptedServer(lambda b, i: said) as server:
        results, _ = answered(engine(server.url, key_env="SHORT_KEY"), ["a", "b"])
    assert [r.text for r in results] == [said] * 2
    warned = [r.message for r in caplog.records if "fewer than 8 characters" in r.message]
    assert len(warned) == 1
    assert "SHORT_KEY" in warned[0]


def test_a_long_key_in_an_answer_stays_and_in_an_error_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LONG_KEY", "sk-0123456789")
    with ShapedServer() as server:
        server.answer = lambda b, i: "it is sk-0123456789"
        long = "x" * 490 + " sk-0123456789"
        for shape in (error(400, message=long), text(f"<p>{long[290:]}")):
            server.set(shape)
            results, _ = answered(engine(server.url, key_env="LONG_KEY"), ["a", ODD])
            assert results[0].text == "it is sk-0123456789"
            assert "sk-" not in (results[1].error or "")


def test_a_short_key_in_an_error_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT_KEY", "none")
    with ShapedServer() as server:
        server.set(error(400, message="there is none left"))
        results, _ = answered(engine(server.url, key_env="SHORT_KEY"), ["a", ODD])
    assert "there is none left" in (results[1].error or "")


def test_a_key_with_a_typographic_quote_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QUOTED_KEY", "\u201csk-0123456789\u201d")
    model = server_model("http://127.0.0.1:9/v1", key_env="QUOTED_KEY")
    with pytest.raises(ConfigError, match="typographic quote") as refused:
        judged(tmp_path / "run", model, 1)
    assert "sk-" not in str(refused.value)


def test_a_kept_usage_that_cannot_be_does_not_break_a_resume(tmp_path: Path) -> None:
    model_keys: dict[str, Any] = {"price": {"input": 1.0, "output": 1.0}}
    with ScriptedServer(tops=TOPS) as server:
        model = server_model(server.url, **model_keys)
        judged(tmp_path / "a", model, 3)
        cache = RequestCache(cache_path(), cache_limit())
        rows = list(cache.rows())
        spoilt = {"prompt_tokens": float("nan"), "completion_tokens": float("inf")}
        for row in rows:
            answer = row["answer"] | {"usage": spoilt}
            cache.put([Entry(row["key"], row["model"], "u", row["request"], answer)])
        cache.close()
        again = judged(tmp_path / "b", model, 3)
        assert server.calls == 3
    assert [j.status for j in again] == ["ok"] * 3
    assert {(j.cost, j.prompt_tokens) for j in again} == {(None, None)}


def test_a_ledger_and_a_meter_with_a_sum_that_cannot_be_are_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "spend.jsonl"
    rows = ['{"cost": NaN}', '{"cost": -5}', '{"cost": 1.5}', '{"cost": 1']
    path.write_text("\n".join(rows))
    account = Account(path)
    assert account.spent == 1.5
    account.spend("m", 0.5, estimated=True)
    assert (Account(path).spent, Account(path).estimated) == (2.0, 0.5)
    row = Meter().summary() | {"cost": float("nan"), "input_tokens": float("inf")}
    del row["uncounted"], row["estimated_cost"]
    assert Meter.from_summary(row).summary()["cost"] == 0.0


def test_negative_usage_never_lowers_a_ledger(tmp_path: Path) -> None:
    account = Account(tmp_path / "spend.jsonl")
    with ShapedServer() as server:
        server.set(usage({"prompt_tokens": -(10**6), "completion_tokens": -(10**6)}), every=True)
        answered(engine(server.url, account, price={"input": 1, "output": 1}), ["a", "b"])
    assert account.spent == account.estimated > 0
    lines = [json.loads(line) for line in (tmp_path / "spend.jsonl").read_text().splitlines()]
    assert all(line["estimated"] for line in lines)
    for cost in (-1.0, float("nan"), float("inf")):
        with pytest.raises(AssertionError):
            account.spend("m", cost)


RAW = {
    "a length in words": b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n{}",
    "a negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n{}",
    "a chunk that is none": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n{}",
    "a status that is none": b"HTTP/1.1 2000 OK\r\ncontent-length: 2\r\n\r\n{}",
    "a coding that is none": http(400, b"{}", kind="application/json; charset=nonsense"),
    "a coding that does not fit": http(400, b"\xff\xfe\xfa", kind="text/plain; charset=utf-16"),
    "odd headers": b"HTTP/1.1 200 OK\r\n\xff\xfe: \x00\r\ncontent-length: 2\r\n\r\n{}",
    "a redirection to nowhere": http(302, b"", "location: http://[::\r\n"),
    "a redirection to no name": http(302, b"", f"location: http://{'a' * 70}.b/\r\n"),
    "a reason that is no text": b"HTTP/1.1 200 \xff\xfe\r\ncontent-length: 2\r\n\r\n{}",
    "a coding without its mark": http(400, b"{}", kind="text/plain; charset=utf-16"),
    "packed and not": http(200, b"{}", "content-encoding: gzip\r\n"),
}
"""Replies that are odd as HTTP."""


@pytest.mark.parametrize("name", RAW)
def test_a_reply_that_is_no_http_fails_its_record_alone(name: str) -> None:
    with ShapedServer() as server:
        server.set(lambda reply: RAW[name])
        results, why = answered(engine(server.url, limits={"retries": 0}), ["a", ODD, "b"])
    assert why == ""
    assert [r.finish_reason == "failed" for r in results] == [False, True, False]
    assert results[1].error


@pytest.mark.parametrize("charset", ["hex", "rot13", "zlib", "idna", "undefined", "nonsense"])
def test_words_in_a_coding_that_is_not_of_texts_are_shown(charset: str) -> None:
    said = json.dumps({"error": {"message": "né trop long"}}, ensure_ascii=False).encode()
    with ShapedServer() as server:
        server.set(lambda reply: http(400, said, kind=f"application/json; charset={charset}"))
        results, why = answered(engine(server.url, limits={"retries": 0}), ["a", ODD])
    assert why == ""
    assert [r.error is None for r in results] == [True, False]
    assert "né trop long" in (results[1].error or "")


def test_an_error_in_a_200_costs_nothing(tmp_path: Path) -> None:
    price = {"input": 1, "output": 1}
    spent = []
    for shape in (None, SHAPES["429 in a 200"], SHAPES["unexpected endpoint"]):
        account = Account()
        with ShapedServer() as server:
            server.set(shape, times=1)
            made = engine(server.url, account, price=price, cache=False, limits={"retries": 2})
            results, _ = answered(made, ["a", f"{ODD} b"])
            assert [r.finish_reason for r in results] == ["stop", "stop"]
        spent.append(account.spent)
    assert spent[0] > 0
    assert spent == [spent[0]] * 3


@pytest.mark.parametrize("reply", ["a page", "an unfit body", "a length in words"])
def test_a_malformed_answer_is_paid_for_once_each_time_that_it_comes(reply: str) -> None:
    shapes: dict[str, Any] = {
        "a page": text("<html></html>"),
        "an unfit body": body(choices="none"),
        "a length in words": lambda right: RAW["a length in words"],
    }
    price = {"input": 1.0, "output": 1.0}
    spent = []
    for times in (0, 1, 2):
        account = Account()
        with ShapedServer() as server:
            server.set(shapes[reply] if times else None, times=times)
            made = engine(server.url, account, price=price, cache=False, limits={"retries": 3})
            results, _ = answered(made, [f"{ODD} b"])
            assert [r.finish_reason for r in results] == ["stop"]
            assert server.calls == 1 + times
        spent.append(account.spent)
    once = spent[1] - spent[0]
    assert once > 0
    assert spent[2] - spent[0] == pytest.approx(2 * once)


def test_an_answer_without_a_text_is_asked_for_three_times_and_paid_each_time() -> None:
    account = Account()
    with ShapedServer() as server:
        server.set(SHAPES["null content"])
        made = engine(server.url, account, price={"input": 1, "output": 1}, limits={"retries": 8})
        results, _ = answered(made, ["a", ODD])
        assert server.calls == 1 + 3
    # By what the server counted, and not by the most that it may have been.
    assert account.spent > 0 and account.estimated == 0
    assert [r.finish_reason for r in results] == ["stop", "failed"]
    assert "3 attempts" in (results[1].error or "")


def test_the_limit_of_a_body_grows_with_what_was_asked_for() -> None:
    spec = ModelSpec.model_validate({"path": "m", "engine": "openai", "base_url": "http://h/v1"})
    asked = GenerateRequest("r", [{"role": "user", "content": "a"}], Sampling(8))
    (call,) = calls(spec, "m", [asked])
    assert most_bytes(call.body) == 16_000_000
    large = call.body | {"max_tokens": 30_000, "n": 4, "top_logprobs": 20}
    assert most_bytes(large) == 1_000_000 + 4 * 30_000 * 21 * 160


def test_a_long_plain_body_is_cut_off_and_the_call_fails() -> None:
    with ShapedServer() as server:
        server.set(text(" " * 17_000_000))
        results, _ = answered(engine(server.url, limits={"retries": 0}), ["a", ODD, "b"])
    assert [r.finish_reason == "failed" for r in results] == [False, True, False]
    assert "longer than 16 MB" in (results[1].error or "")


def test_an_estimate_is_marked_while_a_step_runs(tmp_path: Path) -> None:
    account = Account(tmp_path / "spend.jsonl", budget=1.0)
    account.spend("m", 0.25, estimated=True)
    with account.meters.kept_in(tmp_path), ShapedServer() as server:
        server.set(SHAPES["no usage"], every=True)
        answered(engine(server.url, account, price={"input": 1, "output": 1}), ["a"])
        note = account.note()
    assert "by estimate" in note
    assert "1 answers without a count of tokens" in note


def test_no_mutated_body_ends_a_run_on_a_real_socket() -> None:
    """Fewer than in `test_decode`, by the server: each ends in an answer or a reason."""
    found: list[str] = []

    @seed(5)
    @settings(max_examples=150, deadline=None, database=None, phases=[Phase.generate])
    @given(text=bodies())
    def collect(text: str) -> None:
        found.append(text)

    collect()

    class Mutating(ScriptedServer):
        def respond(self, path: str, key: str, body: dict[str, Any]) -> Any:
            status, reply = super().respond(path, key, body)
            place = int(prompt_text(body).split()[-1])
            if "fine" in prompt_text(body):
                return status, reply
            return status, http(200, found[place].encode("utf-8", "replace"))

    texts = [word for i in range(len(found)) for word in (f"fine {i}", f"odd {i}")]
    account = Account()
    with Mutating(tops=TOPS) as server:
        limits = {"concurrency": 4, "retries": 0}
        made = engine(server.url, account, limits=limits, price={"input": 1, "output": 1})
        results, why = answered(made, texts)
        # A body may say that the key is wrong or the money spent: those stop a step, in words.
        assert why == "" or "What was answered is kept" in why
        assert results
        assert all(r.error or r.finish_reason in ("stop", "length") for r in results)
        scores = [
            ScoreRequest(f"{i}", [{"role": "user", "content": text}], labels={"yes": ("Yes",)})
            for i, text in enumerate(texts)
        ]
        # One that has log-probs first: a server that has given none yet is said to serve none.
        seen = [r for part in (scores[:1], scores[1:]) for batch in made.score(part) for r in batch]
    assert all(r.error or r.label_mass is not None for r in seen)
    assert account.spent >= 0
