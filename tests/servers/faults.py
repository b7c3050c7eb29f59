"""A proxy on a real socket that passes calls on to a server and spoils some of them.

Each connection's calls are read whole and passed on by one of their own. `faults` says what
happens to a call: a name of `KINDS`, of a shape in `tests.servers.shapes`, or None to pass it on.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Any, Self
from urllib.parse import urlsplit

from tests.servers.shapes import CHANGING, SHAPES, STOPPING

Faults = Callable[[int], str | None]
"""From the number of the call (from 0) to what happens to it."""


class FaultProxy:
    """The proxy in a thread of its own, from `with` to the end of it. `done` counts the faults,
    `asked` are the bodies of the calls in the order of arrival, and `arrived` their times in
    seconds of a steady clock."""

    def __init__(self, url: str, faults: Faults, delay: float = 0.05, drip: float = 30.0):
        parts = urlsplit(url)
        self.target = (parts.hostname, parts.port)
        self.faults = faults
        self.delay = delay
        self.drip = drip
        self.calls = 0
        self.arrived: list[float] = []
        self.done: Counter[str] = Counter()
        self.asked: list[dict[str, Any]] = []
        self.url = ""
        # A loop alone does not hold its tasks.
        self._serving: set[asyncio.Task[None] | None] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._serving.add(task)
        try:
            while await self._call(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._serving.discard(task)
            writer.close()

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Deal with one call; whether the connection stays open."""
        request = await _message(reader)
        kind = self.faults(self.calls)
        self.calls += 1
        self.arrived.append(monotonic())
        self.asked.append(json.loads(request.partition(b"\r\n\r\n")[2] or b"{}"))
        if kind is None:
            writer.write(await self._passed_on(request))
            await writer.drain()
            return True
        self.done[kind] += 1
        if kind in KINDS:
            return bool(await getattr(self, f"_{kind}")(request, writer))
        reply = {}
        if kind in CHANGING:
            reply = json.loads((await self._passed_on(request)).partition(b"\r\n\r\n")[2])
        writer.write({**SHAPES, **STOPPING}[kind](reply))
        await writer.drain()
        return kind != "no HTTP"

    async def _passed_on(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*self.target)
        writer.write(request)
        try:
            return await _message(reader)
        finally:
            writer.close()

    async def _refuse(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        """Close before a byte is said."""
        writer.transport.abort()
        return False

    async def _late(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(self.delay)
        writer.write(await self._passed_on(request))
        return True

    async def _reset(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        """Half of the body, then a reset."""
        answer = await self._passed_on(request)
        writer.write(answer[: -len(answer.partition(b"\r\n\r\n")[2]) // 2])
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.transport.abort()
        return False

    async def _busy(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(_answer("429 Too Many Requests", b'{"error": {"message": "slow down"}}'))
        return True

    async def _busy_for(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        body = b'{"error": {"message": "slow down"}}'
        writer.write(_answer("429 Too Many Requests", body, f"retry-after: {self.delay}\r\n"))
        return True

    async def _broken(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(_answer("500 Internal Server Error", b'{"error": {"message": "oops"}}'))
        return True

    async def _down(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        writer.write(_answer("503 Service Unavailable", b"<html>down</html>", kind="text/html"))
        return True

    async def _cut_json(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        """A whole HTTP answer whose JSON ends half way."""
        body = (await self._passed_on(request)).partition(b"\r\n\r\n")[2]
        writer.write(_answer("200 OK", body[: len(body) // 2]))
        return True

    async def _page(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        """A page where JSON was wanted, as a portal in between sends it."""
        writer.write(_answer("200 OK", b"<html>Sign in</html>", kind="text/html"))
        return True

    async def _twice(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        """The same answer two times: the second is nobody's."""
        writer.write(2 * await self._passed_on(request))
        return True

    async def _twice_late(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        """The second answer comes when the connection may be in use for another call."""
        answer = await self._passed_on(request)
        writer.write(answer)
        await writer.drain()
        await asyncio.sleep(0.005)
        writer.write(answer)
        return True

    async def _dripping(self, request: bytes, writer: asyncio.StreamWriter) -> bool:
        """A byte now and then: no silence is long, and the answer never ends."""
        answer = await self._passed_on(request)
        for i in range(len(answer)):
            writer.write(answer[i : i + 1])
            await writer.drain()
            await asyncio.sleep(self.drip / len(answer))
        return True


KINDS = (
    "refuse",
    "late",
    "reset",
    "busy",
    "busy_for",
    "broken",
    "down",
    "cut_json",
    "page",
    "twice",
    "twice_late",
    "dripping",
)


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One HTTP message with its body, by its content-length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return head + await reader.readexactly(length)


def _answer(status: str, body: bytes, headers: str = "", kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{headers}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
