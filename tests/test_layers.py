"""Imports point downward only, and the lower layer needs no tensor or table library."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rlaif

PACKAGE = Path(rlaif.__file__).parent
LAYERS = [
    {"records", "errors", "yamlio", "resources", "config", "constitution", "lint", "rules"}
    | {"numbers", "forms", "quotes", "scores", "choices", "jsontext", "rendering"}
    | {"chat", "thinking", "answers"}
    | {
        "own_rules",
        "plugins",
        "textstats",
        "templates",
        "parsing",
        "store",
        "rowfiles",
        "workers",
        "changes",
        "amend",
    }
    | {"checksums", "commits", "finished"},
    {"attention", "logprobs", "batching", "device", "fused", "heads", "losses"},
    {"engines", "data", "compare"},
    {"judges", "train", "plan"},
    {"steps", "report", "infer", "prompting"},
    {
        "build",
        "experiment",
        "manifest",
        "prepare",
        "rollouts",
        "rounds",
        "sameness",
        "schedule",
        "verify",
        "runs",
        "exports",
        "told",
        "contests",
        "files",
        "bench",
        "dryrun",
        "forecast",
        "render",
        "progress",
        "whatif",
        "ablate",
        "reach",
        "fit",
        "serve",
        "serve_app",
        "serve_client",
        "cli",
        "__main__",
    },
]
HEAVY = {"torch", "transformers", "vllm", "openai", "pandas", "datasets"}


def level(module: str) -> int:
    first = module.split(".")[0]
    found = [number for number, names in enumerate(LAYERS) if first in names]
    assert len(found) == 1, f"rlaif.{module} has no layer: add it to LAYERS"
    return found[0]


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


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downward(name: str) -> None:
    upward = {other for other in own(name) if level(other) > level(name)}
    assert upward == set()


@pytest.mark.parametrize("name", [n for n in MODULES if level(n) == 0])
def test_the_lowest_layer_imports_nothing_heavy(name: str) -> None:
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


def test_importing_the_lowest_layer_and_the_command_line_loads_nothing_heavy() -> None:
    names = ["rlaif", "rlaif.cli", "rlaif.pipeline.plan", "rlaif.constitution.lint"]
    names += [f"rlaif.{n}" for n in MODULES if level(n) == 0]
    code = "import sys\n" + "".join(f"import {name}\n" for name in names)
    code += f"print(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
