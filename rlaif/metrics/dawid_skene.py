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
STEPS, CLOSE = 100, 1e-5


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
    votes = _Votes(person, item, given, classes)
    found = votes.by_item(np.eye(classes)[given])
    found = found / found.sum(axis=1, keepdims=True)
    for _ in range(STEPS):
        newer = _fit_classes(votes, *_fit_errors(votes, found, prior))
        step = np.abs(newer - found).max(initial=0.0)
        found = newer
        if step < CLOSE:
            break
    return DawidSkene(found, *_fit_errors(votes, found, prior))


@dataclass(frozen=True, slots=True)
class _Votes:
    person: Ints
    item: Ints
    given: Ints
    classes: int

    def by_item(self, values: Floats) -> Floats:
        """The sums over each item's votes of `values`, (n, classes)."""
        total = np.zeros((self.item.max(initial=-1) + 1, self.classes))
        np.add.at(total, self.item, values)
        return total

    def by_confusion(self, values: Floats) -> Floats:
        """The sums of `values`, (n, classes), of each person and given class, (people, classes,
        given)."""
        total = np.zeros((self.person.max(initial=-1) + 1, self.classes, self.classes))
        # By person and given class, and then with the two classes in their places.
        np.add.at(total, (self.person, self.given), values)
        return total.transpose(0, 2, 1)


def _fit_errors(votes: _Votes, classes: Floats, prior: float) -> tuple[Floats, Floats]:
    """The share of each true class, and everybody's confusion of them."""
    counts = votes.by_confusion(classes[votes.item])
    uniform = np.full((votes.classes, votes.classes), 1.0 / votes.classes)
    pooled = _normalise_rows(counts.sum(axis=0), uniform)
    return classes.mean(axis=0), _normalise_rows(counts + prior * pooled, pooled)


def _normalise_rows(counts: Floats, empty: Floats) -> Floats:
    """Rows that add up to 1; a row of zeros is that of `empty`."""
    whole = counts.sum(axis=-1, keepdims=True)
    found: Floats = np.where(whole > 0, counts / np.where(whole > 0, whole, 1.0), empty)
    return found


def _fit_classes(votes: _Votes, shares: Floats, confusion: Floats) -> Floats:
    """P(true class) of each item, given everybody's errors."""
    tiny = np.finfo(np.float64).tiny
    said = np.log(np.maximum(confusion[votes.person, :, votes.given], tiny))
    score = np.log(np.maximum(shares, tiny)) + votes.by_item(said)
    grown = np.exp(score - score.max(axis=1, keepdims=True))
    total: Floats = grown / grown.sum(axis=1, keepdims=True)
    return total
