"""The pages on the language: their files have plans, what they quote is printed, they have every
key, and links lead somewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.config.arms import ArmSpec
from rlaif.config.base import Strict
from rlaif.config.dataset import DatasetSpec
from rlaif.config.environments import ENVIRONMENTS
from rlaif.config.filters import FilterStep
from rlaif.config.judge_training import BenchStep, QuestionsStep
from rlaif.config.methods import DISTILLATIONS, METHODS
from rlaif.config.models import ModelSpec
from rlaif.config.prompts import PromptSetSpec, PromptsSpec
from rlaif.config.revise import ReviseStep
from rlaif.config.steps import (
    EvaluateStep,
    LabelStep,
    LoadStep,
    PairStep,
    PoolMember,
    SamplePrinciples,
    SampleStep,
    TemplateFile,
)
from rlaif.config.training import TrainStep
from rlaif.judges.common import JudgeBase
from rlaif.pipeline.experiment_file import AlarmsConfig, Experiment, Retention
from rlaif.pipeline.explain.plan import explain_file
from rlaif.pipeline.stages import Stage, StepEntry, Until
from rlaif.pipeline.steps import STEPS
from rlaif.report.flow_text import render_text

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
MOST_LINES = 30
"""Of the file of a published method."""


def read(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def list_files() -> dict[str, tuple[str, list[str]]]:
    """Every file of docs/experiments.md by its name, and the lines that the page quotes of what
    `rlaif explain` says of it."""
    found: dict[str, tuple[str, list[str]]] = {}
    for kind, body in re.findall(r"```(yaml|text)\n(.*?)```", read("experiments.md"), re.DOTALL):
        if kind == "yaml":
            name = yaml.safe_load(body)["name"]
            found[name] = (body, [])
        else:
            found[name][1].extend(body.splitlines())
    return found


FILES = list_files()
INPUTS: dict[str, tuple[int, dict[str, str]]] = {
    "prompts.jsonl": (160, {"prompt": "Question {n}?"}),
    "demonstrations.jsonl": (20, {"prompt": "Shown {n}?", "completion": "Answer {n}."}),
    "comparisons.jsonl": (
        160,
        {"prompt": "Compared {n}?", "chosen": "Good {n}.", "rejected": "Bad {n}."},
    ),
    "pretraining.jsonl": (20, {"text": "Text {n}."}),
}
"""The files of the reader's own that the page's files name, small."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, (count, row) in INPUTS.items():
        rows = ({key: text.format(n=n) for key, text in row.items()} for n in range(count))
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    return tmp_path


def test_the_page_has_one_file_to_learn_from_and_six_methods() -> None:
    first, *methods = FILES
    assert first == "first" and len(methods) == 6
    long = {n: len(FILES[n][0].splitlines()) for n in methods}
    assert max(long.values()) <= MOST_LINES, long
    assert all(quoted for _, quoted in FILES.values())


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_page_has_a_plan_which_says_what_is_quoted(name: str, folder: Path) -> None:
    text, quoted = FILES[name]
    path = folder / f"{name}.yaml"
    path.write_text(text, "utf-8")
    said = " ".join(render_text(explain_file(path)).split())
    for line in quoted:
        assert " ".join(line.split()) in said, line
    for profile in [None, *yaml.safe_load(text).get("profiles", {})]:
        chosen = [] if profile is None else ["--profile", profile]
        out = ["--out", str(folder / "run")]
        result = CliRunner().invoke(cli, ["run", str(path), "--dry-run", *out, *chosen])
        assert result.exit_code == 0, result.output
        assert "0 steps reused" in result.output


def test_the_page_on_explain_shows_what_it_says_of_the_quickstart() -> None:
    said = render_text(explain_file(ROOT / "experiments" / "quickstart.yaml")).rstrip()
    shown = "\n".join(f"    {line}" if line else "" for line in said.splitlines())
    assert shown in read("explain.md")


def section(page: str, heading: str) -> str:
    """The text below a heading, up to the next one of any level."""
    after = re.split(rf"(?m)^#+ {re.escape(heading)}$", page)
    assert len(after) == 2, f"the page has {len(after) - 1} headings {heading!r}"
    return re.split(r"(?m)^#+ ", after[1])[0]


def table_keys(text: str) -> set[str]:
    """The names in the first column of the tables whose heading there is `key`."""
    found: set[str] = set()
    inside = False
    for line in text.splitlines():
        first = line.split("|")[1].strip() if line.startswith("|") else None
        inside = first == "key" or (inside and first is not None)
        found |= set(re.findall(r"`([\w.]+)`", first or "")) if inside else set()
    return found


def keys_of(spec: type[Any]) -> set[str]:
    return {field.alias or name for name, field in spec.model_fields.items()}


SECTIONS: list[tuple[str, type[Strict], set[str]]] = [
    ("Top level", Experiment, set()),
    ("alarms", AlarmsConfig, set()),
    ("retention", Retention, set()),
    ("Prompts", PromptsSpec, set()),
    ("Prompts", PromptSetSpec, set()),
    ("Stages", Stage, set()),
    ("until", Until, set()),
    ("sample", SampleStep, set()),
    ("revise", ReviseStep, set()),
    ("load", LoadStep, set()),
    ("questions", QuestionsStep, set()),
    ("bench", BenchStep, set()),
    ("filter", FilterStep, set()),
    ("pair", PairStep, set()),
    ("label", LabelStep, set()),
    ("evaluate", EvaluateStep, set()),
    ("Arms", ArmSpec, set()),
    # Some of a few methods alone stand here too: they name models, judges and sets of prompts.
    ("train", TrainStep, {"reference", "prompts", "rewards", "costs"}),
]


@pytest.mark.parametrize(
    ("heading", "spec", "more"), SECTIONS, ids=[spec.__name__ for _, spec, _ in SECTIONS]
)
def test_the_reference_has_exactly_the_keys_that_there_are(
    heading: str, spec: type[Strict], more: set[str]
) -> None:
    assert table_keys(section(read("language.md"), heading)) == keys_of(spec) | more


def test_entries_have_kinds_and_two_keys_beside_them() -> None:
    text = section(read("language.md"), "Entries of steps")
    kinds = {kind for kind, spec in STEPS.items() if spec is not None}
    assert table_keys(text) == keys_of(StepEntry) - kinds
    assert kinds <= set(re.findall(r"`(\w+)`", text))
    steps = section(read("language.md"), "Steps")
    assert set(re.findall(r"(?m)^\| \[`(\w+)`\]\(#\1\)", steps)) == kinds


def named(text: str) -> set[str]:
    """Every word within backticks or code blocks."""
    code = re.findall(r"```.*?```|`[^`]*`", text, re.DOTALL)
    return {word for part in code for word in re.findall(r"\w+", part)}


ELSEWHERE: list[tuple[type[Any], tuple[str, ...]]] = [
    (DatasetSpec, ("language.md",)),
    (JudgeBase, ("language.md",)),
    (ModelSpec, ("language.md", "engines.md")),
    (PoolMember, ("language.md", "datasets.md")),
    (SamplePrinciples, ("language.md", "datasets.md")),
    (TemplateFile, ("language.md",)),
    *((spec, ("environments.md",)) for spec in ENVIRONMENTS.values()),
    *((spec, ("language.md", "training.md")) for spec in METHODS.values()),
    *((spec, ("language.md", "training.md")) for spec in DISTILLATIONS.values()),
]


@pytest.mark.parametrize(("spec", "pages"), ELSEWHERE, ids=[spec.__name__ for spec, _ in ELSEWHERE])
def test_keys_are_on_the_page_that_describes_them(spec: type[Any], pages: Iterable[str]) -> None:
    known = set[str]().union(*(named(read(page)) for page in pages))
    assert keys_of(spec) <= known, sorted(keys_of(spec) - known)


def fragments(name: str) -> list[Any]:
    blocks = re.findall(r"```yaml\n(.*?)```", read(name), re.DOTALL)
    return [yaml.safe_load(block.replace("[...]", "[]")) for block in blocks]


@pytest.mark.parametrize("fragment", fragments("language.md"), ids=lambda f: str(f)[:40])
def test_the_pieces_of_the_reference_are_of_the_language(fragment: Any) -> None:
    if isinstance(fragment, dict):
        assert fragment.keys() <= Experiment.model_fields.keys() | {"until"}
    steps = fragment if isinstance(fragment, list) else fragment.get("steps", [])
    assert isinstance(fragment, dict) or steps
    for step in steps:
        if isinstance(step.get("judge"), str) or "kind" not in step.get("judge", {"kind": ""}):
            continue  # a judge that is run by its id
        StepEntry.model_validate(step)


@cache
def anchors(path: Path) -> frozenset[str]:
    """What the headings of a page are called in links to it, as GitHub makes these names."""
    text = re.sub(r"```.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
    found: list[str] = []
    for heading in re.findall(r"(?m)^#+ (.*)$", text):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
        found.append(f"{name}-{found.count(name)}" if name in found else name)
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_a_page_and_its_heading(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{target}: no such file"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"{target}: no such heading"
