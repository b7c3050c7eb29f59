"""What `make docs` adds to mkdocs: links that lead to where files have gone, an order that has
every page, a reference that has every module, and the look at what pages load."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rlaif

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "tools" / "docs"


def load(name: str) -> ModuleType:
    spec = spec_from_file_location(f"docs_{name}", TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hook, check = load("hook"), load("check_site")


@pytest.mark.parametrize(
    ("file", "page", "text", "expected"),
    [
        ("README.md", "index.md", "[a](docs/judges.md#x)", "[a](judges.md#x)"),
        ("README.md", "index.md", "![r](docs/report.png)", "![r](report.png)"),
        ("README.md", "index.md", "[c](CONTRIBUTING.md)", "[c](contributing.md)"),
        (
            "docs/gpu.md",
            "gpu.md",
            "[r](../benchmarks/RESULTS.md#a)",
            "[r](benchmarks/results.md#a)",
        ),
        ("benchmarks/RESULTS.md", "benchmarks/results.md", "[g](../docs/gpu.md)", "[g](../gpu.md)"),
        ("docs/judges/rbr.md", "judges/rbr.md", "[r](../rules.md)", "[r](../rules.md)"),
        ("docs/a.md", "a.md", "[w](https://x.org/docs/a.md)", "[w](https://x.org/docs/a.md)"),
        ("docs/a.md", "a.md", "[h](#here)", "[h](#here)"),
        ("README.md", "index.md", "`[a](docs/b.md)`", "`[a](docs/b.md)`"),
        ("README.md", "index.md", "```\n[a](docs/b.md)\n```\n", "```\n[a](docs/b.md)\n```\n"),
    ],
)
def test_links_lead_to_where_files_are_in_the_site(file, page, text, expected):
    assert hook.move_links(text, file, page) == expected


def leaves(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    rows = nav.values() if isinstance(nav, dict) else nav
    return [leaf for row in rows for leaf in leaves(row)]


def test_every_page_and_room_is_in_the_order_once_and_a_new_page_too():
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    found = leaves(hook.make_nav({*pages, "brand-new.md"}, hook.list_rooms()))
    assert len(found) == len(set(found))
    reference = {f"api/{room}.md" for room in hook.list_rooms()} | {"api/index.md"}
    gallery = {page for page, _ in hook.make_pages()}
    made = reference | gallery | set(hook.BROUGHT.values())
    assert set(found) == pages | {"brand-new.md"} | made


def test_the_reference_has_every_public_name_and_module():
    assert {*hook.read_public_names(), "__version__"} == set(rlaif.__all__)
    text = "".join(page for _, page in hook.make_reference())
    for path in (ROOT / "rlaif").glob("*/**/*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        assert name.endswith("__init__") or f"::: {name}\n" in text


LOADS = {
    "a.html": '<script src="https://cdn.example/x.js"></script>',
    "b.html": '<link rel="preconnect stylesheet" href="//fonts.example/css">',
    "c.html": "<style>@import 'https://fonts.example/d.css';</style>",
    "d.html": '<p style="background: url(https://e.example/e.png)">',
    "f.css": "p { background: url(//f.example/f.png) }",
    "g.html": '<img srcset="own.png 1x, https://g.example/g.png 2x">',
    "h.html": '<pre class="mermaid">graph</pre>',
}


def test_what_a_page_loads_from_another_host_is_found(tmp_path):
    calm = '<a href="https://x.org">x</a><img src="own.png"><script>f("https://y.org")</script>'
    (tmp_path / "calm.html").write_text(calm + '<link rel="canonical" href="https://z.org">')
    command = [sys.executable, str(TOOLS / "check_site.py"), str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == 0
    for name, text in LOADS.items():
        (tmp_path / name).write_text(text)
    assert [file for file, _ in check.find_loads(tmp_path)] == list(LOADS)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "a.html: loads https://cdn.example/x.js" in done.stdout
