"""A judge's spec is imported when its kind is named, and needs no library of models."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from rlaif.judges.build import BASELINES, JUDGES, JudgeStep
from rlaif.judges.common import JudgeBase
from tests.support.kinds import EVERY, OF_ANOTHER, OF_EPISODES

HEAVY = {"torch", "transformers"}
BASES = [
    *EVERY.values(),
    *OF_ANOTHER.values(),
    *OF_EPISODES.values(),
    *({"kind": kind} for kind in BASELINES),
]
PROGRAM = """
import json, sys
from rlaif.pipeline.experiment_file import Experiment

for spec in json.loads(sys.stdin.read()):
    data = {
        "name": "judged",
        "models": {"policy": {"path": "models/policy"}},
        "prompts": {"path": "prompts.jsonl"},
        "steps": [{"sample": {}}, {"judge": spec}],
    }
    experiment = Experiment.model_validate(data)
    assert experiment.steps[1].step.kind == spec["kind"]
print(json.dumps(sorted(sys.modules)))
"""


def modules_after(specs: list[dict[str, Any]]) -> set[str]:
    """What a fresh process has imported when it has validated an experiment for each judge."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(specs),
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout))


def module_of(kind: str) -> str:
    return JUDGES.rows[kind].partition(":")[0]


def test_an_experiment_with_every_kind_loads_no_library_of_models() -> None:
    assert {spec["kind"] for spec in BASES} == set(JUDGES)
    loaded = modules_after(BASES)
    assert loaded & HEAVY == set()
    assert {module_of(kind) for kind in JUDGES} <= loaded


def test_only_the_module_of_the_kind_that_is_named_is_imported() -> None:
    loaded = modules_after([{"kind": "rules"}])
    assert loaded & {module_of(kind) for kind in JUDGES} == {module_of("rules")}


@pytest.mark.parametrize("kind", JUDGES)
def test_a_row_names_the_spec_of_its_kind(kind: str) -> None:
    spec = JUDGES[kind]
    assert issubclass(spec, JudgeBase)
    assert spec.model_fields["kind"].annotation.__args__ == (kind,)  # type: ignore[union-attr]
    assert spec.model_fields["id"].default == kind


def test_an_unknown_kind_is_refused_with_all_that_are_known() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(JudgeStep)
    with pytest.raises(ValidationError) as caught:
        adapter.validate_python({"kind": "yesno"})
    (error,) = caught.value.errors()
    assert error["type"] == "unknown_kind"
    assert all(kind in error["msg"] for kind in JUDGES)
