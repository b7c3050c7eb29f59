"""The look of a flow's picture: its style sheet, in a page's colours or with its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

RULES = """
.flow text { fill: var(--ink); font-size: 11px; }
.flow text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
.flow .flow-name { font-size: 16px; font-weight: 600; }
.flow .flow-title { font-size: 13px; font-weight: 600; }
.flow .flow-soft { fill: var(--soft); }
.flow .flow-arm { fill: var(--moved); font-weight: 600; }
.flow .flow-unused { fill: var(--bad); }
.flow .flow-small { font-size: 10px; fill: var(--soft); }
.flow .flow-small { stroke: var(--paper); stroke-width: 3px; paint-order: stroke; }
.flow .flow-paper { fill: var(--paper); }
.flow .flow-frame { fill: none; stroke: var(--rule); }
.flow .flow-box { fill: var(--panel); stroke: var(--plot-ink); stroke-width: 1; }
.flow .flow-some { stroke: var(--moved); stroke-width: 1.6; }
.flow .flow-data { fill: var(--line-5); } .flow .flow-judge { fill: var(--line-1); }
.flow .flow-pairs { fill: var(--line-2); } .flow .flow-model { fill: var(--line-0); }
.flow .flow-figures { fill: var(--line-3); }
.flow .flow-line { fill: none; stroke: var(--plot-ink); stroke-width: 1.2; }
.flow .flow-models { stroke: var(--line-0); stroke-width: 2; }
.flow .flow-back { stroke: var(--line-0); stroke-width: 1.4; stroke-dasharray: 5 4; }
.flow .flow-tip { fill: var(--plot-ink); } .flow .flow-tip-model { fill: var(--line-0); }
"""
TIPS = (
    '<defs><marker id="flow-records" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
    'markerHeight="7" markerUnits="userSpaceOnUse" orient="auto"><path class="flow-tip" '
    'd="M0,0 L8,4 L0,8 z"/></marker><marker id="flow-model" viewBox="0 0 8 8" refX="7" refY="4" '
    'markerWidth="8" markerHeight="8" markerUnits="userSpaceOnUse" orient="auto"><path '
    'class="flow-tip-model" d="M0,0 L8,4 L0,8 z"/></marker></defs>'
)
"""The tips of lines."""


def make_style(standalone: bool) -> str:
    """The rules of the picture, with its own colours where no page gives them."""
    if not standalone:
        return f"<style>{RULES}</style>"
    light, dark = (_with_colours(colours) for colours in read_theme())
    return f"<style>{light}@media (prefers-color-scheme: dark) {{{dark}}}</style>"


def _with_colours(colours: Mapping[str, str]) -> str:
    return re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]], RULES)


def read_theme() -> tuple[dict[str, str], dict[str, str]]:
    """The colours of pages, light and dark: the variables of `report.css` by name."""
    css = (Path(__file__).resolve().parent / "report.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL)[:2]
    colours = [dict(re.findall(r"--([\w-]+): (#\w+)", block)) for block in (light, dark)]
    return colours[0], colours[0] | colours[1]
