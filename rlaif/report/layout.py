"""Where the boxes and lines of a layered picture stand: layers from the longest path, order by
barycentres, places that are nearest to their neighbours'.

A line runs straight down past the boxes of a layer, in a column that is kept free for it, and bends
only between layers, so that no line crosses a box. Lines of one kind from one box share a column.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

GAP, LANE, WIDEST = 26.0, 16.0, 4
"""Between two boxes, and the width of a free column; how many boxes stand side by side."""
SWEEPS = 12


Line = tuple[str, str, str]
"""From a box to another one, by name, and of which kind."""


@dataclass(eq=False, slots=True)
class Item:
    """A box, or the free column of lines in one layer; `x` is its middle."""

    name: str
    width: float
    box: bool = True
    x: float = 0.0
    above: list[Item] = field(default_factory=list)
    below: list[Item] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Layout:
    """The items of every layer from left to right, the layer of each box, and by line its items
    from box to box."""

    layers: list[list[Item]]
    layer_of: Mapping[str, int]
    chains: Mapping[Line, list[Item]]


def lay_out(
    groups: Sequence[Sequence[str]],
    widths: Mapping[str, float],
    lines: Sequence[Line],
) -> Layout:
    """Places of boxes of these `widths`: every group is below the one before. `lines` lead down,
    from a box to a later one of its own or a later group."""
    layer_of = find_layers(groups, [(source, target) for source, target, _ in lines])
    layers: list[list[Item]] = [[] for _ in range(max(layer_of.values(), default=-1) + 1)]
    items = {}
    for name in (name for group in groups for name in group):
        items[name] = Item(name, widths[name])
        layers[layer_of[name]].append(items[name])
    chains = {}
    columns: dict[tuple[str, str, int], Item] = {}
    for source, target, kind in dict.fromkeys(lines):
        chain = [items[source]]
        for layer in range(layer_of[source] + 1, layer_of[target]):
            if (source, kind, layer) not in columns:
                columns[source, kind, layer] = Item(source, LANE, box=False)
                layers[layer].append(columns[source, kind, layer])
            chain.append(columns[source, kind, layer])
        chain.append(items[target])
        for upper, lower in pairwise(chain):
            if lower not in upper.below:
                upper.below.append(lower)
                lower.above.append(upper)
        chains[source, target, kind] = chain
    _order(layers)
    _place(layers)
    return Layout(layers, layer_of, chains)


def find_layers(
    groups: Sequence[Sequence[str]], lines: Sequence[tuple[str, str]]
) -> dict[str, int]:
    """The layer of every box: below all that lead to it, those that nothing leads to right above
    the first that they lead to, and no more than `WIDEST` side by side."""
    found: dict[str, int] = {}
    first = 0
    for group in groups:
        own = set(group)
        inside = [(a, b) for a, b in lines if a in own and b in own]
        depth = dict.fromkeys(group, 0)
        for _ in group:
            for source, target in inside:
                depth[target] = max(depth[target], depth[source] + 1)
        for name in group:
            below = [depth[b] for a, b in inside if a == name]
            if below and not any(b == name for _, b in inside):
                depth[name] = min(below) - 1
        layers: dict[int, list[str]] = defaultdict(list)
        for name in group:
            layers[depth[name]].append(name)
        for number in sorted(layers):
            names = layers[number]
            rows = -(-len(names) // WIDEST)
            size = -(-len(names) // rows)
            for place, name in enumerate(names):
                found[name] = first + place // size
            first += rows
    return found


def _order(layers: Sequence[list[Item]]) -> None:
    """Sort every layer by the mean places of neighbours; the order with fewest crossings stays."""
    best, fewest = [list(layer) for layer in layers], _count_crossings(layers)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for layer in layers[1:] if down else list(reversed(layers[:-1])):
            places = {id(item): place for own in layers for place, item in enumerate(own)}

            def middle(item: Item, at: Mapping[int, int] = places, up: bool = down) -> float:
                near = item.above if up else item.below
                return sum(at[id(n)] for n in near) / len(near) if near else float(at[id(item)])

            layer.sort(key=middle)
        crossings = _count_crossings(layers)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    for layer, order in zip(layers, best, strict=True):
        layer[:] = order


def _count_crossings(layers: Sequence[list[Item]]) -> int:
    total = 0
    for upper, lower in pairwise(layers):
        places = {id(item): place for place, item in enumerate(lower)}
        ends = [[places[id(n)] for n in item.below] for item in upper]
        total += sum(
            a > b
            for place, left in enumerate(ends)
            for right in ends[place + 1 :]
            for a in left
            for b in right
        )
    return total


def _place(layers: Sequence[list[Item]]) -> None:
    """Give every item its `x`: near the mean of its neighbours, in order and without overlaps."""
    for layer in layers:
        _settle(layer, [0.0] * len(layer))
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else list(reversed(layers)):
            wanted = []
            for item in layer:
                near = (item.above if down else item.below) or item.above or item.below
                wanted.append(sum(n.x for n in near) / len(near) if near else item.x)
            _settle(layer, wanted)
    left = min((item.x - item.width / 2 for layer in layers for item in layer), default=0.0)
    for item in (item for layer in layers for item in layer):
        item.x -= left


def _settle(layer: Sequence[Item], wanted: Sequence[float]) -> None:
    """The places nearest to `wanted` (least squares) that keep the order and the distances, by
    pooling neighbours that would overlap."""
    offsets, at = [], 0.0
    for place, item in enumerate(layer):
        if place:
            before = layer[place - 1]
            apart = GAP if item.box and before.box else GAP / 2
            at += (before.width + item.width) / 2 + apart
        offsets.append(at)
    # Free columns weigh more: they are what makes lines straight.
    blocks: list[tuple[float, float, int]] = []
    for item, want, offset in zip(layer, wanted, offsets, strict=True):
        weight = 1.0 if item.box else 2.0
        blocks.append(((want - offset) * weight, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            last, previous = blocks.pop(), blocks.pop()
            total, weights, count = (a + b for a, b in zip(previous, last, strict=True))
            blocks.append((total, weights, int(count)))
    means = [total / weight for total, weight, count in blocks for _ in range(count)]
    for item, mean, offset in zip(layer, means, offsets, strict=True):
        item.x = mean + offset
