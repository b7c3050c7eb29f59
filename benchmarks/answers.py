"""How often the answer of an experiment with arms is wrong, on planted data.

    python benchmarks/answers.py [--sets 2000] [--prompts 24 200 800] [--seed 0] [--quick] [--json]

Five true differences between two arms, in units of the margin (0.05): none, half of it, all of it,
twice and four times. Scores are on [0, 1], those of the two arms on one prompt correlate, and the
difference has a standard deviation of about 0.25. Each set goes through the interval of paired
differences and `answer_of`, as a report does. A direction is wrong where the sentence says worse of
a difference above zero, or either of none; "same" is false where the true difference is the margin
or more. Exit code 1 where a wrong direction is said in more than 2.5% of the sets on either side, a
false "same" in more than 5%, or, at 24 prompts and half the margin, "cannot tell" in less than 90%,
each by more than three standard errors of so many sets.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rlaif.metrics.claims import answer_of
from rlaif.metrics.intervals import paired_interval

MARGIN = 0.05
CASES = {"none": 0.0, "half": 0.5, "margin": 1.0, "twice": 2.0, "four times": 4.0}
SPREAD = 0.25
"""The standard deviation of differences."""
SAME = ("same", "better within", "worse within")


def drawn(draw: np.random.Generator, prompts: int, true: float) -> tuple[dict[str, float], ...]:
    """The scores of two arms by prompt, the second's higher by `true` in the mean."""
    shared = draw.uniform(0.35, 0.65, prompts)
    # Two uniform noises of this half-width differ with a standard deviation of SPREAD.
    width = SPREAD * math.sqrt(3 / 2)
    first = shared - true / 2 + draw.uniform(-width, width, prompts)
    second = shared + true / 2 + draw.uniform(-width, width, prompts)
    names = [f"p{i:04}" for i in range(prompts)]
    return dict(zip(names, first, strict=True)), dict(zip(names, second, strict=True))


def counted(sets: int, prompts: int, true: float, seed: int) -> Counter[str]:
    """The verdicts on `sets` sets."""
    draw = np.random.default_rng([seed, prompts, round(true * 1e6)])
    found: Counter[str] = Counter()
    for _ in range(sets):
        first, second = drawn(draw, prompts, true)
        interval = paired_interval(second, first)
        assert interval is not None
        found[answer_of(interval.to_json(), MARGIN).verdict] += 1
    return found


def most(share: float, sets: int) -> float:
    """The largest count that `share` explains, but for one time in 700."""
    return sets * share + 3 * math.sqrt(sets * share * (1 - share))


def main() -> None:
    """Print the counts, and with --json every figure in one object."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", type=int, default=2000)
    parser.add_argument("--prompts", type=int, nargs="+", default=[24, 200, 800])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sets = 100 if options.quick else options.sets
    rows, faults = [], []
    for prompts in options.prompts:
        for name, size in CASES.items():
            said = counted(sets, prompts, size * MARGIN, options.seed)
            worse = said["worse"] + said["worse within"]
            better = said["better"] + said["better within"]
            wrong = {"worse": worse} | ({"better": better} if size == 0 else {})
            same = sum(said[verdict] for verdict in SAME) if size >= 1 else 0
            rows.append({"prompts": prompts, "true": name, "sets": sets, **dict(said)})
            print(f"{prompts} prompts, true difference {name}: {dict(sorted(said.items()))}")
            place = f"{prompts} prompts, {name}"
            for side, count in wrong.items():
                if count > most(0.025, sets):
                    faults.append(f"{place}: {side} said {count} times of {sets}")
            if same > most(0.05, sets):
                faults.append(f"{place}: the same said {same} times of {sets}")
            silent = sets - said["unknown"]
            if (prompts, name) == (24, "half") and silent > most(0.1, sets):
                faults.append(f"{place}: something is said {silent} times of {sets}")
    for fault in faults:
        print(f"FAULT: {fault}")
    if options.json:
        print(json.dumps({"margin": MARGIN, "rows": rows, "faults": faults}))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
