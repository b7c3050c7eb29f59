"""Which figures of a page may be claimed: Holm and Benjamini-Hochberg against statsmodels."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from rlaif.metrics.claims import benjamini_hochberg, find_claims, holm
from rlaif.metrics.intervals import IntervalJson

P_VALUES = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=30)


def _named(values: list[float]) -> dict[str, float]:
    return {f"m{i:02d}": p for i, p in enumerate(values)}


@given(P_VALUES)
@settings(max_examples=40, deadline=None)
def test_holm_is_that_of_statsmodels(values: list[float]) -> None:
    ours, theirs = holm(_named(values)), multipletests(values, method="holm")[1]
    assert np.allclose([ours[name] for name in _named(values)], theirs)


@given(P_VALUES)
@settings(max_examples=40, deadline=None)
def test_benjamini_hochberg_is_that_of_statsmodels(values: list[float]) -> None:
    ours, theirs = benjamini_hochberg(_named(values)), multipletests(values, method="fdr_bh")[1]
    assert np.allclose([ours[name] for name in _named(values)], theirs)


def _figure(p: float | None, n: int = 40) -> IntervalJson:
    found: IntervalJson = {"mean": 0.1, "low": 0.01, "high": 0.19, "n": n}
    return found if p is None else {**found, "p": p}


def test_primaries_are_claimed_by_holm_and_others_only_marked() -> None:
    """0.02 and 0.04: Holm's are 2 x 0.02 and the larger of that and 0.04, both below 5%; with a
    third of 0.5 they are 0.06 and 0.08, and nothing is claimed."""
    two = find_claims({"a": _figure(0.02), "b": _figure(0.04)}, {})
    assert (two.standing["a"], two.standing["b"]) == ("claimed", "claimed")
    three = find_claims({"a": _figure(0.02), "b": _figure(0.04), "c": _figure(0.5)}, {})
    assert set(three.standing.values()) == {"none"}
    many = {f"x{i}": _figure(0.04) for i in range(1)} | {f"y{i}": _figure(0.5) for i in range(19)}
    assert set(find_claims({}, many).standing.values()) == {"none"}
    clear = find_claims({}, {**many, "z": _figure(0.0001)})
    assert clear.standing["z"] == "exploratory"
    assert (clear.explored, clear.by_chance) == (21, 0.05 * 21)


def test_few_prompts_and_figures_without_a_test_are_in_no_family() -> None:
    found = find_claims({"a": _figure(0.001, n=5), "b": _figure(None)}, {"c": _figure(0.0001, n=4)})
    assert set(found.standing.values()) == {"none"}
    assert (found.adjusted, found.explored) == ({}, 0)
