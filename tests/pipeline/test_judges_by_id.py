"""A judge that is defined once, in `judges`, and run by its id."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from rlaif.core.errors import ConfigError
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.manifest import resolved_yaml
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare
from rlaif.pipeline.reading import experiment_schema, load_experiment

HEAD = """\
name: by-id
models: {policy: {path: none, engine: fake}}
constitution: constitutions/concise_helper.yaml
prompts: {path: prompts.jsonl, holdout: 2}
judges:
  - {id: gold, kind: rules}
  - {id: brief, kind: rules, principles: [brief]}
steps:
  - sample: {n: 2, max_new_tokens: 4}
"""
STEPS = """\
  - judge: {id: gold, uses: [sample]}
  - judge: brief
  - pair: {uses: [gold, brief]}
  - evaluate: {}
"""
BY_ID = HEAD + STEPS


def written(folder: Path, text: str) -> Path:
    rows = "".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(5))
    (folder / "prompts.jsonl").write_text(rows)
    path = folder / "by_id.yaml"
    path.write_text(text)
    return path


def test_it_is_the_judge_that_is_written_out(tmp_path: Path) -> None:
    short = HEAD + "  - judge: brief\n  - pair:\n"
    long = HEAD.replace("  - {id: brief, kind: rules, principles: [brief]}\n", "")
    long += "  - judge: {id: brief, kind: rules, principles: [brief]}\n  - pair:\n"
    plans = [make_plan(prepare(written(tmp_path, text))) for text in (short, long)]
    assert [(p.hash, p.id) for p in plans[0]] == [(p.hash, p.id) for p in plans[1]]
    assert plans[0][1].step.principles == ["brief"]


def test_only_what_it_uses_may_differ(tmp_path: Path) -> None:
    path = written(tmp_path, BY_ID)
    run_experiment(path, tmp_path / "run")
    experiment, _ = load_experiment(tmp_path / "run" / "config.yaml")
    judges = [e.step for e in experiment.steps if e.kind == "judge"]
    assert [(j.id, j.kind, j.uses) for j in judges] == [
        ("gold", "rules", ["sample"]),
        ("brief", "rules", None),
    ]
    assert resolved_yaml(experiment) == (tmp_path / "run" / "config.yaml").read_text()
    again = run_experiment(path, tmp_path / "run")
    assert again.ran == 0


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("brif", "no judge of `judges` has that id, and no `kind` is given; did you mean 'brief'"),
        ("{id: brief, principles: [x]}", "only `uses` may stand beside its id (got principles)"),
        ("{id: gold, kind: rules, principles: [brief]}", "'gold' is used twice"),
    ],
)
def test_what_is_no_judge_of_the_file_is_refused(tmp_path: Path, step: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(written(tmp_path, HEAD + f"  - judge: {step}\n"))
    assert words in str(caught.value)
    if "used twice" not in words:
        assert f"by_id.yaml:{HEAD.count(chr(10)) + 1}" in str(caught.value)


def test_paths_reach_its_step(tmp_path: Path) -> None:
    path = written(tmp_path, HEAD + "  - judge: brief\n  - pair:\n")
    experiment, _ = load_experiment(path, ["judges.brief.principles=[useful]"])
    (judge,) = [e.step for e in experiment.steps if e.kind == "judge"]
    assert judge.principles == ["useful"]
    experiment, _ = load_experiment(path, ["steps.brief.uses=[sample]"])
    assert [e.step.uses for e in experiment.steps if e.kind == "judge"] == [["sample"]]


def test_the_schema_takes_both_forms() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(experiment_schema()))
    assert not list(validator.iter_errors(yaml.safe_load(BY_ID)))
    assert list(validator.iter_errors(yaml.safe_load(BY_ID.replace("judge: brief", "judge: 7"))))
