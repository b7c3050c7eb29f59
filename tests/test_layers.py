"""The law of the house: every import runs down, from a room to one below it.

The rooms stand in `ROOMS` from the lowest to the highest. A module may import its own room and
those before it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rlaif

PACKAGE = Path(rlaif.__file__).parent
ROOMS = (
    "core",
    "constitution",
    "kernels",
    "config",
    "environments",
    "engines",
    "data",
    "preferences",
    "metrics",
    "judges",
    "train",
    "report",
    "pipeline",
    "analysis",
    "cluster",
    "web",
    "cli",
)
TOP = {"", "__main__"}
"""What stands outside the rooms: `rlaif/__init__.py`, which names what users import, and
`rlaif/__main__.py`. They may import any room, and no room imports them."""
LIGHT = ("core", "constitution", "config", "environments")
"""Rooms that load none of HEAVY."""
HEAVY = {"torch", "transformers", "vllm", "openai", "pandas", "datasets", "ray"}
EXPORTS = 10
"""The names that a room may export at most."""


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name: path for path in sorted(PACKAGE.rglob("*.py")) if (name := module_name(path))}


def imports(name: str) -> set[str]:
    """Every module that `name` imports anywhere, type checking included; those of rlaif without
    the package's name and with a leading dot."""
    package = MODULES[name].name == "__init__.py"
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = ["rlaif", *name.split(".")]
                kept = parts[: len(parts) - node.level + package]
                base = ".".join([*kept, base] if base else kept)
            found.add(base)
            found |= {f"{base}.{alias.name}" for alias in node.names}
    known = {f"rlaif.{module}": f".{module}" for module in MODULES}
    return {known.get(module, module) for module in found}


def own(name: str) -> set[str]:
    return {m[1:] for m in imports(name) if m.startswith(".")} - {name}


def room(name: str) -> str:
    return name.split(".")[0]


INSIDE = [name for name in MODULES if name not in TOP]


def test_every_folder_is_a_room_and_every_module_stands_in_one() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "shipped"}
    assert folders - {"__pycache__"} == set(ROOMS)
    assert {room(name) for name in INSIDE} == set(ROOMS)


@pytest.mark.parametrize("name", INSIDE)
def test_imports_run_down(name: str) -> None:
    below = ROOMS[: ROOMS.index(room(name)) + 1]
    assert {other for other in own(name) if room(other) not in below} == set()


@pytest.mark.parametrize("name", [n for n in INSIDE if room(n) in LIGHT])
def test_a_light_room_imports_nothing_heavy(name: str) -> None:
    assert {module.split(".")[0] for module in imports(name)} & HEAVY == set()


def test_there_is_no_circle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for other in own(name):
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_says_what_lives_there_and_exports_little(name: str) -> None:
    tree = ast.parse((PACKAGE / name / "__init__.py").read_text(encoding="utf-8"))
    said = ast.get_docstring(tree)
    assert said is not None
    assert 3 <= len(said.splitlines()) <= 10, "three to ten lines: what lives here, where to add"
    if name != "cli":  # Its `__init__` is the command itself, which lists every subcommand.
        imported = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        assert len([alias for node in imported for alias in node.names]) <= EXPORTS


def test_importing_the_light_rooms_and_the_command_line_loads_nothing_heavy() -> None:
    names = ["rlaif", "rlaif.cli", "rlaif.pipeline.plan", *(f"rlaif.{room}" for room in ROOMS)]
    names += [f"rlaif.{n}" for n in INSIDE if room(n) in LIGHT]
    code = "import sys\n" + "".join(f"import {name}\n" for name in names)
    code += f"print(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
