"""One attempt at a call: its answer, or what its failure means for the call and for all others."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import openai

from rlaif.config import ModelSpec
from rlaif.engines import api
from rlaif.engines.api import ApiCall, Malformed
from rlaif.engines.connection import Connection, Repeated
from rlaif.engines.pace import Pace, asked_wait, exhausted_for
from rlaif.engines.secret import without_key
from rlaif.errors import EngineError

FATAL = {401, 402, 403, 404}
"""Statuses after which no other call would fare better."""
AGAIN = {408, 409, 425, 429}
MESSAGE_LENGTH = 500


class Again(Exception):
    """An attempt that may fare better later. `billed`: the server may have done the work."""

    def __init__(self, cause: str, message: str, billed: bool = False):
        super().__init__(message)
        self.cause = cause
        self.billed = billed


class Refused(Exception):
    """The server does not take this call, now or later."""


class SchemaRefused(Exception):
    """The server does not take this call's JSON schema."""


class Attempts:
    """Makes attempts at calls to one model's server.

    `key` is the server's; it is taken out of every text that comes back. Waits that the server asks
    for and refusals for speed go to `pace`. `heard` is when it last answered anything, by the
    loop's clock.
    """

    def __init__(self, spec: ModelSpec, name: str, key: str | None, pace: Pace):
        self.spec = spec
        self.name = name
        self.key = key
        self.pace = pace
        self.heard = float("-inf")

    async def post(self, call: ApiCall, connection: Connection, began: float) -> dict[str, Any]:
        """The answer to `call`, which entered the pace at `began`. Raises Again, Refused,
        SchemaRefused, and EngineError where no other call would fare better."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.spec.limits.total_seconds):
                response = await connection.post(api.PATHS[self.spec.api], call.body)
        except TimeoutError:
            seconds = self.spec.limits.total_seconds
            raise Again("timeout", f"no whole answer after {seconds:g} s", billed=True) from None
        except Repeated as error:
            raise Again("repeated", str(error), billed=True) from None
        except openai.APIConnectionError as error:
            raise self._connection_error(error) from None
        except openai.APIStatusError as error:
            self.heard = loop.time()
            self._slow_down(error, began)
            raise self._status_error(error, call) from None
        self.heard = loop.time()
        wait = exhausted_for(response.headers)
        if wait is not None:
            self.pace.pause(self.heard + wait)
        text = response.content.decode("utf-8", "replace")
        try:
            return api.parse_answer(without_key(text, self.key))
        except Malformed as error:
            raise Again("malformed", str(error), billed=True) from None

    def _connection_error(self, error: openai.APIConnectionError) -> Again:
        cause = error.__cause__
        text = without_key(str(cause or error), self.key)[:MESSAGE_LENGTH]
        if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
            return Again("unreachable", f"no connection: {text}")
        if isinstance(error, openai.APITimeoutError):
            seconds = self.spec.limits.read_seconds
            return Again("timeout", f"nothing came for {seconds:g} s", billed=True)
        return Again("connection", f"the connection broke: {text}", billed=True)

    def _slow_down(self, error: openai.APIStatusError, began: float) -> None:
        """Heed what the server says of its limits."""
        status = error.status_code
        if status == 429 and not _out_of_money(error):
            self.pace.too_fast(began, self.heard)
        wait = asked_wait(error.response.headers)
        if wait is not None and (status in AGAIN or status >= 500):
            self.pace.pause(self.heard + wait)

    def _status_error(self, error: openai.APIStatusError, call: ApiCall) -> Exception:
        status = error.status_code
        said = without_key(_message(error), self.key)[:MESSAGE_LENGTH]
        message = f"status {status}: {said}"
        if status in FATAL or _out_of_money(error):
            key = f" Its key is taken from ${self.spec.key_env}." if self.spec.key_env else ""
            return EngineError(
                f"model {self.name}: {self.spec.base_url} answers with {message}.{key} What was "
                "answered is kept."
            )
        if status in AGAIN or status >= 500:
            return Again(str(status), message)
        if "response_format" in call.body and any(w in said for w in ("response_format", "schema")):
            return SchemaRefused(message)
        if "logprobs" in call.body and "logprob" in said:
            return EngineError(
                f"model {self.name}: {self.spec.base_url} gives no log-probs ({message}). Use a "
                "judge that writes its verdict, or a smaller `top_logprobs`."
            )
        return Refused(message)


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, dict):
        return str(body.get("message") or body)
    return " ".join(str(body or error.message).split())


def _out_of_money(error: openai.APIStatusError) -> bool:
    """Whether the account has nothing left, which some servers say with a 429."""
    return isinstance(error.body, dict) and error.body.get("code") == "insufficient_quota"
