"""How often a report claims an improvement: where there is none, and where there is one.

    python benchmarks/claims.py RUN [--reports N] [--seed N] [--json] [--store FILE]

Reports are made from the values by prompt that a finished run stored, of M0 and of the last round's
policy: prompts are drawn with replacement, and which of the two models a prompt's values are of is
drawn anew, so that in truth nothing has changed ("null"). In "planted" reports the draw is uneven,
by as much as the paired t test of the first primary metric finds in 80% of cases at 5%. Each report
goes through the code of the product. Exit code 1 where more than 5% of the null reports claim an
improvement of a primary metric, or not 75% to 85% of the planted ones do whose only primary metric
is the first. "planted_all" is with all of the run's primary metrics: Holm's procedure asks more of
each, and a second one may find what the first does not.

--store keeps what the coverage benchmark takes as real data.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import optimize, stats

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

from rlaif.metrics import metrics  # noqa: E402
from rlaif.metrics.intervals import direction  # noqa: E402
from rlaif.pipeline.runs import load_run  # noqa: E402
from rlaif.report.merged import TESTED_ALONE, Page, make_page  # noqa: E402
from rlaif.report.rows import kind_of  # noqa: E402
from rlaif.report.view import RoundResult, RoundRow, no_values  # noqa: E402

Values = Mapping[str, Mapping[str, float]]
POWER, ALPHA = 0.8, 0.05
STORED = ("score/", "kl/initial", "length/words")


@dataclass(frozen=True)
class Stored:
    """A run's values by prompt before and after, on the prompts that both have, and its primary
    metrics."""

    old: Values
    new: Values
    prompts: list[str]
    named: Sequence[str] | None
    trained: Sequence[str]


def main() -> None:
    """Print the shares; exit code 1 where one is outside of its range."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--reports", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--store", type=Path)
    given = parser.parse_args()
    stored = load_values(given.run)
    if given.store:
        given.store.write_text(json.dumps(kept(stored)), encoding="utf-8")
    leaning = planted_leaning(stored)
    alone = replace(stored, named=primary_of(stored)[:1])
    found = {
        "prompts": len(stored.prompts),
        "reports": given.reports,
        "primary": primary_of(stored),
        "null": claimed_share(stored, 0.0, given.reports, given.seed),
        "planted": claimed_share(alone, leaning, given.reports, given.seed + 1),
        "planted_all": claimed_share(stored, leaning, given.reports, given.seed + 1),
        "coloured_by_interval": coloured_share(stored, given.reports, given.seed),
    }
    print(json.dumps(found) if given.json else "\n".join(f"{k}: {v}" for k, v in found.items()))
    sys.exit(not (found["null"] <= 0.05 and 0.75 <= found["planted"] <= 0.85))


def load_values(folder: Path) -> Stored:
    """What the run stored of its first seed and arm."""
    run = load_run(folder)
    steps = [s for s in run.manifest["steps"] if s["kind"] == "evaluate"]
    last = max(steps, key=lambda s: s["round"])
    arm, seed = last["arms"][0], last["seed"]
    old, new = (run.values(arm, seed, number) for number in (0, last["round"]))
    view = run.experiment()
    scored = next(name for name in new if metrics.scores_answers(name))
    prompts = sorted(old[scored].keys() & new[scored].keys())
    return Stored(old, new, prompts, view.primary, view.trained_judges)


def kept(stored: Stored) -> dict[str, list[list[float]]]:
    """Values in an order that tells no prompt: {metric: [M0's, the last policy's]}."""
    names = [n for n in stored.new if n.startswith(STORED) and n.count("/") == 1]
    return {
        name: [[side.get(name, {}).get(p, 0.0) for p in stored.prompts] for side in sides]
        for name in names
        if (sides := (stored.old, stored.new))
    }


def report(stored: Stored, leaning: float, rng: np.random.Generator) -> Page:
    """One report of drawn prompts; `leaning` is by how much more often than not the policy gets the
    better of a prompt's two scores."""
    drawn = rng.integers(0, len(stored.prompts), len(stored.prompts))
    first = primary_of(stored)[0].replace("win_rate/", "score/")
    swapped: list[tuple[Values, Values, str]] = []
    for place in drawn:
        prompt = stored.prompts[place]
        better = stored.new.get(first, {}).get(prompt, 0) >= stored.old.get(first, {}).get(
            prompt, 0
        )
        as_is = (rng.random() < (1 + leaning) / 2) == better
        sides = (stored.new, stored.old) if as_is else (stored.old, stored.new)
        swapped.append((*sides, prompt))
    names = sorted(set(stored.new) & set(stored.old))
    new, old = (
        {
            name: {
                f"{k:04d}": row[side][name][row[2]]  # type: ignore[index]
                for k, row in enumerate(swapped)
                if row[2] in row[0].get(name, {}) and row[2] in row[1].get(name, {})
            }
            for name in names
        }
        for side in (0, 1)
    )
    alone = {n: v for n, v in new.items() if n.startswith(TESTED_ALONE)}
    result: RoundResult = {
        "metrics": metrics.compute_intervals({**alone}),
        "deltas": {"initial": metrics.compute_differences({**new}, {**old})},
    }
    row = RoundRow(
        arm="main", seed=0, round=1, policy_in="M0", policy_out="M1", counts={}, metrics=result
    )
    return make_page([row], [], no_values, stored.named, stored.trained)


def primary_of(stored: Stored) -> list[str]:
    """The primary metrics of the run's reports."""
    if stored.named is not None:
        return list(stored.named)
    names = {*stored.new, *(f"win_rate/{n.split('/')[1]}" for n in stored.new if "score/" in n)}
    wanted = [f"{k}/{j}" for j in stored.trained for k in ("score", "win_rate")]
    return [name for name in wanted if name in names]


def claimed_share(stored: Stored, leaning: float, reports: int, seed: int) -> float:
    """The share of reports that claim an improvement of a primary metric."""
    rng = np.random.default_rng(seed)
    return float(np.mean([improves(report(stored, leaning, rng)) for _ in range(reports)]))


def improves(page: Page) -> bool:
    """Whether a primary metric is claimed to be better."""
    metrics_of = page.latest[0]["metrics"]
    found = {**metrics_of["deltas"]["initial"], **metrics_of["metrics"]}
    standing = metrics_of.get("standing", {})
    for name in page.primary:
        par = 0.5 if name.startswith(("win_rate/", "win_rate_vs_initial/")) else 0.0
        side = direction(found.get(name), par)
        if standing.get(name) == "claimed" and side == kind_of(name).better:
            return True
    return False


def coloured_share(stored: Stored, reports: int, seed: int) -> float:
    """The share of null reports in which some interval excludes its null: what a page that
    coloured each such interval would do."""
    rng = np.random.default_rng(seed)
    count = 0
    for _ in range(reports):
        found = report(stored, 0.0, rng).latest[0]["metrics"]["deltas"]["initial"]
        count += any(
            direction(i, 0.5 if name.startswith("win_rate/") else 0.0)
            for name, i in found.items()
            if not name.startswith("length_factor/")
        )
    return count / reports


def planted_leaning(stored: Stored) -> float:
    """The leaning at which the paired t test of the score finds the effect in 80% of cases."""
    name = primary_of(stored)[0]
    away = np.asarray([stored.new[name][p] - stored.old[name][p] for p in stored.prompts])
    size, square, n = np.abs(away).mean(), (away**2).mean(), away.size
    critical = stats.t.ppf(1 - ALPHA / 2, n - 1)

    def missing(leaning: float) -> float:
        effect = leaning * size / np.sqrt(square - (leaning * size) ** 2) * np.sqrt(n)
        return float(stats.nct.sf(critical, n - 1, effect)) - POWER

    return float(optimize.brentq(missing, 0.0, 0.999))


if __name__ == "__main__":
    main()
