"""How the package is built: its rooms, its size, its names, and how far one DPO round walks.

    python benchmarks/house.py [--package FOLDER] [--quick] [--json]

The figures of the source are read from syntax trees. The round (sample, judge, pair, train by DPO)
is run on the embedded model in a folder of its own and traced: which files of the package had a
function running, in all steps and in the train step alone, and how many of the package's functions
stood on the stack when the loss was called. What runs while a module is imported does not count.
--package measures another checkout; --quick leaves out the round.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import subprocess
import sys
import tempfile
import threading
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve().parent
FEATURES = {"property", "cached_property", "setter", "overload"}
"""Decorators of functions that are read as values, or are no functions of their own."""
EXPERIMENT = """\
name: one_round
seed: 7
models: {policy: {path: builtin/smollm2-135m-instruct}}
constitution: constitutions/concise_helper.yaml
prompts: {path: prompts/seeds/everyday.jsonl, holdout: 4}
rounds: 1
steps:
  - sample: {n: 2, prompts: 4, max_new_tokens: 8}
  - judge: {id: self, kind: yes_no, by: policy, principles: [useful]}
  - pair: {strategy: best_vs_worst}
  - train: {method: dpo, epochs: 1, batch_size: 2, lora: {r: 4}}
"""


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--package", type=Path, default=HERE.parent, help="a checkout's folder")
    parser.add_argument("--quick", action="store_true", help="without the traced round")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--traced", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    root = options.package.resolve()
    if options.traced:
        print(json.dumps(_trace_round(root)))
        return
    figures = measure_source(root / "rlaif")
    if not options.quick:
        command = [sys.executable, __file__, "--traced", "--package", str(root)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        *walked, last = done.stdout.splitlines()
        print("\n".join(walked))
        figures |= json.loads(last)
    for name, value in figures.items():
        print(f"{name:<36} {value}")
    if options.json:
        print(json.dumps(figures))


def measure_source(package: Path) -> dict[str, Any]:
    """The figures that a reader of the files could count."""
    files = sorted(package.rglob("*.py"))
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    code = sum(_code_lines(path, tree) for path, tree in trees.items())
    total = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    comments = sum(_comment_lines(path) for path in files)
    names = [name for tree in trees.values() for name in _function_names(tree)]
    rooms = {path.relative_to(package).parts[0] for path in files if path.parent != package}
    arrows = _room_imports(package, trees)
    return {
        "modules_at_the_top": sum(path.parent == package for path in files),
        "files": len(files),
        "rooms": len(rooms),
        "folders": len({path.parent for path in files}) - 1,
        "room_cycles": _count_cycles(arrows),
        "room_arrows": sum(len(others) for others in arrows.values()),
        "lines": total,
        "code_lines": code,
        "comment_lines_per_1000": round(1000 * comments / total, 1),
        "functions": len(names),
        "one_word_names_percent": round(
            100 * sum("_" not in name.strip("_") for name in names) / len(names), 1
        ),
        "longest_file": max(len(path.read_text(encoding="utf-8").splitlines()) for path in files),
    }


def _code_lines(path: Path, tree: ast.Module) -> int:
    """Lines that hold code: no comment alone, no docstring, no blank."""
    described = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    spoken: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, described | ast.If):
            for child in node.body:
                value = child.value if isinstance(child, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    spoken |= set(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    held: set[int] = set()
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENCODING}
    silent |= {tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in _tokens(path):
        if token.type not in silent:
            held |= set(range(token.start[0], token.end[0] + 1))
    return len(held - spoken)


def _comment_lines(path: Path) -> int:
    return sum(token.type == tokenize.COMMENT for token in _tokens(path))


def _tokens(path: Path) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)


def _function_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            marks = {
                part.id if isinstance(part, ast.Name) else part.attr
                for decorator in node.decorator_list
                for part in ast.walk(decorator)
                if isinstance(part, ast.Name | ast.Attribute)
            }
            if not node.name.startswith("__") and not marks & FEATURES:
                yield node.name


def _room_imports(package: Path, trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """By room, the others that it imports anywhere. The package's top is no room."""
    arrows: dict[str, set[str]] = defaultdict(set)
    rooms = {path.relative_to(package).parts[0] for path in trees if path.parent != package}
    for path, tree in trees.items():
        parts = path.relative_to(package.parent).with_suffix("").parts
        if path.parent == package:
            continue
        for node in ast.walk(tree):
            named: list[str] = []
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = list(parts[: len(parts) - node.level]) if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                named = [f"{base}.{alias.name}" for alias in node.names]
            for name in named:
                first, _, rest = name.partition(".")
                other = rest.split(".")[0]
                if first == "rlaif" and other in rooms and other != parts[1]:
                    arrows[parts[1]].add(other)
    return arrows


def _count_cycles(arrows: dict[str, set[str]]) -> int:
    """How many groups of rooms reach one another."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for other in arrows.get(waiting.pop(), set()) - seen:
                seen.add(other)
                waiting.append(other)
        return seen

    ends = {room: reached(room) for room in arrows}
    return len(
        {
            frozenset(other for other in ends[room] if room in ends.get(other, set()))
            for room in arrows
            if room in ends[room]
        }
    )


class _Trace:
    """Which files of the package had a function running, and how deep the loss was called.

    `train` is set while the train step runs."""

    def __init__(self, package: Path):
        self.prefix = str(package) + "/"
        self.files: set[str] = set()
        self.training: set[str] = set()
        self.functions: set[str] = set()
        self.train = False
        self.frames = 0
        self.importing = threading.local()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "return"):
            return
        code = frame.f_code
        if code.co_name == "<module>":
            depth = getattr(self.importing, "depth", 0)
            self.importing.depth = depth + (1 if event == "call" else -1)
            return
        if code.co_name == "run" and code.co_filename.endswith("/steps/train.py"):
            self.train = event == "call"
        inside = code.co_filename.startswith(self.prefix)
        if event == "return" or not inside or getattr(self.importing, "depth", 0):
            return
        if "__module__" in code.co_names and "__qualname__" in code.co_names:
            return  # The body of a class.
        file = code.co_filename[len(self.prefix) :]
        self.files.add(file)
        self.functions.add(f"{file}:{code.co_qualname}")
        if self.train:
            self.training.add(file)
        if code.co_name == "dpo":
            self.frames = max(self.frames, self._depth(frame))

    def _depth(self, frame: FrameType) -> int:
        count = 0
        at: FrameType | None = frame
        while at is not None:
            count += at.f_code.co_filename.startswith(self.prefix)
            at = at.f_back
        return count


def _trace_round(root: Path) -> dict[str, Any]:
    """One round of the experiment above, traced."""
    sys.path.insert(0, str(root))
    import rlaif

    found = Path(rlaif.__file__).resolve().parent
    assert found == root / "rlaif", f"measured {found}"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "experiment.yaml"
        file.write_text(EXPERIMENT, encoding="utf-8")
        run_experiment = rlaif.run_experiment
        trace = _Trace(root / "rlaif")
        threading.setprofile(trace)
        sys.setprofile(trace)
        try:
            run_experiment(file, Path(folder) / "run")
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    for file in sorted(trace.files):
        print(f"{'train step' if file in trace.training else 'other steps':<12} {file}")
    return {
        "files_in_the_round": len(trace.files),
        "functions_in_the_round": len(trace.functions),
        "files_in_the_train_step": len(trace.training),
        "frames_to_the_loss": trace.frames,
    }


if __name__ == "__main__":
    main()
