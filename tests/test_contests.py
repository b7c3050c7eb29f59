"""Win rates of a run's own held-out answers are the report's, and are ranked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.contests import run_battles
from rlaif.errors import ConfigError
from rlaif.experiment import run_experiment
from rlaif.runs import load_run


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    write_experiment: Callable[..., Path],
) -> Path:
    folder = tmp_path_factory.mktemp("contests")
    path = write_experiment(folder / "config", tiny_model, seed=None, seeds=[3, 4])
    run_experiment(path, folder / "run")
    return folder / "run"


def measured(folder: Path) -> dict[str, Any]:
    done = CliRunner().invoke(cli, ["winrate", str(folder), "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_rates_are_those_of_the_evaluation(finished: Path) -> None:
    found = measured(finished)
    assert found["run"] == "small"
    assert found["judges"].keys() == {"checks", "self"}
    rounds = [r for r in load_run(finished).status()["rounds"] if r["round"] > 0]
    assert len(rounds) == 4
    for row in rounds:
        name = f"{row['policy']} seed {row['seed']}"
        for judge, result in found["judges"].items():
            metric = row["deltas"]["initial"][f"win_rate/{judge}"]
            rate = result["generators"][name]
            assert rate["win_rate"] == pytest.approx(100 * metric["mean"]), (name, judge)
            assert rate["n_prompts"] == metric["n"] == 3
            assert rate["low"] < rate["high"]
    ranking = found["judges"]["checks"]["ranking"]
    assert {r["player"] for r in ranking} == {
        "M0",
        *(f"M{m} seed {s}" for m in (1, 2) for s in (3, 4)),
    }
    assert [r["player"] for r in ranking if r["is_anchor"]] == ["M0"]


def test_the_table_names_judge_and_models(finished: Path) -> None:
    done = CliRunner().invoke(cli, ["winrate", str(finished)], catch_exceptions=False)
    assert "Win rate (%) against M0 by judge checks" in done.stdout
    assert "M2 seed 4" in done.stdout
    wrong = CliRunner().invoke(cli, ["winrate", str(finished), "--from", "trl"])
    assert wrong.exit_code == 2 and "are for files" in wrong.output


def test_a_run_without_a_later_model_says_so(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    path = write_experiment(tmp_path / "config", None)
    run_experiment(path, tmp_path / "run")
    with pytest.raises(ConfigError, match="no finished evaluation in which a judge saw a later"):
        run_battles(load_run(tmp_path / "run"))
