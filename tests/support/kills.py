"""Runs `rlaif ARGUMENT... --out FOLDER/N` once whole, and then killed at random writes until it is
done; prints how many kills there were.

    python -m tests.support.kills FOLDER RUNS SEED ARGUMENT...

Each run is a process of its own, and ends by SIGKILL as it opens a file of its folder to write, or
makes, moves or deletes one. FOLDER/0 is the whole run; FOLDER/1 to FOLDER/RUNS were killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pandas  # noqa: F401  (what all runs load is loaded once)
import pyarrow.parquet  # noqa: F401

import rlaif.pipeline.experiment  # noqa: F401
from rlaif.cli import cli

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


def attempt(arguments: list[str], out: Path, point: int) -> int | None:
    """Run it to the end, or to its change number `point`; how many changes it made, or None where
    it was killed. Exits where the command fails."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        changes = 0

        def watch(event: str, details: tuple[Any, ...]) -> None:
            nonlocal changes
            writes = event == "open" and details[2] & (os.O_WRONLY | os.O_RDWR)
            if (writes or event in CHANGES) and str(out) in str(details[0]):
                changes += 1
                if changes == point:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        cli([*arguments, "--out", str(out)], standalone_mode=False)
        os.write(theirs, str(changes).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    if os.WEXITSTATUS(status):
        sys.exit(f"the command failed with {status}")
    return int(said)


def main(folder: Path, runs: int, seed: int, arguments: list[str]) -> None:
    """See the module."""
    total = attempt(arguments, folder / "0", 0)
    assert total is not None
    rng = random.Random(seed)
    killed = 0
    for number in range(1, runs + 1):
        # The first kill may come anywhere, so that some come late; the next ones soon.
        point = rng.randint(1, total)
        while attempt(arguments, folder / str(number), point) is None:
            killed += 1
            point = rng.randint(1, total)
    print(killed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
