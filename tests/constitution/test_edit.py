"""Weights written into a file leave its text and comments as they are; imports of other formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlaif.constitution.edit import with_weights
from rlaif.constitution.lint import lint
from rlaif.constitution.model import load_constitution
from rlaif.core.errors import ConfigError
from rlaif.core.resources import shipped_root
from rlaif.data.constitutions import import_constitution

TEXT = """\
# A house style.
name: house   # ours
principles:
  # The first.
  - id: brief  # short
    text: The answer is brief.
    weight: 2     # was 1
  - text: The answer is kind.
    id: "kind"
    scale: {1: rude, 2: kind}
  - {id: flow, text: The answer flows.}
  - {id: heavy, weight: 1.5, text: The answer has weight.}

  # The last word.
version: "3"
"""


def amended(tmp_path: Path, text: str, weights: dict[str, float]) -> tuple[str, dict[str, float]]:
    path = tmp_path / "c.yaml"
    path.write_text(text, "utf-8")
    new = with_weights(path, weights)
    path.write_text(new, "utf-8")
    return new, {p.id: p.weight for p in load_constitution(path).principles}


def test_weights_are_replaced_in_place(tmp_path: Path) -> None:
    weights = {"brief": 0.25, "kind": 3.0, "flow": 1.25, "heavy": 0.0}
    text, loaded = amended(tmp_path, TEXT, weights)
    assert loaded == weights
    assert "    weight: 0.25     # was 1\n" in text
    assert '    id: "kind"\n    weight: 3\n' in text
    assert "{id: flow, weight: 1.25, text: The answer flows.}" in text
    assert "{id: heavy, weight: 0, text" in text
    kept = [line for line in TEXT.splitlines() if "flow" not in line and "weight" not in line]
    assert [line for line in text.splitlines() if line in kept] == kept


def test_other_principles_are_left_alone(tmp_path: Path) -> None:
    text, _ = amended(tmp_path, TEXT, {"brief": 2.0})
    assert text == TEXT


@pytest.mark.parametrize(
    "own",
    [
        "",
        "principles:\n  - {id: own, text: The answer is ours.}\n",
        "principles:\n- id: own\n  text: The answer is ours.\n  # done\n",
        "principles: [{id: own, text: The answer is ours.}]\n",
        "principles: []\n",
    ],
    ids=["absent", "indented", "flush", "flow", "empty"],
)
def test_inherited_principles_get_an_entry(own: str, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(TEXT, "utf-8")
    _, loaded = amended(tmp_path, "name: child\nextends: base.yaml\n" + own, {"kind": 4.5})
    assert loaded["kind"] == 4.5 and loaded["brief"] == 2
    assert ("own" in loaded) == ("own" in own)


@pytest.mark.parametrize("path", sorted((shipped_root() / "constitutions").glob("*.yaml")), ids=str)
def test_every_shipped_file_can_be_amended(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path.parent, tmp_path, dirs_exist_ok=True)
    before = load_constitution(path)
    weights = {p.id: float(f"{0.1 + i / 7:.4g}") for i, p in enumerate(before.principles)}
    text, loaded = amended(tmp_path, path.read_text("utf-8"), weights)
    assert loaded == weights
    assert [line for line in text.splitlines() if line.strip().startswith("#")] == [
        line for line in path.read_text("utf-8").splitlines() if line.strip().startswith("#")
    ]


def written(tmp_path: Path, data: Any) -> Path:
    path = tmp_path / "theirs.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), "utf-8")
    return path


def test_import_of_critique_and_edit_requests(tmp_path: Path) -> None:
    data = {
        "Harmful 0": {
            "prompt": ["\n\nCritiqueRequest: Name what is unkind\nin it.\n\nCritique:"],
            "edit_request": "\n\nRevisionRequest: Write it without that.\n\nRevision:",
        },
        "two": {"prompt": ["Is it true?", "Is it fair?"], "edit_request": "Mend it."},
    }
    made, left = import_constitution(written(tmp_path, data))
    assert left == [] and made.name == "theirs"
    assert [p.id for p in made.principles] == ["harmful-0", "two-1", "two-2"]
    first = made.principles[0]
    assert (first.critique, first.revision) == (
        "Name what is unkind in it.",
        "Write it without that.",
    )
    assert first.text.endswith("Name what is unkind in it.")
    assert [f for f in lint(made, revising=True) if f.level == "error"] == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ([], "expected"),
        ({}, "expected"),
        ({"a": 3}, "a: expected"),
        ({"a": {"prompt": [], "edit_request": "x"}}, "a.prompt"),
        ({"a": {"prompt": ["x"]}}, "a.edit_request: a text was expected, got None"),
        ({"a": {"prompt": ["Critique:"], "edit_request": "x"}}, "a.prompt: a text was expected"),
        ({"constitutions": {}}, "constitutions: a list"),
        ({"constitutions": [3]}, "constitutions[1]"),
        ({"constitutions": [{"critic": "x"}]}, "constitutions[1].revision"),
        (
            {
                "a b": {"prompt": "x", "edit_request": "y"},
                "a-b": {"prompt": "x", "edit_request": "y"},
            },
            "both be called 'a-b'",
        ),
    ],
)
def test_a_bad_import_names_its_entry(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        import_constitution(written(tmp_path, data))
    assert message in str(error.value) and "theirs.json" in str(error.value)
