"""Experiment files that are wrong in some way: each is planned, or refused at a line, and with the
id of the step that is at fault.

Seeded, so that a failure is found again: the case's number is in the message.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rlaif.config.paths import step_places
from rlaif.core.errors import RlaifError
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from tests.config.mutations import mutated, write_sources

SHIPPED = Path(__file__).parents[2] / "experiments"
NAME = "case.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("mutated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


def outcome(path: Path, text: str, profile: str | None) -> str:
    """What becomes of a file. Raises AssertionError for a refusal that says too little."""
    path.write_text(text, encoding="utf-8")
    try:
        make_plan(prepare(path, fetch=False, profile=profile))
    except RlaifError as error:
        fault = find_lack(path, str(error))
        if fault is not None:
            raise AssertionError(f"{fault}: {error}") from None
        return "refused"
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    return "planned"


def find_lack(path: Path, message: str) -> str | None:
    """What a refusal does not say: the line, or the id of the step at that line."""
    if message.removeprefix(f"{path}: ").startswith("--profile"):
        # It stands on the command line.
        return None
    lines = [int(found) for found in re.findall(rf"{re.escape(path.name)}:(\d+)", message)]
    if not lines:
        return "no line"
    ids = ids_by_line(path.read_text("utf-8"))
    silent = [line for line in lines if ids.get(line) and not any(i in message for i in ids[line])]
    return f"not the id of line {silent[0]}" if silent else None


def ids_by_line(text: str) -> dict[int, list[str]]:
    """The ids of the steps at each line of a file; in flow style several may stand in one."""
    try:
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
        data = yaml.load(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError):
        return {}
    found: dict[int, list[str]] = {}
    for place in step_places(data) if isinstance(data, dict) else ():
        inner = node
        for part in place.loc:
            inner = child(inner, part)
        for line in range(inner.start_mark.line + 1, last_line(inner) + 1):
            found.setdefault(line, []).append(place.id)
    return found


def child(node: yaml.Node, part: str | int) -> yaml.Node:
    """The value of a key or the item at a place."""
    if isinstance(part, int):
        return node.value[part]
    return next(value for key, value in node.value if key.value == part)


def last_line(node: yaml.Node) -> int:
    """The last line that has something of a node; the end mark of a block is behind it."""
    parts = node.value if isinstance(node.value, list) else []
    nodes = [n for part in parts for n in (part if isinstance(part, tuple) else (part,))]
    return max(map(last_line, nodes), default=node.start_mark.line + 1)


def run_cases(folder: Path, first: int, count: int) -> Counter[str]:
    sources = write_sources(folder, SHIPPED)
    found: Counter[str] = Counter()
    for number in range(first, first + count):
        rng = random.Random(f"experiment {number}")
        text = mutated(rng, rng.choice(sources))
        profile = rng.choice([None, None, None, "full"])
        try:
            found[outcome(folder / NAME, text, profile)] += 1
        except AssertionError as error:
            raise AssertionError(f"case {number}: {error}\n{text}") from None
    return found


def test_good_files_are_planned(folder: Path) -> None:
    for text in dict.fromkeys(write_sources(folder, SHIPPED)):
        assert outcome(folder / NAME, text, None) == "planned"


@pytest.mark.parametrize("part", range(4))
def test_mutated_files_are_planned_or_refused_at_a_line(part: int, folder: Path) -> None:
    found = run_cases(folder, 500 * part, 500)
    assert found["refused"] > 250
    assert found["planned"] > 25


@pytest.mark.slow
def test_many_mutated_files_are_planned_or_refused_at_a_line(folder: Path) -> None:
    run_cases(folder, 2000, 20_000)
