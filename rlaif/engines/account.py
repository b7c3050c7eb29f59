"""What remote calls did and cost: counts, latencies, money, and a budget."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlaif.engines.api import Usage

BUCKETS_PER_DOUBLING = 8


@dataclass
class Meter:
    """What one model was asked. Latencies are kept as counts in buckets 9% apart, so that memory
    does not grow with the calls."""

    calls: int = 0
    hits: int = 0
    failed: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    first: float | None = None
    last: float = 0.0
    latencies: Counter[int] = field(default_factory=Counter)
    # One thread counts while another one shows the numbers.
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, began: float, ended: float, usage: Usage, cost: float) -> None:
        """A call that was open from `began` to `ended` (seconds of one clock) and was answered."""
        bucket = math.floor(math.log2(max(ended - began, 1e-6)) * BUCKETS_PER_DOUBLING)
        with self._lock:
            self.calls += 1
            self.input_tokens += usage.input
            self.output_tokens += usage.output
            self.cost += cost
            self.first = began if self.first is None else min(self.first, began)
            self.last = max(self.last, ended)
            self.latencies[bucket] += 1

    def retried(self, cause: str) -> None:
        """A call has to be made again, because of `cause`."""
        with self._lock:
            self.retries[cause] += 1

    def _percentile(self, share: float) -> float:
        """The latency in seconds that `share` of the calls did not exceed, to within 9%."""
        wanted = math.ceil(share * sum(self.latencies.values()))
        seen = 0
        for bucket, count in sorted(self.latencies.items()):
            seen += count
            if seen >= wanted:
                return float(2 ** ((bucket + 1) / BUCKETS_PER_DOUBLING))
        return 0.0

    def summary(self) -> dict[str, Any]:
        """The numbers that are kept with a step. `seconds` is from the first call to the last
        answer."""
        with self._lock:
            return self._summary()

    def _summary(self) -> dict[str, Any]:
        seconds = self.last - self.first if self.first is not None else 0.0
        rate = 1 / seconds if seconds > 0 else 0.0
        return {
            "calls": self.calls,
            "cache_hits": self.hits,
            "failed": self.failed,
            "retries": dict(sorted(self.retries.items())),
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost": round(self.cost, 9),
            "seconds": round(seconds, 3),
            "calls_per_second": round(self.calls * rate, 2),
            "tokens_per_second": round(self.output_tokens * rate, 1),
            "latency": {name: round(self._percentile(p), 4) for name, p in PERCENTILES.items()},
        }


PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class Account:
    """The meters of a run's remote models, and its money.

    `path` keeps what was spent, one line per answer, written before it is used: what a killed run
    spent on answers that came counts for the next one, its calls in flight do not. None keeps
    nothing. One run never passes the budget.
    """

    def __init__(self, path: Path | None = None, budget: float | None = None):
        self.path = path
        self.budget = budget
        self._lock = threading.Lock()
        self._held = 0.0
        self._meters: dict[str, Meter] = {}
        lines = _lines(path)
        self.spent = math.fsum(_cost(line) for line in lines)
        # A last line that was cut short must not run into the next one.
        self._end = "\n" if lines[-1] else ""

    def meter(self, model: str) -> Meter:
        """The meter of a model by its label."""
        return self._meters.setdefault(model, Meter())

    def hold(self, cost: float) -> bool | None:
        """Set the most that a call can cost aside. False: not now, since open calls may use what is
        left. None: not at all, the budget is spent."""
        with self._lock:
            if self.budget is None or self.spent + self._held + cost <= self.budget:
                self._held += cost
                return True
            return False if self._held > 0 else None

    def free(self, held: float) -> None:
        """A call ended whose cost, if any, was already passed to `spend`."""
        with self._lock:
            # Sums of floats leave dust, which would look like an open call.
            self._held = self._held - held if self._held - held > 1e-12 else 0.0

    def spend(self, model: str, cost: float) -> None:
        """Note what a call cost, on disk first."""
        with self._lock:
            if self.path is not None and cost > 0:
                row = {"model": model, "cost": cost}
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(self._end + json.dumps(row) + "\n")
                self._end = ""
            self.spent += cost

    def note(self) -> str:
        """One line for a progress bar; empty when no remote model was asked."""
        used = [m for m in list(self._meters.values()) if m.calls or m.hits]
        parts = []
        for numbers in (m.summary() for m in used):
            parts.append(
                f"{numbers['calls_per_second']:.1f} calls/s {numbers['tokens_per_second']:.0f} "
                f"tok/s p95 {numbers['latency']['p95']:.2f} s"
            )
            if numbers["cache_hits"]:
                parts.append(f"{numbers['cache_hits']} from the cache")
            if numbers["retries"]:
                parts.append(f"{sum(numbers['retries'].values())} retries")
        if used and self.spent:
            parts.append(f"cost {self.spent:.4f}")
        return ", ".join(parts)

    def take(self) -> dict[str, dict[str, Any]]:
        """The summaries of the models that were asked since the last call of this method."""
        taken = {n: m.summary() for n, m in self._meters.items() if m.calls or m.hits or m.failed}
        self._meters.clear()
        return taken


def _lines(path: Path | None) -> list[str]:
    """The lines of a ledger; the last is empty unless it was cut short."""
    if path is None or not path.exists():
        return [""]
    return path.read_text(encoding="utf-8").split("\n")


def _cost(line: str) -> float:
    """What a line of a ledger says; 0 for one that was cut short."""
    try:
        return float(json.loads(line)["cost"]) if line else 0.0
    except ValueError:
        return 0.0
