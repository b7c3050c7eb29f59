"""One attempt at a call: its answer, or what its failure means for the call and for all others.

`Pace` says how fast a server is asked: calls open at once, the waits it asks for, waits between
attempts. `Breaker` stops a step whose server refuses every call: it has lost its model, not a
record.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from time import time

import httpx2
import openai

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError, GateStopped
from rlaif.engines.remote import api
from rlaif.engines.remote.api import ApiCall
from rlaif.engines.remote.connection import Connection, Repeated, without_key
from rlaif.engines.remote.decode import Answer, Malformed, decode_answer, is_silent
from rlaif.engines.remote.failures import AGAIN, KEPT, Again, failure_of, is_out_of_money
from rlaif.engines.remote.server_errors import ServerError, decode_error

log = logging.getLogger(__name__)

WORTH_SAYING = 30.0
"""Seconds of a wait that is said."""
MESSAGE_LENGTH = 500


class Attempts:
    """Makes attempts at calls to one model's server.

    `key` is the server's; it is taken out of every error. Waits that the server asks for and
    refusals for speed go to `pace`. `heard` is when it last answered anything, by the loop's clock.
    """

    def __init__(self, spec: ModelSpec, name: str, key: str | None, pace: Pace):
        self.spec = spec
        self.name = name
        self.key = key
        self.pace = pace
        self.heard = float("-inf")

    async def post(
        self, call: ApiCall, connection: Connection, began: float, answered: bool
    ) -> Answer:
        """The answer to `call`, which entered the pace at `began`; `answered`: the server has
        answered calls before. Raises Again, Refused, SchemaRefused, EngineError where no other call
        would fare better, and GateStopped for a wait that is too long."""
        response = await self._post_call(call, connection, began, answered)
        loop = asyncio.get_running_loop()
        # Whatever it says, the server is alive.
        self.heard = loop.time()
        wait = exhausted_for(response.headers)
        if wait is not None:
            self._pause_calls(wait)
        try:
            answer = self._decode_answer(response.content.decode("utf-8", "replace"))
            if isinstance(answer, Answer) and len(answer.choices) < len(call.requests):
                self._too_few(call, answer, answered)
        except Malformed as error:
            raise Again("malformed", str(error), billed=True) from None
        if isinstance(answer, ServerError):
            self._heed_limits(answer, response.headers, began)
            raise failure_of(answer, self.spec, self.name, call.body, answered)
        # More choices than were asked for are nobody's.
        for choice in answer.choices[: len(call.requests)]:
            if choice.error is not None:
                words = choice.error.words
                raise Again("error", f"the answer broke off: {words}", True, answer.usage)
            if is_silent(choice):
                why = f"the answer has no text (finish reason {choice.finish})"
                raise Again("no text", why, True, answer.usage)
        return answer

    async def _post_call(
        self, call: ApiCall, connection: Connection, began: float, answered: bool
    ) -> httpx2.Response:
        path, most = api.PATHS[self.spec.api], api.most_bytes(call.body)
        try:
            async with asyncio.timeout(self.spec.limits.total_seconds):
                return await connection.post(path, call.body, most)
        except TimeoutError:
            seconds = self.spec.limits.total_seconds
            raise Again("timeout", f"no whole answer after {seconds:g} s", billed=True) from None
        # It may have been made and billed: the answer to it has not come.
        except Repeated as error:
            raise Again("repeated", str(error), billed=True) from None
        except Malformed as error:
            self.heard = asyncio.get_running_loop().time()
            raise Again("malformed", without_key(str(error), self.key), billed=True) from None
        except openai.APIConnectionError as error:
            raise self._connection_error(error) from None
        except openai.APIStatusError as error:
            self.heard = asyncio.get_running_loop().time()
            text = error.response.text or error.response.reason_phrase
            said = decode_error(error.status_code, without_key(text, self.key))
            self._heed_limits(said, error.response.headers, began)
            raise failure_of(said, self.spec, self.name, call.body, answered) from None

    def _decode_answer(self, text: str) -> Answer | ServerError:
        """An answer as it is, and an error without the key."""
        try:
            answer = decode_answer(text)
        except Malformed:
            answer = None
        # An answer's text may hold the same characters and stays as it is: only errors lose the
        # key.
        if isinstance(answer, Answer) and all(c.error is None for c in answer.choices):
            return answer
        return decode_answer(without_key(text, self.key))

    def _too_few(self, call: ApiCall, answer: Answer, answered: bool) -> None:
        given = f"{len(answer.choices)} of {len(call.requests)} choices"
        # It has served `n` before, so this answer is damaged.
        if answered:
            raise Malformed(f"the answer has {given}")
        raise EngineError(
            f"{self.spec.base_url} gave {given}: it does not serve `n`. Leave out "
            "`samples_per_call`."
        )

    def _connection_error(self, error: openai.APIConnectionError) -> Again:
        cause = error.__cause__
        text = without_key(str(cause or error), self.key)[:MESSAGE_LENGTH]
        if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
            # Nothing has reached the server, so nothing is billed.
            return Again("unreachable", f"no connection: {text}")
        if isinstance(error, openai.APITimeoutError):
            seconds = self.spec.limits.read_seconds
            return Again("timeout", f"nothing came for {seconds:g} s", billed=True)
        return Again("connection", f"the connection broke: {text}", billed=True)

    def _heed_limits(self, error: ServerError, headers: httpx2.Headers, began: float) -> None:
        """Heed what the server says of its limits. Raises GateStopped for too long a wait."""
        status = error.status or 0
        # Waiting does not mend that.
        if is_out_of_money(error):
            return
        if status == 429:
            self.pace.too_fast(began, self.heard)
        wait = asked_wait(headers)
        if wait is None or (status not in AGAIN and status < 500):
            return
        if wait > LONGEST_ASKED_WAIT:
            raise GateStopped(
                f"model {self.name}: {self.spec.base_url} requires a wait of {in_words(wait)} "
                f"before the next call (status {status}: {error.words}). {KEPT} Run the same "
                "command again then."
            )
        self._pause_calls(wait)

    def _pause_calls(self, seconds: float) -> None:
        if seconds >= WORTH_SAYING:
            log.warning(
                "model %s: the server requires a wait of %s before the next call",
                self.name,
                in_words(seconds),
            )
        self.pace.pause(self.heard + seconds)


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
    """Seconds to wait by the headers of an answer: Retry-After (seconds or a date) or
    retry-after-ms; None if they set none. More than LONGEST_ASKED_WAIT is not for a run to wait."""
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
                # Spread a little, or all would come back in the same instant.
                await asyncio.sleep(wait * random.uniform(1.0, 1.1))
            elif self._open < int(self.limit):
                self._open += 1
                return loop.time()
            else:
                place = loop.create_future()
                self._waiting.append(place)
                # Looked at anew: others may have taken the place, or a pause may have begun.
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
        """Raise the limit a little after an answer."""
        self.limit = min(float(self.most), self.limit + 1 / self.limit)

    def too_fast(self, entered: float, now: float) -> None:
        """Halve the limit: at `now` a call that entered at `entered` was refused for speed."""
        # A call from before the last cut says nothing of the new pace.
        if entered > self._cut:
            self._cut = now
            self.limit = max(1.0, self.limit / 2)

    def pause(self, until: float) -> None:
        """Let no call in before the loop's time `until`."""
        self._resume = max(self._resume, until)


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
