"""Figures of given pairs: agreement of labels, and of the implicit reward with a label."""

from __future__ import annotations

import random

import pytest
from sklearn.metrics import cohen_kappa_score

from rlaif.core.labelled import GivenPair
from rlaif.metrics.agreement import Choices, label_agreement, reward_accuracy

PAIRS = [GivenPair(f"l_{n}", f"p_{n // 2}", f"x_{n}a", f"x_{n}b") for n in range(4)]


def choices(labels: list[bool]) -> Choices:
    return {f"l_{n}": (f"p_{n // 2}", label) for n, label in enumerate(labels)}


def test_agreement_and_kappa_are_what_scikit_learn_says() -> None:
    rng = random.Random(2)
    one = [rng.random() < 0.4 for _ in range(60)]
    other = [label if rng.random() < 0.7 else not label for label in one]
    found = label_agreement(choices(one), choices(other))
    same = sum(a == b for a, b in zip(one, other, strict=True)) / 60
    assert found["agreement"]["mean"] == pytest.approx(same, abs=1e-12)
    assert found["kappa"]["mean"] == pytest.approx(cohen_kappa_score(one, other), abs=1e-9)
    for figure in found.values():
        assert figure["low"] < figure["mean"] < figure["high"]
        assert figure["n"] == 60
    assert label_agreement(choices(other), choices(one))["agreement"] == found["agreement"]


def test_one_sided_labels_have_no_kappa() -> None:
    found = label_agreement(choices([True] * 8), choices([True] * 8))
    assert set(found) == {"agreement"}
    assert found["agreement"]["mean"] == 1.0


def test_labels_without_a_pair_in_common_have_no_figure() -> None:
    assert label_agreement(choices([True]), {"l_9": ("p_9", True)}) == {}


def test_reward_accuracy_counts_gains_and_not_likelihoods() -> None:
    old = {"x_0a": -50.0, "x_0b": -10.0, "x_1a": -10.0, "x_1b": -10.0, "x_2a": -5.0, "x_2b": -5.0}
    new = {"x_0a": -40.0, "x_0b": -12.0, "x_1a": -11.0, "x_1b": -9.0, "x_2a": -6.0, "x_2b": -6.0}
    verdicts = {"l_0": 0.9, "l_1": 1.0, "l_2": 0.2, "l_3": 1.0}
    # l_0 right and l_1 wrong (one prompt), l_2 gained alike, l_3 has no log-probs.
    assert reward_accuracy(PAIRS, new, old, verdicts) == {"p_0": 0.5, "p_1": 0.5}
    turned = {name: 1.0 - p for name, p in verdicts.items()} | {"l_0": 0.5}
    assert reward_accuracy(PAIRS, new, old, turned) == {"p_0": 1.0, "p_1": 0.5}
    assert reward_accuracy(PAIRS, new, old, {}) == {}
