"""What a server was asked: counts, tokens, money and latencies, in memory that does not grow.

The numbers of a step are kept in one small file beside its records. A process that goes on with the
step adds to what it finds there, so they are those of the whole step and not of its last process.

`Account` is the money that calls cost, and a budget that holds over runs.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Self

from rlaif.core.errors import StoreError
from rlaif.core.integrity import CHECK, seal_row, unseal_row
from rlaif.core.store import read_json, write_atomic
from rlaif.engines.remote.decode import Usage

BUCKETS_PER_DOUBLING = 8
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
FILE = "remote.json"
"""The name of the file in a step's folder."""
KEEP_EVERY = 0.5
"""Seconds between two writings of it: a kill loses the counts of so long, and nothing else."""


@dataclass
class Meter:
    """What one model was asked. Latencies are kept as counts in buckets 9% apart. `seconds` are
    those that were asked in, from a process's first call to its last answer, summed over processes.
    `uncounted` answers came without a count of their tokens; `estimated` is the part of `cost` that
    is the most that such calls can have cost.
    """

    calls: int = 0
    hits: int = 0
    failed: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    latencies: Counter[int] = field(default_factory=Counter)
    earlier_seconds: float = 0.0
    uncounted: int = 0
    estimated: float = 0.0
    _first: float | None = None
    _last: float = 0.0
    # One thread counts while another one shows the numbers.
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(
        self, began: float, ended: float, usage: Usage | None, cost: float, estimated: bool = False
    ) -> None:
        """A call that was open from `began` to `ended` (seconds of one clock) and was answered."""
        self.paid(cost, estimated)
        # 8 buckets for each doubling: a bucket's ends are 9% apart.
        bucket = math.floor(math.log2(max(ended - began, 1e-6)) * BUCKETS_PER_DOUBLING)
        with self._lock:
            self.calls += 1
            self.uncounted += usage is None
            self.input_tokens += usage.input if usage else 0
            self.output_tokens += usage.output if usage else 0
            self._first = began if self._first is None else min(self._first, began)
            self._last = max(self._last, ended)
            self.latencies[bucket] += 1

    def paid(self, cost: float, estimated: bool = False) -> None:
        """A call cost so much, or at most so much."""
        with self._lock:
            self.cost += cost
            self.estimated += cost if estimated else 0.0

    def found(self) -> None:
        """The cache had the answer."""
        with self._lock:
            self.hits += 1

    def retried(self, cause: str) -> None:
        """A call has to be made again, because of `cause`."""
        with self._lock:
            self.retries[cause] += 1

    def gave_up(self, records: int) -> None:
        """So many records failed for good."""
        with self._lock:
            self.failed += records

    @property
    def seconds(self) -> float:
        """Seconds in which calls were open (see the class)."""
        return self.earlier_seconds + (self._last - self._first if self._first is not None else 0.0)

    def add(self, other: Meter) -> None:
        """Count what `other` counted, which was at another time."""
        with self._lock:
            self.calls += other.calls
            self.hits += other.hits
            self.failed += other.failed
            self.retries.update(other.retries)
            self.input_tokens += other.input_tokens
            self.output_tokens += other.output_tokens
            self.cost += other.cost
            self.latencies.update(other.latencies)
            self.earlier_seconds += other.seconds
            self.uncounted += other.uncounted
            self.estimated += other.estimated

    def summary(self) -> dict[str, Any]:
        """The numbers as they are kept and shown. Rates are over `seconds`; latencies are in
        seconds, to within 9%."""
        with self._lock:
            rate = 1 / self.seconds if self.seconds > 0 else 0.0
            return {
                "calls": self.calls,
                "cache_hits": self.hits,
                "failed": self.failed,
                "retries": dict(sorted(self.retries.items())),
                "input_tokens": self.input_tokens,
                "output_tokens": self.output_tokens,
                "uncounted": self.uncounted,
                "cost": round(self.cost, 9),
                "estimated_cost": round(self.estimated, 9),
                "seconds": round(self.seconds, 3),
                "calls_per_second": round(self.calls * rate, 2),
                "tokens_per_second": round(self.output_tokens * rate, 1),
                "latency": {
                    name: round(self._latency_percentile(p), 4) for name, p in PERCENTILES.items()
                },
                "latency_buckets": {str(b): n for b, n in sorted(self.latencies.items())},
            }

    def _latency_percentile(self, share: float) -> float:
        """The latency in seconds that `share` of the calls did not exceed, to within 9%."""
        wanted = math.ceil(share * self.latencies.total())
        seen = 0
        for bucket, count in sorted(self.latencies.items()):
            seen += count
            if seen >= wanted:
                # The bucket's upper end, which none of its calls exceeded.
                return float(2 ** ((bucket + 1) / BUCKETS_PER_DOUBLING))
        return 0.0

    @classmethod
    def from_summary(cls, row: Mapping[str, Any]) -> Self:
        """The meter whose `summary` this is."""
        return cls(
            row["calls"],
            row["cache_hits"],
            row["failed"],
            Counter(row["retries"]),
            int(_clamp_finite(row["input_tokens"])),
            int(_clamp_finite(row["output_tokens"])),
            _clamp_finite(row["cost"]),
            Counter({int(bucket): count for bucket, count in row["latency_buckets"].items()}),
            row["seconds"],
            row.get("uncounted", 0),
            _clamp_finite(row.get("estimated_cost", 0.0)),
        )


def _clamp_finite(value: float) -> float:
    """A number that was kept; 0 for one that an earlier version took from a server unread."""
    return value if math.isfinite(value) and value >= 0 else 0.0


class Meters:
    """The meters of the models that are asked, by their labels. Several threads may use it."""

    def __init__(self) -> None:
        self._meters: dict[str, Meter] = {}
        self._folder: Path | None = None
        self._kept = float("-inf")
        self._lock = threading.Lock()

    def of(self, model: str) -> Meter:
        """The meter of a model."""
        with self._lock:
            return self._meters.setdefault(model, Meter())

    @contextmanager
    def kept_in(self, folder: Path) -> Iterator[None]:
        """Keep what is asked within in a step's folder, added to what earlier processes asked."""
        # In one go, so that no call is counted between the two.
        with self._lock:
            self._folder, self._meters = folder, read_meters(folder)
        try:
            yield
        finally:
            self.keep(0.0)
            with self._lock:
                self._folder, self._meters = None, {}

    def keep(self, every: float = KEEP_EVERY) -> None:
        """Write the meters to the folder, unless that was done less than `every` seconds ago."""
        with self._lock:
            # Under the lock, so that an older state is never written over a newer one.
            now = monotonic()
            if self._folder is None or not self._meters or now - self._kept < every:
                return
            rows = {n: seal_row(meter.summary()) for n, meter in sorted(self._meters.items())}
            write_atomic(self._folder / FILE, json.dumps(rows, indent=1))
            self._kept = now

    def summaries(self) -> dict[str, dict[str, Any]]:
        """`Meter.summary` of each model that was asked."""
        with self._lock:
            return {model: meter.summary() for model, meter in sorted(self._meters.items())}

    def note(self) -> list[str]:
        """One line in words for each model that was asked."""
        rows = self.summaries().values()
        return [in_words(row) for row in rows if row["calls"] or row["cache_hits"]]


def read_meters(folder: Path) -> dict[str, Meter]:
    """The meters that a step's folder has, by model; none where no server was asked. Raises
    StoreError where they are damaged."""
    path = folder / FILE
    advice = "Delete this file: the step's calls are then counted from 0."
    rows = read_json(path, advice) or {}
    try:
        return {
            model: Meter.from_summary(unseal_row(row, path, advice, required=False))
            for model, row in rows.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise StoreError(f"{path}: damaged (it is not what was written). {advice}") from None


def kept_meters(folder: Path) -> dict[str, Any]:
    """What a finished step's marker keeps of its meters: `asked`, the summaries by model; nothing
    where no server was asked."""
    found = {model: meter.summary() for model, meter in read_meters(folder).items()}
    return {"asked": found} if found else {}


def meters_of(folder: Path, marker: Mapping[str, Any] | None) -> dict[str, Meter]:
    """The meters of a step by its marker; where it is unfinished, or an earlier version finished
    it, those in its folder. Raises StoreError where these are damaged."""
    if marker is None or "asked" not in marker:
        return read_meters(folder)
    return {model: Meter.from_summary(row) for model, row in marker["asked"].items()}


def counted_cost(root: Path) -> float:
    """What the calls of a run folder cost by its steps' own counts. Steps whose numbers are damaged
    are passed over: whoever reads them reports it."""
    total = 0.0
    for folder in sorted((root / "steps").glob("*")):
        try:
            meters = meters_of(folder, read_json(folder / "done.json"))
        except (StoreError, KeyError, TypeError, ValueError, AttributeError):
            continue
        total += math.fsum(meter.cost for meter in meters.values())
    return total


def in_words(row: Mapping[str, Any]) -> str:
    """A meter's `summary` in one line."""
    latency = " ".join(f"{name} {value:.2f}" for name, value in row["latency"].items())
    parts = [
        f"{row['calls_per_second']:.1f} calls/s {row['tokens_per_second']:.0f} tok/s {latency} s"
    ]
    if row["cache_hits"]:
        parts.append(f"{row['cache_hits']} from the cache")
    if row["retries"]:
        causes = ", ".join(f"{cause} {count}" for cause, count in row["retries"].items())
        parts.append(f"{sum(row['retries'].values())} retries ({causes})")
    if row["failed"]:
        parts.append(f"{row['failed']} failed")
    if row["uncounted"]:
        parts.append(f"{row['uncounted']} answers without a count of tokens")
    if row["cost"]:
        parts.append(f"cost {cost_in_words(row['cost'], row['estimated_cost'])}")
    return ", ".join(parts)


def cost_in_words(cost: float, estimated: float) -> str:
    """Money in a few words; `estimated` is the part that nobody counted."""
    part = f" (of which {estimated:.4f} by estimate)" if estimated else ""
    return f"{cost:.4f}{part}"


log = logging.getLogger(__name__)
LEDGER = "spend.jsonl"
ROUNDING = 1e-6
"""Steps keep their costs to nine digits."""


class Account:
    """The money that a run's remote models cost, and the `meters` of what they were asked.

    `path` keeps what was spent, one line per answer, written before it is used: what a killed run
    spent on answers that came counts for the next one, its calls in flight do not. None keeps
    nothing. One run never passes the budget. `estimated` is the part of `spent` that nobody
    counted: those calls stand there with the most that they can have cost. `counted` is what others
    know to have been spent: the ledger counts for no less, and `lost` is what it lacks of that.
    """

    def __init__(self, path: Path | None = None, budget: float | None = None, counted: float = 0.0):
        self.path = path
        self.budget = budget
        self._lock = threading.Lock()
        self.meters = Meters()
        self._held = 0.0
        lines = _read_lines(path)
        # The last one has no line break after it, or is empty.
        rows = [_read_cost(line, path, number) for number, line in enumerate(lines[:-1], 1)]
        noted = math.fsum(cost for cost, _ in rows)
        self.lost = counted - noted if counted - noted > ROUNDING else 0.0
        self.spent = noted + self.lost
        self.estimated = math.fsum(cost for cost, estimated in rows if estimated)
        # A last line that was cut short must not run into the next one.
        self._torn = len(lines[-1].encode("utf-8", "surrogateescape"))

    def hold(self, cost: float) -> bool | None:
        """Set the most that a call can cost aside. False: not now, since open calls may use what is
        left. None: not at all, the budget is spent."""
        with self._lock:
            if self.budget is None or self.spent + self._held + cost <= self.budget:
                self._held += cost
                return True
            # Open calls may turn out to cost less than is set aside for them.
            return False if self._held > 0 else None

    def free(self, held: float) -> None:
        """A call ended whose cost, if any, was already passed to `spend`."""
        with self._lock:
            # Sums of floats leave dust, which would look like an open call.
            self._held = self._held - held if self._held - held > 1e-12 else 0.0

    def spend(self, model: str, cost: float, estimated: bool = False) -> None:
        """Note what a call cost (0 or more), on disk first."""
        assert 0.0 <= cost < math.inf
        with self._lock:
            if self.path is not None and cost > 0:
                if self._torn:
                    os.truncate(self.path, self.path.stat().st_size - self._torn)
                    self._torn = 0
                row = {"model": model, "cost": cost} | ({"estimated": True} if estimated else {})
                row = seal_row(row)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            self.spent += cost
            self.estimated += cost if estimated else 0.0

    def beside(self) -> Account:
        """The same money with meters of its own, for a step that runs at the same time."""
        return _Beside(self)

    def note(self) -> str:
        """One line for a progress bar; empty when no remote model was asked."""
        parts = self.meters.note()
        if parts and self.budget is not None:
            part = f" ({self.estimated:.4f} by estimate)" if self.estimated else ""
            parts.append(f"{self.spent:.4f} of {self.budget:g} spent{part}")
        return ", ".join(parts)


def run_account(root: Path, budget: float | None = None) -> Account:
    """The account of a run folder. Every call is in the ledger before it is in its step's numbers,
    so a ledger with less than these has lost lines; those calls stay paid."""
    account = Account(root / LEDGER, budget, counted_cost(root))
    if account.lost:
        log.warning("%s", lost_in_words(account))
    return account


def lost_in_words(account: Account) -> str:
    """A message that a ledger has lost lines, and what becomes of it."""
    return (
        f"{account.path}: lines are missing: the steps' own numbers say that "
        f"{account.lost:.6g} more was spent. That much is counted as spent; where the folder of a "
        "step is deleted, it is no longer known"
    )


class _Beside(Account):
    """An account that spends another account's money."""

    def __init__(self, account: Account):
        super().__init__(None, account.budget)
        self._account = account
        self.spent, self.estimated = account.spent, account.estimated

    def hold(self, cost: float) -> bool | None:
        """See `Account.hold`."""
        self.spent, self.estimated = self._account.spent, self._account.estimated
        return self._account.hold(cost)

    def free(self, held: float) -> None:
        """See `Account.free`."""
        self._account.free(held)

    def spend(self, model: str, cost: float, estimated: bool = False) -> None:
        """See `Account.spend`."""
        self._account.spend(model, cost, estimated)


def _read_lines(path: Path | None) -> list[str]:
    """The lines of a ledger; the last is empty unless it was cut short."""
    if path is None or not path.exists():
        return [""]
    return path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")


def _read_cost(line: str, path: Path | None, number: int) -> tuple[float, bool]:
    """What a line of a ledger says, and whether by estimate. Raises StoreError where it is
    damaged."""
    advice = "Mend this line, or delete it: what it cost then counts no more."
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        # Earlier versions left lines that a kill had cut short, without a checksum.
        if CHECK not in line and not line.endswith("}"):
            return 0.0, False
        row = None
    said = unseal_row(row, f"{path}:{number}", advice, required=False)
    cost = said.get("cost")
    if isinstance(cost, bool) or not isinstance(cost, (int, float)):
        raise StoreError(f"{path}:{number}: damaged (no cost). {advice}")
    if not 0 <= cost < math.inf:
        # Earlier versions noted counts of servers that were none, which cost nothing.
        if CHECK not in line:
            return 0.0, False
        raise StoreError(f"{path}:{number}: damaged (no cost). {advice}")
    return float(cost), bool(said.get("estimated"))
