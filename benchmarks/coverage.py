"""Whether the intervals hold what they promise: coverage, false claims and widths, by simulation.

    python benchmarks/coverage.py [--quick] [--json] [--only NAME ...] [--replicates N]

Every rule of `rlaif.compare.figure_rules` that makes intervals is tried on every way of making
data below, at 6, 16, 30, 64 and 200 prompts, with one item to a prompt and with clusters; every
figure that has a rule of its own (those left out one prompt at a time) is tried by itself. 4,000
replicates a cell, and fewer of what takes long (MOST); --quick makes 400 at 6 and 30 prompts.

A cell fails where coverage is below 0.93, or false claims are above 0.065, by more than three
Monte-Carlo standard errors, or where the mean width is above 1.35 times that of Student's t at 16
prompts or more. What is known to do so stands in EXCEPTIONS with its reason; pages mark it. A
sample without an interval counts as covered where the sentence in its place is true.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from coverage_parts import data, winrates  # noqa: E402
from coverage_parts.figures import (  # noqa: E402
    CLUSTERED,
    DRAWS,
    FIGURES,
    NULL_FIGURES,
    Draw,
    Drawn,
    pooled_figure,
)

from rlaif.compare import ends  # noqa: E402
from rlaif.compare.crossed import crossed_ends  # noqa: E402
from rlaif.compare.ends import Ends  # noqa: E402
from rlaif.compare.figure_rules import RULES  # noqa: E402
from rlaif.compare.intervals import MIN_PROMPTS  # noqa: E402

SIZES = (6, 16, 30, 64, 200)
REPLICATES, QUICK = 4000, 400
MOST = {"weight/": 200, "LC-minimal": 100, "rating": 400}
"""What is fitted by a loop in each replicate takes a tenth of a second and more."""
WINRATES: dict[str, tuple[Callable[[int, float, int, int], winrates.Cell], tuple[float, ...]]] = {
    "win rate": (winrates.raw, winrates.RATES),
    "LC (penalised)": (winrates.controlled, winrates.RATES),
    "LC-minimal": (winrates.minimal, winrates.RATES),
    "rating": (winrates.rating, winrates.LEADS),
}
"""Figures of battles, and the truths that each is tried at: rates, and leads in log-odds."""
FROM_200 = "LC-minimal"
"""AlpacaEval's own formula is for 200 battles or more."""
COVERAGE, FALSE_CLAIMS, WIDTH = 0.93, 0.065, 1.35

EXCEPTIONS: dict[tuple[str, str], tuple[float, str]] = {
    ("skewed", "lognormal(1)"): (
        0.88,
        "so long a tail is not seen in a few prompts: 0.89 at 6, 0.92 at 16; below 24 prompts the "
        "page says that the interval may be too narrow",
    ),
    ("alpha", "nothing to it"): (
        0.915,
        "0.92 at 6 prompts, where each that is left out is much; below 10 prompts the interval of "
        "every figure that is computed with prompts left out says that it may be too narrow",
    ),
    ("reward_spread", "pairs in clusters"): (
        0.87,
        "a standard deviation of rewards with a long tail, not seen in a few prompts: 0.87 at 6, "
        "0.91 at 30; below 64 prompts the page says that the interval may be too narrow",
    ),
    ("weight/", "pairs in clusters"): (
        0.55,
        "the coefficient is shrunk towards 0, and so is its interval: 0.6 at 6 prompts; `fit` says "
        "so",
    ),
}
"""The coverage that is known to be reached, and why not more."""
WIDE: dict[tuple[str, str], str] = {
    ("rate", "no change at 0.01"): "where hardly any prompt differs, t is too narrow to hold",
    ("win rate", "truth 0.047"): "where hardly any battle is won, t is too narrow to hold",
    ("skewed", "exponential"): "t is too narrow: it holds the mean in 0.89 of cases at 16",
    ("skewed", "lognormal(1)"): "t is too narrow: it holds the mean in 0.85 of cases at 16",
}
"""What is more than 1.35 times as wide as t at 16 prompts or more, and why."""


@dataclass(frozen=True)
class Cell:
    """One rule or figure on one kind of data at one size. `width` is beside that of Student's t,
    whose coverage is `theirs`; `ended` is the share of samples with an interval. None where a
    column has no meaning."""

    rule: str
    data: str
    prompts: int
    coverage: float
    false_claims: float | None
    width: float | None
    ended: float
    replicates: int
    theirs: float | None = None
    exception: str | None = None

    @property
    def faults(self) -> list[str]:
        """What of the pass rule does not hold."""
        found = []
        slack = 3 * (COVERAGE * (1 - COVERAGE) / self.replicates) ** 0.5
        allowed = EXCEPTIONS.get((self.rule, self.data), (COVERAGE, ""))[0]
        claims = max(FALSE_CLAIMS, 1 - allowed)
        if self.coverage < allowed - slack:
            found.append(f"coverage {self.coverage:.3f}")
        slack = 3 * (claims * (1 - claims) / self.replicates) ** 0.5
        if self.false_claims is not None and self.false_claims > claims + slack:
            found.append(f"false claims {self.false_claims:.3f}")
        wide = self.width is not None and self.width > WIDTH and self.prompts >= 16
        if wide and self.rule != "rare" and (self.rule, self.data) not in WIDE:
            found.append(f"width {self.width:.2f}")
        return found


def main() -> None:
    """Print the table and say which cells fail; exit code 1 where one does."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="*", help="rules or figures")
    parser.add_argument("--replicates", type=int)
    given = parser.parse_args()
    sizes = (6, 30) if given.quick else SIZES
    count = given.replicates or (QUICK if given.quick else REPLICATES)
    cells = []
    began = time.monotonic()
    for cell in measured(sizes, count, given.only):
        cells.append(cell)
        if not given.json:
            print(line_of(cell), flush=True)
    failed = [c for c in cells if c.faults]
    if given.json:
        rows = [asdict(c) | {"faults": c.faults} for c in cells]
        print(json.dumps({"cells": rows, "seconds": time.monotonic() - began}))
    else:
        print(f"{len(cells)} cells, {len(failed)} fail, {time.monotonic() - began:.0f} s")
        if not data.REAL.exists():
            print(f"Not tried on a stored run: claims.py RUN --store {data.REAL} writes its values")
    sys.exit(bool(failed))


def line_of(cell: Cell) -> str:
    """A row of the table."""
    claims = "     -" if cell.false_claims is None else f"{cell.false_claims:6.3f}"
    width = "    -" if cell.width is None else f"{cell.width:5.2f}"
    theirs = "    -" if cell.theirs is None else f"{cell.theirs:.3f}"
    return (
        f"{cell.rule:28} {cell.data:26} n={cell.prompts:<4} coverage {cell.coverage:.3f}  "
        f"false claims {claims}  width {width} (t covers {theirs})  with ends {cell.ended:.2f}  "
        f"{'; '.join(cell.faults) and 'FAILS ' + '; '.join(cell.faults)}"
        f"{'  (exception: ' + cell.exception + ')' if cell.exception else ''}"
    ).rstrip()


def measured(
    sizes: tuple[int, ...], replicates: int, only: list[str] | None = None
) -> Iterator[Cell]:
    """All cells, in order; the draws of each depend on its name alone."""
    for rule, name, of in tried(only):
        for prompts in sizes:
            if rule == FROM_200 and prompts < 200:
                continue
            rng = np.random.default_rng(crc32(f"{rule}/{name}/{prompts}".encode()))
            count = min(replicates, MOST.get(rule, replicates))
            cell = replace(of(rng, count, prompts), rule=rule, data=name, prompts=prompts)
            known = EXCEPTIONS.get((rule, name), (0.0, WIDE.get((rule, name))))
            yield replace(cell, exception=known[1])


Tried = Callable[[np.random.Generator, int, int], Cell]


def tried(only: list[str] | None) -> Iterator[tuple[str, str, Tried]]:
    """Each rule or figure with each kind of its data."""
    table: list[tuple[str, str, Tried]] = []
    for name, shares in data.SHARES.items():
        table.append(("share", name, lambda r, b, n, d=shares: share_cell(d(r, b, n))))
    for name, rare in data.RARE.items():
        table.append(("rare", name, lambda r, b, n, d=rare: rare_cell(d(r, b, n))))
    for name, values in data.DIFFERENCES.items():
        table.append(("mean", name, lambda r, b, n, d=values: mean_cell(d(r, b, n))))
    for name, twos in data.TWOS.items():
        table.append(("rate", name, lambda r, b, n, d=twos: twos_cell(d(r, b, n))))
    for name, skewed in data.SKEWED.items():
        table.append(("skewed", name, lambda r, b, n, d=skewed: skewed_cell(d(r, b, n))))
    for name, seeds in data.SEEDS.items():
        table.append(("seeds", name, lambda r, b, n, d=seeds: seeds_cell(d(r, b, n))))
    for figure, make in FIGURES.items():
        for name, draw in DRAWS.items():
            if name == CLUSTERED or figure in NULL_FIGURES:
                of = lambda r, b, n, m=make, d=draw: figure_cell(m, d, r, b, n)  # noqa: E731
                table.append((figure, name, of))
    for figure, (fought, truths) in WINRATES.items():
        for truth in truths:
            of = lambda r, b, n, f=fought, t=truth: battle_cell(f, t, r, b, n)  # noqa: E731
            table.append((figure, f"truth {truth:g}", of))
    for row in table:
        if not only or row[0] in only:
            yield row


def counted(
    found: Ends,
    truth: float,
    null: float | None = None,
    said: np.ndarray | None = None,
    beside: Ends | None = None,
) -> Cell:
    """Coverage of `truth`; a sample without ends covers where what is `said` in their place is
    true. False claims are counted where the truth is the null."""
    ended = np.isfinite(found.low) & np.isfinite(found.high)
    # An end that is the truth but for rounding holds it.
    slack = 1e-12
    inside = (found.low <= truth + slack) & (truth - slack <= found.high)
    covered = np.where(ended, inside, True if said is None else said)
    claims = None
    if null is not None and abs(truth - null) < 1e-9:
        claims = float((np.nan_to_num(found.p, nan=1.0) < 0.05).mean())
    width = holds = None
    if beside is not None:
        holds = float(((beside.low <= truth) & (truth <= beside.high)).mean())
        both = ended & np.isfinite(beside.low)
        if both.any():
            theirs = (beside.high - beside.low)[both].mean()
            width = float((found.high - found.low)[both].mean() / theirs)
    count = len(found.low)
    coverage, with_ends = float(covered.mean()), float(ended.mean())
    return Cell("", "", 0, coverage, claims, width, with_ends, count, holds)


def share_cell(drawn: tuple[np.ndarray, float]) -> Cell:
    """K1, of values by prompt."""
    values, truth = drawn
    mean, square = ends.spread_of(values)
    found = ends.share_ends(mean, square, values.shape[1], 0.5)
    never = np.zeros(len(values), dtype=bool)
    return counted(found, truth, 0.5, said=never, beside=ends.mean_ends(values))


def rare_cell(drawn: tuple[np.ndarray, np.ndarray, float]) -> Cell:
    """K2, of counts and sizes by prompt."""
    counts, sizes, truth = drawn
    found, never = ends.rare_ends(counts, sizes), np.zeros(len(counts), dtype=bool)
    return counted(found, truth, said=never, beside=ends.mean_ends(counts / sizes))


def mean_cell(drawn: tuple[np.ndarray, float, float]) -> Cell:
    """K3: differences by prompt, their mean, and how many prompts truly differ from the usual."""
    values, truth, differing = drawn
    prompts = values.shape[1]
    true = np.full(len(values), differing < 1 - 0.05 ** (1 / prompts))
    found = ends.mean_ends(values)
    return counted(found, truth, 0.0, said=true, beside=found)


def twos_cell(drawn: tuple[np.ndarray, np.ndarray, float]) -> Cell:
    """K4: new and old values of 0 and 1."""
    new, old, truth = drawn
    more, less = (np.asarray((a > b).sum(axis=1), dtype=float) for a, b in ((new, old), (old, new)))
    found = ends.discordant_ends(more, less, new.shape[1])
    return counted(found, truth, 0.0, beside=ends.mean_ends(new - old))


def skewed_cell(drawn: tuple[np.ndarray, float]) -> Cell:
    """K5."""
    values, truth = drawn
    return counted(ends.skewed_ends(values), truth, beside=ends.mean_ends(values))


def seeds_cell(drawn: tuple[np.ndarray, float]) -> Cell:
    """Seeds crossed with prompts."""
    table, truth = drawn
    return counted(crossed_ends(table, 0.0), truth, 0.0)


def figure_cell(
    make: Drawn, draw: Draw, rng: np.random.Generator, replicates: int, prompts: int
) -> Cell:
    """K6: a figure of pairs, drawn, computed and left out as the product does it."""
    found, truth, null = pooled_figure(make, draw, rng, replicates, prompts)
    return counted(found, truth, null)


def battle_cell(
    fought: Callable[[int, float, int, int], winrates.Cell],
    truth: float,
    rng: np.random.Generator,
    replicates: int,
    prompts: int,
) -> Cell:
    """A figure of so many battles."""
    found = fought(prompts, truth, replicates, int(rng.integers(2**31)))
    width = None if found.t_width is None else found.width / found.t_width
    ended = 0.0 if np.isinf(found.width) else 1.0
    return Cell("", "", 0, found.coverage, None, width, ended, found.replicates)


def figures_by_rule() -> dict[str, list[str]]:
    """The figures of the product by what their intervals are tried by."""
    own = {"jackknife", "fisher", "log"}
    found: dict[str, list[str]] = {}
    for name, rule in RULES.items():
        if rule.of != "none":
            found.setdefault(name if rule.of in own else rule.of, []).append(name)
    return found


if __name__ == "__main__":
    assert min(SIZES) >= MIN_PROMPTS
    main()
