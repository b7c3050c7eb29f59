"""From an event loop in a thread to an ordinary generator, with a bound on what waits between."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

LINGER = 0.2
"""Seconds that a list waits for more items: every list is a write to disk for the one who takes it,
and every hand-over between threads costs both of them time."""


class Outlet(Generic[T]):
    """Where a coroutine puts what it has made. `room` says how much of it nobody has taken yet."""

    def __init__(self, room: int):
        self._ready: queue.SimpleQueue[list[T] | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._room = asyncio.Semaphore(room)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._lock = threading.Lock()
        self.error: BaseException | None = None

    async def room(self) -> None:
        """Wait until one more item may be made. Every item of a `put` needs one."""
        await self._room.acquire()

    def put(self, items: list[T]) -> None:
        """Give items away."""
        self._ready.put(items)

    def run(self, main: Callable[[Outlet[T]], Coroutine[None, None, None]]) -> None:
        """Run `main` to its end in the thread that calls this."""
        try:
            asyncio.run(self._run_guarded(main))
        except BaseException as error:
            self.error = error
        finally:
            self._ready.put(None)
            self._ended.set()

    async def _run_guarded(self, main: Callable[[Outlet[T]], Coroutine[None, None, None]]) -> None:
        with self._lock:
            self._loop = asyncio.get_running_loop()
            self._task = asyncio.ensure_future(main(self))
            if self._stopped:
                self._task.cancel()
        try:
            await self._task
        finally:
            # Before the loop closes: nobody may call into a closed one.
            with self._lock:
                self._loop = None

    def take(self) -> tuple[list[T], bool]:
        """The next items, and whether these are the last. Waits for the first one."""
        items: list[T] = []
        new = self._ready.get()
        if new is not None:
            self._ended.wait(LINGER)
        while new is not None:
            items += new
            try:
                new = self._ready.get_nowait()
            except queue.Empty:
                break
        count = len(items)
        self._tell_loop(lambda: self._make_room(count))
        return items, new is None

    def _make_room(self, count: int) -> None:
        for _ in range(count):
            self._room.release()

    def stop(self) -> None:
        """Cancel what runs."""
        with self._lock:
            self._stopped = True
        self._tell_loop(lambda: self._task and self._task.cancel())

    def _tell_loop(self, action: Callable[[], object]) -> None:
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(action)


def streamed(
    main: Callable[[Outlet[T]], Coroutine[None, None, None]], outlet: Outlet[T]
) -> Iterator[list[T]]:
    """Lists of what `main` puts into its outlet, as it comes.

    Closing the generator cancels `main` and waits for it; stopping the outlet, which another thread
    may do, cancels it too. An error of `main`, such as its cancellation, is raised here after all
    that it had put was given out.
    """
    thread = threading.Thread(target=outlet.run, args=(main,), daemon=True)
    thread.start()
    try:
        last = False
        while not last:
            items, last = outlet.take()
            if items:
                yield items
    finally:
        outlet.stop()
        thread.join()
    if outlet.error is not None:
        raise outlet.error
