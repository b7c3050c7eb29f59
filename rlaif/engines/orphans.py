"""No vLLM process outlives the one that started it, however that one ends.

vLLM loads this as a plugin (entry point `vllm.general_plugins`) in each of its processes. A clean
end is the engine's own work; this is for kill -9, which no handler sees.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

OWNER = "RLAIF_VLLM_OWNER"
POLL_SECONDS = 0.5


def claim() -> None:
    """Let the processes that vLLM starts from here on belong to this one."""
    os.environ[OWNER] = str(os.getpid())


def end_with_parent() -> None:
    """In a process that was started for an owner: end when the parent has gone."""
    owner = os.environ.get(OWNER)
    if owner is None or owner == str(os.getpid()):
        return
    started_by = multiprocessing.parent_process()
    parent = int(owner) if started_by is None else started_by.pid
    threading.Thread(target=_wait_for_end, args=(parent,), daemon=True).start()


def _wait_for_end(parent: int | None) -> None:
    # A process whose parent has gone gets another one.
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)
