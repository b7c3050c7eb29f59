"""What every picture of a flow must hold, measured on the SVG itself."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from rlaif.report.flow import Flow
from rlaif.report.textwidth import text_width

SVG = "{http://www.w3.org/2000/svg}"
Rect = tuple[float, float, float, float]
Point = tuple[float, float]


def check_picture(flow: Flow, picture: str) -> None:
    """It parses, boxes stand apart, text stays inside, lines lead from box to box around others."""
    root = ElementTree.fromstring(picture)
    assert root.get("role") == "img" and root.get("aria-label")
    assert root.find(f"{SVG}title") is not None
    assert "<script" not in picture and "@import" not in picture and "href" not in picture
    groups = {g.get("id", ""): g for g in root.iter(f"{SVG}g") if g.get("class") == "flow-node"}
    assert list(groups) == [f"flow-{node.name}" for node in flow.nodes]
    boxes = {name.removeprefix("flow-"): _rect(group[0]) for name, group in groups.items()}
    _check_apart(list(boxes.values()))
    for name, group in groups.items():
        _check_text(group, boxes[name.removeprefix("flow-")])
    width, height = (float(value) for value in (root.get("viewBox") or "").split()[2:])
    for text in root.iter(f"{SVG}text"):
        left = float(text.get("x", "0"))
        assert left >= 0 and left + _width(text) <= width + 0.1, text.text
        assert 0 < float(text.get("y", "0")) < height
    lines = [path for path in root.iter(f"{SVG}path") if path.get("data-edge")]
    ends = {tuple((path.get("data-edge") or "").split("-")) for path in lines}
    assert ends == {(edge.source, edge.target) for edge in (*flow.forward, *flow.returning)}
    for path in lines:
        source, target = (path.get("data-edge") or "").split("-")
        points = points_of(path.get("d") or "")
        _check_line(points, source, target, boxes)
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)


def points_of(path: str) -> list[Point]:
    """Points on a path of M, V, H and C, close to one another."""
    found: list[Point] = []
    for mark, text in re.findall(r"([MVHC])([^MVHC]*)", path):
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", text)]
        if mark == "M":
            found.append((numbers[0], numbers[1]))
            continue
        x, y = found[-1]
        controls = [(x, y), (x, y), (x, y), (x, y)]
        if mark == "C":
            controls = [(x, y), *zip(numbers[::2], numbers[1::2], strict=True)]
        else:
            end = (x, numbers[0]) if mark == "V" else (numbers[0], y)
            controls = [(x, y), (x, y), end, end]
        found += [_bezier(controls, step / 40) for step in range(1, 41)]
    return found


def _bezier(controls: list[Point], t: float) -> Point:
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
    x = sum(w * point[0] for w, point in zip(weights, controls, strict=True))
    return x, sum(w * point[1] for w, point in zip(weights, controls, strict=True))


def _check_line(points: list[Point], source: str, target: str, boxes: dict[str, Rect]) -> None:
    left, _, right, bottom = boxes[source]
    assert left <= points[0][0] <= right and abs(points[0][1] - bottom) < 0.2
    left, top, right, _ = boxes[target]
    assert left <= points[-1][0] <= right and 0 <= top - points[-1][1] < 1.2
    for name, (left, top, right, bottom) in boxes.items():
        inside = [p for p in points if left < p[0] < right and top + 0.2 < p[1] < bottom - 0.2]
        assert not inside, f"{source}-{target} runs through {name}"


def _check_apart(boxes: list[Rect]) -> None:
    for place, one in enumerate(boxes):
        for other in boxes[place + 1 :]:
            beside = one[2] < other[0] or other[2] < one[0]
            assert beside or one[3] < other[1] or other[3] < one[1], "two boxes overlap"


def _check_text(group: ElementTree.Element, box: Rect) -> None:
    texts = group.findall(f"{SVG}text")
    assert texts
    for text in texts:
        x, y = float(text.get("x", "0")), float(text.get("y", "0"))
        assert box[0] + 4 < x and x + _width(text) < box[2], text.text
        assert box[1] + 8 < y < box[3] - 2


def _width(text: ElementTree.Element) -> float:
    style = text.get("class") or ""
    size = (
        16.0
        if "name" in style
        else 13.0
        if "title" in style
        else 10.0
        if "small" in style
        else 11.0
    )
    bold = any(part in style for part in ("name", "title", "arm"))
    return text_width(text.text or "", size, bold)


def _rect(element: ElementTree.Element) -> Rect:
    x, y, width, height = (float(element.get(k, "0")) for k in ("x", "y", "width", "height"))
    return x, y, x + width, y + height
