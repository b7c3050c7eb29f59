"""Damage experiment files and run folders at random, and see what the command line makes of each.

    python benchmarks/damage.py [--experiments 2000] [--runs 500] [--seed 0] [--first 0]
        [--seconds N] [--quick] [--json]

*Experiment files.* Keys, items and characters of an experiment file are changed. `rlaif run` must
end with exit code 0 or with an error in words; a number that no key can mean (NaN, infinity, 10^30)
must be refused.

*Run folders.* In a copy of a run folder one byte is flipped, one character changed, or one file
cut, emptied, zeroed in part, removed or replaced. `rlaif status`, `export` and `run` must then say
and make the very same as in an undamaged folder, or end with an error that names what to delete;
doing that and running again must make the same. There are six folders: three experiments (a
scripted model; one whose judge is on a server, with a budget and the request cache; DPO on a tiny
random model), each once finished and once stopped in the middle. In every fifth case the file keeps
its time, and `status --verify` must find it.

All in one process, so that it takes minutes. A case is drawn by the seed and its own number, so
that `--first 500 --experiments 500` is the second of several pieces. A case that is not fine is
printed at once with its number; `--seconds` ends the trial early, and says with which number the
next piece begins. Exit code 1 when there was one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.servers.scripted import ScriptedServer  # noqa: E402
from tests.support import damage  # noqa: E402
from tests.support.mutations import MUTATIONS  # noqa: E402

FINE = {"done", "long", "same", "named", "found", "nothing changed"}
LONGEST = {"experiment": 12, "run": 90}
"""Seconds after which an experiment is one that takes long, such as one of 999 rounds, and a run
folder is one that hangs."""


class TooLong(BaseException):
    """Not to be caught by what is tried."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises TooLong after so many seconds."""

    def end(number: int, frame: Any) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def experiments(
    numbers: Iterable[int], seed: int, scratch: Path, faults: list[str]
) -> Counter[str]:
    """What became of the changed experiment files of these numbers."""
    found: Counter[str] = Counter()
    data = damage.scripted(alarms={"kl_budget": 10.0}, rounds=1)
    path = damage.write(scratch / "experiment", data)
    names = list(MUTATIONS)
    for number in numbers:
        kind = names[number % len(names)]
        rng = random.Random(f"{seed} {number}")
        path.write_text(MUTATIONS[kind](rng, data), "utf-8", errors="surrogatepass")
        out = scratch / "out" / str(number % 50)
        words = ["run", str(path), "--out", str(out), "--no-report", "-q"]
        try:
            with limited(LONGEST["experiment"]):
                result = damage.command(*words)
        except TooLong:
            found["long"] += 1
            continue
        if result.fault:
            said = "traceback"
        elif result.code == 0:
            said = "silent" if kind == "beyond" else "done"
        else:
            said = "named" if result.code in (2, 3) and result.err.strip() else "unnamed"
        found[said] += 1
        if said not in FINE:
            text = path.read_text("utf-8", errors="replace")
            case = f"experiment {number} ({kind}): {said}"
            _report(faults, f"{case}\n{result.fault}{result.err}{text}")
    return found


def runs(
    projects: list[damage.Project],
    numbers: Iterable[int],
    seed: int,
    scratch: Path,
    faults: list[str],
) -> tuple[Counter[str], Counter[str]]:
    """What became of the damaged run folders of these numbers, and how often each damage was
    done."""
    found: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for number, case in damage.cases(projects, scratch, seed, numbers):
        kinds[case.damage] += 1
        try:
            with limited(LONGEST["run"]):
                said, why = damage.judge(case, scratch, rotten=number % 5 == 4)
        except TooLong:
            said, why = "hangs", ""
        found[said] += 1
        if said not in FINE:
            _report(faults, f"run {number}: {case}: {said}\n{why}")
    return found, kinds


def made(folder: Path, url: str, quick: bool) -> list[damage.Project]:
    """The folders that are damaged."""
    found = [
        damage.project("scripted", folder / "a", damage.scripted(), None),
        damage.project("scripted, stopped", folder / "b", damage.scripted(), ("round 2] self", 1)),
        damage.project("served", folder / "c", damage.served(url), None),
        damage.project("served, stopped", folder / "d", damage.served(url), ("far", 0)),
    ]
    if not quick:
        model = damage.tiny_model(folder / "model")
        data = damage.trained(model)
        found.append(damage.project("trained", folder / "e", data, None))
        found.append(damage.project("trained, stopped", folder / "f", data, ("train", 3)))
    return found


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experiments", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--seconds", type=float, default=math.inf, help="then no further case")
    parser.add_argument("--quick", action="store_true", help="a tenth of it, without training")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    share = 10 if given.quick else 1
    ends = [given.first + count // share for count in (given.experiments, given.runs)]
    deadline = time.perf_counter() + given.seconds
    numbers = [_until(deadline, given.first, end) for end in ends]
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.environ["RLAIF_CACHE"] = str(scratch / "cache")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        began = time.perf_counter()
        files = experiments(numbers[0], given.seed, scratch, faults)
        between = time.perf_counter()
        with ScriptedServer(tops={"Yes": -0.2, "No": -2.0}, context=5000) as server:
            projects = made(scratch / "projects", server.url, given.quick) if given.runs else []
            folders, kinds = runs(projects, numbers[1], given.seed, scratch / "s", faults)
        ended = time.perf_counter()
    print(f"{files.total()} experiment files: {_listed(files)} ({between - began:.0f} s)")
    print(f"{folders.total()} run folders: {_listed(folders)} ({ended - between:.0f} s)")
    print(f"damage: {_listed(kinds)}")
    print(f"not fine: {len(faults)}")
    if given.json:
        figures = {"experiments": files, "runs": folders, "damage": kinds, "faults": len(faults)}
        seconds = {"experiments": between - began, "runs": ended - between}
        print(json.dumps({**figures, "seconds": seconds}))
    return 1 if faults else 0


def _until(deadline: float, first: int, end: int) -> Iterator[int]:
    """The numbers of the cases, as long as there is time."""
    for number in range(first, end):
        if time.perf_counter() > deadline:
            print(f"out of time: go on with --first {number}")
            return
        yield number


def _report(faults: list[str], fault: str) -> None:
    faults.append(fault)
    print(fault, file=sys.stderr, flush=True)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
