"""How good each annotator is without a key: Dawid and Skene 1979, by expectation maximisation.

Every item has one true class; annotator k gives class m to an item of true class l with probability
pi_k[l, m], independently of the other annotators. Classes of items and errors of annotators are
fitted together. With few votes the plain maximum sets error rates to 0 or 1: a row of pi_k is drawn
towards what all annotators do by `PRIOR` votes, as by a Dirichlet prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlaif.metrics.weighted import Floats, Ints

PRIOR = 2.0
STEPS, CLOSE = 200, 1e-7


@dataclass(frozen=True, slots=True)
class DawidSkene:
    """What was fitted: `classes`, (items, classes), P(true class) of each item; `shares`,
    (classes,), of all items; `confusion`, (people, classes, classes), P(given | true)."""

    classes: Floats
    shares: Floats
    confusion: Floats


def fit_dawid_skene(
    person: Ints, item: Ints, given: Ints, classes: int, prior: float = PRIOR
) -> DawidSkene:
    """Fit votes, each (n,): codes of the person and the item from 0, and the class that was given.

    It begins with the shares of votes of each item. Every code up to the largest needs a vote.
    """
    people, items = person.max(initial=-1) + 1, item.max(initial=-1) + 1
    votes = np.zeros((people, items, classes))
    np.add.at(votes, (person, item, given), 1.0)
    found = votes.sum(axis=0)
    found = found / found.sum(axis=1, keepdims=True)
    for _ in range(STEPS):
        shares, confusion = _fit_errors(votes, found, prior)
        newer = _fit_classes(votes, shares, confusion)
        step = np.abs(newer - found).max(initial=0.0)
        found = newer
        if step < CLOSE:
            break
    return DawidSkene(found, *_fit_errors(votes, found, prior))


def _fit_errors(votes: Floats, classes: Floats, prior: float) -> tuple[Floats, Floats]:
    """The share of each true class, and everybody's confusion of them."""
    counts = np.einsum("il,kim->klm", classes, votes)
    pooled = counts.sum(axis=0)
    whole = pooled.sum(axis=1, keepdims=True)
    size = votes.shape[2]
    pooled = np.where(whole > 0, pooled / np.where(whole > 0, whole, 1.0), 1.0 / size)
    drawn = counts + prior * pooled
    whole = drawn.sum(axis=2, keepdims=True)
    confusion = np.where(whole > 0, drawn / np.where(whole > 0, whole, 1.0), pooled)
    return classes.mean(axis=0), confusion


def _fit_classes(votes: Floats, shares: Floats, confusion: Floats) -> Floats:
    """P(true class) of each item, given everybody's errors."""
    tiny = np.finfo(np.float64).tiny
    score = np.log(np.maximum(shares, tiny)) + np.einsum(
        "kim,klm->il", votes, np.log(np.maximum(confusion, tiny))
    )
    grown = np.exp(score - score.max(axis=1, keepdims=True))
    total: Floats = grown / grown.sum(axis=1, keepdims=True)
    return total
