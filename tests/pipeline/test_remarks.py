"""What a plan makes for nothing is said, and with `--strict` refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.core.resources import find
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.remarks import list_remarks

STEPS: list[dict[str, Any]] = [
    {"sample": {"n": 2, "prompts": 3}},
    {"judge": {"id": "checks", "kind": "rules"}},
    {"pair": {}},
    {"train": {"id": "dpo"}},
    {"evaluate": {}},
]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(KEY=VALUE)`: an experiment of the steps above with other keys."""
    lines = "".join(f'{{"prompt": "Question number {n}?"}}\n' for n in range(14))
    (tmp_path / "prompts.jsonl").write_text(lines)

    def write_file(**keys: Any) -> Path:
        whole = {
            "name": "remarks",
            "models": {"policy": {"path": "builtin/smollm2-135m-instruct"}},
            "constitution": "constitutions/concise_helper.yaml",
            "prompts": {"path": "prompts.jsonl", "holdout": 2},
            "steps": STEPS,
        }
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(whole | keys, sort_keys=False))
        return path

    return write_file


def remarks(path: Path) -> list[str]:
    inputs = prepare(path, fetch=False)
    return list_remarks(inputs, make_plan(inputs))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, []),
        (
            {"steps": [*STEPS[:3], {"train": {"id": "side", "policy": False}},
                       {"train": {"beta": 0.2}}, STEPS[4]]},
            ["train side: no step uses what it makes (round 1 of its stage)"],
        ),
        # A training that leaves the policy which was trained just before it names both.
        (
            {"steps": [*STEPS[:3], {"train": {"id": "first"}},
                       {"train": {"id": "second", "from": "initial", "reference": "initial",
                                  "beta": 0.2}}, STEPS[4]]},
            ["train second: it starts from `initial`, which leaves the policy that train first "
             "made just before unused (round 1 of its stage)"],
        ),
        (
            {"steps": [*STEPS[:3], {"train": {"id": "first"}},
                       {"train": {"id": "second", "beta": 0.2}}, STEPS[4]]},
            [],
        ),
        # Something else uses it: as a reference here, and to sample in the next round.
        (
            {"steps": [*STEPS[:3], {"train": {"id": "first"}},
                       {"train": {"id": "second", "reference": "first", "from": "initial"}},
                       STEPS[4]]},
            [],
        ),
        (
            {"steps": [*STEPS[:3], {"train": {"id": "again", "from": "initial",
                                              "reference": "initial"}}], "rounds": 2},
            [],
        ),
        # From a model beside the policy; one beside it leaves the policy as it is.
        (
            {"steps": [*STEPS[:3], {"train": {"id": "side", "policy": False}},
                       {"train": {"id": "first", "beta": 0.3}},
                       {"train": {"id": "second", "from": "side", "reference": "side"}},
                       STEPS[4]]},
            ["train second: it starts from `side`, which leaves the policy that train first made "
             "just before unused (round 1 of its stage)"],
        ),
        (
            {"steps": [*STEPS[:3], {"train": {"id": "first"}},
                       {"train": {"id": "side", "from": "initial", "beta": 0.3, "policy": False}},
                       {"train": {"id": "third", "from": "first", "reference": "side"}}, STEPS[4]]},
            [],
        ),
        (
            {"steps": [*STEPS[:2], {"judge": {"id": "more", "kind": "rules"}},
                       {"pair": {"uses": ["checks"]}}, *STEPS[3:]], "rounds": 2},
            ["judge more: no step uses what it makes (round 1, 2 of its stage)"],
        ),
        (
            {"arms": {"a": {}, "b": {"set": {"steps.dpo.beta": 0.1}},
                      "c": {"set": {"steps.dpo.beta": 0.3}}}},
            ["arms a, b are identical: nothing differs between them"],
        ),
    ],
)  # fmt: skip
def test_what_nothing_uses_is_said_and_refused(
    write: Write, keys: dict[str, Any], said: list[str]
) -> None:
    path = write(**keys)
    assert remarks(path) == said
    dry = CliRunner().invoke(cli, ["run", str(path), "--dry-run", "--json"])
    assert json.loads(dry.stdout)["notes"] == said
    text = CliRunner().invoke(cli, ["run", str(path), "--dry-run"]).output
    assert all(f"note: {line}" in text for line in said) and ("note:" in text) == bool(said)
    strict = CliRunner().invoke(cli, ["run", str(path), "--dry-run", "--strict"])
    assert (strict.exception is None) == (not said)
    assert all(line in str(strict.exception) for line in said)


@pytest.mark.parametrize(
    "name", ["quickstart", "rlaif_three_arms", "instructgpt", "safe_rlhf", "spin", "overoptimise"]
)
def test_shipped_files_make_nothing_for_nothing(name: str) -> None:
    assert remarks(Path(str(find(f"experiments/{name}.yaml")))) == []
