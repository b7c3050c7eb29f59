"""Runs a server and ends it, with all that it started, when the process that asked for it is gone.

    python -m rlaif.engines.vllm.keeper COMMAND ...

The one who asks holds the other end of standard input. Any end of it, kill -9 too, closes that.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import NoReturn

POLL_SECONDS = 0.2
GRACE_SECONDS = 10.0
"""How long the server may take to end by itself once it is told to."""


def main(command: list[str]) -> int:
    """Run `command` until it ends or its owner has gone; its exit status. Its temporary files,
    such as sockets, go with it."""
    owner = os.getppid()
    signal.signal(signal.SIGTERM, _leave)
    with tempfile.TemporaryDirectory(prefix="rlaif-", ignore_cleanup_errors=True) as folder:
        # A group of its own: its processes are ended together, those too that it has lost sight of.
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TMPDIR": folder},
        )
        try:
            while server.poll() is None and not _gone(owner):
                pass
        finally:
            _end(server)
    return server.returncode


def _leave(*_: object) -> NoReturn:
    raise SystemExit(1)


def _gone(owner: int) -> bool:
    """Whether the owner has gone, after a moment in which it may."""
    ready, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
    # A child that the owner forked may hold the other end open: then the parent tells.
    return bool(ready and not os.read(0, 1)) or os.getppid() != owner


def _end(server: subprocess.Popen[bytes]) -> None:
    try:
        if server.poll() is None:
            # It alone, which then ends its processes in order.
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(GRACE_SECONDS)
    finally:
        # Whatever is left of it, and at once where we are told to end meanwhile.
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
    server.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
