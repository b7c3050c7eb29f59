"""Work in other processes: the order, the errors, and that none outlives its parent."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from itertools import repeat
from pathlib import Path

import pytest

from rlaif.core.errors import RlaifError
from rlaif.core.workers import in_order
from tests.support.processes import gone


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 20])
def test_results_are_in_the_order_of_the_tasks(workers: int, count: int) -> None:
    found = list(in_order(math.factorial, range(count), workers))
    assert found == [math.factorial(n) for n in range(count)]


def test_the_work_is_done_by_as_many_processes() -> None:
    # Each worker leads a group of its own, so this is its process id.
    assert len(set(in_order(os.getpgid, repeat(0, 6), 2))) == 2
    assert set(in_order(os.getpgid, repeat(0, 6), 1)) == {os.getpgid(0)}


def test_large_tasks_and_results_do_not_wait_for_each_other() -> None:
    texts = [str(n) * 3_000_000 for n in range(6)]
    assert list(in_order(json.dumps, texts, 2)) == [f'"{text}"' for text in texts]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_work_raises_is_raised_here(workers: int) -> None:
    results = in_order(json.loads, ["1", "{", "3"], workers)
    assert next(results) == 1
    with pytest.raises(json.JSONDecodeError, match="Expecting property name"):
        next(results)


def test_what_the_work_prints_is_no_result() -> None:
    assert list(in_order(print, ["a", "b"], 2)) == [None, None]


def test_a_process_that_dies_is_named_as_the_reason() -> None:
    with pytest.raises(RlaifError, match="worker process ended early with status -9"):
        list(in_order(signal.raise_signal, repeat(signal.SIGKILL, 4), 2))


def test_processes_end_with_the_last_result_that_is_asked_for() -> None:
    results = in_order(os.getpgid, repeat(0), 2)
    workers = {next(results) for _ in range(4)}
    results.close()
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_no_process_outlives_a_parent_that_is_killed() -> None:
    program = (
        "import os, time; from itertools import repeat; from rlaif.core.workers import in_order\n"
        "results = in_order(os.getpgid, repeat(0), 2)\n"
        "print(next(results), next(results), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(set(workers)) == 2
    parent.kill()
    parent.communicate()
    assert gone(workers)
