"""What goes wrong on the way to a server, on real sockets: each request ends with an answer that is
its own, or failed with a reason."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError
from rlaif.core.store import Store
from rlaif.engines.base import GenerateRequest, GenerateResult, Sampling
from rlaif.engines.remote import api, attempt
from rlaif.engines.remote.meter import Account
from rlaif.engines.remote.openai import OpenAIEngine, load
from rlaif.engines.remote.session import Learned, Session
from rlaif.engines.remote.streaming import Outlet
from tests.servers.faults import KINDS, FaultProxy
from tests.servers.scripted import ScriptedServer, prompt_text
from tests.support.judging import judged, server_model


def echo(body: dict[str, Any], choice: int) -> str:
    return "answer to " + prompt_text(body)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(attempt, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(attempt, "LONGEST_WAIT", 0.1)


def engine(url: str, account: Account | None = None, **keys: Any) -> OpenAIEngine:
    limits = {"concurrency": 8} | keys.pop("limits", {})
    spec = ModelSpec.model_validate(
        {"path": "m", "engine": "openai", "base_url": url, "limits": limits, **keys}
    )
    return load(spec, None, "m", account or Account())


def requests(count: int) -> list[GenerateRequest]:
    return [
        GenerateRequest(f"r{i}", [{"role": "user", "content": f"question{i}"}], Sampling(8, seed=i))
        for i in range(count)
    ]


def answers(made: OpenAIEngine, asked: list[GenerateRequest]) -> dict[str, GenerateResult]:
    results = [result for batch in made.generate(asked) for result in batch]
    assert len(results) == len({r.request_id for r in results})
    return {r.request_id: r for r in results}


def own(results: dict[str, GenerateResult]) -> set[str]:
    """The ids of the requests that got their own answer; a wrong one fails the test."""
    good = {name: r for name, r in results.items() if r.finish_reason != "failed"}
    assert all(r.text == f"answer to question{name[1:]}" for name, r in good.items())
    return set(good)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_is_survived(kind: str) -> None:
    account = Account()
    limits = {"total_seconds": 2.0} if kind == "dripping" else {}
    with (
        ScriptedServer(echo) as server,
        FaultProxy(server.url, lambda n: kind if n % 3 == 0 else None) as proxy,
    ):
        results = answers(engine(proxy.url, account, limits=limits), requests(24))
        assert proxy.done[kind] >= 8
    assert own(results) == {f"r{i}" for i in range(24)}
    retried = bool(account.meters.of("m").retries)
    # A second answer that comes late may meet the next call on its connection, or nobody.
    assert kind == "twice_late" or retried is (kind not in ("late", "twice"))


def test_after_the_last_attempt_a_request_fails_with_its_reason() -> None:
    account = Account()
    with (
        ScriptedServer(echo) as server,
        FaultProxy(server.url, lambda n: "broken") as proxy,
    ):
        results = answers(engine(proxy.url, account, limits={"retries": 2}), requests(5))
        assert proxy.calls == 15
    assert {r.error for r in results.values()} == {"gave up after 3 attempts: status 500: oops"}
    numbers = account.meters.of("m").summary()
    assert numbers["failed"] == 5
    assert numbers["retries"] == {"500": 10}


@pytest.mark.parametrize("kind", ["broken", "cut_json"])
def test_every_sample_of_a_call_that_failed_is_counted(kind: str) -> None:
    account = Account()
    with (
        ScriptedServer(echo) as server,
        FaultProxy(server.url, lambda n: kind) as proxy,
    ):
        made = engine(proxy.url, account, samples_per_call=3, limits={"retries": 0})
        turn = [{"role": "user", "content": "question"}]
        asked = [GenerateRequest(f"r{i}", turn, Sampling(8, seed=i)) for i in range(3)]
        assert {r.finish_reason for r in answers(made, asked).values()} == {"failed"}
        assert proxy.calls == 1
    assert account.meters.of("m").failed == 3


def test_a_judgement_whose_call_failed_says_why(tmp_path: Path) -> None:
    with (
        ScriptedServer(echo) as server,
        FaultProxy(server.url, lambda n: "broken") as proxy,
    ):
        judged(tmp_path, server_model(proxy.url, limits={"retries": 1}), 3)
    rows = list(Store(tmp_path).step("judging").rows("judgements"))
    assert [(row["status"], row["error"]) for row in rows] == [
        ("failed", "gave up after 2 attempts: status 500: oops")
    ] * 3


def test_three_faults_in_ten_calls_of_every_kind_lose_and_mix_nothing() -> None:
    draw = random.Random(7)
    plan = [draw.choice(KINDS) if draw.random() < 0.3 else None for _ in range(4000)]
    limits = {"concurrency": 32, "total_seconds": 5.0}
    with (
        ScriptedServer(echo) as server,
        FaultProxy(server.url, lambda n: plan[n]) as proxy,
    ):
        results = answers(engine(proxy.url, limits=limits), requests(160))
        assert len(proxy.done) == len(KINDS)
    assert own(results) == {f"r{i}" for i in range(160)}


def test_calls_are_fewer_while_the_server_says_429_and_more_again_later() -> None:
    calls = attempt.Pace(16)
    calls.too_fast(entered=1.0, now=2.0)
    calls.too_fast(entered=1.5, now=2.1)
    assert calls.limit == 8
    calls.too_fast(entered=2.5, now=3.0)
    assert calls.limit == 4
    for _ in range(4):
        calls.answered()
    assert 4.8 < calls.limit <= 5


def test_later_calls_begin_at_the_pace_that_earlier_ones_came_to() -> None:
    learned = Learned(limit=2.5)
    spec = ModelSpec(path="m", engine="openai", base_url="http://127.0.0.1:9/v1")
    session = Session(spec, "m", None, Account(), iter(()), "", learned)
    assert session.pace.limit == 2.5
    session.pace.too_fast(entered=1.0, now=2.0)
    Outlet[api.Result](1).run(session.run)
    assert learned.limit == 1.25


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "99999"}, 99999.0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_the_wait_that_a_server_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    assert attempt.asked_wait(headers) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("6m0s", 360.0), ("20ms", 0.02), ("1.5s", 1.5), ("7", 7.0), ("1h2m", 3720.0), ("x", None)],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert attempt.duration(text) == seconds
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": text}
    assert attempt.exhausted_for(headers) == (seconds and min(seconds, 600.0))
    assert attempt.exhausted_for(headers | {"x-ratelimit-remaining-requests": "3"}) is None


def test_retry_after_holds_every_call_back() -> None:
    first, pause = 10, 1.0
    with (
        ScriptedServer(echo) as server,
        FaultProxy(server.url, lambda n: "busy_for" if n < first else None, delay=pause) as proxy,
    ):
        account = Account()
        made = engine(proxy.url, account, limits={"concurrency": 4, "retries": 9})
        assert own(answers(made, requests(12))) == {f"r{i}" for i in range(12)}
    assert account.meters.of("m").retries == {"429": first}
    assert proxy.calls == 12 + first
    arrived = proxy.arrived
    assert arrived[first] - arrived[first - 1] >= pause
    for refused in arrived[:first]:
        # Others may be on their way when the refusal comes; none starts before the pause is over.
        assert not [t for t in arrived if refused + 0.4 * pause < t < refused + pause]


def test_a_server_that_is_not_there_stops_the_step() -> None:
    with ScriptedServer(echo) as server:
        gone = server.url
    with pytest.raises(EngineError, match=r"nothing answers at http://127.0.0.1:\d+/v1"):
        answers(engine(gone, limits={"retries": 2}), requests(3))


@pytest.mark.parametrize(
    ("keys", "asked", "message"),
    [
        ({"path": "absent"}, 1, "status 404: The model `absent` does not exist"),
        ({"key_env": "CANARY_KEY"}, 1, r"status 401: .*Its key is taken from \$CANARY_KEY"),
    ],
)
def test_what_no_other_attempt_mends_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, keys: dict[str, str], asked: int, message: str
) -> None:
    monkeypatch.setenv("CANARY_KEY", "wrong")
    with ScriptedServer(echo, key="right" if "key_env" in keys else None) as server:
        made = engine(server.url, limits={"concurrency": 1}, **keys)
        with pytest.raises(EngineError, match=message):
            answers(made, requests(4))
        assert server.calls == asked


def test_results_before_an_error_are_kept() -> None:
    def endless() -> Any:
        yield from requests(6)
        raise EngineError("the source broke")

    with ScriptedServer(echo, latency=0.05) as server:
        made = engine(server.url, limits={"concurrency": 1})
        stream = made.generate(endless())
        seen: list[str] = []
        while len(seen) < 5:
            seen += [r.request_id for r in next(stream)]
        with pytest.raises(EngineError, match="the source broke"):
            next(stream)
    assert seen == [f"r{i}" for i in range(server.calls)]


def test_no_more_calls_are_open_than_allowed_and_results_wait_for_their_reader() -> None:
    drawn = 0

    def counted() -> Any:
        nonlocal drawn
        for request in requests(2000):
            drawn += 1
            yield request

    with ScriptedServer(echo) as server:
        stream = engine(server.url, limits={"concurrency": 4}).generate(counted())
        first = next(stream)
        # Nobody reads on: what is drawn stops at the room for results and the open calls.
        _settled(lambda: drawn)
        assert drawn <= len(first) + 16 * 4 + 8
        stream.close()
        assert server.most_open <= 4


def _settled(value: Callable[[], int]) -> None:
    import time

    before = -1
    while value() != before:
        before = value()
        time.sleep(0.7)
