"""How fast a server is asked: calls open at once, the waits it asks for, waits between attempts."""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections import deque
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from time import time

FIRST_WAIT = 0.5
LONGEST_WAIT = 60.0
LONGEST_ASKED_WAIT = 600.0
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def back_off(attempt: int) -> float:
    """Seconds before attempt `attempt` + 1 (from 1): anywhere up to a bound that doubles, and at
    least a tenth of it, so that calls that failed together do not come back together."""
    bound = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (attempt - 1))
    return random.uniform(0.1 * bound, bound)


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer asks to wait: Retry-After (seconds or a date) or retry-after-ms; None
    when it asks for none. More than LONGEST_ASKED_WAIT is not for a run to wait."""
    try:
        if "retry-after-ms" in headers:
            wait = float(headers["retry-after-ms"]) / 1000
        elif "retry-after" in headers:
            wait = _retry_after(headers["retry-after"])
        else:
            return None
    except (ValueError, OverflowError):
        return None
    return max(wait, 0.0) if math.isfinite(wait) else None


def in_words(seconds: float) -> str:
    """A wait as a person says it: 45 s, 10 min, 24 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _retry_after(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return parsedate_to_datetime(text).timestamp() - time()


def exhausted_for(headers: Mapping[str, str]) -> float | None:
    """Seconds until a used-up limit is filled again, by the x-ratelimit headers; None while
    something is left."""
    waits = []
    for kind in ("requests", "tokens"):
        if headers.get(f"x-ratelimit-remaining-{kind}", "").strip() == "0":
            waits.append(duration(headers.get(f"x-ratelimit-reset-{kind}", "")))
    known = [wait for wait in waits if wait is not None]
    return min(max(known), LONGEST_ASKED_WAIT) if known else None


def duration(text: str) -> float | None:
    """Seconds in a text such as 250ms, 1.5s or 6m0s, or a plain number; None for anything else."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(r"(\d+(\.\d+)?(ms|s|m|h|d))+", text):
        return None
    return sum(
        float(number) * _UNITS[unit]
        for number, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
    )


class Pace:
    """How many calls may be open, for one event loop: at most `most`.

    A refusal for speed (429) halves the number, once for all calls that were open then; every
    answer raises it by its reciprocal, so by one for as many answers as calls are open (additive
    increase, multiplicative decrease).
    """

    def __init__(self, most: int):
        self.most = most
        self.limit = float(most)
        self._open = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._resume = 0.0
        self._cut = float("-inf")

    async def enter(self) -> float:
        """Wait for a place. The loop's time at which it was given."""
        loop = asyncio.get_running_loop()
        while True:
            wait = self._resume - loop.time()
            if wait > 0:
                await asyncio.sleep(wait * random.uniform(1.0, 1.1))
            elif self._open < int(self.limit):
                self._open += 1
                return loop.time()
            else:
                place = loop.create_future()
                self._waiting.append(place)
                await place

    def leave(self) -> None:
        """Give the place back."""
        self._open -= 1
        free = int(self.limit) - self._open
        while self._waiting and free > 0:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                free -= 1

    def answered(self) -> None:
        """A call was answered: a little faster."""
        self.limit = min(float(self.most), self.limit + 1 / self.limit)

    def too_fast(self, entered: float, now: float) -> None:
        """A call that entered at `entered` was refused for speed at `now`: half as many."""
        if entered > self._cut:
            self._cut = now
            self.limit = max(1.0, self.limit / 2)

    def pause(self, until: float) -> None:
        """Let no call in before the loop's time `until`."""
        self._resume = max(self._resume, until)
