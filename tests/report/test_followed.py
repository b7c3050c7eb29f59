"""Verdicts that rest on several answers can be followed: in the records, in exports, and in the
pair browser of a run's page, driven in a real browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.judges.build import build_judge
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.exports import judgement_rows
from rlaif.pipeline.runs import Run, load_run
from rlaif.report.build import build_report
from tests.servers.scripted import ScriptedServer, prompt_text
from tests.support.browsing import dumped, needs_chromium

TOPS = {"Yes": -0.3, "No": -1.9, "1": -0.4, "2": -1.4}
YES_NO = {"kind": "yes_no", "by": "asked"}
RATING = {"kind": "rating", "by": "asked"}
JUDGES: dict[str, dict[str, Any]] = {
    "jury": {"kind": "jury", "of": [{**RATING, "id": "strict"}, {**YES_NO, "id": "kind"}]},
    "vote": {
        "kind": "jury",
        "pool": "vote",
        "of": [{**RATING, "id": "strict"}, {"kind": "pairwise", "by": "asked", "id": "kind"}],
    },
    "rubric": {
        "kind": "rubric",
        "by": "asked",
        "items": [{"text": "It is short."}, {"text": "It is polite."}],
    },
    "written rubric": {"kind": "rubric", "by": "asked", "generate": {"most": 2}},
    "rbr": {"kind": "rbr", "by": "asked", "weights": "weights.yaml"},
    "meta": {
        "kind": "meta",
        "by": "asked",
        "judge": {**RATING, "id": "inner", "samples": 2, "temperature": 1.0},
    },
}
CONSTITUTION = {
    "name": "small",
    "principles": [
        {"id": "brief", "text": "It has few words."},
        {"id": "warm", "text": "It is friendly."},
    ],
}


def said(body: dict[str, Any], choice: int) -> str:
    if "- [" in prompt_text(body):
        return "- [essential] It is short.\n- [important] It is polite."
    # Each of several samples in its own words.
    words = f"<i>I weighed it ({len(prompt_text(body))}, {body.get('seed', 0) % 7}).</i>"
    return f"{words}\nScore: {4 if 'a brief answer' in prompt_text(body) else 2}"


def judged(write: Callable[..., Path], folder: Path, judge: dict[str, Any]) -> Run:
    with ScriptedServer(said, tops=TOPS, context=9999) as server:
        remote = {"path": "m", "engine": "openai", "base_url": server.url, "cache": False}
        policy = {"path": "none", "engine": "fake", "script": "script.yaml"}
        path = write(
            folder,
            None,
            models={"policy": policy, "asked": remote},
            rounds=1,
            steps=[
                {"sample": {"n": 2, "temperature": 1.0, "max_new_tokens": 40}},
                {"judge": {"id": "panel", **judge}},
                {"pair": {"strategy": "all", "min_margin": 0.0}},
            ],
        )
        (folder / "constitution.yaml").write_text(yaml.safe_dump(CONSTITUTION), "utf-8")
        (folder / "weights.yaml").write_text("weights: {brief: 1.0, warm: 2.0}\n", "utf-8")
        rules = [{"match": ".", "replies": ["a brief answer", "many long words of an answer"]}]
        (folder / "script.yaml").write_text(yaml.safe_dump({"rules": rules}), "utf-8")
        run_experiment(path, folder / "out")
    return load_run(folder / "out")


@pytest.mark.parametrize("name", JUDGES)
def test_a_verdict_names_the_answers_that_it_rests_on(
    tmp_path: Path, write_experiment: Callable[..., Path], name: str
) -> None:
    run = judged(write_experiment, tmp_path, JUDGES[name])
    stored = {row["call_id"]: row for row in run.rows("answers")}
    rows = list(judgement_rows(run))
    assert rows and stored
    for row in rows:
        behind = row["answers"]
        assert [a["call_id"] for a in behind] == row["rests_on"]
        assert behind and all(a["template_hash"] for a in behind)
        assert all(a["raw"] or a["values"] for a in behind)
        if name != "meta":
            # A meta-judge's comparisons show judgements, and the rest shows the answer itself.
            assert all(set(a["shown"]) & set(row["shown"]) for a in behind)
    # Every answer that was paid for is behind a verdict.
    assert {call for row in rows for call in row["rests_on"]} == stored.keys()


def test_a_jury_of_programs_and_models_names_the_models_answers_alone(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    jury = {"kind": "jury", "of": [{"kind": "longer", "id": "length"}, {**YES_NO, "id": "asks"}]}
    run = judged(write_experiment, tmp_path, jury)
    for row in judgement_rows(run):
        assert {answer["role"] for answer in row["answers"]} == {"asks/by"}
        assert set(row["distribution"]) == {"length", "asks"}


@needs_chromium
def test_the_pair_browser_shows_what_each_juror_was_asked_and_said(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    run = judged(write_experiment, tmp_path, JUDGES["jury"])
    page = build_report(run.view(), tmp_path / "report.html")
    shown = dumped(page, "#pair=1")
    view = shown[shown.index('id="pair-view"') : shown.index('id="answers"')]
    for juror in ("strict/by", "kind/by"):
        assert f"<strong>{juror}</strong>" in view
    assert view.count('<span class="principle">brief</span>') == 4
    assert view.count('<span class="principle">warm</span>') == 4
    jury: Any = build_judge_of(tmp_path)
    for juror in jury.members:
        assert view.count(f"<code>{juror.asking.template.hash}</code>") == 4
    assert "&lt;i&gt;I weighed it" in view and "Score: 4</pre>" in view
    assert "yes 0.741" in view


def build_judge_of(folder: Path) -> Any:
    from rlaif.constitution.model import load_constitution
    from rlaif.pipeline.reading import load_experiment

    experiment, _ = load_experiment(folder / "experiment.yaml")
    spec = experiment.all_judges()["panel"]
    return build_judge(spec, load_constitution(folder / "constitution.yaml"), folder)


def test_an_export_of_judgements_has_them_too(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    from click.testing import CliRunner

    from rlaif.cli import cli

    judged(write_experiment, tmp_path, JUDGES["jury"])
    out = tmp_path / "judgements.jsonl"
    words = ["export", str(tmp_path / "out"), str(out), "--records", "judgements"]
    assert CliRunner().invoke(cli, words, catch_exceptions=False).exit_code == 0
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    written = [a for row in rows for a in row["answers"] if a["role"] == "strict/by"]
    assert {a["principle"] for a in written} == {"brief", "warm"}
    assert all("I weighed it" in a["raw"] for a in written)
