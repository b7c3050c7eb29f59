"""A `Flow` as text for a terminal, and as a Mermaid flowchart."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

from rlaif.report.flow import Edge, Flow, Node

WIDTH = 110
"""Columns of the text."""


def render_text(flow: Flow) -> str:
    """The whole method as aligned text: what it works with, each stage's steps, what of all that is
    thrown away."""
    lines = [flow.name, ""]
    lines += _list_under(flow.facts.items())
    for stage in flow.stages:
        lines += ["", f"{stage.heading[:1].upper()}{stage.heading[1:]}"]
        lines += _list_under((node.title, _describe(node)) for node in stage.nodes)
    if flow.unused:
        lines += ["", "Thrown away", *(f"  {line}" for line in flow.unused)]
    return "\n".join(lines) + "\n"


def _describe(node: Node) -> list[str]:
    """What a node does, where and when, and its other keys."""
    where = [text for text in (node.arm_words, node.rounds) if text]
    reads = [f"reads {', '.join(node.reads)}"] if node.reads else []
    said = ["; ".join([*where, *node.lines]), "; ".join([*reads, *node.models])]
    return [*filter(None, said), *([f"({', '.join(node.settings)})"] if node.settings else [])]


def _list_under(items: Iterable[tuple[str, Iterable[str]]]) -> Iterator[str]:
    """Lines beside their headings, all beginning in the same column."""
    rows = [(heading, list(lines)) for heading, lines in items]
    column = min(max((len(heading) for heading, _ in rows), default=0), 24) + 4
    for heading, lines in rows:
        wrapped = [
            part
            for line in lines
            for part in textwrap.wrap(
                line, WIDTH - column, subsequent_indent="  ", break_on_hyphens=False
            )
        ]
        first = f"  {heading}"
        if len(first) > column - 2:
            yield first
            first = ""
        for part in wrapped or [""]:
            yield f"{first:{column}}{part}".rstrip()
            first = ""


def render_mermaid(flow: Flow) -> str:
    """A Mermaid flowchart: a subgraph for each stage; dotted lines lead to the next round."""
    lines = ["flowchart TD"]
    for number, stage in enumerate(flow.stages, 1):
        lines.append(f'  subgraph stage{number}["{_escape(stage.heading)}"]')
        for node in stage.nodes:
            words = [node.title, *node.lines, *node.models]
            words += [node.rounds, node.arm_words, node.unused]
            text = "<br>".join(_escape(word) for word in words if word)
            shape = ('(["', '"])') if node.makes_model else ('["', '"]')
            lines.append(f"    {node.name}{shape[0]}{text}{shape[1]}{_class_of(node)}")
        lines.append("  end")
    lines += [_draw_edge(edge) for edge in (*flow.forward, *flow.returning)]
    lines.append("  classDef some stroke-width:3px")
    return "\n".join(lines) + "\n"


def _class_of(node: Node) -> str:
    return ":::some" if node.some_arms or node.apart else ""


def _draw_edge(edge: Edge) -> str:
    line = "-.->" if edge.back else "==>" if edge.model else "-->"
    return f'  {edge.source} {line}|"{_escape(edge.what)}"| {edge.target}'


def _escape(text: str) -> str:
    """Text in quotes: all that Mermaid, Markdown or HTML might read as markup as an entity."""
    plain = " ".join(text.split())
    # At the beginning "1." and "-" would make a list.
    marks = r"[^\w ,.:()/+-]|^[-+]|(?<=^\d)\."
    return re.sub(marks, lambda found: f"#{ord(found[0])};", plain)
