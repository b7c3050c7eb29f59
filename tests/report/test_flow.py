"""The picture of a flow: its layout, and how wide a text is."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font

from rlaif.report.flow import Edge, Flow, Node, Stage
from rlaif.report.flow_style import read_theme
from rlaif.report.flow_svg import draw_flow
from rlaif.report.layout import WIDEST, find_layers
from rlaif.report.textwidth import text_width, wrap_text
from tests.support.pictures import check_picture

WORDS = ("by", "start, reference", "judgements", "completions", "evaluated")


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    count = draw(st.integers(1, 14))
    cut = draw(st.integers(0, count))
    texts = st.lists(st.text("abc é日-_ mW.", min_size=1, max_size=60), max_size=4)
    nodes = [
        Node(
            f"n{n}",
            "a" if n < cut else "b",
            draw(st.sampled_from(["sample", "judge", "pair", "train"])),
            f"step{n}",
            tuple(draw(texts)),
            makes_model=draw(st.booleans()),
            arms=("x",),
            some_arms=draw(st.booleans()),
        )
        for n in range(count)
    ]
    pairs = draw(
        st.sets(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=20)
    )
    edges = []
    for one, other in sorted(pairs):
        back = one >= other
        if back and nodes[one].stage != nodes[other].stage:
            continue
        model = draw(st.booleans())
        edges.append(Edge(f"n{one}", f"n{other}", draw(st.sampled_from(WORDS)), model, back))
    groups = [nodes[:cut], nodes[cut:]]
    stages = [Stage(g[0].stage, 2, tuple(g)) for g in groups if g]
    return Flow("any", tuple(stages), tuple(edges), {"Prompts": ("a line",)})


@given(flows())
@settings(max_examples=60)
def test_no_box_overlaps_and_no_line_runs_through_one(flow: Flow) -> None:
    picture = draw_flow(flow, standalone=True)
    check_picture(flow, picture)
    assert picture == draw_flow(flow, standalone=True)


def test_layers_follow_the_longest_path_and_are_not_wide() -> None:
    many = [f"j{n}" for n in range(9)]
    group = ["sample", *many, "pair", "late"]
    lines = [("sample", name) for name in many] + [(name, "pair") for name in many]
    layers = find_layers([group], [*lines, ("late", "pair")])
    assert layers["sample"] == 0 and layers["pair"] == max(layers.values())
    # What nothing leads to stands right above what it leads to.
    assert layers["late"] == layers["pair"] - 1
    assert max(list(layers.values()).count(number) for number in layers.values()) <= WIDEST


@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_texts_are_no_wider_than_they_are_measured(weight: str) -> None:
    font = FT2Font(findfont(FontProperties(family="DejaVu Sans", weight=weight)))
    font.set_size(100, 72)
    for character in map(chr, range(32, 127)):
        font.set_text(character * 20)
        real = font.get_width_height()[0] / 64
        assert text_width(character * 20, 100, weight == "bold") >= real, character


@given(st.text(max_size=80), st.floats(30, 200))
def test_wrapped_lines_fit_and_lose_nothing(text: str, width: float) -> None:
    lines = wrap_text(text, width, 11)
    assert "".join(lines).replace(" ", "") == "".join(text.split())
    assert all(text_width(line, 11) <= width or len(line) == 1 for line in lines) and lines


def test_a_picture_of_its_own_has_the_pages_colours_for_light_and_dark() -> None:
    flow = Flow("one", (Stage("main", 1, (Node("n1", "main", "sample", "sample", ("x",)),)),), ())
    alone, inside = draw_flow(flow, standalone=True), draw_flow(flow)
    light, dark = read_theme()
    assert light["paper"] in alone and dark["paper"] in alone and "var(" not in alone
    assert "prefers-color-scheme: dark" in alone and "var(--paper)" in inside
    assert light.keys() == dark.keys() and light["line-0"] != dark["line-0"]
    ElementTree.fromstring(inside)
