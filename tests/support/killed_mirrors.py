"""Runs an experiment with a mirror on one machine after the other, each killed by SIGKILL.

    python -m tests.support.killed_mirrors FOLDER URL SEED EXPERIMENT

FOLDER/whole is the run folder of a run without a mirror that nothing disturbs. With the mirror at
URL, FOLDER/0, FOLDER/1 and so on are the run folders of machines that know of one another by the
mirror alone: the first one is killed in the middle of an upload, the next one between two writes to
its run folder, and so on in turn, until one ends. Prints as JSON how many were killed in each way,
and the uploads of the last.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec.asyn
import s3fs  # noqa: F401  (what all runs load is loaded once)

from rlaif.cli import cli
from rlaif.pipeline.mirror import session
from rlaif.pipeline.mirror.lease import Timing
from rlaif.pipeline.mirror.remote import Remote
from tests.support.kills import _import_for_all, attempt

MOST = 12
KILLED_UPLOADS = "uploads"
KILLED_WRITES = "writes"


def kill_upload(point: int, whole: bool) -> None:
    """End this process in its upload number `point`: after it, or with half of it written."""
    write, count = Remote.write, 0

    def killed(self: Remote, name: str, data: bytes) -> None:
        nonlocal count
        count += 1
        if count != point or whole:
            write(self, name, data)
        elif not self.fs.async_impl:
            # What a folder shows of a write that was cut; an object store shows nothing.
            path = self._locate(name)
            self.fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            self.fs.pipe_file(f"{path}.part", data[: len(data) // 2])
        if count == point:
            os.kill(os.getpid(), signal.SIGKILL)

    Remote.write = killed  # type: ignore[method-assign]


def start(words: list[str], out: Path, uploads: int | None, whole: bool) -> bool:
    """Whether a machine whose upload number `uploads` kills it ran to the end."""
    child = os.fork()
    if child == 0:
        if uploads is not None:
            kill_upload(uploads, whole)
        cli([*words, "--out", str(out)], standalone_mode=False)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        sys.exit(f"the command failed with {status}")
    return True


def main(folder: Path, url: str, seed: int, experiment: str) -> None:
    """See the module."""
    _import_for_all()
    # Leases of machines that were killed are over soon.
    quick = functools.partial(
        Timing, interval=0.02, lease=0.5, beat=0.1, grace=0.1, patience=20, retry=0.1
    )
    session.Timing = quick  # type: ignore[assignment, misc]
    plain = ["run", experiment, "--no-report", "-q"]
    changes = attempt(plain, folder / "whole", 0)
    assert changes is not None
    assert fsspec.asyn.loop[0] is None, "a loop of this process would not run in a fork"
    rng, killed = random.Random(seed), Counter[str]()
    words = [*plain, "--mirror", url]
    for number in range(MOST):
        out = folder / str(number)
        if number % 2 == 0:
            how, done = KILLED_UPLOADS, start(words, out, rng.randint(2, 40), rng.random() < 0.5)
        else:
            point = rng.randint(changes.total() // 4, changes.total())
            how, done = KILLED_WRITES, attempt(words, out, point) is not None
        if done and min(killed[KILLED_UPLOADS], killed[KILLED_WRITES]) > 0:
            break
        killed[how] += not done
    else:
        out = folder / str(MOST)
        if not start(words, out, None, whole=True):
            sys.exit("it was killed by something else")
    result: dict[str, Any] = {"killed": killed, "last": out.name}
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4])
