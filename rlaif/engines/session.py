"""The calls of one `generate` or `score`, on one event loop: cache, retries, pace, money.

An answer is committed to the request cache before anybody sees it, so a killed run asks again for
the calls that were in flight and for no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlaif.config import ModelSpec
from rlaif.engines import api
from rlaif.engines.account import Account
from rlaif.engines.api import ApiCall, Result
from rlaif.engines.attempt import Again, Attempts, Refused, SchemaRefused
from rlaif.engines.cache import Entry, RequestCache, cache_limit, cache_path
from rlaif.engines.connection import Connection, opener
from rlaif.engines.pace import Pace, back_off
from rlaif.engines.streaming import Outlet
from rlaif.errors import EngineError, GateStopped

log = logging.getLogger(__name__)

BUDGET_WAIT = 0.05
"""Seconds between looks at whether open calls have left some of the budget."""


@dataclass(frozen=True, slots=True)
class _Done:
    """A call that ended. `answer` is what the cache is to keep, None where it has it, or nothing
    came."""

    call: ApiCall
    results: list[Result]
    answer: dict[str, Any] | None = None


class Session:
    """Makes `calls` and puts their results into an outlet. `key` is the server's; `place` is where
    the model is, for those who look at the cache."""

    def __init__(
        self,
        spec: ModelSpec,
        name: str,
        key: str | None,
        account: Account,
        calls: Iterator[ApiCall],
        place: str,
    ):
        self.spec = spec
        self.name = name
        self.account = account
        self.meter = account.meters.of(name)
        self.calls = calls
        self.place = place
        self.open_client = opener(spec, key)
        self.pace = Pace(spec.limits.concurrency)
        self.attempts = Attempts(spec, name, key, self.pace)
        self.cache: RequestCache | None = None
        self.serves_schema = True
        self.serves_log_probs = False
        self._pending: list[_Done] = []
        self._used: list[str] = []
        self._open: dict[str, asyncio.Future[None]] = {}
        self._news = asyncio.Event()
        self._kept = asyncio.Event()

    def begin_after(self, earlier: Session) -> None:
        """Start from what an earlier session of this engine learned of the server."""
        self.serves_schema = earlier.serves_schema
        self.serves_log_probs = earlier.serves_log_probs
        self.pace.limit = earlier.pace.limit

    async def run(self, outlet: Outlet[Result]) -> None:
        """Answer every call. What came before an error or a cancellation is given out too."""
        self.outlet = outlet
        try:
            await self._answer_all()
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None

    async def _answer_all(self) -> None:
        if self.spec.cache:
            self.cache = RequestCache(cache_path(), cache_limit())
        try:
            async with asyncio.TaskGroup() as group:
                committer = group.create_task(self._commit_on_news())
                async with asyncio.TaskGroup() as workers:
                    for _ in range(self.spec.limits.concurrency):
                        workers.create_task(self._work())
                committer.cancel()
        finally:
            try:
                self._commit()
            finally:
                if self.cache is not None:
                    self.cache.close()

    async def _commit_on_news(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            self._commit()

    def _commit(self) -> None:
        """Keep all answers that came since the last time in one transaction, then give them out.
        Raises StoreError, after they were given out, for a cache that cannot be written."""
        pending, self._pending = self._pending, []
        used, self._used = self._used, []
        kept, self._kept = self._kept, asyncio.Event()
        try:
            self._keep(pending, used)
        finally:
            # An answer that was paid for is given out even when the cache cannot keep it.
            for done in pending:
                self._release(done.call.key)
            if pending:
                self.outlet.put([result for done in pending for result in done.results])
            kept.set()
        self.account.meters.keep()

    def _keep(self, pending: list[_Done], used: list[str]) -> None:
        entries = [
            Entry(d.call.key, self.spec.path, self.place, d.call.body, d.answer)
            for d in pending
            if d.answer is not None
        ]
        if self.cache is not None and (used or entries):
            self.cache.put(entries, used)

    async def _finish(self, done: _Done) -> None:
        """Have `done` committed. Until then its worker makes no other call: so what a kill can lose
        is one call for each."""
        self._pending.append(done)
        self._news.set()
        await self._kept.wait()

    def _release(self, key: str) -> None:
        waiting = self._open.pop(key, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def _work(self) -> None:
        connection = Connection(self.open_client)
        try:
            for call in self.calls:
                for _ in call.requests:
                    await self.outlet.room()
                if call.refusal is not None:
                    await self._finish(_Done(call, call.failed(call.refusal)))
                elif not await self._found(call):
                    await self._answer(call, connection)
        finally:
            await connection.close()

    async def _found(self, call: ApiCall) -> bool:
        """Whether the cache answered; if not, the call is open now, and its equals wait for it."""
        if self.cache is None:
            return False
        while (other := self._open.get(call.key)) is not None:
            await other
        answer = self.cache.get(call.key)
        if answer is None:
            self._open[call.key] = asyncio.get_running_loop().create_future()
            return False
        usage = api.usage_of(answer, api.most_usage(call.body))
        self.serves_log_probs |= api.serves_log_probs(call, answer) is True
        results = api.read(self.spec, call, answer, usage, None)
        self.meter.found()
        self._used.append(call.key)
        await self._finish(_Done(call, results))
        return True

    async def _answer(self, call: ApiCall, connection: Connection) -> None:
        began = asyncio.get_running_loop().time()
        for attempt in range(1, self.spec.limits.retries + 2):
            try:
                await self._finish(await self._attempt(call, connection))
                return
            except Refused as error:
                failure, cause = str(error), "refused"
                break
            except Again as error:
                failure, cause = str(error), error.cause
            if attempt <= self.spec.limits.retries:
                self.meter.retried(cause)
                # A wait that was asked for runs beside this one: in the pace, for every call.
                await asyncio.sleep(back_off(attempt))
        if cause == "unreachable" and self.attempts.heard < began:
            raise EngineError(
                f"model {self.name}: nothing answers at {self.spec.base_url} ({failure}). What was "
                "answered is kept. Start the server and run the same command again."
            )
        if cause != "refused":
            failure = f"gave up after {self.spec.limits.retries + 1} attempts: {failure}"
        self.meter.gave_up(len(call.requests))
        await self._finish(_Done(call, call.failed(failure)))

    async def _attempt(self, call: ApiCall, connection: Connection) -> _Done:
        """One attempt, which is made again without the JSON schema where that is refused."""
        if not self.serves_schema:
            call = api.without_schema(call)
        try:
            return await self._paid(call, connection)
        except SchemaRefused as error:
            self._give_up_schema(str(error))
        return await self._paid(api.without_schema(call), connection)

    def _give_up_schema(self, said: str) -> None:
        self.meter.retried("no schema")
        if self.serves_schema:
            self.serves_schema = False
            log.warning(
                "model %s: the JSON schema is left out from here on, and answers are read as text: "
                "%s",
                self.name,
                said,
            )

    async def _paid(self, call: ApiCall, connection: Connection) -> _Done:
        """One call within the budget."""
        most = api.most_usage(call.body)
        held = most.cost(self.spec.price)
        await self._hold(held)
        try:
            began = await self.pace.enter()
            try:
                answer = await self.attempts.post(call, connection, began)
            except Again as error:
                if error.billed:
                    self.account.spend(self.name, held)
                raise
            finally:
                self.pace.leave()
            ended = asyncio.get_running_loop().time()
            usage = api.usage_of(answer, most)
            cost = usage.cost(self.spec.price)
            self.account.spend(self.name, cost)
            self.meter.answered(began, ended, usage, cost)
            self.pace.answered()
        finally:
            self.account.free(held)
        self._check_log_probs(call, answer)
        return _Done(call, api.read(self.spec, call, answer, usage, ended - began), answer)

    def _check_log_probs(self, call: ApiCall, answer: dict[str, Any]) -> None:
        """Stop at a server that has given no log-probs yet and gives a whole text without them.
        Later on a text without them is that record's own failure."""
        serves = api.serves_log_probs(call, answer)
        self.serves_log_probs |= serves is True
        if serves is False and not self.serves_log_probs:
            raise EngineError(
                f"{self.spec.base_url} answers for {self.spec.path} without log-probs. Use a judge "
                "that writes its verdict, or a server that serves `top_logprobs`."
            )

    async def _hold(self, cost: float) -> None:
        """Set the most that a call can cost aside, once there is so much left of the budget."""
        while not (given := self.account.hold(cost)):
            if given is None:
                raise GateStopped(
                    f"the budget of {self.account.budget:g} is spent: {self.account.spent:.6g} so "
                    f"far, and the next call to {self.name} may cost {cost:.6g}. All answers are "
                    "kept. Raise `budget` and run the same command again."
                )
            await asyncio.sleep(BUDGET_WAIT)
