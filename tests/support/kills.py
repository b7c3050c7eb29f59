"""Runs `rlaif ARGUMENT... --out FOLDER/N` once whole, and then killed at writes until it is done.

    python -m tests.support.kills FOLDER RUNS SEED ARGUMENT...
    python -m tests.support.kills FOLDER --in ID,... ARGUMENT...

The first form kills each of RUNS runs at random writes and prints how many kills there were. The
second kills one run in each of the steps called ID (or of that hash), halfway through the changes
that the step makes in its own folders, and prints as JSON how many steps were done at each kill.
FOLDER/0 is the whole run, the others were killed. Each run is a process of its own, and ends by
SIGKILL as it opens a file of its folder to write, or makes, moves or deletes one.
"""

from __future__ import annotations

import gc
import json
import os
import random
import re
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas  # noqa: F401  (what all runs load is loaded once)
import pyarrow.parquet  # noqa: F401

import rlaif.pipeline.experiment  # noqa: F401
from rlaif.cli import cli
from rlaif.pipeline.manifest import read_manifest

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
_FOLDER = re.compile(r"/(?:steps|models)/([0-9a-f]+)")


def attempt(
    arguments: list[str], out: Path, point: int, inside: str | None = None
) -> Counter[str] | None:
    """Run it to the end, or to its change number `point`, of those in the folders of step `inside`
    where it is given; how many changes it made by step, or None where it was killed. Exits where
    the command fails."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        changes: Counter[str] = Counter()

        def watch(event: str, details: tuple[Any, ...]) -> None:
            writes = event == "open" and details[2] & (os.O_WRONLY | os.O_RDWR)
            if (writes or event in CHANGES) and str(out) in str(details[0]):
                found = _FOLDER.search(str(details[0]))
                changes[found[1] if found else ""] += 1
                if point == (changes.total() if inside is None else changes[inside]):
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        cli([*arguments, "--out", str(out)], standalone_mode=False)
        os.write(theirs, json.dumps(changes).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    if os.WEXITSTATUS(status):
        sys.exit(f"the command failed with {status}")
    return Counter(json.loads(said))


def kill_anywhere(folder: Path, runs: int, seed: int, arguments: list[str]) -> int:
    """Kill each of some runs at random writes; how often."""
    changes = attempt(arguments, folder / "0", 0)
    assert changes is not None
    rng = random.Random(seed)
    killed = 0
    for number in range(1, runs + 1):
        # The first kill may come anywhere, so that some come late; the next ones soon.
        point = rng.randint(1, changes.total())
        while attempt(arguments, folder / str(number), point) is None:
            killed += 1
            point = rng.randint(1, changes.total())
    return killed


def kill_in_steps(folder: Path, ids: list[str], arguments: list[str]) -> dict[str, int]:
    """Kill one run in each of some steps; how many steps were done each time."""
    _import_for_all()
    changes = attempt(arguments, folder / "0", 0)
    assert changes is not None
    steps = read_manifest(folder / "0")["steps"]
    out = folder / "1"
    done: dict[str, int] = {}
    for name in ids:
        digest = next(s["hash"] for s in steps if name in (s["id"], s["hash"]))
        assert changes[digest] > 1, f"{name} changes nothing"
        if attempt(arguments, out, changes[digest] // 2 + 1, digest) is not None:
            sys.exit(f"the run ended before it was killed in {name}")
        done[name] = sum((out / "steps" / s["hash"] / "done.json").exists() for s in steps)
    assert attempt(arguments, out, 0) is not None
    return done


def _import_for_all() -> None:
    """Load what every run with a model loads: a fork has it for nothing."""
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    import rlaif.engines.local.hf
    import rlaif.train.loop
    import rlaif.train.on_policy
    import rlaif.train.run  # noqa: F401

    # A run that closes a model collects garbage, which in a fork copies every page it looks at.
    gc.collect()
    gc.freeze()


def main(folder: Path, how: str, *rest: str) -> None:
    """See the module."""
    if how == "--in":
        print(json.dumps(kill_in_steps(folder, rest[0].split(","), list(rest[1:]))))
    else:
        print(kill_anywhere(folder, int(how), int(rest[0]), list(rest[1:])))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
