"""The money that remote calls cost, and a budget that holds over runs."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from pathlib import Path

from rlaif.core.checksums import CHECK, sealed, unsealed
from rlaif.core.errors import StoreError
from rlaif.engines.remote.meter import Meters, counted_cost

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
        lines = _lines(path)
        rows = [_row(line, path, number) for number, line in enumerate(lines[:-1], 1)]
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
                row = sealed(row)
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
    """That a ledger has lost lines, and what becomes of it."""
    return (
        f"{account.path}: lines are missing: the steps' own numbers say that "
        f"{account.lost:.6g} more was spent. That much is counted as spent; where the folder of a "
        "step is deleted, it is no longer known"
    )


class _Beside(Account):
    """An account whose money is another one's."""

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


def _lines(path: Path | None) -> list[str]:
    """The lines of a ledger; the last is empty unless it was cut short."""
    if path is None or not path.exists():
        return [""]
    return path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")


def _row(line: str, path: Path | None, number: int) -> tuple[float, bool]:
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
    said = unsealed(row, f"{path}:{number}", advice, required=False)
    cost = said.get("cost")
    if isinstance(cost, bool) or not isinstance(cost, (int, float)):
        raise StoreError(f"{path}:{number}: damaged (no cost). {advice}")
    if not 0 <= cost < math.inf:
        # Earlier versions noted counts of servers that were none, which cost nothing.
        if CHECK not in line:
            return 0.0, False
        raise StoreError(f"{path}:{number}: damaged (no cost). {advice}")
    return float(cost), bool(said.get("estimated"))
