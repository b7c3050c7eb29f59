"""A judge's own constitution reaches its questions, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from rlaif.constitution.model import Constitution, Principle
from rlaif.core.errors import ConfigError
from rlaif.judges.base import Judge
from rlaif.judges.build import JudgeStep, build_judge

ADDITIVE = {"kind": "additive", "by": "policy", "samples": 2}
NAMED = ADDITIVE | {"principles": ["kind"]}
JUROR = {"kind": "yes_no", "by": "policy", "id": "juror"}


def built(folder: Path, spec: dict[str, Any]) -> Judge:
    text = "name: own\nprinciples: [{id: kind, text: The answer is kind.}]\n"
    (folder / "own.yaml").write_text(text)
    (folder / "plain.j2").write_text("{{ prompt }} {{ response }}\n")
    own = {"constitution": "own.yaml"} | spec
    return build_judge(TypeAdapter(JudgeStep).validate_python(own), None, folder / "file.yaml")


@pytest.mark.parametrize(
    "spec",
    [
        ADDITIVE,
        {"kind": "template", "template": "plain.j2", "parse": {"pattern": "([0-9])"}},
        {"kind": "meta", "by": "policy", "judge": ADDITIVE},
        {"kind": "jury", "of": [ADDITIVE, ADDITIVE | {"id": "other"}]},
    ],
)
def test_a_constitution_that_reaches_nothing_is_refused(
    spec: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="`constitution` has no effect"):
        built(tmp_path, spec)


@pytest.mark.parametrize(
    "spec",
    [
        *(NAMED, JUROR, {"kind": "jury", "of": [JUROR, ADDITIVE]}),
        {"kind": "meta", "by": "policy", "judge": NAMED},
    ],
)
def test_a_constitution_that_is_looked_at_is_accepted(spec: dict[str, Any], tmp_path: Path) -> None:
    assert built(tmp_path, spec).judge_hash


def test_a_jurors_weights_of_principles_are_its_own_and_in_the_jurys_hash(tmp_path: Path) -> None:
    """A principle of the same name in the jury's constitution keeps its weight."""
    main = Constitution(name="main", principles=[Principle(id="kind", text="Be.", weight=3)])

    def seat(weight: float, constitution: Constitution) -> Any:
        principle = f"{{id: kind, text: The answer is kind., weight: {weight}}}"
        (tmp_path / "own.yaml").write_text(f"name: own\nprinciples: [{principle}]\n")
        of = [JUROR | {"constitution": "own.yaml"}, JUROR | {"id": "other"}]
        jury: Any = TypeAdapter(JudgeStep).validate_python({"kind": "jury", "of": of})
        return build_judge(jury, constitution, tmp_path / "file.yaml")

    jury = seat(2, main)
    assert jury.principle_weights == {"kind": 3, "juror/kind": 2}
    assert jury.judge_hash != seat(5, main).judge_hash
    lighter = main.model_copy(
        update={"principles": [main.principles[0].model_copy(update={"weight": 1})]}
    )
    assert jury.judge_hash != seat(2, lighter).judge_hash
    assert jury.judge_hash == seat(2, main).judge_hash
