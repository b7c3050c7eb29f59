"""Pure work on many tasks in processes of their own, with the results in order.

Each process is a fresh interpreter that reads tasks from its standard input and ends when that
does: it never outlives its parent, and runs nothing of the program that started it.
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, TypeVar, cast

from rlaif.core.errors import RlaifError

T = TypeVar("T")
R = TypeVar("R")
Process = subprocess.Popen[bytes]
MOST = 8
"""More processes than this wait for the one that deals out and collects."""


def count_workers() -> int:
    """The number of worker processes worth starting: one per CPU, at most `MOST`."""
    return min(MOST, os.cpu_count() or 1)


def in_order(work: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[R]:
    """`work` of each task, in the order of the tasks; two tasks for each worker are held at most.

    With one worker the work is done here. Otherwise `work`, a function of an importable module, the
    tasks and the results have to be picklable, and the processes start before the first task is
    drawn. Raises what `work` raised, and RlaifError where a process ended early.
    """
    if workers < 2:
        yield from map(work, tasks)
        return
    busy: deque[Process] = deque()
    with ExitStack() as running:
        # All at once, so that their imports run side by side.
        idle = [running.enter_context(_start_process(work.__module__)) for _ in range(workers)]
        for task in tasks:
            results = []
            if idle:
                process = idle.pop()
            else:
                process = busy.popleft()
                # Taken before the next task is given: pipes that are full on both sides would
                # wait for each other for ever.
                results = [_receive_result(process)]
            _send_task(process, (work, task))
            busy.append(process)
            yield from results
        # The oldest first, which keeps the order of the tasks.
        while busy:
            yield _receive_result(busy.popleft())


@contextmanager
def _start_process(module: str) -> Iterator[Process]:
    """Start a process that imports `module` and then waits for tasks."""
    # It has to find what this process has found, wherever that came from.
    places = os.pathsep.join(os.path.abspath(place) for place in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": places},
        # An interrupt is for the parent alone, which then ends it.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        # Reaps it and closes the pipes.
        process.communicate()


def _send_task(process: Process, task: Any) -> None:
    try:
        pickle.dump(task, cast(IO[bytes], process.stdin))
        cast(IO[bytes], process.stdin).flush()
    except BrokenPipeError:
        raise _describe_early_end(process) from None


def _receive_result(process: Process) -> Any:
    try:
        result, error = pickle.load(cast(IO[bytes], process.stdout))
    except (EOFError, pickle.UnpicklingError):
        raise _describe_early_end(process) from None
    if error is not None:
        raise error
    return result


def _describe_early_end(process: Process) -> RlaifError:
    return RlaifError(
        f"a worker process ended early with status {process.wait()}: where it says nothing more, "
        "memory may have run out. Run the same command again: it goes on after what is stored."
    )


def _serve_tasks(tasks: IO[bytes], results: IO[bytes]) -> None:
    """Answer each (function, task) with (result, error), until there are no more."""
    while True:
        try:
            work, task = pickle.load(tasks)
        except EOFError:
            return
        answer: tuple[Any, Exception | None]
        try:
            answer = (work(task), None)
        except Exception as error:
            answer = (None, error)
        pickle.dump(answer, results)
        results.flush()


def main() -> None:
    """Serve the process that started this one."""
    with os.fdopen(os.dup(1), "wb") as results:
        # What a library prints must not get between the results.
        os.dup2(2, 1)
        # Before the first task comes, which may take its time.
        importlib.import_module(sys.argv[1])
        _serve_tasks(sys.stdin.buffer, results)


if __name__ == "__main__":
    main()
