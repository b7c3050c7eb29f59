"""Line plots for pages whose content security policy allows no style in markup: the colours are
those of the style sheet, by class, and a picture takes about a millisecond."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

from rlaif.metrics.intervals import show_number

COLOURS = 6
WIDTH, HEIGHT = 340.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 8.0, 8.0, 24.0
NUDGE = 3.0
"""Units by which lines are moved sideways, so that their intervals do not hide one another."""


@dataclass(frozen=True, slots=True)
class Point:
    """A value at `x`, with the ends of its interval where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """The points of one run, arm or training, in order of `x`."""

    name: str
    points: Sequence[Point]


def colour_class(place: int) -> str:
    """The class of the line at a place: six colours, then the same with dashes."""
    return f"c{place % COLOURS}" + " dashed" * (place >= COLOURS)


def draw_lines(
    label: str,
    lines: Mapping[int, Line],
    names: Mapping[int, str] | None = None,
    par: float | None = None,
) -> Markup:
    """Lines by the place of their colour, as an `<svg>`. `label` is its accessible name, `names`
    are what the values of x are called, and `par` draws a line for reference."""
    points = [point for line in lines.values() for point in line.points]
    xs = [point.x for point in points]
    ys = [y for p in points for y in (p.y, p.low, p.high, par) if y is not None]
    frame = _Frame(min(xs), max(xs), min(ys), max(ys), marked=names is not None)
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" '
        f'aria-label="{escape(label)}">',
        *frame.axes(names),
    ]
    if par is not None:
        y = frame.y(par)
        parts.append(f'<path class="par" d="M{LEFT:g},{y:.1f}H{WIDTH - RIGHT:g}"/>')
    for number, (place, line) in enumerate(lines.items()):
        shift = NUDGE * (number - (len(lines) - 1) / 2) if names is not None else 0.0
        parts += _draw_line(frame, line, colour_class(place), shift)
    return Markup("".join([*parts, "</svg>"]))


class _Frame:
    """The axes: where values are in the picture."""

    def __init__(self, left: float, right: float, low: float, high: float, marked: bool):
        self.ticks = _tick_values(low, high, 4)
        self.low, self.high = min(low, self.ticks[0]), max(high, self.ticks[-1])
        # Rounds stand clear of the axis, steps begin at it.
        room = 0.3 if marked else 0.0
        self.left, self.right = left - room, right + room
        self.ends = (left, right)

    def x(self, value: float) -> float:
        """Units from the left."""
        span = (self.right - self.left) or 1.0
        return LEFT + (value - self.left) / span * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Units from the top."""
        span = (self.high - self.low) or 1.0
        return HEIGHT - BOTTOM - (value - self.low) / span * (HEIGHT - TOP - BOTTOM)

    def axes(self, names: Mapping[int, str] | None) -> list[str]:
        """The grid and the names of its values."""
        found = []
        for value in self.ticks:
            y = self.y(value)
            found.append(f'<path class="grid" d="M{LEFT:g},{y:.1f}H{WIDTH - RIGHT:g}"/>')
            text = escape(f"{value:.6g}".replace("-", "\u2212"))
            found.append(f'<text class="end" x="{LEFT - 5:g}" y="{y + 3:.1f}">{text}</text>')
        if names is None:
            marks = {value: f"{value:g}" for value in _tick_values(*self.ends, 5, whole=True)}
        else:
            every = max(1, -(-len(names) // 7))
            marks = {float(x): name for x, name in list(names.items())[::every]}
        for value, name in marks.items():
            if self.left <= value <= self.right:
                found.append(
                    f'<text class="middle" x="{self.x(value):.1f}" y="{HEIGHT - 6:g}">'
                    f"{escape(name[:14])}</text>"
                )
        return found


def _tick_values(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    if low == high:
        low, high = low - 0.5, high + 0.5
    return [float(v) for v in MaxNLocator(nbins=count, integer=whole).tick_values(low, high)]


def _draw_line(frame: _Frame, line: Line, colour: str, shift: float) -> list[str]:
    found = [f'<g class="{colour}">']
    places = [(frame.x(p.x) + shift, frame.y(p.y)) for p in line.points]
    if len(places) > 1:
        path = "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
        found.append(f'<path class="line" d="M{path}"/>')
    few = len(places) <= 30
    for (x, y), point in zip(places, line.points, strict=True):
        if point.low is not None and point.high is not None:
            low, high = frame.y(point.low), frame.y(point.high)
            found.append(f'<path class="bar" d="M{x:.1f},{low:.1f}V{high:.1f}"/>')
        if few:
            words = escape(f"{line.name}: {_show_point(point)}")
            found.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{words}</title></circle>')
    return [*found, "</g>"]


def _show_point(point: Point) -> str:
    text = show_number(point.y)
    if point.low is not None and point.high is not None:
        text += f" [{show_number(point.low)}, {show_number(point.high)}]"
    return text.replace("-", "\u2212")
