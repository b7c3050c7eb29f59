"""The money that remote calls cost, and a budget that holds over runs."""

from __future__ import annotations

import json
import math
import os
import threading
from pathlib import Path

from rlaif.checksums import CHECK, sealed, unsealed
from rlaif.engines.meter import Meters
from rlaif.errors import StoreError


class Account:
    """The money that a run's remote models cost, and the `meters` of what they were asked.

    `path` keeps what was spent, one line per answer, written before it is used: what a killed run
    spent on answers that came counts for the next one, its calls in flight do not. None keeps
    nothing. One run never passes the budget.
    """

    def __init__(self, path: Path | None = None, budget: float | None = None):
        self.path = path
        self.budget = budget
        self._lock = threading.Lock()
        self.meters = Meters()
        self._held = 0.0
        lines = _lines(path)
        costs = (_cost(line, path, number) for number, line in enumerate(lines[:-1], 1))
        self.spent = math.fsum(costs)
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

    def spend(self, model: str, cost: float) -> None:
        """Note what a call cost, on disk first."""
        with self._lock:
            if self.path is not None and cost > 0:
                if self._torn:
                    os.truncate(self.path, self.path.stat().st_size - self._torn)
                    self._torn = 0
                row = sealed({"model": model, "cost": cost})
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            self.spent += cost

    def beside(self) -> Account:
        """The same money with meters of its own, for a step that runs at the same time."""
        return _Beside(self)

    def note(self) -> str:
        """One line for a progress bar; empty when no remote model was asked."""
        parts = self.meters.note()
        if parts and self.budget is not None:
            parts.append(f"{self.spent:.4f} of {self.budget:g} spent")
        return ", ".join(parts)


class _Beside(Account):
    """An account whose money is another one's."""

    def __init__(self, account: Account):
        super().__init__(None, account.budget)
        self._account = account
        self.spent = account.spent

    def hold(self, cost: float) -> bool | None:
        """See `Account.hold`."""
        self.spent = self._account.spent
        return self._account.hold(cost)

    def free(self, held: float) -> None:
        """See `Account.free`."""
        self._account.free(held)

    def spend(self, model: str, cost: float) -> None:
        """See `Account.spend`."""
        self._account.spend(model, cost)


def _lines(path: Path | None) -> list[str]:
    """The lines of a ledger; the last is empty unless it was cut short."""
    if path is None or not path.exists():
        return [""]
    return path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")


def _cost(line: str, path: Path | None, number: int) -> float:
    """What a line of a ledger says. Raises StoreError where it is damaged."""
    advice = "Mend this line, or delete it: what it cost then counts no more."
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        # Earlier versions left lines that a kill had cut short, without a checksum.
        if CHECK not in line and not line.endswith("}"):
            return 0.0
        row = None
    cost = unsealed(row, f"{path}:{number}", advice, required=False).get("cost")
    if isinstance(cost, bool) or not isinstance(cost, (int, float)) or not 0 <= cost < math.inf:
        raise StoreError(f"{path}:{number}: damaged (no cost). {advice}")
    return float(cost)
