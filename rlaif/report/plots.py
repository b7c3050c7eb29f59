"""Plots as inline SVG: no display, no network, the same bytes for the same data."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import MaxNLocator

from rlaif.metrics.intervals import IntervalJson

Curve = Sequence[tuple[int, IntervalJson]]

# The page's style sheet owns the colours (and dark mode): these stand-ins become CSS variables.
_INK, _FAINT = "#010203", "#010204"
_LINES = tuple(f"#0102{20 + place:02x}" for place in range(6))
_VARIABLES = {_INK: "--plot-ink", _FAINT: "--plot-faint"} | {
    colour: f"--line-{place}" for place, colour in enumerate(_LINES)
}
_STYLE = {
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 9.0,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
}


def draw_curve(
    slug: str,
    label: str,
    lines: Mapping[Hashable, Curve],
    names: Mapping[int, str],
    par: float | None = None,
) -> Markup:
    """One metric over rounds: a line per seed or arm with interval bars. Returns an `<svg>`.

    `lines` maps it to (round, interval) in round order, and `names` are what the rounds' models are
    called. `slug` must be unique in the page and `par` draws a reference line. `label` is the
    accessible name.
    """
    with _open_figure(slug, (3.4, 2.0)) as figure:
        axes = figure.add_subplot()
        for place, points in enumerate(lines.values()):
            # Nudged sideways, so that the bars of several lines do not hide one another.
            shift = 0.06 * (place - (len(lines) - 1) / 2)
            _draw_curve(axes, points, _LINES[place % len(_LINES)], shift)
        if par is not None:
            axes.axhline(par, color=_INK, linewidth=0.8, linestyle="--", zorder=1)
        drawn = [point for points in lines.values() for point in points]
        if all(value["mean"] == 0.0 and not any(_interval_ends(value)) for _, value in drawn):
            # Around a line of zeros matplotlib would show values that no share can have.
            axes.set_ylim(-0.05, 1.0)
        _frame_axes(axes, {n: names[n] for n in sorted({number for number, _ in drawn})})
        return _render_svg(figure, slug, label)


def draw_by_labels(
    slug: str,
    label: str,
    lines: Mapping[str, Sequence[tuple[float, IntervalJson]]],
    par: float | None = None,
) -> Markup:
    """One metric against the number of labels, on a logarithmic axis: a line per labeller with
    interval bars. Returns an `<svg>`. `slug`, `label` and `par` as in `draw_curve`."""
    counts = sorted({count for points in lines.values() for count, _ in points})
    ratio = counts[-1] / counts[0]
    with _open_figure(slug, (3.4, 2.0)) as figure:
        axes = figure.add_subplot()
        for place, points in enumerate(lines.values()):
            # Nudged sideways, as in `draw_curve`: by a fiftieth of the axis.
            shift = ratio ** (0.02 * (place - (len(lines) - 1) / 2))
            moved = [(count * shift, value) for count, value in points]
            _draw_curve(axes, moved, _LINES[place % len(_LINES)], 0.0)
        if par is not None:
            axes.axhline(par, color=_INK, linewidth=0.8, linestyle="--", zorder=1)
        _draw_grid(axes, "y")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.set_xscale("log")
        axes.set_xticks(counts, [f"{count:g}" for count in counts])
        axes.set_xticks([], minor=True)
        axes.set_xlim(counts[0] * ratio**-0.08, counts[-1] * ratio**0.08)
        axes.set_xlabel("labels")
        return _render_svg(figure, slug, label)


def draw_rollouts(
    slug: str,
    label: str,
    points: Sequence[tuple[float, float]],
    limits: Sequence[float] = (),
    whole: bool = True,
) -> Markup:
    """One figure of a training over its rollouts, with its limits, or over another axis, which is
    then not `whole`. Returns an `<svg>`."""
    with _open_figure(slug, (3.4, 2.0)) as figure:
        axes = figure.add_subplot()
        x, y = zip(*points, strict=True)
        mark = "o" if len(points) < 20 else ""
        axes.plot(x, y, color=_LINES[0], linewidth=1.6, marker=mark, markersize=4.0)
        for limit in limits:
            axes.axhline(limit, color=_INK, linewidth=0.8, linestyle="--", zorder=1)
        _draw_grid(axes, "y")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=whole))
        return _render_svg(figure, slug, label)


def draw_proxy(
    slug: str,
    label: str,
    proxy: Sequence[tuple[float, IntervalJson]],
    gold: Sequence[tuple[float, IntervalJson]],
    axis: str,
    peak: tuple[float, float] | None,
) -> Markup:
    """The proxy above gold, each of its own scale, over the same axis with interval bars; `peak`
    shades where gold peaks. Returns an `<svg>`."""
    with _open_figure(slug, (3.4, 3.2)) as figure:
        above, below = figure.subplots(2, 1, sharex=True)
        sides = ((above, "proxy", proxy, _LINES[1]), (below, "gold", gold, _LINES[0]))
        for axes, name, points, colour in sides:
            # What is drawn by KL goes from left to right, whatever the order of the rounds.
            _draw_curve(axes, sorted(points, key=lambda point: point[0]), colour, 0.0)
            _draw_grid(axes, "y")
            axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
            axes.set_ylabel(name)
        if peak is not None:
            least = (proxy[-1][0] - proxy[0][0]) * 0.01
            below.axvspan(peak[0] - least, peak[1] + least, color=_FAINT, alpha=0.6, zorder=0)
        below.set_xlabel(axis)
        return _render_svg(figure, slug, label)


def draw_arms(
    slug: str, label: str, points: Mapping[str, IntervalJson], par: float | None = None
) -> Markup:
    """One metric, a row for each arm, and M0, with its interval. Returns an `<svg>`.

    An arm has the colour of its line in `draw_curve`; `par` as there.
    """
    names = [name for name in points if name != "M0"]
    colours = {name: _LINES[place % len(_LINES)] for place, name in enumerate(names)}
    with _open_figure(slug, (3.4, 0.45 + 0.3 * len(points))) as figure:
        axes = figure.add_subplot()
        for place, (name, interval) in enumerate(points.items()):
            colour = colours.get(name, _INK)
            axes.hlines(place, *_interval_ends(interval), color=colour, linewidth=1.6, alpha=0.55)
            axes.plot([interval["mean"]], [place], color=colour, marker="o", markersize=5.0)
        if par is not None:
            axes.axvline(par, color=_INK, linewidth=0.8, linestyle="--", zorder=1)
        axes.set_yticks(range(len(points)), list(points))
        axes.set_ylim(len(points) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        _draw_grid(axes, "x")
        return _render_svg(figure, slug, label)


def draw_distributions(
    slug: str, label: str, groups: Mapping[str, Sequence[float]], unit: str, whole: bool = False
) -> Markup:
    """One histogram per group on a shared axis, a tick at each median. Returns an `<svg>`.

    `groups` maps a model's name to its values; `whole` marks values that are counts.
    """
    filled = [name for name, values in groups.items() if len(values) > 0]
    everything = np.concatenate([np.asarray(groups[name], dtype=np.float64) for name in filled])
    edges = _bin_edges(everything, whole)
    with _open_figure(slug, (3.4, 0.55 + 0.5 * len(filled))) as figure:
        rows = figure.subplots(len(filled), 1, sharex=True, squeeze=False)[:, 0]
        for name, axes in zip(filled, rows, strict=True):
            values = np.asarray(groups[name], dtype=np.float64)
            axes.hist(values, bins=edges, histtype="stepfilled", color=_LINES[0], alpha=0.75)
            axes.axvline(float(np.median(values)), color=_INK, linewidth=1.4)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            axes.spines["bottom"].set_visible(False)
            axes.set_ylabel(name, rotation=0, ha="right", va="center")
        rows[-1].set_xlabel(unit)
        rows[-1].spines["bottom"].set_visible(True)
        return _render_svg(figure, slug, label)


def draw_forest(
    slug: str, label: str, rows: Sequence[tuple[str, IntervalJson, bool]], par: float
) -> Markup:
    """One line per (name, interval, faint), the first on top, beside a reference line at `par`.
    Returns an `<svg>`."""
    with _open_figure(slug, (6.8, 0.6 + 0.26 * len(rows))) as figure:
        axes = figure.add_subplot()
        axes.axvline(par, color=_INK, linewidth=0.8, linestyle="--", zorder=1)
        for place, (_, value, faint) in enumerate(rows):
            colour = _LINES[5] if faint else _LINES[0]
            axes.hlines(-place, *_interval_ends(value), color=colour, linewidth=1.6, alpha=0.6)
            axes.plot(value["mean"], -place, color=colour, marker="o", markersize=4.5)
        axes.set_yticks([-place for place in range(len(rows))], [name for name, _, _ in rows])
        axes.set_ylim(-len(rows) + 0.4, 0.6)
        _draw_grid(axes, "x")
        return _render_svg(figure, slug, label)


def draw_bars(slug: str, label: str, values: Mapping[str, float]) -> Markup:
    """One bar from 0 for each name, the first on top. Returns an `<svg>`."""
    with _open_figure(slug, (6.8, 0.5 + 0.26 * len(values))) as figure:
        axes = figure.add_subplot()
        places = [-place for place in range(len(values))]
        axes.barh(places, list(values.values()), height=0.6, color=_LINES[0])
        axes.axvline(0.0, color=_FAINT, linewidth=1.0, zorder=1)
        axes.set_yticks(places, list(values))
        axes.spines["left"].set_visible(False)
        return _render_svg(figure, slug, label)


def draw_reliability(slug: str, label: str, bins: Sequence[Mapping[str, float]]) -> Markup:
    """Of each bin (`prob`, `share` with its ends `low` and `high`, `n`) the share against the
    diagonal, larger dots for more pairs. Returns an `<svg>`."""
    probs, shares, low, high, counts = (
        np.asarray([b[key] for b in bins]) for key in ("prob", "share", "low", "high", "n")
    )
    with _open_figure(slug, (2.6, 2.4)) as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle="--", zorder=1)
        axes.plot(probs, shares, color=_LINES[0], linewidth=1.2, alpha=0.6)
        axes.vlines(probs, low, high, color=_LINES[0], linewidth=1.4, alpha=0.4)
        sizes = 12.0 + 60.0 * counts / counts.max()
        axes.scatter(probs, shares, s=sizes, color=_LINES[0], zorder=3)
        axes.set_xlim(-0.04, 1.04)
        axes.set_ylim(-0.04, 1.04)
        axes.set_xlabel("P(first) said by the judge")
        axes.set_ylabel("people chose the first")
        axes.grid(True)
        axes.set_axisbelow(True)
        return _render_svg(figure, slug, label)


def _interval_ends(value: IntervalJson) -> tuple[float, float]:
    """The ends of a value's bar: those of its interval, or twice its mean if it has none."""
    low, high = value["low"], value["high"]
    return (value["mean"], value["mean"]) if low is None or high is None else (low, high)


@contextmanager
def _open_figure(slug: str, size: tuple[float, float]) -> Iterator[Figure]:
    with context(["default", {**_STYLE, "svg.hashsalt": slug}]):
        yield Figure(figsize=size, layout="constrained")


def _draw_grid(axes: Axes, axis: Literal["x", "y"]) -> None:
    axes.grid(axis=axis)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)


def _draw_curve(
    axes: Axes, points: Sequence[tuple[float, IntervalJson]], colour: str, shift: float
) -> None:
    x = np.asarray([number + shift for number, _ in points], dtype=np.float64)
    mean = np.asarray([value["mean"] for _, value in points], dtype=np.float64)
    ends = np.asarray([_interval_ends(value) for _, value in points], dtype=np.float64)
    low, high = ends.reshape(-1, 2).T
    axes.vlines(x, low, high, color=colour, linewidth=1.4, alpha=0.55)
    axes.plot(x, mean, color=colour, linewidth=1.6, marker="o", markersize=4.0)


def _frame_axes(axes: Axes, names: Mapping[int, str]) -> None:
    _draw_grid(axes, "y")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    rounds = list(names)
    # As many as there is room for, at about 40 letters of this size.
    longest = max(len(name) for name in names.values())
    step = max(1, math.ceil(len(rounds) / 8), math.ceil(len(rounds) * (longest + 2) / 40))
    axes.set_xticks(rounds[::step], list(names.values())[::step])
    axes.set_xlim(rounds[0] - 0.4, rounds[-1] + 0.4)


def _bin_edges(values: np.ndarray[tuple[int], np.dtype[np.float64]], whole: bool) -> list[float]:
    low, high = float(values.min()), float(values.max())
    bins = 31
    if whole:
        width = math.ceil((high - low + 1) / bins)
        count = math.ceil((high - low + 1) / width)
        return [low - 0.5 + width * place for place in range(count + 1)]
    if low == high:
        low, high = low - 0.5, high + 0.5
    return [float(edge) for edge in np.linspace(low, high, bins + 1)]


def _render_svg(figure: Figure, slug: str, label: str) -> Markup:
    """The bare `<svg>` for a page: ids made unique, colours left to the style sheet."""
    buffer = io.StringIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{slug}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{slug}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{slug}-\1"', body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    # The page sets the typeface, and matplotlib's rule for `*` would reach the whole page.
    body = re.sub(r"font-family: [^;\"]*;?", "", body)
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]+"', body)
    view = box.group(0) if box else ""
    opening = f'<svg {view} role="img" aria-label="{escape(label)}">'
    return Markup(opening + body[body.index(">") + 1 :].strip())
