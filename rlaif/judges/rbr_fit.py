"""Fit the weights of rule-based rewards to preferences (2411.01111, section 4.2).

For every pair the loss is max(0, margin + R(worse) - R(better)). Prompts and not pairs are split
into fitted and held-out ones, since answers recur within a prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt

from rlaif.core.errors import RlaifError
from rlaif.core.records import Judgement, Preference, content_hash

Floats = npt.NDArray[np.float64]
RATE, ITERATIONS = 0.01, 1000
HELD_OUT = 20
"""One prompt in this many is held out, by the hash of its id."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Weights by proposition. `fitted` and `held_out` are (pairs, share of them that the
    reward puts in the right order), the share None without pairs. `skipped` pairs lack a value."""

    weights: dict[str, float]
    fitted: tuple[int, float | None]
    held_out: tuple[int, float | None]
    skipped: int


def fit(
    judgements: Iterable[Judgement],
    preferences: Sequence[Preference],
    margin: float = 1.0,
    ridge: float = 0.0,
) -> Fit:
    """The weights of the propositions that `judgements` (of a yes_no judge) are about.

    A proposition that does not apply counts 0. Raises RlaifError when no pair can be used.
    """
    table, known = _table(judgements)
    names = sorted({name for row in table.values() for name in row})
    pairs = [p for p in preferences if p.chosen_id in known and p.rejected_id in known]
    train = [p for p in pairs if int(content_hash("rbr", p.prompt_id), 16) % HELD_OUT]
    if not train or not names:
        raise RlaifError(
            f"no pair can be fitted: {len(preferences)} preferences, and judgements of "
            f"{len(known)} answers; are both about the same completions?"
        )
    gaps = _gaps(train, table, names)
    weights = fit_hinge(gaps, margin, ridge)
    fitted = {p.preference_id for p in train}
    held = [p for p in pairs if p.preference_id not in fitted]
    return Fit(
        {name: float(weight) for name, weight in zip(names, weights, strict=True)},
        (len(train), _right(gaps, weights)),
        (len(held), _right(_gaps(held, table, names), weights)),
        len(preferences) - len(pairs),
    )


def fit_hinge(gaps: Floats, margin: float = 1.0, ridge: float = 0.0) -> Floats:
    """Weights (k,) that make mean max(0, margin - gaps w) + ridge |w|^2 / 2 small.

    `gaps` (n, k) are the features of the better answers less those of the worse ones. Adam from
    zero weights, 1,000 steps at rate 0.01 as in the paper; the best weights seen are kept.
    """
    weights, mean, square = (np.zeros(gaps.shape[1]) for _ in range(3))
    best, least = weights, np.inf
    for step in range(1, ITERATIONS + 1):
        short = margin - gaps @ weights
        loss = float(np.maximum(short, 0).mean() + ridge * weights @ weights / 2)
        if loss < least:
            best, least = weights, loss
        slope = ridge * weights - (gaps * (short > 0)[:, None]).mean(0)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        scaled = (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        weights = weights - RATE * scaled
    return best


def _table(judgements: Iterable[Judgement]) -> tuple[dict[str, dict[str, float]], set[str]]:
    """Answer to proposition to mean P(yes), and the answers that lack no value that applied."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    broken, seen = set(), set()
    for j in judgements:
        seen.add(j.subject)
        if j.score is not None and j.principle is not None:
            values[j.subject][j.principle].append(j.score)
        elif j.status != "not_applicable":
            broken.add(j.subject)
    table = {s: {name: fmean(v) for name, v in row.items()} for s, row in values.items()}
    return table, seen - broken


def _gaps(
    pairs: Sequence[Preference], table: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> Floats:
    def features(answer: str) -> list[float]:
        """The judged propositions of an answer, 0 where one was not judged."""
        return [table.get(answer, {}).get(name, 0.0) for name in names]

    rows = [np.subtract(features(p.chosen_id), features(p.rejected_id)) for p in pairs]
    return np.array(rows).reshape(len(pairs), len(names))


def _right(gaps: Floats, weights: Floats) -> float | None:
    return float(np.mean(gaps @ weights > 0)) if len(gaps) else None
