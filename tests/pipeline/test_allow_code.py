"""Who may run the code of answers: an experiment that says so, and no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.constitution.code_rule import code_allowed
from rlaif.constitution.rules import apply_check
from rlaif.core.errors import ConfigError
from rlaif.core.records import Judgement, make_prompt
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.runs import load_run

Writer = Callable[..., Path]
CODE = {"rule": "code_tests", "params": {"seconds": 1.0}}
SAMPLE = {"sample": {"n": 1, "max_new_tokens": 8}}
RULES = {"judge": {"id": "checks", "kind": "rules"}}
USES: dict[str, dict[str, Any]] = {
    "judge checks": {"steps": [SAMPLE, RULES]},
    "judge both": {
        "steps": [
            SAMPLE,
            {"judge": {"id": "both", "kind": "jury", "of": [{"id": "a", "kind": "rules"}]}},
        ]
    },
    "judge items": {
        "steps": [
            SAMPLE,
            {
                "judge": {
                    "id": "items",
                    "kind": "rubric",
                    "by": "policy",
                    "items": [{"text": "It runs.", "check": "code_tests"}],
                }
            },
        ]
    },
    "judge rewarding": {
        "judges": [{"id": "rewarding", "kind": "rules"}],
        "steps": [{"sample": {"n": 1}}],
    },
    "filter sifted": {
        "steps": [
            SAMPLE,
            {
                "filter": {
                    "id": "sifted",
                    "records": "completions",
                    "filters": [{"kind": "rule", **CODE}],
                }
            },
        ]
    },
    "check runs": {
        "steps": [SAMPLE, {"evaluate": {"checks": [{"id": "runs", **CODE}], "judges": []}}]
    },
}


@pytest.fixture
def write_code(tmp_path: Path, write_experiment: Writer) -> Writer:
    """An experiment by scripted answers, whose one principle runs code."""

    def write(**changes: Any) -> Path:
        given = {"rounds": 1, "dataset": None, **changes}
        path = write_experiment(tmp_path, None, **given)
        principle = {"id": "runs", "text": "The code of the answer is right.", "check": CODE}
        constitution = {"name": "code", "principles": [principle]}
        (tmp_path / "constitution.yaml").write_text(yaml.safe_dump(constitution), "utf-8")
        return path

    return write


@pytest.mark.parametrize("whose", USES)
def test_code_is_refused_where_nothing_allows_it(whose: str, write_code: Writer) -> None:
    path = write_code(**USES[whose])
    with pytest.raises(ConfigError, match="allow_code: true") as caught:
        prepare(path, fetch=False)
    assert whose in str(caught.value)
    assert f"{path}:" in str(caught.value), "the line is named"
    prepare(path, ["allow_code=true"], fetch=False)


def test_a_judge_of_other_principles_needs_no_permission(write_code: Writer) -> None:
    path = write_code(steps=[SAMPLE, {"judge": {"id": "checks", "kind": "rules"}}])
    text = (path.parent / "constitution.yaml").read_text("utf-8")
    given = yaml.safe_load(text)
    given["principles"].append({"id": "ends", "check": {"rule": "finished_sentence"}})
    (path.parent / "constitution.yaml").write_text(yaml.safe_dump(given), "utf-8")
    prepare(path, ["steps.checks.principles=[ends]"], fetch=False)
    with pytest.raises(ConfigError, match="allow_code"):
        prepare(path, ["steps.checks.principles=[runs]"], fetch=False)


def test_the_key_is_in_no_hash(write_code: Writer) -> None:
    path = write_code(steps=[SAMPLE, {"judge": {"id": "ends", "kind": "longer"}}])
    hashes = [
        [p.hash for p in make_plan(prepare(path, [f"allow_code={word}"], fetch=False))]
        for word in ("true", "false")
    ]
    assert hashes[0] == hashes[1]


def test_the_key_lets_an_experiment_run_code(write_code: Writer) -> None:
    script = {"default": "```python\ndef one(): return 1\n```"}
    sample = {"sample": {"n": 1, "max_new_tokens": 64}}
    path = write_code(steps=[sample, RULES], allow_code=True)
    rows = [
        {"prompt": f"Write one(), number {n}.", "reference": f"assert one() == {n % 2}"}
        for n in range(8)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (path.parent / "prompts.jsonl").write_text(lines, "utf-8")
    (path.parent / "script.yaml").write_text(yaml.safe_dump(script), "utf-8")
    given = yaml.safe_load(path.read_text("utf-8"))
    given["models"]["policy"]["script"] = "script.yaml"
    given["prompts"]["holdout"] = 2
    path.write_text(yaml.safe_dump(given), "utf-8")
    out = path.parent / "run"
    run_experiment(path, out)
    run = load_run(out)
    prompts = run.prompt_records()
    [step] = [s for s in run.manifest["steps"] if s["kind"] == "judge"]
    found = {
        (prompts[judgement.prompt_id].reference, judgement.score)
        for judgement in run.store.step(step["hash"]).records(Judgement)
    }
    assert found == {("assert one() == 0", 0.0), ("assert one() == 1", 1.0)}
    # And not beyond the run.
    asked = make_prompt([{"role": "user", "content": "Write it."}], reference="assert True")
    with pytest.raises(ConfigError, match="allow_code"):
        apply_check("code_tests", {}, asked, "x = 1")


def test_permission_ends_where_it_was_given() -> None:
    asked = make_prompt([{"role": "user", "content": "Write it."}], reference="assert True")
    with code_allowed():
        assert apply_check("code_tests", {"seconds": 1.0}, asked, "x = 1") == 1.0
    with pytest.raises(ConfigError, match="allow_code"):
        apply_check("code_tests", {"seconds": 1.0}, asked, "x = 1")
