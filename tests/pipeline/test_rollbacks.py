"""A run whose on-policy training rolls back: what it says, and what kill -9 leaves of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.pipeline.runs import load_run
from rlaif.report.build import build_report
from tests.pipeline.test_kills import killed, weights

TRAIN: dict[str, Any] = {
    "method": "grpo",
    "rewards": [{"judge": "checks", "normalise": "running"}],
    "rollouts": 5,
    "batch_size": 2,
    "n": 2,
    "max_new_tokens": 12,
    "temperature": 1.0,
    "precision": "fp32",
    "learning_rate": 1e-2,
    "checkpoint_every": 2,
}


def experiment(write_experiment, folder: Path, model: Path, gates: dict[str, Any]) -> Path:
    return write_experiment(
        folder,
        model,
        judges=[{"id": "checks", "kind": "rules"}],
        steps=[{"train": TRAIN | {"gates": gates}}],
        rounds=1,
    )


def metrics(out: Path) -> list[dict[str, Any]]:
    (path,) = out.glob("steps/*/work/metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "timing"} for row in rows]


@pytest.fixture
def rolling(tmp_path, make_model, write_experiment) -> Path:
    """An experiment whose gate does not let pass the rollout of least entropy."""
    model = make_model(0)
    never = {"entropy": {"warn": -1.0}}
    path = experiment(write_experiment, tmp_path, model, never)
    done = CliRunner().invoke(cli, ["run", str(path), "--out", str(tmp_path / "plain"), "-q"])
    assert done.exit_code == 0, done.output
    first, *later = (row["rollout_entropy"] for row in metrics(tmp_path / "plain"))
    assert first > min(later), "else there is nothing to go back to"
    gates = {"entropy": {"rollback": min(later)}, "max_rollbacks": 30}
    return experiment(write_experiment, tmp_path, model, gates)


@pytest.mark.slow
def test_killed_anywhere_it_ends_in_the_same_model(rolling, tmp_path):
    assert killed(tmp_path, 2, 7, "run", str(rolling), "-q", "--no-report") >= 2
    whole = tmp_path / "0"
    assert weights(whole) and metrics(whole)[-1]["rollbacks"] >= 1
    for number in range(1, 3):
        assert weights(tmp_path / str(number)) == weights(whole)
        assert metrics(tmp_path / str(number)) == metrics(whole)


def test_status_and_report_say_where_it_went_back_and_all_answers_are_kept(rolling, tmp_path):
    whole = tmp_path / "whole"
    done = CliRunner().invoke(cli, ["run", str(rolling), "--out", str(whole), "-q", "--no-report"])
    assert done.exit_code == 0, done.output
    assert metrics(whole)[-1]["rollbacks"] >= 1
    (step,) = load_run(whole).view().steps
    assert any("(gates.entropy.rollback): went back to" in note for note in step["notes"])
    page = build_report(load_run(whole).view(), tmp_path / "page.html").read_text()
    section = page.split('id="rollouts"')[1].split("</section>")[0]
    assert "drew new answers from there (rollback 1)." in section
    assert "went back to" in CliRunner().invoke(cli, ["status", str(whole)]).output
    # Answers that were drawn anew are records beside the ones that were abandoned.
    models = {row["model"] for row in load_run(whole).rows("completions")}
    assert any(name.endswith(", after rollback 1") for name in models)


@pytest.mark.slow
def test_status_says_where_a_training_stands_that_goes_on(rolling, tmp_path):
    """Killed in the middle: the last rollout that was learned from, and no over-optimisation."""
    from tests.support.kills import attempt

    out = tmp_path / "run"
    words, point = ["run", str(rolling), "-q", "--no-report"], 1
    while not list(out.glob("steps/*/work/metrics.jsonl")) or len(metrics(out)) < 2:
        assert attempt(words, out, point * 4) is None
        point += 1
    said = CliRunner().invoke(cli, ["status", str(out)]).output
    assert f"training: train (seed 3 round 1): rollout {metrics(out)[-1]['rollout']} of 5" in said
    state = json.loads(CliRunner().invoke(cli, ["status", str(out), "--json"]).output)
    (row,) = state["training"]
    assert row["latest"]["reward"] == metrics(out)[-1]["reward"]
    assert state["over_optimisation"] == []
