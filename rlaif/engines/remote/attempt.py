"""One attempt at a call: its answer, or what its failure means for the call and for all others."""

from __future__ import annotations

import asyncio
import logging

import httpx2
import openai

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError, GateStopped
from rlaif.engines.remote import api
from rlaif.engines.remote.api import ApiCall
from rlaif.engines.remote.connection import Connection, Repeated
from rlaif.engines.remote.decode import Answer, Malformed, decode_answer, is_silent
from rlaif.engines.remote.failures import AGAIN, KEPT, Again, failure_of, is_out_of_money
from rlaif.engines.remote.pace import LONGEST_ASKED_WAIT, Pace, asked_wait, exhausted_for, in_words
from rlaif.engines.remote.secret import without_key
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
        response = await self._response(call, connection, began, answered)
        loop = asyncio.get_running_loop()
        self.heard = loop.time()
        wait = exhausted_for(response.headers)
        if wait is not None:
            self._pause(wait)
        try:
            answer = self._decoded(response.content.decode("utf-8", "replace"))
            if isinstance(answer, Answer) and len(answer.choices) < len(call.requests):
                self._too_few(call, answer, answered)
        except Malformed as error:
            raise Again("malformed", str(error), billed=True) from None
        if isinstance(answer, ServerError):
            self._heed(answer, response.headers, began)
            raise failure_of(answer, self.spec, self.name, call.body, answered)
        for choice in answer.choices[: len(call.requests)]:
            if choice.error is not None:
                words = choice.error.words
                raise Again("error", f"the answer broke off: {words}", True, answer.usage)
            if is_silent(choice):
                why = f"the answer has no text (finish reason {choice.finish})"
                raise Again("no text", why, True, answer.usage)
        return answer

    async def _response(
        self, call: ApiCall, connection: Connection, began: float, answered: bool
    ) -> httpx2.Response:
        path, most = api.PATHS[self.spec.api], api.most_bytes(call.body)
        try:
            async with asyncio.timeout(self.spec.limits.total_seconds):
                return await connection.post(path, call.body, most)
        except TimeoutError:
            seconds = self.spec.limits.total_seconds
            raise Again("timeout", f"no whole answer after {seconds:g} s", billed=True) from None
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
            self._heed(said, error.response.headers, began)
            raise failure_of(said, self.spec, self.name, call.body, answered) from None

    def _decoded(self, text: str) -> Answer | ServerError:
        """An answer as it is, and an error without the key."""
        try:
            answer = decode_answer(text)
        except Malformed:
            answer = None
        if isinstance(answer, Answer) and all(c.error is None for c in answer.choices):
            return answer
        return decode_answer(without_key(text, self.key))

    def _too_few(self, call: ApiCall, answer: Answer, answered: bool) -> None:
        given = f"{len(answer.choices)} of {len(call.requests)} choices"
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
            return Again("unreachable", f"no connection: {text}")
        if isinstance(error, openai.APITimeoutError):
            seconds = self.spec.limits.read_seconds
            return Again("timeout", f"nothing came for {seconds:g} s", billed=True)
        return Again("connection", f"the connection broke: {text}", billed=True)

    def _heed(self, error: ServerError, headers: httpx2.Headers, began: float) -> None:
        """Heed what the server says of its limits. Raises GateStopped for too long a wait."""
        status = error.status or 0
        if is_out_of_money(error):
            return
        if status == 429:
            self.pace.too_fast(began, self.heard)
        wait = asked_wait(headers)
        if wait is None or (status not in AGAIN and status < 500):
            return
        if wait > LONGEST_ASKED_WAIT:
            raise GateStopped(
                f"model {self.name}: {self.spec.base_url} asks to wait {in_words(wait)} before the "
                f"next call (status {status}: {error.words}). {KEPT} Run the same "
                "command again then."
            )
        self._pause(wait)

    def _pause(self, seconds: float) -> None:
        if seconds >= WORTH_SAYING:
            log.warning(
                "model %s: the server asks to wait %s before the next call",
                self.name,
                in_words(seconds),
            )
        self.pace.pause(self.heard + seconds)
