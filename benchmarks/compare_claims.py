"""How often `rlaif compare` says what is not so, and how often it sees what is: on planted data.

    python benchmarks/compare_claims.py [--only labels] [--quick] [--json] [--seed N]

Every cell draws data whose truth is known, puts it through the code of the product, and counts
what the answers say: of a judge beside people ("labels"), of two policies by a judge ("policies"),
of the alternative annotator test ("stand-in"), and of what disagreement is associated with
("cause"). People prefer the first answer of a pair with a probability whose log-odds are normal
with a standard deviation of 1.5. Exit code 1 where a false answer is more frequent than its level
by more than three standard errors: 5% for "the same" at a difference of the margin, 2.5% each for
"better", "worse" and "associated with" where nothing differs, 5% for passing the test at a
difference of epsilon, and for a person outdone there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

from rlaif.analysis.comparison import policies  # noqa: E402
from rlaif.analysis.comparison.compute import MARGIN  # noqa: E402
from rlaif.analysis.comparison.gather import Gathered, SourceKey  # noqa: E402
from rlaif.analysis.comparison.pairs import Compared, ComparedPair, Source  # noqa: E402
from rlaif.analysis.comparison.people import alt_test_row, person_row  # noqa: E402
from rlaif.core.numbers import sigmoids  # noqa: E402
from rlaif.metrics.claims import answer_of  # noqa: E402
from rlaif.metrics.disagreement import (  # noqa: E402
    VotedPairs,
    differing_votes,
    explain_disagreement,
)
from rlaif.metrics.winrate import Battle  # noqa: E402

Floats = NDArray[np.float64]
Rng = np.random.Generator
SPREAD, EPSILON = 1.5, 0.1
POPULATION = 400_000
BETTER = ("better", "better within")
WORSE = ("worse", "worse within")
SAME = ("same", "better within", "worse within")


@dataclass(frozen=True)
class Cell:
    """One planted truth: `draw` gives the words that one replicate says. `false` are the words that
    are not so, each with the share that may say it; `seen` are those that are so."""

    question: str
    truth: str
    size: str
    draw: Callable[[Rng], list[str]]
    false: dict[str, float]
    seen: tuple[str, ...]
    slow: bool = False


def main() -> None:
    """Print a line for each cell; exit code 1 where a false answer is too frequent."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", choices=("labels", "policies", "stand-in", "cause"), help="one kind of question"
    )
    given = parser.parse_args()
    fast, slow = (200, 40) if given.quick else (2000, 400)
    rows = []
    for number, cell in enumerate(list_cells()):
        if given.only not in (None, cell.question):
            continue
        rows.append(measure(cell, slow if cell.slow else fast, given.seed + number))
        if not given.json:
            print(line_of(rows[-1]), flush=True)
    if given.json:
        print(json.dumps({"cells": rows}))
    sys.exit(any(row["faults"] for row in rows))


def list_cells() -> Iterator[Cell]:
    """Every planted truth."""
    null = {"better": 0.025, "worse": 0.025}
    for prompts in (100, 200, 800):
        size = f"{prompts} prompts, 3 people"
        for truth, lost, false, seen in (
            ("a judge that votes as a person does", 0.0, null, ("same",)),
            ("agreement lower by the margin", MARGIN, {"better": 0.025, "same": 0.05}, ("worse",)),
            ("agreement lower by 0.1", 0.1, {"better": 0.025, "same": 0.05}, ("worse",)),
        ):
            yield Cell("labels", truth, size, _labels(prompts, 3, lost), false, seen)
    for prompts in (200, 800):
        for truth, shift, false, seen in (
            ("policies alike", 0.0, null, ("same",)),
            ("win rate lower by the margin", MARGIN, {"better": 0.025, "same": 0.05}, ("worse",)),
        ):
            yield Cell(
                "policies", truth, f"{prompts} prompts", _win_rates(prompts, shift), false, seen
            )
    for prompts, people in ((50, 3), (100, 5)):
        size = f"{prompts} prompts, {people} people"
        yield Cell(
            "stand-in",
            "worse than a person by epsilon",
            size,
            _stand_in(prompts, people, True),
            {"passed": 0.05, "outdone": 0.05},
            ("failed",),
        )
        yield Cell(
            "stand-in",
            "votes as a person does",
            size,
            _stand_in(prompts, people, False),
            {},
            ("passed",),
        )
    for noise, bias, false, seen in (
        (1.5, 0.0, {"length": 0.025, "format": 0.025, "refusal": 0.025}, ()),
        (0.0, 0.7, {"format": 0.025, "refusal": 0.025}, ("length",)),
        (0.0, 1.5, {"format": 0.025, "refusal": 0.025}, ("length",)),
    ):
        truth = "a noisy judge without a bias" if noise else f"a length bias of {bias} log-odds"
        yield Cell(
            "cause", truth, "240 prompts, 3 people", _cause(240, noise, bias), false, seen, True
        )


def measure(cell: Cell, replicates: int, seed: int) -> dict[str, Any]:
    """The share of replicates that say each word, and which false ones are too frequent."""
    rng = np.random.default_rng(seed)
    counts: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    for _ in range(replicates):
        said = cell.draw(rng)
        counts.update(said)
    # A person outdone is counted by person.
    people = counts.pop("tested", replicates)
    tried.update({word: people if word == "outdone" else replicates for word in counts})
    shares = {word: counts[word] / tried[word] for word in counts}
    faults = [
        word
        for word, level in cell.false.items()
        if shares.get(word, 0.0) > level + 3 * (level * (1 - level) / replicates) ** 0.5
    ]
    return {
        "question": cell.question,
        "truth": cell.truth,
        "size": cell.size,
        "replicates": replicates,
        "false": {word: [shares.get(word, 0.0), level] for word, level in cell.false.items()},
        "seen": {word: shares.get(word, 0.0) for word in cell.seen},
        "faults": faults,
    }


def line_of(row: dict[str, Any]) -> str:
    """A row in words."""
    false = ", ".join(f"{w} {s:.3f} (at most {m:g})" for w, (s, m) in row["false"].items())
    seen = ", ".join(f"{word} {share:.3f}" for word, share in row["seen"].items())
    fault = f"  FAULT: {', '.join(row['faults'])}" if row["faults"] else ""
    return (
        f"{row['question']:9} {row['truth']:38} {row['size']:24} false: {false or '-'}; "
        f"seen: {seen or '-'}{fault}"
    )


def verdict_words(difference: dict[str, Any]) -> list[str]:
    """What an answer on a difference says, as words that are counted."""
    verdict = answer_of(difference, MARGIN).verdict  # type: ignore[arg-type]
    words = {"better": BETTER, "worse": WORSE, "same": SAME}
    return [word for word, verdicts in words.items() if verdict in verdicts]


def draw_people(rng: Rng, prompts: int, people: int) -> tuple[Floats, Floats]:
    """The share of people who prefer the first answer, (n,), and votes of 0 and 1, (n, people)."""
    share = sigmoids(rng.normal(0, SPREAD, prompts))
    return share, (rng.random((prompts, people)) < share[:, None]).astype(float)


def lay_out(votes: Floats, judge: Floats) -> tuple[Compared, Source, Source]:
    """Votes and a judge's verdicts on pairs of a prompt each, as the product has them."""
    names = [f"{number:05d}" for number in range(len(judge))]
    pairs = {n: ComparedPair(n, f"p{n}", "a", "b", None, (), "") for n in names}
    own = {
        name: {f"person-{place}": vote for place, vote in enumerate(row)}
        for name, row in zip(names, votes.tolist(), strict=True)
    }
    pooled = {name: float(np.mean(list(said.values()))) for name, said in own.items()}
    asked = frozenset(names)
    people = Source("people", "human", (), asked, pooled, own)
    machine = Source("judge", "ai", (), asked, dict(zip(names, judge.tolist(), strict=True)))
    return Compared(pairs, (people, machine), 0), machine, people


@cache
def person_agreement() -> float:
    """How often two people agree."""
    share = sigmoids(np.random.default_rng(1).normal(0, SPREAD, POPULATION))
    return float((share**2 + (1 - share) ** 2).mean())


def _labels(prompts: int, people: int, lost: float) -> Callable[[Rng], list[str]]:
    """A judge that votes as a person, but tosses a coin so often that it agrees less by `lost`."""
    coins = lost / (person_agreement() - 0.5)

    def draw(rng: Rng) -> list[str]:
        share, votes = draw_people(rng, prompts, people)
        share = np.where(rng.random(prompts) < coins, 0.5, share)
        judge = (rng.random(prompts) < share).astype(float)
        row = person_row(*lay_out(votes, judge))
        return verdict_words(row["figures"]["difference"])

    return draw


def _win_rates(prompts: int, shift: float) -> Callable[[Rng], list[str]]:
    """Two policies against the same baseline: most verdicts nearly certain, prompts that are hard
    for both, and the second's win rate lower by `shift`."""
    key = SourceKey("judge", "ai")

    def draw(rng: Rng) -> list[str]:
        hard = rng.normal(-1.0, 1.0, prompts)
        rates = sigmoids(hard)
        # A share of the second's wins is lost, so that the mean falls by the shift.
        lost = shift / POLICY_RATE
        wins = rng.random((2, prompts)) < rates
        wins[1] &= rng.random(prompts) >= lost
        sure = rng.beta(0.3, 8.0, (2, prompts)) / 2
        probs = np.where(wins, 1 - sure, sure)
        gathered = Gathered()
        gathered.battles[key] = [
            Battle(f"p{n:05d}", "base", model, float(probs[side, n]), (None, 100), (None, "x"))
            for side, model in enumerate(("first", "second"))
            for n in range(prompts)
        ]
        rows = policies.contest_rows(gathered, ())
        row = next(r for r in rows if {r["first"], r["second"]} == {"first", "second"})
        return verdict_words(row["difference"])

    return draw


def _policy_rate() -> float:
    """What a win adds to the mean preference, times how often there is one."""
    rng = np.random.default_rng(1)
    wins = float(sigmoids(rng.normal(-1.0, 1.0, POPULATION)).mean())
    return wins * (1 - 2 * float((rng.beta(0.3, 8.0, POPULATION) / 2).mean()))


POLICY_RATE = _policy_rate()
# No control of length, which takes a second and is not what is counted here.
policies.FEW_MODELS = 0


def _stand_in(prompts: int, people: int, worse: bool) -> Callable[[Rng], list[str]]:
    """A judge that votes as a person does, or turns so many votes round that the test's mean
    difference is epsilon."""
    turned = turned_share(people) if worse else 0.0

    def draw(rng: Rng) -> list[str]:
        share, votes = draw_people(rng, prompts, people)
        judge = _votes_turned(rng, share, turned)
        row = alt_test_row(*lay_out(votes, judge), EPSILON)
        outdone = ["outdone" for person in row["people"] if worse and person["p"] <= 0.05]
        words = ["passed" if row["passed"] else "failed", *outdone]
        return words + ["tested"] * (len(row["people"]) if worse else 0)

    return draw


def _votes_turned(rng: Rng, share: Floats, turned: float) -> Floats:
    judge = rng.random(share.size) < share
    return (judge ^ (rng.random(share.size) < turned)).astype(float)


@cache
def turned_share(people: int) -> float:
    """The share of votes turned round at which W_h - W_f has a mean of epsilon."""
    rng = np.random.default_rng(1)
    share, votes = draw_people(rng, POPULATION, people)
    own = rng.random(POPULATION) < share
    lots = rng.random(POPULATION)
    others = votes[:, 1:].sum(axis=1)

    def away(turned: float) -> float:
        judge = (own ^ (lots < turned)).astype(float)
        score, person = (
            np.where(side == 1, others, people - 1 - others) for side in (judge, votes[:, 0])
        )
        return float(np.sign(person - score).mean()) - EPSILON

    return float(optimize.brentq(away, 0.0, 0.9, xtol=1e-4))


def _cause(prompts: int, noise: float, bias: float) -> Callable[[Rng], list[str]]:
    def draw(rng: Rng) -> list[str]:
        quality, length = rng.normal(0, SPREAD, prompts), rng.normal(size=prompts)
        votes = rng.random((prompts, 3)) < sigmoids(quality)[:, None]
        seen = quality + bias * length + noise * rng.normal(size=prompts)
        features = {
            "length": length[:, None],
            "format": rng.integers(-1, 2, (prompts, 2)).astype(float),
            "refusal": rng.choice([-1.0, 0.0, 1.0], (prompts, 1), p=[0.1, 0.8, 0.1]),
        }
        differ = np.asarray([differing_votes(list(map(float, row))) for row in votes])
        pairs = VotedPairs(
            [f"p{n}" for n in range(prompts)], votes.mean(axis=1), differ, sigmoids(seen), features
        )
        found = explain_disagreement(pairs, int(rng.integers(2**31)))
        return [name for name, part in found.parts.items() if (part.low or 0.0) > 0]

    return draw


if __name__ == "__main__":
    main()
