"""How MinHash near-duplicates grow: seconds and memory by the number of texts.

    python benchmarks/near_duplicates.py [--texts 20000 200000] [--words 120] [--quick] [--json]

Random texts, a tenth of which are copies of others with one word changed. Each size runs in a
process of its own. Printed are the seconds, how many of the copies were found, how many others were
taken for copies, and the memory on top of what the process held before.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

from rlaif.data.near import near_duplicates

COPIED = 10
VOCABULARY = 20_000


def main() -> None:
    """Print one row per size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--words", type=int, default=120)
    parser.add_argument("--quick", action="store_true", help="one small size")
    parser.add_argument("--json", action="store_true", help="a last line with every figure")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measured(options.one, options.words)))
        return
    rows = []
    for count in [2_000] if options.quick else options.texts:
        command = [sys.executable, __file__, "--one", str(count), "--words", str(options.words)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = json.loads(done.stdout)
        rows.append(row)
        print(
            f"{count:>9,} texts: {row['seconds']:7.1f} s ({row['cpu_seconds']:.1f} s of CPU), "
            f"{row['found']:,} of {row['copies']:,} "
            f"copies found, {row['wrong']} others, {row['mb']:.0f} MB on top of "
            f"{row['before_mb']:.0f} MB",
            flush=True,
        )
    if options.json:
        print(json.dumps({"near_duplicates": rows}))


def measured(count: int, words: int) -> dict[str, float]:
    """What one size takes. The texts are made as they are read, so they are not in the memory."""
    near_duplicates(texts(100, words))
    before, began, cpu = peak_mb(), time.perf_counter(), time.process_time()
    found = near_duplicates(texts(count, words))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    right = sum(original(place) == kept for place, kept in found.items())
    copies = sum(original(place) != place for place in range(count))
    return {
        "texts": count,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "copies": copies,
        "found": right,
        "wrong": len(found) - right,
        "before_mb": before,
        "mb": peak_mb() - before,
    }


def texts(count: int, words: int) -> Iterator[str]:
    """Texts of random words; every tenth is the one before it with one word changed."""
    for place in range(count):
        rng = random.Random(original(place))
        said = [f"w{rng.randrange(VOCABULARY)}" for _ in range(words)]
        if original(place) != place:
            said[place % words] = "changed"
        yield " ".join(said)


def original(place: int) -> int:
    """The text that a text is a copy of; itself where it is none."""
    return place - 1 if place % COPIED == COPIED - 1 else place


def peak_mb() -> float:
    """The most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
