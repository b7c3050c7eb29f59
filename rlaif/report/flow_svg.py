"""The picture of a `Flow`: boxes by stage from top to bottom, drawn as SVG by hand. No script, no
font and nothing from elsewhere is in it, and the same flow gives the same bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup, escape

from rlaif.report.flow import Edge, Flow, Node, Stage
from rlaif.report.flow_style import TIPS, make_style
from rlaif.report.layout import Layout, Line, lay_out
from rlaif.report.textwidth import text_width, wrap_text

TITLE, TEXT, SMALL = 13.0, 11.0, 10.0
"""Sizes of type: of a box's title, of its lines, and of what stands beside lines."""
LEADING, PAD = 15.0, 9.0
NARROWEST, WIDEST_TEXT = 110.0, 214.0
FRAME, HEAD = 16.0, 30.0
"""The space within a stage's frame, and for its heading."""
STUB, BEND, TRACK = 17.0, 28.0, 8.0
"""Between two layers: straight ends of lines, where they bend, and a line to the next round."""
GUTTER, BESIDE = 12.0, 104.0
"""Between lines that go up to the next round, and for their words."""
MARGIN = 12.0

_COLOURS = {"judge": "judge", "pair": "pairs", "label": "pairs", "evaluate": "figures"}
"""The colour of a box's edge by kind; those that make models have one too."""


@dataclass(frozen=True, slots=True)
class _Box:
    """A node's lines of text with their classes, and its size."""

    node: Node
    lines: tuple[tuple[str, str], ...]
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class _Ports:
    """Where lines leave and reach the boxes: distances from a box's left side, by edge."""

    leave: Mapping[Edge, float]
    reach: Mapping[Edge, float]
    words: Mapping[tuple[str, float], str]
    """What leaves a box at a place, by the box's name and the place."""


def draw_flow(flow: Flow, standalone: bool = False, styled: bool = True) -> Markup:
    """The picture as an `<svg>`. In a page it takes the page's colours; `standalone` it brings its
    own, for light and dark. Without `styled` it has no style of its own, for a page whose style
    sheet has `flow_style.RULES` and whose content security policy allows no other."""
    return _Picture(flow).draw(standalone, styled)


class _Picture:
    """A flow with the places of all that is drawn."""

    def __init__(self, flow: Flow):
        self.flow = flow
        self.nodes = {node.name: node for node in flow.nodes}
        self.forward, self.back = flow.forward, flow.returning
        lines = list(dict.fromkeys(map(_line_of, self.forward)))
        self.ports_out = _leaving(self.forward + self.back)
        self.boxes = {name: self._make_box(node) for name, node in self.nodes.items()}
        widths = {name: box.width for name, box in self.boxes.items()}
        groups = [[node.name for node in stage.nodes] for stage in flow.stages]
        self.layout: Layout = lay_out(groups, widths, lines)
        self.items = {i.name: i for layer in self.layout.layers for i in layer if i.box}
        self.head = self._head_lines()
        self._place_layers()
        self.ports = self._find_ports()

    def _make_box(self, node: Node) -> _Box:
        """As wide as its text, or as what stands beside the ends of its lines."""
        leaving = sum(_slot(what) for what in self.ports_out.get(node.name, {}))
        reaching = _reaching(self.forward + self.back, node.name)
        need = max(leaving, sum(_slot(_role(edges[0])) for edges in reaching)) + 4
        return _make_box(node, need)

    def _place_layers(self) -> None:
        """The heights of layers, with frames around stages and room for lines between them."""
        layers, stages = self.layout.layers, self.flow.stages
        stage_of = {n.name: number for number, stage in enumerate(stages) for n in stage.nodes}
        up, down = defaultdict(list), defaultdict(list)
        for edge in self.back:
            down[self.layout.layer_of[edge.source]].append(edge)
            up[self.layout.layer_of[edge.target]].append(edge)
        self.tracks_down = {e: n for own in down.values() for n, e in enumerate(own)}
        self.tracks_up = {e: n for own in up.values() for n, e in enumerate(own)}
        self.gutters = {edge: number for number, edge in enumerate(self.back)}
        self.top: list[float] = []
        self.bottom: list[float] = []
        self.frames: list[tuple[float, float]] = []
        y = MARGIN + self.head[1]
        for number, layer in enumerate(layers):
            stage = min(stage_of[item.name] for item in layer if item.box)
            first = not self.frames or len(self.frames) <= stage
            if first:
                self.frames.append((y, y))
                y += HEAD
            y += STUB + TRACK * len(up[number]) + (0 if first else BEND)
            self.top.append(y)
            y += max(self.boxes[item.name].height for item in layer if item.box)
            self.bottom.append(y)
            y += STUB + TRACK * len(down[number])
            self.frames[stage] = (self.frames[stage][0], y)
            following = layers[number + 1 :]
            if following and min(stage_of[i.name] for i in following[0] if i.box) > stage:
                y += BEND
        self.height = y + MARGIN
        inner = max((i.x + i.width / 2 for layer in layers for i in layer), default=0.0)
        self.inner = inner
        beside = GUTTER * len(self.back) + BESIDE if self.back else 0.0
        self.width = max(inner + 2 * FRAME + beside + 2 * MARGIN, self.head[2] + 2 * MARGIN)
        self.left = MARGIN + FRAME + max(0.0, (self.width - inner - beside) / 2 - MARGIN - FRAME)

    def _find_ports(self) -> _Ports:
        leave: dict[Edge, float] = {}
        reach: dict[Edge, float] = {}
        words: dict[tuple[str, float], str] = {}
        for name, box in self.boxes.items():
            groups = self.ports_out.get(name, {})
            at = (box.width - sum(map(_slot, groups))) / 2
            for what, edges in groups.items():
                place = at + _slot(what) / 2
                at += _slot(what)
                words[name, place] = what
                leave |= dict.fromkeys(edges, place)
            incoming = _reaching(self.forward + self.back, name)
            incoming.sort(key=lambda edges: fmean(map(self._comes_from, edges)))
            slots = [_slot(_role(edges[0])) for edges in incoming]
            at = (box.width - sum(slots)) / 2
            for edges, slot in zip(incoming, slots, strict=True):
                reach |= dict.fromkeys(edges, at + slot / 2)
                at += slot
        return _Ports(leave, reach, words)

    def _comes_from(self, edge: Edge) -> float:
        if edge.back:
            return float("inf")
        return self.layout.chains[_line_of(edge)][-2].x

    def _corner(self, name: str) -> tuple[float, float]:
        box, item = self.boxes[name], self.items[name]
        return self.left + item.x - box.width / 2, self.top[self.layout.layer_of[name]]

    def draw(self, standalone: bool, styled: bool) -> Markup:
        """The whole picture."""
        label = f"What {self.flow.name} does: {len(self.nodes)} steps from top to bottom"
        widest = f' style="max-width: {self.width:.0f}px"' if styled else ""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="flow" viewBox="0 0 {self.width:.0f} '
            f'{self.height:.0f}" width="{self.width:.0f}" height="{self.height:.0f}" role="img" '
            f'aria-label="{escape(label)}"{widest}>'
        )
        parts = [head, f"<title>{escape(label)}</title>", TIPS]
        if styled:
            parts.insert(2, make_style(standalone))
        if standalone:
            parts.append('<rect class="flow-paper" width="100%" height="100%"/>')
        parts += self.head[0]
        parts += [self._draw_frame(ends) for ends in self.frames]
        parts += [self._draw_line(edge) for edge in self.forward]
        parts += [self._draw_back(edge) for edge in self.back]
        parts += [self._draw_heading(*b) for b in zip(self.flow.stages, self.frames, strict=True)]
        parts += [part for box in self.boxes.values() for part in self._draw_box(box)]
        parts += list(self._draw_words())
        return Markup("\n".join([*parts, "</svg>"]))

    def _head_lines(self) -> tuple[list[str], float, float]:
        """The lines above the stages with their height and width."""
        width = max((i.x + i.width / 2 for layer in self.layout.layers for i in layer), default=0.0)
        room = max(width + 2 * FRAME, 420.0)
        lines = [("flow-name", self.flow.name, 16.0)]
        for heading in ("Prompts", "Models", "Seeds", "In all"):
            for fact in self.flow.facts.get(heading, ()):
                text = f"{heading}: {fact}"
                lines += [("flow-soft", line, TEXT) for line in wrap_text(text, room, TEXT)]
        for text in self.flow.unused:
            text = f"Thrown away: {text}"
            lines += [("flow-unused", line, TEXT) for line in wrap_text(text, room, TEXT)]
        name = wrap_text(self.flow.name, room, 16.0, bold=True)
        lines[:1] = [("flow-name", line, 16.0) for line in name]
        drawn, y = [], MARGIN
        for style, text, size in lines:
            y += size + 5
            drawn.append(
                f'<text class="{style}" x="{MARGIN:.1f}" y="{y:.1f}">{escape(text)}</text>'
            )
        y += 20
        drawn.append(_draw_legend(y, bool(self.back), any(e.model for e in self.forward)))
        return drawn, y + 2, max(room, 420.0)

    def _draw_frame(self, ends: tuple[float, float]) -> str:
        top, bottom = ends
        return (
            f'<rect class="flow-frame" x="{MARGIN:.1f}" y="{top:.1f}" rx="8" '
            f'width="{self.width - 2 * MARGIN:.1f}" height="{bottom - top:.1f}"/>'
        )

    def _draw_heading(self, stage: Stage, ends: tuple[float, float]) -> str:
        text = wrap_text(stage.heading, self.width - 2 * MARGIN - 2 * FRAME, TITLE, bold=True)[0]
        width = text_width(text, TITLE, bold=True)
        x, y = MARGIN + 10, ends[0] + 20
        return (
            f'<rect class="flow-paper" x="{x - 4:.1f}" y="{y - 14:.1f}" width="{width + 8:.1f}" '
            f'height="19"/><text class="flow-title flow-soft" x="{x:.1f}" y="{y:.1f}">'
            f"{escape(text)}</text>"
        )

    def _draw_box(self, box: _Box) -> Iterable[str]:
        x, y = self._corner(box.node.name)
        marked = " flow-some" if box.node.some_arms or box.node.apart else ""
        colour = "model" if box.node.makes_model else _COLOURS.get(box.node.kind, "data")
        yield (
            f'<g class="flow-node" id="flow-{box.node.name}"><rect class="flow-box{marked}" '
            f'x="{x:.1f}" y="{y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="5"/>'
            f'<rect class="flow-{colour}" x="{x:.1f}" y="{y + 5:.1f}" width="4" '
            f'height="{box.height - 10:.1f}"/>'
        )
        at = y + PAD + TITLE - 2
        for style, text in box.lines:
            yield (
                f'<text class="{style}" x="{x + PAD + 4:.1f}" y="{at:.1f}">{escape(text)}</text>'
            )
            at += LEADING
        yield "</g>"

    def _draw_line(self, edge: Edge) -> str:
        chain = self.layout.chains[_line_of(edge)]
        points = [self._leaves(edge)]
        first = self.layout.layer_of[edge.source]
        y = points[0][1]
        path = f"M{points[0][0]:.1f},{y:.1f}"
        x = points[0][0]
        for step, item in enumerate(chain[1:], 1):
            layer = first + step
            last = step == len(chain) - 1
            to = self._reaches(edge)[0] if last else self.left + item.x
            path += self._bend(x, to, layer)
            x = to
            if not last:
                path += f" V{self.bottom[layer]:.1f}"
        path += f" V{self.top[first + len(chain) - 1] - 1:.1f}"
        style, tip = ("flow-line flow-models", "model") if edge.model else ("flow-line", "records")
        return (
            f'<path class="{style}" d="{path}" data-edge="{edge.source}-{edge.target}" '
            f'marker-end="url(#flow-{tip})"/>'
        )

    def _bend(self, x: float, to: float, layer: int) -> str:
        """From the bottom of one layer to the top of the next one, straight at both ends."""
        low, high = self.bottom[layer - 1] + STUB, self.top[layer] - STUB
        low = min(low, high)
        middle = (low + high) / 2
        return f" V{low:.1f} C{x:.1f},{middle:.1f} {to:.1f},{middle:.1f} {to:.1f},{high:.1f}"

    def _leaves(self, edge: Edge) -> tuple[float, float]:
        x, y = self._corner(edge.source)
        return x + self.ports.leave[edge], y + self.boxes[edge.source].height

    def _reaches(self, edge: Edge) -> tuple[float, float]:
        x, y = self._corner(edge.target)
        return x + self.ports.reach[edge], y

    def _draw_back(self, edge: Edge) -> str:
        """A line to the next round: below its layer to the right, up, and to the left again."""
        (x, y), (to, end) = self._leaves(edge), self._reaches(edge)
        low = self.bottom[self.layout.layer_of[edge.source]] + STUB - 2
        low += TRACK * self.tracks_down[edge]
        high = self.top[self.layout.layer_of[edge.target]] - STUB
        high -= TRACK * self.tracks_up[edge]
        side = self.left + self.inner + GUTTER * (1 + self.gutters[edge])
        path = f"M{x:.1f},{y:.1f} V{low:.1f} H{side:.1f} V{high:.1f} H{to:.1f} V{end - 1:.1f}"
        return (
            f'<path class="flow-line flow-back" d="{path}" data-edge="{edge.source}-{edge.target}" '
            f'marker-end="url(#flow-model)"/>'
        )

    def _draw_words(self) -> Iterable[str]:
        """What lines carry, at their ends, and beside those to the next round."""
        for (name, place), what in self.ports.words.items():
            x, y = self._corner(name)
            if what:
                at = y + self.boxes[name].height + 12
                yield _small(x + place + 5, at, what)
        for edge in self.forward:
            if role := _role(edge):
                x, y = self._reaches(edge)
                yield _small(x + 5, y - 7, role)
        taken: list[float] = []
        beside = self.left + self.inner + GUTTER * (1 + len(self.back))
        # Steps side by side may be given the same: it is said once beside them.
        said = dict.fromkeys((self._corner(edge.target)[1], edge.what) for edge in self.back)
        for top, what in said:
            y = top + 12
            for line in wrap_text(what, BESIDE - GUTTER, SMALL):
                while any(abs(y - other) < 12 for other in taken):
                    y += 12
                taken.append(y)
                yield _small(beside, y, line)


def _make_box(node: Node, least: float) -> _Box:
    """A node's text, wrapped, and the box around it, which is at least so wide."""
    said = [("flow-title", node.title)]
    said += [("flow-arm", node.arm_words)] if node.arm_words else []
    said += [("flow-soft", node.rounds)] if node.rounds else []
    said += [("", line) for line in node.lines]
    said += [("flow-soft", line) for line in node.models]
    said += [("flow-unused", node.unused)] if node.unused else []
    lines = []
    for style, text in said:
        title = style == "flow-title"
        bold = title or style == "flow-arm"
        room = max(WIDEST_TEXT, least - 2 * PAD - 4)
        parts = wrap_text(text, room, TITLE if title else TEXT, bold)
        lines += [(style, part) for part in parts]
    widths = [_line_width(style, text) for style, text in lines]
    width = max(max([*widths, NARROWEST]) + 2 * PAD + 4, least)
    return _Box(node, tuple(lines), width, 2 * PAD + LEADING * len(lines))


def _line_width(style: str, text: str) -> float:
    title = style == "flow-title"
    return text_width(text, TITLE if title else TEXT, title or style == "flow-arm")


def _leaving(edges: Sequence[Edge]) -> dict[str, dict[str, list[Edge]]]:
    """By box, what leaves it: each kind of records from one place, models from another."""
    found: dict[str, dict[str, list[Edge]]] = defaultdict(lambda: defaultdict(list))
    for edge in edges:
        found[edge.source]["" if edge.model or edge.back else edge.what].append(edge)
    return found


def _reaching(edges: Iterable[Edge], name: str) -> list[list[Edge]]:
    """What reaches a box, by where it does: all records of a kind in one place."""
    found: dict[tuple[str, bool, str], list[Edge]] = defaultdict(list)
    for edge in edges:
        if edge.target == name:
            alone = edge.source if edge.model or edge.back else ""
            found[edge.what, edge.model, alone].append(edge)
    return list(found.values())


def _line_of(edge: Edge) -> Line:
    return edge.source, edge.target, "" if edge.model else edge.what


def _role(edge: Edge) -> str:
    """What stands at the end of a line: what a model is used as."""
    return edge.what if edge.model and not edge.back else ""


def _slot(words: str) -> float:
    """The room that an end of a line takes with the words to its right."""
    return max(16.0, 2 * (text_width(words, SMALL) + 10)) if words else 16.0


def _small(x: float, y: float, text: str) -> str:
    return f'<text class="flow-small" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _draw_legend(y: float, back: bool, model: bool) -> str:
    """What the kinds of lines are."""
    kinds = [("flow-line", "records"), *([("flow-line flow-models", "models")] if model else [])]
    kinds += [("flow-line flow-back", "to the next round")] if back else []
    parts, x = [], MARGIN
    for style, text in kinds:
        parts.append(f'<path class="{style}" d="M{x:.1f},{y - 3.5:.1f} h26"/>')
        parts.append(_small(x + 32, y, text))
        x += 32 + text_width(text, SMALL) + 20
    return "".join(parts)
