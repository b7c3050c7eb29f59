"""The intervals hold what they promise: the coverage benchmark, with fewer replicates."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from rlaif.metrics import ends
from rlaif.metrics.figure_rules import RULES

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import coverage  # noqa: E402
from coverage_parts.figures import FIGURES  # noqa: E402

VECTORISED = ["share", "rare", "mean", "rate", "skewed", "seeds"]
SAME_FORM = {"kappa_three_way": "kappa", "rewardbench": "rewardbench/"}
"""Figures that are computed as others are."""


@pytest.mark.parametrize("rule", VECTORISED)
def test_a_rule_covers_and_claims_no_more_than_it_may(rule: str) -> None:
    cells = list(coverage.measured((6, 16, 30), 500, [rule]))
    assert len(cells) >= 9
    assert [coverage.line_of(cell) for cell in cells if cell.faults] == []


@pytest.mark.parametrize("figure", ["kappa", "error_correlation", "difference"])
def test_figures_that_are_left_out_by_prompt_cover(figure: str) -> None:
    cells = list(coverage.measured((16,), 150, [figure]))
    assert [coverage.line_of(cell) for cell in cells if cell.faults] == []


def test_every_figure_of_the_product_is_tried() -> None:
    by_rule = coverage.figures_by_rule()
    assert {name for names in by_rule.values() for name in names} == {
        name for name, rule in RULES.items() if rule.of != "none"
    }
    own = set(by_rule) - set(VECTORISED)
    assert {SAME_FORM.get(name, name) for name in own} <= set(FIGURES)
    assert {rule.change for rule in RULES.values()} == {"mean", "rate"}


def test_the_rule_that_is_tried_is_told_from_worse_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Student's t of shares near 1 covers far too little, and a rule that never claims or is as
    wide as it likes is no better."""

    def students_t(mean: np.ndarray, square: np.ndarray, prompts: int, *rest: object) -> ends.Ends:
        return ends.t_ends(mean, np.sqrt(square), prompts - 1.0, 0.5)

    def wide(mean: np.ndarray, *rest: object) -> ends.Ends:
        whole = np.ones(mean.shape)
        return ends.Ends(mean, 0 * whole, whole, whole, whole, whole)

    monkeypatch.setattr(ends, "share_ends", students_t)
    failing = [c for c in coverage.measured((6, 16), 500, ["share"]) if c.faults]
    assert {"0/1, 0.95", "one prompt dominates"} <= {cell.data for cell in failing}
    monkeypatch.setattr(ends, "share_ends", wide)
    cells = [c for c in coverage.measured((30,), 500, ["share"]) if c.faults]
    assert any("width" in fault for cell in cells for fault in cell.faults)


def test_exceptions_are_of_what_is_tried() -> None:
    tried = {(rule, name) for rule, name, _ in coverage.tried(None)}
    assert set(coverage.EXCEPTIONS) | set(coverage.WIDE) <= tried
