"""What a server was asked, in numbers: percentiles, sums over processes, memory, and the file."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from rlaif.engines.remote import meter as module
from rlaif.engines.remote.decode import Usage
from rlaif.engines.remote.meter import Account, Meter, Meters, read_meters


def asked(latencies: list[float], start: float = 100.0) -> Meter:
    """A meter of calls one after the other."""
    made = Meter()
    for seconds in latencies:
        made.answered(start, start + seconds, Usage(10, 2), 0.5)
        start += seconds
    return made


def test_percentiles_are_those_of_the_latencies_to_within_nine_percent() -> None:
    draw = random.Random(4)
    latencies = [draw.lognormvariate(-1.0, 1.5) for _ in range(5000)]
    found = asked(latencies).summary()["latency"]
    wanted = np.quantile(latencies, [0.5, 0.9, 0.99], method="inverted_cdf")
    assert list(found) == ["p50", "p90", "p99"]
    for value, exact in zip(found.values(), wanted, strict=True):
        assert exact <= value + 1e-4
        assert value <= 1.0906 * exact + 1e-4


def test_what_a_meter_holds_does_not_grow_with_the_calls() -> None:
    draw = random.Random(5)
    latencies = [10 ** draw.uniform(-6, 3) for _ in range(20_000)]
    assert len(asked(latencies).latencies) < 250


def test_processes_add_up() -> None:
    first, second = asked([0.1, 0.2, 0.4]), asked([0.8, 1.6], start=7.0)
    for cause in ("429", "429", "timeout"):
        second.retried(cause)
    second.found()
    second.gave_up(3)
    total = Meter.from_summary(json.loads(json.dumps(first.summary())))
    total.add(second)
    row = total.summary()
    assert (row["calls"], row["cache_hits"], row["failed"]) == (5, 1, 3)
    assert row["retries"] == {"429": 2, "timeout": 1}
    assert (row["input_tokens"], row["output_tokens"], row["cost"]) == (50, 10, 2.5)
    assert row["seconds"] == pytest.approx(0.7 + 2.4)
    assert row["calls_per_second"] == pytest.approx(5 / 3.1, abs=0.01)
    assert row["tokens_per_second"] == pytest.approx(10 / 3.1, abs=0.1)
    assert row["latency"] == asked([0.1, 0.2, 0.4, 0.8, 1.6]).summary()["latency"]


def test_a_step_beside_another_spends_the_same_money() -> None:
    account = Account(budget=2.0)
    own = account.beside()
    own.spend("m", 0.5, estimated=True)
    own.spend("m", 1.0)
    assert (account.spent, account.estimated) == (1.5, 0.5)
    assert own.hold(0.75) is None and own.hold(0.5)
    assert (own.spent, own.estimated) == (1.5, 0.5)
    own.free(0.5)
    assert account.hold(0.5)
    assert own.meters is not account.meters


def test_the_file_is_kept_up_while_calls_are_made_and_a_later_process_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    meters = Meters()
    with meters.kept_in(tmp_path):
        for time, known in ((10.0, 1), (10.25, 1), (13.0, 3)):
            now[0] = time
            meters.of("m").answered(1.0, 2.0, Usage(1, 1), 0.0)
            meters.keep()
            assert read_meters(tmp_path)["m"].calls == known
    again = Meters()
    with again.kept_in(tmp_path):
        again.of("m").answered(1.0, 3.0, Usage(1, 1), 0.0)
    found = read_meters(tmp_path)["m"]
    assert (found.calls, found.seconds) == (4, 3.0)
    assert meters.note() == []


def test_a_step_that_asks_no_server_has_no_file(tmp_path: Path) -> None:
    with Meters().kept_in(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
