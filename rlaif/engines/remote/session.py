"""The calls of one `generate` or `score`, on one event loop: cache, retries, pace, money.

An answer is committed to the request cache before anybody sees it, so a killed run asks again for
the calls that were in flight and for no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError, GateStopped
from rlaif.engines.remote import api
from rlaif.engines.remote.api import ApiCall, Result
from rlaif.engines.remote.attempt import Attempts, Breaker, Pace, back_off, first_wave
from rlaif.engines.remote.cache import Entry, RequestCache, cache_limit, cache_path
from rlaif.engines.remote.connection import Connection, opener
from rlaif.engines.remote.decode import Answer, Usage, decode_stored, encode_answer
from rlaif.engines.remote.failures import KEPT, Again, Refused, SchemaRefused
from rlaif.engines.remote.meter import Account, Meter
from rlaif.engines.remote.streaming import Outlet

log = logging.getLogger(__name__)

SILENT_ATTEMPTS = 3
"""How often a call is made that is answered without a text, which is paid each time."""
BUDGET_WAIT = 0.05
"""Seconds between looks at whether open calls have left some of the budget."""


@dataclass(frozen=True, slots=True)
class _Done:
    """A call that ended. `answer` is what the cache is to keep, None where it has it, or nothing
    came."""

    call: ApiCall
    results: list[Result]
    answer: Answer | None = None


@dataclass
class Learned:
    """What a server's answers have told of it, over all sessions of an engine. The breaker is that
    of the step whose meter is `meter`."""

    answered: bool = False
    schema: bool = True
    log_probs: bool = False
    limit: float | None = None
    breaker: Breaker = field(default_factory=Breaker)
    meter: Meter | None = None

    def begin(self, meter: Meter) -> None:
        """Calls of the step with this meter begin, or go on."""
        if meter is not self.meter:
            self.meter, self.breaker = meter, Breaker(answered=meter.calls > 0)


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
        learned: Learned,
    ):
        self.spec = spec
        self.name = name
        self.account = account
        self.meter = account.meters.of(name)
        self.calls = calls
        self.place = place
        self.learned = learned
        learned.begin(self.meter)
        # Made once: it reads the system's certificates, and each worker opens a client with it.
        self.open_client = opener(spec, key)
        self.pace = Pace(spec.limits.concurrency)
        self.pace.limit = learned.limit or self.pace.limit
        self.attempts = Attempts(spec, name, key, self.pace)
        self.cache: RequestCache | None = None
        self._pending: list[_Done] = []
        self._withheld: list[_Done] = []
        self._used: list[str] = []
        self._open: dict[str, asyncio.Future[None]] = {}
        self._news = asyncio.Event()
        self._kept = asyncio.Event()
        self._begun = self._ended = self._silent = 0
        self._first_wave_over = asyncio.Event()

    async def run(self, outlet: Outlet[Result]) -> None:
        """Answer every call. What came before an error or a cancellation is given out too."""
        self.outlet = outlet
        try:
            await self._answer_all()
        # Task groups wrap what their tasks raise, and they are nested.
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None
        finally:
            self.learned.limit = self.pace.limit

    async def _answer_all(self) -> None:
        if self.spec.cache:
            self.cache = RequestCache(cache_path(), cache_limit())
        try:
            async with asyncio.TaskGroup() as group:
                committer = group.create_task(self._commit_on_news())
                async with asyncio.TaskGroup() as workers:
                    for _ in range(self.spec.limits.concurrency):
                        workers.create_task(self._run_worker())
                self._give_out_withheld()
                # It would wait for ever: no more answers come.
                committer.cancel()
        finally:
            # What was paid for is kept on every way out.
            try:
                self._commit_pending()
            finally:
                if self.cache is not None:
                    self.cache.close()

    async def _commit_on_news(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            self._commit_pending()

    def _commit_pending(self) -> None:
        """Keep all answers that came since the last time in one transaction, then give them out.
        Raises StoreError, after they were given out, for a cache that cannot be written."""
        pending, self._pending = self._pending, []
        used, self._used = self._used, []
        kept, self._kept = self._kept, asyncio.Event()
        try:
            self._store_answers(pending, used)
        finally:
            # An answer that was paid for is given out even when the cache cannot keep it.
            for done in pending:
                self._release_equals(done.call.key)
            if pending:
                self.outlet.put([result for done in pending for result in done.results])
            kept.set()
        self.account.meters.keep()

    def _store_answers(self, pending: list[_Done], used: list[str]) -> None:
        entries = [
            Entry(d.call.key, self.spec.path, self.place, d.call.body, encode_answer(d.answer))
            for d in pending
            if d.answer is not None
        ]
        if self.cache is not None and (used or entries):
            self.cache.put(entries, used)

    async def _finish_call(self, done: _Done) -> None:
        """Have `done` committed. Until then its worker makes no other call: so what a kill can lose
        is one call for each."""
        self._pending.append(done)
        self._news.set()
        await self._kept.wait()

    def _release_equals(self, key: str) -> None:
        waiting = self._open.pop(key, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _give_out_withheld(self) -> None:
        """Refusals are records' own once it is known that the server does not refuse everything."""
        withheld, self._withheld = self._withheld, []
        for done in withheld:
            self.meter.gave_up(len(done.call.requests))
            self.outlet.put(done.results)

    async def _run_worker(self) -> None:
        connection = Connection(self.open_client)
        try:
            for call in self.calls:
                # Not begun before its results have a place: answers are held in memory until they
                # are taken.
                for _ in call.requests:
                    await self.outlet.room()
                if call.refusal is not None:
                    await self._finish_call(_Done(call, call.failed(call.refusal)))
                elif not await self._answer_from_cache(call):
                    await self._place_in_first_wave()
                    await self._answer_call(call, connection)
                    self._ended += 1
                    if self._ended >= first_wave(self.spec.limits.concurrency):
                        self._first_wave_over.set()
        finally:
            await connection.close()

    async def _place_in_first_wave(self) -> None:
        """No more calls than those of the first wave are made before one of them is answered, or
        all have ended."""
        wave = first_wave(self.spec.limits.concurrency)
        if not self.learned.breaker.answered and self._begun >= wave:
            await self._first_wave_over.wait()
        self._begun += 1

    async def _answer_from_cache(self, call: ApiCall) -> bool:
        """Whether the cache answered; if not, the call is open now, and its equals wait for it."""
        if self.cache is None:
            return False
        # Once more after each wait: another equal call may have been the first to go on.
        while (other := self._open.get(call.key)) is not None:
            await other
        answer = decode_stored(self.cache.get(call.key))
        if answer is None or len(answer.choices) < len(call.requests):
            self._open[call.key] = asyncio.get_running_loop().create_future()
            return False
        self.learned.log_probs |= api.serves_log_probs(call, answer) is True
        self.meter.found()
        self._used.append(call.key)
        await self._finish_call(_Done(call, api.read(self.spec, call, answer, None)))
        return True

    async def _answer_call(self, call: ApiCall, connection: Connection) -> None:
        """Have one call answered, or fail for good."""
        began = asyncio.get_running_loop().time()
        most = self.spec.limits.retries + 1
        attempt = 0
        while True:
            attempt += 1
            try:
                done = await self._attempt_call(call, connection)
            except Refused as error:
                await self._fail_call(call, str(error), error.status)
                return
            except Again as error:
                again = error
            else:
                self._note_success()
                await self._finish_call(done)
                return
            self._hear_nothing(again)
            if attempt >= (min(most, SILENT_ATTEMPTS) if again.cause == "no text" else most):
                break
            self.meter.retried(again.cause)
            # A wait that was asked for runs beside this one: in the pace, for every call.
            await asyncio.sleep(back_off(attempt))
        # The server answered others meanwhile: then it is this call that failed.
        if again.cause == "unreachable" and self.attempts.heard < began:
            raise EngineError(
                f"model {self.name}: nothing answers at {self.spec.base_url} ({again}). {KEPT} "
                "Start the server and run the same command again."
            )
        why = f"gave up after {attempt} attempts: {again}"
        await self._fail_call(call, why, again.status)

    def _note_success(self) -> None:
        self.learned.answered = True
        self.learned.breaker.succeeded()
        self._first_wave_over.set()
        self._give_out_withheld()

    async def _fail_call(self, call: ApiCall, why: str, status: int | None) -> None:
        """A call failed for good. What tells of the server, by its status, is withheld while the
        server may be refusing every call. Raises EngineError where it does."""
        done = _Done(call, call.failed(why))
        if status is None:
            self.meter.gave_up(len(call.requests))
            await self._finish_call(done)
            return
        breaker = self.learned.breaker
        # A row of another status is over: the server does not refuse everything for that reason.
        if status != breaker.status:
            self._give_out_withheld()
        self._withheld.append(done)
        # Its equals need not wait for what nobody will be given.
        self._release_equals(call.key)
        said = breaker.refused(status, self.spec.limits.concurrency)
        if said is not None:
            raise EngineError(
                f"model {self.name}: {self.spec.base_url}: {said}, the last with {why}. {KEPT} "
                "Mend that and run the same command again: these calls are made again."
            )

    def _hear_nothing(self, error: Again) -> None:
        """Count the attempts that a server which has said nothing yet leaves without an answer.
        Raises EngineError when there is one for each open call, and a first wave's least."""
        if error.cause != "timeout" or self.attempts.heard > float("-inf"):
            return
        self._silent += 1
        # All open calls have been silent, and there were some at least.
        if self._silent >= max(first_wave(1), self._begun - self._ended):
            raise EngineError(
                f"model {self.name}: {self.spec.base_url} takes calls and answers none: {error}, "
                f"{self._silent} times. Is the model loaded? If it is slow, raise `read_seconds` "
                f"and `total_seconds` in `limits`, or lower `concurrency`. {KEPT}"
            )

    async def _attempt_call(self, call: ApiCall, connection: Connection) -> _Done:
        """One attempt, which is made again without the JSON schema where that is refused."""
        # A server that has refused schemas once is not asked to take one again.
        if not self.learned.schema:
            call = api.without_schema(call)
        try:
            return await self._make_paid_call(call, connection)
        except SchemaRefused as error:
            self._give_up_schema(str(error))
        return await self._make_paid_call(api.without_schema(call), connection)

    def _give_up_schema(self, said: str) -> None:
        self.meter.retried("no schema")
        if self.learned.schema:
            self.learned.schema = False
            log.warning(
                "model %s: the JSON schema is left out from here on, and answers are read as text: "
                "%s",
                self.name,
                said,
            )

    async def _make_paid_call(self, call: ApiCall, connection: Connection) -> _Done:
        """One call within the budget. What nobody counted is paid as the most that it can cost."""
        held = api.most_usage(call.body).cost(self.spec.price)
        # Before the place in the pace, so that no call waits for money while it holds one.
        await self._hold_budget(held)
        try:
            began = await self.pace.enter()
            try:
                answered = self.learned.answered
                answer = await self.attempts.post(call, connection, began, answered)
            except Again as error:
                if error.billed:
                    self.meter.paid(*self._pay_call(error.usage, held))
                raise
            finally:
                self.pace.leave()
            ended = asyncio.get_running_loop().time()
            paid = self._pay_call(answer.usage, held)
            self.meter.answered(began, ended, answer.usage, *paid)
            self.pace.answered()
        finally:
            # Only when the cost is on the account: between the two the budget would look larger.
            self.account.free(held)
        self._check_log_probs(call, answer)
        return _Done(call, api.read(self.spec, call, answer, ended - began), answer)

    def _pay_call(self, usage: Usage | None, most: float) -> tuple[float, bool]:
        """Put a call on the account: by what was counted, or `most` where nobody did. The cost, and
        whether it is such an estimate."""
        cost = most if usage is None else usage.cost(self.spec.price)
        self.account.spend(self.name, cost, estimated=usage is None)
        return cost, usage is None

    def _check_log_probs(self, call: ApiCall, answer: Answer) -> None:
        """Stop at a server that has given no log-probs yet and gives a whole text without them.
        Later on a text without them is that record's own failure."""
        serves = api.serves_log_probs(call, answer)
        self.learned.log_probs |= serves is True
        if serves is False and not self.learned.log_probs:
            raise EngineError(
                f"{self.spec.base_url} answers for {self.spec.path} without log-probs. Use a judge "
                "that writes its verdict, or a server that serves `top_logprobs`."
            )

    async def _hold_budget(self, cost: float) -> None:
        """Set the most that a call can cost aside, once there is so much left of the budget."""
        while not (given := self.account.hold(cost)):
            if given is None:
                raise GateStopped(
                    f"the budget of {self.account.budget:g} is spent: {self.account.spent:.6g} so "
                    f"far, and the next call to {self.name} may cost {cost:.6g}. All answers are "
                    "kept. Raise `budget` and run the same command again."
                )
            await asyncio.sleep(BUDGET_WAIT)
