"""Run folders of the first version of the language go on as they are: no step is new."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.manifest import read_rounds
from rlaif.pipeline.plan.unroll import make_plan
from rlaif.pipeline.prepare import prepare

FOLDER = Path(__file__).resolve().parents[1] / "first_version"


@pytest.mark.parametrize("where", [".", "arms"])
def test_a_run_of_the_first_version_has_nothing_left_to_do(where: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "copy")
    folder = tmp_path / "copy" / where
    run = folder / "run"
    steps = {p.relative_to(run): p.read_bytes() for p in run.glob("steps/**/*") if p.is_file()}
    rounds = [(r.arm, r.seed, r.round, r.metrics) for r in read_rounds(run)]
    result = run_experiment(folder / "experiment.yaml", run)
    assert (result.ran, result.reused) == (0, len(list(run.glob("steps/*/done.json"))))
    assert {p: (run / p).read_bytes() for p in steps} == steps
    assert [(r.arm, r.seed, r.round, r.metrics) for r in result.rounds] == rounds


def test_another_value_makes_what_depends_on_it_anew(tmp_path: Path) -> None:
    """The folder is read at all: what is asked otherwise is asked again, and nothing else."""
    shutil.copytree(FOLDER, tmp_path / "copy")
    run = tmp_path / "copy" / "run"
    file = tmp_path / "copy" / "experiment.yaml"
    before = {p.hash for p in make_plan(prepare(file))}
    changed = [
        p.id for p in make_plan(prepare(file, ["steps.pair.tier=0.5"])) if p.hash not in before
    ]
    assert sorted(changed) == ["evaluate", "evaluate", "pair", "pair", "pairs", "pairs"]
    assert run_experiment(file, run, ["steps.pair.tier=0.5"]).ran == len(changed)
