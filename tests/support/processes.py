"""Which processes run, and whether they have ended."""

from __future__ import annotations

import time
from collections.abc import Iterable

import psutil


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def gone(pids: Iterable[int], seconds: float = 30) -> bool:
    """Whether none of the processes runs, after at most `seconds`."""
    until, left = time.monotonic() + seconds, list(pids)
    while left and time.monotonic() < until:
        left = [pid for pid in left if alive(pid)]
        time.sleep(0.05)
    return not left


def children(word: str, parent: int | None = None) -> list[psutil.Process]:
    """The processes below `parent` (this one) that have `word` in their command line; one that ends
    meanwhile is none of them."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        try:
            line = process.cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if any(word in each for each in line):
            found.append(process)
    return found
