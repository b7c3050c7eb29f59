"""Nothing lost, nothing paid twice, and no key anywhere: kills, budget, cache, canary."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rlaif.core.errors import ConfigError, EngineError, GateStopped, StoreError
from rlaif.core.store import Store
from rlaif.engines.remote import attempt
from rlaif.engines.remote.cache import RequestCache, cache_limit, cache_path
from rlaif.engines.remote.meter import Account
from tests.servers.scripted import ScriptedServer
from tests.support.judging import judged, server_model

ROOT = Path(__file__).resolve().parents[2]
TOPS = {"Yes": -0.2, "No": -2.0}
CANARY = "sk-canary/0123\\456789"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(attempt, "FIRST_WAIT", 0.01)


def name_of(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_kill_repeats_at_most_the_calls_in_flight(tmp_path: Path, kills: int) -> None:
    concurrency, count, draw = 8, 60 * kills, random.Random(kills)
    command = [sys.executable, "-m", "tests.support.judging"]
    with ScriptedServer(tops=TOPS, latency=0.03) as server:
        arguments = [server.url, str(tmp_path / "run"), str(count), str(concurrency)]
        committed: list[tuple[int, set[str]]] = []
        for _ in range(kills):
            before = server.calls
            process = subprocess.Popen([*command, *arguments], cwd=ROOT)
            wanted = before + draw.randint(10, 40)
            while server.calls < wanted and process.poll() is None:
                time.sleep(0.001)
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            # A call that was on its way when the process died still reaches the server.
            time.sleep(0.1)
            committed.append((len(server.asked), _requests_in_cache()))
        subprocess.run([*command, *arguments], cwd=ROOT, check=True)
    rows = Store(tmp_path / "run").step("judging").read("judgements")
    assert len(rows) == len({row["call_id"] for row in rows}) == count
    assert {row["status"] for row in rows} == {"ok"}
    for asked, known in committed:
        assert known
        assert known.isdisjoint(name_of(body) for body in server.asked[asked:])
    assert len({name_of(body) for body in server.asked}) == count
    assert server.calls - count <= kills * concurrency


def _requests_in_cache() -> set[str]:
    cache = RequestCache(cache_path(), cache_limit())
    found = {name_of(row["request"]) for row in cache.rows()}
    cache.close()
    return found


def test_an_answer_is_paid_once(tmp_path: Path) -> None:
    price = {"input": 10.0, "output": 100.0}
    with ScriptedServer(tops=TOPS) as server:
        first = judged(tmp_path / "a", server_model(server.url, price=price), 12)
        again = judged(tmp_path / "b", server_model(server.url, price=price), 12)
        assert server.calls == 12
    assert [j.score for j in first] == [j.score for j in again]
    assert all(j.cost and j.cost > 0 for j in [*first, *again])
    assert all(j.latency and j.latency > 0 for j in first)
    assert not (tmp_path / "b" / "spend.jsonl").exists()
    cache = RequestCache(cache_path(), cache_limit())
    # What was found again was of use later than it was made.
    (model,) = cache.stats()["models"]
    assert model["last_used"] > max(row["made"] for row in cache.rows())
    cache.close()


def test_the_budget_is_never_passed_and_holds_over_runs(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with ScriptedServer(tops=TOPS) as server:
        model = server_model(server.url, price={"input": 1000.0, "output": 1000.0}, cache=False)
        cost = judged(tmp_path / "one", model, 1)[0].cost
        assert cost
        for budget in (20 * cost, 30 * cost):
            with pytest.raises(GateStopped, match=r"the budget of .* is spent") as stop:
                judged(out, model, 100, budget)
            assert stop.value.exit_code == 3
            lines = (out / "spend.jsonl").read_text().splitlines()
            spent = sum(json.loads(line)["cost"] for line in lines)
            # The most that a call may use is several times what it does use.
            assert budget - 8 * cost < spent <= budget
        rows = Store(out).step("judging").read("judgements")
        assert sum(row["cost"] for row in rows) == pytest.approx(spent)
        assert len(rows) == len(lines) == server.calls - 1


def test_a_ledger_whose_last_line_was_cut_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "spend.jsonl"
    path.write_text('{"model": "m", "cost": 1.5}\n{"model": "m", "co')
    account = Account(path)
    assert account.spent == 1.5
    account.spend("m", 2.0)
    account.spend("m", 0.25)
    assert Account(path).spent == 3.75


def test_what_is_set_aside_counts_until_it_is_freed() -> None:
    account = Account(budget=1.0)
    assert account.hold(0.7)
    assert account.hold(0.7) is False
    account.spend("m", 0.4)
    account.free(0.7)
    assert account.hold(0.6)
    account.free(0.6)
    assert account.hold(0.7) is None


@pytest.mark.parametrize("rejected", [False, True])
def test_the_key_is_in_no_file_log_or_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    rejected: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("CANARY_KEY", CANARY)
    said = {"system_fingerprint": CANARY, "note": f"you sent Bearer {CANARY}"}
    key = "another" if rejected else CANARY
    header = f"x-request-id: {CANARY}\r\n"
    with ScriptedServer(lambda b, i: "Yes", 0.0, key, TOPS, said, headers=header) as server:
        model = server_model(server.url, key_env="CANARY_KEY")
        if rejected:
            with pytest.raises(EngineError, match=r"Bearer \[key\]") as error:
                judged(tmp_path / "run", model, 5)
            assert error.value.__cause__ is None
            assert CANARY not in repr(error.getrepr(showlocals=False))
        else:
            assert len(judged(tmp_path / "run", model, 5)) == 5
    assert CANARY not in caplog.text
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "requests.sqlite" for path in written)
    for path in written:
        data = path.read_bytes()
        assert CANARY.encode() not in data
        assert json.dumps(CANARY)[1:-1].encode() not in data


def test_a_key_that_is_not_set_is_asked_for(tmp_path: Path) -> None:
    model = server_model("http://127.0.0.1:9/v1", key_env="NO_SUCH_KEY_HERE")
    with pytest.raises(ConfigError, match="environment variable NO_SUCH_KEY_HERE"):
        judged(tmp_path / "run", model, 1)


def test_a_server_without_log_probs_is_said_to_be_one(tmp_path: Path) -> None:
    with (
        ScriptedServer() as server,
        pytest.raises(EngineError, match="answers for m without log-probs"),
    ):
        judged(tmp_path / "run", server_model(server.url), 3)


def fill(cache: RequestCache, names: range, size: int = 100) -> None:
    from rlaif.engines.remote.cache import Entry

    cache.put([Entry(f"key{i}", "m", "u", {"i": i}, {"text": "x" * size}) for i in names])


def test_the_cache_forgets_what_was_of_use_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1, 100))
    monkeypatch.setattr("rlaif.engines.remote.cache.time.time", lambda: float(next(clock)))
    cache = RequestCache(cache_path(), 10**9)
    for start in range(0, 500, 50):
        fill(cache, range(start, start + 50), 2000)
    cache.put([], used=["key0"])
    full = cache.size()
    assert cache.shrink(full) == 0
    dropped = cache.shrink(full // 2)
    left = {row["key"] for row in cache.rows()}
    assert len(left) == 500 - dropped
    assert left == {"key0"} | {f"key{i}" for i in range(dropped + 1, 500)}
    assert cache.size() <= full // 2
    cache.compact()
    assert cache.path.stat().st_size < 0.7 * full


def test_the_cache_stays_below_its_limit_while_answers_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rlaif.engines.remote.cache.CHECK_EVERY", 10)
    cache = RequestCache(cache_path(), 10**5)
    for start in range(0, 200, 10):
        fill(cache, range(start, start + 10), 2000)
        assert cache.size() <= 10**5
    assert 10 < len(list(cache.rows())) < 30


def test_the_cache_prunes_by_model_and_age_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = RequestCache(cache_path(), 10**9)
    fill(cache, range(5))
    assert cache.stats()["models"][0]["answers"] == cache.stats()["answers"] == 5
    assert cache.prune(before=0.0) == 0
    # By when it was last of use, and not by when it was made.
    now = time.time()
    monkeypatch.setattr("rlaif.engines.remote.cache.time.time", lambda: now + 60)
    cache.put([], used=["key1", "key3"])
    assert cache.prune(before=now + 30) == 3
    assert {row["key"] for row in cache.rows()} == {"key1", "key3"}
    assert cache.prune(model="other") == 0
    assert cache.get("key3") == {"text": "x" * 100}
    assert cache.prune(model="m") == 2
    assert cache.get("key3") is None


WRITER = """
import sys
from rlaif.engines.remote.cache import Entry, RequestCache, cache_path
cache = RequestCache(cache_path(), 10**9)
for i in range(200):
    cache.put([Entry(f"{sys.argv[1]}-{i}", "m", "u", {}, {"i": i})])
    assert cache.get(f"{sys.argv[1]}-{i}") == {"i": i}
"""


def test_several_processes_write_one_cache() -> None:
    names = ["a", "b", "c"]
    made = [subprocess.Popen([sys.executable, "-c", WRITER, name], cwd=ROOT) for name in names]
    assert [process.wait() for process in made] == [0, 0, 0]
    cache = RequestCache(cache_path(), 10**9)
    assert len(list(cache.rows())) == 600


def test_a_file_that_is_no_cache_is_refused() -> None:
    cache_path().parent.mkdir(parents=True)
    cache_path().write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="the request cache cannot be used"):
        RequestCache(cache_path(), 10**9)
