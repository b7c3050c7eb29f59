"""When refusals stop a step: a server that refuses every call has lost its model, not a record."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

IN_A_ROW = 20
"""So many refusals of one status, one after the other, stop a step."""
WINDOW = 100
"""Of so many last calls more than half may not be refused."""
LEAST_WAVE = 4


@dataclass
class Breaker:
    """Hears how every call of one step to one server ended. `answered`: one was answered.

    `row` counts the last refusals, which are all of `status`; `recent` are the last calls, true for
    refusals. What it tells ends the step; the caller keeps the refusals of the row back until then,
    so that an outage leaves no failed records.
    """

    answered: bool = False
    status: int | None = None
    row: int = 0
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def succeeded(self) -> None:
        """A call was answered."""
        self.answered, self.status, self.row = True, None, 0
        self.recent.append(False)

    def refused(self, status: int, concurrency: int) -> str | None:
        """A call was refused for good with `status`. What there is to say of it where it stops the
        step; `concurrency` is how many calls may be open."""
        self.row = self.row + 1 if status == self.status else 1
        self.status = status
        self.recent.append(True)
        wave = first_wave(concurrency)
        if not self.answered and self.row >= min(wave, IN_A_ROW):
            return f"{self.row} calls were refused and none was answered"
        if self.row >= IN_A_ROW:
            return f"{self.row} calls in a row were refused"
        refused = sum(self.recent)
        if len(self.recent) == WINDOW and refused > WINDOW / 2:
            return f"{refused} of the last {WINDOW} calls were refused"
        return None


def first_wave(concurrency: int) -> int:
    """How many calls the first wave of a step has."""
    return max(LEAST_WAVE, concurrency)
