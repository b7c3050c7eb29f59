"""What mkdocs is told beside its file: the pages that lie outside docs/, where links lead, the
order of pages and the reference."""

from __future__ import annotations

import ast
import posixpath
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# mkdocs loads this file by its path, so its folder is on no path of modules.
sys.path.insert(0, str(ROOT / "tools" / "docs"))

from gallery import list_experiments, make_pages  # noqa: E402

PICTURES = ROOT / "build" / "gallery"
"""Where `tools/docs/gallery.py` has drawn them."""
BROUGHT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks/index.md",
    "benchmarks/RESULTS.md": "benchmarks/results.md",
    "LICENSE": "license.md",
    "experiments/EVIDENCE.md": "evidence.md",
}
"""Files of the project that pages link to, by the page that they become."""
SECTIONS = {
    "Experiments": ["experiments", "language", "explain", "new", "prompts", "data", "datasets"],
    "Judging": ["constitutions", "rules", "judges", "judge-bench", "arena", "judge-training"],
    "Training": ["training", "environments", "engines", "cloud", "mirror", "scale", "gpu"],
    "Results": ["diagnostics", "compare", "ui", "human-feedback"],
}
"""The pages of docs/ by section; a page that is in none comes last under "More"."""
LINK = re.compile(r"(\]\(|(?:src|href)=\")([^)\s\"#]+)(?=[)\s\"#])")
"""A link's target in Markdown or HTML, without what follows the #."""


def on_config(config: Any) -> Any:
    """The order of the pages."""
    config.nav = make_nav(
        {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")},
        list_rooms(),
    )
    return config


def on_files(files: Any, config: Any) -> Any:
    """The pages that are made: of files outside docs/, and of the reference."""
    from mkdocs.structure.files import File

    made = dict(make_reference())
    for name, page in BROUGHT.items():
        text = (ROOT / name).read_text("utf-8")
        if not name.endswith(".md"):
            text = f"# {name.capitalize()}\n\n```text\n{text}```\n"
        made[page] = move_links(text, name, page)
    made |= dict(make_pages())
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    for name in list_experiments():
        picture = (PICTURES / f"{name}.svg").read_text("utf-8")
        files.append(File.generated(config, f"gallery/{name}.svg", content=picture))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """A page of docs/ with its links to files that lie elsewhere now."""
    path = page.file.src_uri
    return markdown if page.file.generated_by else move_links(markdown, f"docs/{path}", path)


def move_links(text: str, name: str, page: str) -> str:
    """The Markdown of the file `name` of the project, with links as they are from `page` of the
    site. Links to other hosts, within the page and in code stay."""
    places = {**BROUGHT}

    def moved(match: re.Match[str]) -> str:
        target = match[2]
        if re.match(r"[a-z]+:", target):
            return match[0]
        whole = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        place = places.get(whole, whole.removeprefix("docs/"))
        return match[1] + posixpath.relpath(place, posixpath.dirname(page) or ".")

    return _outside_code(text, lambda part: LINK.sub(moved, part))


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    """The Markdown with its text changed, and code left alone."""
    parts = re.split(r"(^```.*?^```$|`[^`\n]*`)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if place % 2 else change(part) for place, part in enumerate(parts))


def make_nav(pages: set[str], rooms: list[str]) -> list[Any]:
    """The tabs, in the order of `SECTIONS`, with every page of docs/."""
    nav: list[Any] = [{"Start": ["index.md", "glossary.md"]}]
    placed = {"glossary.md", "architecture.md", "python.md"}
    for title, names in SECTIONS.items():
        own = [f"{name}.md" for name in names if f"{name}.md" in pages]
        kinds = sorted(page for page in pages if title == "Judging" and page.startswith("judges/"))
        placed.update(own, kinds)
        nav.append({title: own + ([{"Kinds of judges": list(kinds)}] if kinds else [])})
    nav.append(
        {"Gallery": ["gallery/index.md", *(f"gallery/{name}.md" for name in list_experiments())]}
    )
    nav[-2]["Results"].append({"Evidence": "evidence.md"})
    more = sorted(pages - placed)
    if more:
        nav.append({"More": list(more)})
    reference = [{room: f"api/{room}.md"} for room in rooms]
    nav.append({"Python": ["python.md", {"rlaif": "api/index.md"}, {"Rooms": reference}]})
    project = ["architecture.md", "contributing.md", "changelog.md", "license.md"]
    benchmarks = ["benchmarks/index.md", "benchmarks/results.md"]
    return [*nav, {"Project": [*project, {"Benchmarks": benchmarks}]}]


def list_rooms() -> list[str]:
    """The packages of rlaif."""
    return sorted(path.parent.name for path in (ROOT / "rlaif").glob("*/__init__.py"))


def read_public_names() -> Mapping[str, str]:
    """The names of `rlaif.__all__` by where they are defined, without importing them."""
    tree = ast.parse((ROOT / "rlaif" / "__init__.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_PUBLIC":
            return dict(ast.literal_eval(node.value))
    raise ValueError("rlaif/__init__.py: no literal dict _PUBLIC")


def make_reference() -> Iterator[tuple[str, str]]:
    """(page, Markdown) of the public names, and of each room and its modules."""
    names = read_public_names()
    head = "# rlaif\n\nThe public names, each imported on first use: `rlaif.NAME`.\n"
    parts = [f"\n## {name}\n\n::: {place.replace(':', '.')}\n" for name, place in names.items()]
    # Fields of records are part of the interface, and their names say what they are.
    options = "    options:\n      heading_level: 3\n      show_root_heading: false\n"
    options += "      show_root_toc_entry: false\n      show_if_no_docstring: true\n"
    yield "api/index.md", head + "".join(part + options for part in parts)
    for room in list_rooms():
        folder = ROOT / "rlaif" / room
        about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
        text = f"# rlaif.{room}\n\n{about}\n"
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] != "__init__":
                text += f"\n::: {'.'.join(parts)}\n"
        yield f"api/{room}.md", text
