"""Runs a server and ends it, with all that it started, when the process that asked for it is gone.

    python -m rlaif.engines.vllm.keeper COMMAND ...

The one who asks holds the other end of standard input. Any end of it, kill -9 too, closes that.

`end_with_parent` is loaded by vLLM as a plugin (entry point `vllm.general_plugins`) in each of its
processes, so that none outlives the process that started it. A clean end is the engine's own work;
this is for kill -9, which no handler sees.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0
"""How long the server may take to end by itself once it is told to."""


def main(command: list[str]) -> int:
    """Run `command` until it ends or its owner has gone; its exit status. Its temporary files,
    such as sockets, go with it."""
    owner = os.getppid()
    # As an exception, so that the server is ended on the way out.
    signal.signal(signal.SIGTERM, _exit_process)
    with tempfile.TemporaryDirectory(prefix="rlaif-", ignore_cleanup_errors=True) as folder:
        # A group of its own: its processes are ended together, those too that it has lost sight of.
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TMPDIR": folder},
        )
        try:
            while server.poll() is None and not _owner_is_gone(owner):
                pass
        finally:
            _end_server(server)
    return server.returncode


def _exit_process(*_: object) -> NoReturn:
    raise SystemExit(1)


def _owner_is_gone(owner: int) -> bool:
    """Whether the owner has ended; waits up to `POLL_SECONDS` for it."""
    ready, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
    # A child that the owner forked may hold the other end open: then the parent tells.
    return bool(ready and not os.read(0, 1)) or os.getppid() != owner


def _end_server(server: subprocess.Popen[bytes]) -> None:
    try:
        if server.poll() is None:
            # It alone, which then ends its processes in order.
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(GRACE_SECONDS)
    finally:
        # Whatever is left of it, and at once where we are told to end meanwhile.
        with suppress(ProcessLookupError):
            # Its process id is its group's too, since it began a session.
            os.killpg(server.pid, signal.SIGKILL)
    server.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))


OWNER = "RLAIF_VLLM_OWNER"
PARENT_POLL_SECONDS = 0.5


@contextmanager
def owned() -> Iterator[None]:
    """Inside this context, processes that vLLM starts will end with this process."""
    os.environ |= owner()
    try:
        yield
    finally:
        del os.environ[OWNER]


def owner() -> dict[str, str]:
    """Environment variables that tell vLLM's processes which process they end with."""
    return {OWNER: str(os.getpid())}


def end_with_parent() -> None:
    """Exit when the parent process dies (runs in vLLM workers)."""
    # The owner loads the plugin itself, and must not wait for its own parent.
    if os.environ.get(OWNER) in (None, str(os.getpid())):
        return
    started_by = multiprocessing.parent_process()
    # It may have gone before this was loaded.
    parent = os.getppid() if started_by is None else started_by.pid
    threading.Thread(target=_wait_for_end, args=(parent,), daemon=True).start()


def _wait_for_end(parent: int | None) -> None:
    # A process whose parent has gone gets another one.
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    # `sys.exit` would end this thread alone.
    os._exit(1)
