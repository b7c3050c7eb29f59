"""The draw of items that people are asked about."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.metrics.active_choice import inclusion_probabilities, is_drawn, item_uncertainty

UNCERTAINTIES = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def test_golden_values() -> None:
    # Sizes .1, .5, 1 add up to 1.6, and no share of 1.5 is above 1: c = 1.5 / 1.6 = .9375.
    assert inclusion_probabilities([0, 0.4, 0.9], 1.5) == pytest.approx([0.09375, 0.46875, 0.9375])
    # Of a budget of 2, 1.1 of 1.4 would be 1.57: the last is drawn surely, and .1, .1, .1 share 1.
    assert inclusion_probabilities([0, 0, 0, 1], 2) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1])
    # Of .4, 1.1, .6 and .9 the second is drawn surely; 2.2 / 1.9 of .9 is above 1, so the last is
    # too, and .4 and .6 share 1.2.
    assert inclusion_probabilities([0.3, 1, 0.5, 0.8], 3.2) == pytest.approx([0.48, 1, 0.72, 1])
    assert inclusion_probabilities([0.2, 0.7], 5).tolist() == [1, 1]


@given(UNCERTAINTIES, st.floats(0.01, 1))
def test_the_expected_count_is_the_budget(u: list[float], share: float) -> None:
    budget = share * len(u)
    chances = inclusion_probabilities(u, budget)
    assert chances.sum() == pytest.approx(budget)
    assert (chances > 0).all() and (chances <= 1).all()
    # Whoever is not sure to be drawn has a chance in proportion to its size.
    sizes = np.asarray(u) + 0.1
    scale = (chances / sizes)[chances < 1]
    assert scale.size == 0 or scale.max() == pytest.approx(scale.min())
    assert scale.size == 0 or (sizes[chances == 1] * scale.max() >= 1 - 1e-9).all()


@pytest.mark.parametrize(("u", "budget"), [([1.5], 1), ([-0.1], 1), ([float("nan")], 1), ([0], 0)])
def test_what_is_no_uncertainty_is_refused(u: list[float], budget: float) -> None:
    with pytest.raises(ValueError, match=r"uncertainties|budget"):
        inclusion_probabilities(u, budget)


def test_the_draw_is_by_seed_and_id() -> None:
    ids = [f"item {n}" for n in range(4000)]
    drawn = [name for name in ids if is_drawn(name, 0.25, 3)]
    # 1000 expected, with a standard deviation of 27.
    assert 890 < len(drawn) < 1110
    assert drawn == [name for name in ids if is_drawn(name, 0.25, 3)]
    assert drawn != [name for name in ids if is_drawn(name, 0.25, 4)]
    # With a larger probability, whoever was drawn is drawn still.
    assert set(drawn) <= {name for name in ids if is_drawn(name, 0.5, 3)}
    assert all(is_drawn(name, 1.0, 3) for name in ids)


def test_uncertainty_is_doubt_or_disagreement() -> None:
    assert item_uncertainty([]) is None
    assert item_uncertainty([("j", 0.5)]) == 1
    assert item_uncertainty([("j", 0.9)]) == pytest.approx(0.2)
    # Both are sure, and of opposite verdicts.
    assert item_uncertainty([("j", 1.0), ("k", 0.0)]) == 1
    # The two orders of one judge are one verdict: 0.5 of it.
    assert item_uncertainty([("j", 1.0), ("j", 0.0)]) == 1
    assert item_uncertainty([("j", 0.9), ("j", 0.7), ("k", 0.8)]) == pytest.approx(0.4)
