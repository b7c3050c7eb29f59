"""What is drawn: the values, places, colours and lines of a figure, read from its axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from rlaif.report import plots
from rlaif.report.plots import _INK, _LINES

Drawn = Callable[..., list[Axes]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """`drawn(FUNCTION, ...)`: the axes of the figure that the function draws."""
    figures: list[Figure] = []
    render = plots._render_svg

    def keep_figure(figure: Figure, slug: str, label: str) -> Any:
        figures.append(figure)
        return render(figure, slug, label)

    monkeypatch.setattr(plots, "_render_svg", keep_figure)

    def draw(function: Callable[..., Any], *given: Any, **more: Any) -> list[Axes]:
        svg = function("slug", "a label", *given, **more)
        assert svg.startswith("<svg ") and 'aria-label="a label"' in svg
        return figures.pop().axes

    return draw


def interval(mean: float, half: float = 0.1) -> dict[str, Any]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 9}


def bars(axes: Axes) -> list[tuple[str, list[list[float]]]]:
    """Each row of interval bars: its colour, and the ends of each bar."""
    found = [one for one in axes.collections if isinstance(one, LineCollection)]
    return [
        (to_hex(one.get_colors()[0]), np.round([s.ravel() for s in one.get_segments()], 9).tolist())
        for one in found
    ]


def marks(axes: Axes) -> list[tuple[str, list[float], list[float]]]:
    """Colour and places of each line with marks."""
    return [
        (
            line.get_color(),
            [float(x) for x in line.get_xdata()],
            [float(y) for y in line.get_ydata()],
        )
        for line in axes.lines
        if line.get_marker() == "o"
    ]


def dashed(axes: Axes) -> list[tuple[list[float], list[float]]]:
    return [
        ([float(x) for x in line.get_xdata()], [float(y) for y in line.get_ydata()])
        for line in axes.lines
        if line.get_linestyle() == "--"
    ]


def test_a_curve_has_a_line_of_its_own_colour_for_each_arm_and_its_bars(drawn: Drawn) -> None:
    lines = {
        "a": [(0, interval(0.2)), (1, interval(0.4, 0.2))],
        "b": [(1, {"mean": 0.6, "low": None, "high": None, "n": 1})],
    }
    (axes,) = drawn(plots.draw_curve, lines, {0: "M0", 1: "M1", 2: "M2"}, par=0.5)
    assert [(c, y) for c, _, y in marks(axes)] == [(_LINES[0], [0.2, 0.4]), (_LINES[1], [0.6])]
    assert [np.round(x, 9).tolist() for _, x, _ in marks(axes)] == [[-0.03, 0.97], [1.03]]
    assert bars(axes) == [
        (_LINES[0], [[-0.03, 0.1, -0.03, 0.3], [0.97, 0.2, 0.97, 0.6]]),
        (_LINES[1], [[1.03, 0.6, 1.03, 0.6]]),
    ]
    assert [y for _, y in dashed(axes)] == [[0.5, 0.5]]
    # Rounds that no line has are not named.
    assert [label.get_text() for label in axes.get_xticklabels()] == ["M0", "M1"]


def test_only_a_curve_of_nothing_but_zeros_has_the_scale_of_shares(drawn: Drawn) -> None:
    zero = interval(0.0, 0.0)
    (axes,) = drawn(plots.draw_curve, {"": [(0, zero), (1, zero)]}, {0: "M0", 1: "M1"})
    assert axes.get_ylim() == (-0.05, 1.0)
    for other in (interval(30.0), {**zero, "high": 3.0}):
        (axes,) = drawn(plots.draw_curve, {"": [(0, zero), (1, other)]}, {0: "M0", 1: "M1"})
        assert axes.get_ylim()[1] > 2.0


def test_curves_over_labels_name_the_counts_of_all_lines(drawn: Drawn) -> None:
    lines = {
        "ai": [(10, interval(0.2)), (1000, interval(0.3))],
        "human": [(100, interval(0.4))],
    }
    (axes,) = drawn(plots.draw_by_labels, lines, par=0.5)
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "100", "1000"]
    # Moved aside by a hundredth of the axis on a scale of 100: 100 ** -0.01 and 100 ** 0.01.
    (_, ai, means), (colour, human, _) = marks(axes)
    assert (colour, means) == (_LINES[1], [0.2, 0.3])
    assert np.allclose(ai, [10 * 100**-0.01, 1000 * 100**-0.01])
    assert np.allclose(human, [100 * 100**0.01])
    assert [y for _, y in dashed(axes)] == [[0.5, 0.5]]
    low, high = axes.get_xlim()
    assert np.allclose([low, high], [10 * 100**-0.08, 1000 * 100**0.08])


def test_rollouts_are_drawn_in_order_with_their_limits(drawn: Drawn) -> None:
    (axes,) = drawn(plots.draw_rollouts, [(1, 0.5), (2, 0.75)], (0.25, 0.9))
    assert marks(axes) == [(_LINES[0], [1.0, 2.0], [0.5, 0.75])]
    assert [y for _, y in dashed(axes)] == [[0.25, 0.25], [0.9, 0.9]]


def test_an_arm_has_the_colour_of_its_curve_and_m0_none(drawn: Drawn) -> None:
    points = {"M0": interval(0.1), "a": interval(0.5), "b": interval(0.7, 0.2)}
    (axes,) = drawn(plots.draw_arms, points, par=0.5)
    assert marks(axes) == [
        (_INK, [0.1], [0.0]),
        (_LINES[0], [0.5], [1.0]),
        (_LINES[1], [0.7], [2.0]),
    ]
    assert bars(axes) == [
        (_INK, [[0.0, 0.0, 0.2, 0.0]]),
        (_LINES[0], [[0.4, 1.0, 0.6, 1.0]]),
        (_LINES[1], [[0.5, 2.0, 0.9, 2.0]]),
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["M0", "a", "b"]
    # The first is on top.
    assert axes.get_ylim() == (2.5, -0.5)
    assert [x for x, _ in dashed(axes)] == [[0.5, 0.5]]


def test_a_distribution_has_its_median_and_one_axis_for_all(drawn: Drawn) -> None:
    groups = {"M0": [1.0, 2.0, 30.0], "none": [], "M1": [5.0, 7.0]}
    first, second = drawn(plots.draw_distributions, groups, "words", whole=True)
    medians = [[float(x) for x in axes.lines[0].get_xdata()] for axes in (first, second)]
    assert medians == [[2.0, 2.0], [6.0, 6.0]]
    assert [axes.get_ylabel() for axes in (first, second)] == ["M0", "M1"]
    assert (first.get_xlabel(), second.get_xlabel()) == ("", "words")
    assert first.get_xlim() == second.get_xlim()


def test_a_forest_has_its_first_row_on_top_and_faint_rows_apart(drawn: Drawn) -> None:
    rows = [("strong", interval(0.7), False), ("weak", interval(0.4, 0.2), True)]
    (axes,) = drawn(plots.draw_forest, rows, 0.5)
    assert marks(axes) == [(_LINES[0], [0.7], [0.0]), (_LINES[5], [0.4], [-1.0])]
    assert bars(axes) == [
        (_LINES[0], [[0.6, 0.0, 0.8, 0.0]]),
        (_LINES[5], [[0.2, -1.0, 0.6, -1.0]]),
    ]
    assert [x for x, _ in dashed(axes)] == [[0.5, 0.5]]
    names = dict(
        zip(axes.get_yticks(), (t.get_text() for t in axes.get_yticklabels()), strict=True)
    )
    assert names == {0: "strong", -1: "weak"}


def test_bars_are_as_long_as_their_values(drawn: Drawn) -> None:
    (axes,) = drawn(plots.draw_bars, {"one": 0.25, "two": -0.5})
    lengths = [
        (patch.get_width(), patch.get_y() + patch.get_height() / 2) for patch in axes.patches
    ]
    assert [(w, round(y, 9)) for w, y in lengths] == [(0.25, 0.0), (-0.5, -1.0)]
    names = dict(
        zip(axes.get_yticks(), (t.get_text() for t in axes.get_yticklabels()), strict=True)
    )
    assert names == {0: "one", -1: "two"}


def test_a_reliability_has_its_bins_against_the_diagonal(drawn: Drawn) -> None:
    bins = [
        {"prob": 0.2, "share": 0.3, "low": 0.1, "high": 0.4, "n": 5},
        {"prob": 0.8, "share": 0.6, "low": 0.5, "high": 0.9, "n": 10},
    ]
    (axes,) = drawn(plots.draw_reliability, bins)
    assert dashed(axes) == [([0.0, 1.0], [0.0, 1.0])]
    assert bars(axes)[0] == (_LINES[0], [[0.2, 0.1, 0.2, 0.4], [0.8, 0.5, 0.8, 0.9]])
    dots = axes.collections[-1]
    assert dots.get_offsets().tolist() == [[0.2, 0.3], [0.8, 0.6]]
    assert dots.get_sizes().tolist() == [42.0, 72.0]
