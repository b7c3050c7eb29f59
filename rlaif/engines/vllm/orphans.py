"""No vLLM process outlives the one that started it, however that one ends.

vLLM loads this as a plugin (entry point `vllm.general_plugins`) in each of its processes. A clean
end is the engine's own work; this is for kill -9, which no handler sees.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

OWNER = "RLAIF_VLLM_OWNER"
POLL_SECONDS = 0.5


@contextmanager
def owned() -> Iterator[None]:
    """The processes that vLLM starts within belong to this one."""
    os.environ |= owner()
    try:
        yield
    finally:
        del os.environ[OWNER]


def owner() -> dict[str, str]:
    """The environment by which vLLM's processes know that they belong to this one."""
    return {OWNER: str(os.getpid())}


def end_with_parent() -> None:
    """In a process that was started for an owner: end when the parent has gone."""
    if os.environ.get(OWNER) in (None, str(os.getpid())):
        return
    started_by = multiprocessing.parent_process()
    # It may have gone before this was loaded.
    parent = os.getppid() if started_by is None else started_by.pid
    threading.Thread(target=_wait_for_end, args=(parent,), daemon=True).start()


def _wait_for_end(parent: int | None) -> None:
    # A process whose parent has gone gets another one.
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)
