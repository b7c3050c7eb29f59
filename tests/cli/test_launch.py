"""`rlaif launch`: what it prints, writes and submits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from rlaif.cli import cli
from rlaif.pipeline.launch.targets import TARGETS
from tests.support.launching import (
    INSIDE,
    JUDGE,
    LISTS,
    STEPS,
    put_program,
    run_script,
    with_programs,
    words_of,
)

HOURS = ("--hours", "2")
PLACES = {"slurm": (), "kuberay": ("--storage", "disk"), "skypilot": ("--storage", "bucket")}
SUBMITTED = {
    "slurm": ("sbatch", "rlaif-small.sh", ["FILE"]),
    "kuberay": ("kubectl", "rlaif-small.yaml", ["apply", "-f", "FILE"]),
    "skypilot": ("sky", "rlaif-small.yaml", ["jobs", "launch", "--yes", "FILE"]),
}


@pytest.fixture
def experiment(
    tmp_path: Path, write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.chdir(tmp_path)
    # Nothing that this machine has may be called.
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    policy = {"path": "some/model", "parameters": "1B"}
    write_experiment(tmp_path, None, models={"policy": policy}, rounds=1, steps=STEPS)
    return Path("experiment.yaml")


def launch(target: str, *more: str) -> Result:
    words = ["launch", "experiment.yaml", "--to", target, *PLACES[target], *HOURS, *more]
    return CliRunner().invoke(cli, words)


@pytest.mark.parametrize("target", PLACES)
def test_a_dry_run_prints_the_file_and_does_nothing(target: str, experiment: Path) -> None:
    before = sorted(Path().iterdir())
    done = launch(target, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "rlaif run --out=" in done.stdout and "GPU-hours" in done.stderr
    assert target == "slurm" or list(yaml.safe_load_all(done.stdout))
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("target", PLACES)
def test_the_file_is_written_and_submitted(
    target: str, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, name, wanted = SUBMITTED[target]
    put_program(tmp_path / "programs", program, LISTS)
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    done = launch(target)
    assert done.exit_code == 0, done.output
    path = Path("runs/experiment-launch") / name
    assert done.stdout == f"{path}\n"
    assert path.read_text("utf-8") == launch(target, "--dry-run").stdout
    said = [str(path) if word == "FILE" else word for word in wanted]
    assert words_of(tmp_path / "said") == [str(tmp_path), *said]


def test_the_folder_of_the_file_can_be_another(experiment: Path) -> None:
    assert launch("slurm", "--out", "there of mine").exit_code != 0
    assert Path("there of mine/rlaif-small.sh").exists()


def test_a_program_that_is_not_here_is_named_and_the_file_is_kept(experiment: Path) -> None:
    for target, (program, name, _) in SUBMITTED.items():
        done = launch(target)
        path = Path("runs/experiment-launch") / name
        assert f"{path} is written, and not submitted" in str(done.exception)
        assert f"no program {program} here" in str(done.exception)
        assert path.exists()


def test_a_program_that_says_no_is_an_error(experiment: Path, tmp_path: Path) -> None:
    put_program(tmp_path / "programs", "sbatch", "#!/bin/bash\nexit 4\n")
    assert "ended with code 4" in str(launch("slurm").exception)


def test_keys_go_by_name_and_must_be_there(
    tmp_path: Path,
    experiment: Path,
    write_experiment: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rating = {"judge": {"id": "r", "kind": "rating", "by": "other"}}
    models = {"policy": {"path": "none", "engine": "fake"}, "other": {"path": "x"} | JUDGE}
    write_experiment(
        tmp_path, None, models=models, rounds=1, steps=[STEPS[0], rating, {"pair": {}}]
    )
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    for name in ("sbatch", "sky", "kubectl"):
        put_program(tmp_path / "programs", name, LISTS)
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    for target in ("slurm", "skypilot"):
        assert "JUDGE_KEY is not set here" in str(launch(target).exception)
        assert not (tmp_path / "said").exists()
    # The cluster has it.
    assert launch("kuberay").exit_code == 0
    monkeypatch.setenv("JUDGE_KEY", "the-value-of-the-key")
    for target in PLACES:
        done = launch(target)
        assert done.exit_code == 0, done.output
        text = Path(done.stdout.strip()).read_text("utf-8")
        assert "JUDGE_KEY" in text and "the-value-of-the-key" not in text
    words = words_of(tmp_path / "said")
    assert words[1:-1] == ["jobs", "launch", "--yes", "--secret", "JUDGE_KEY"]


def test_the_script_runs_the_experiment_and_the_second_time_resumes_it(
    tmp_path: Path, write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "it's $HOME & co"
    write_experiment(folder, None, rounds=1)
    monkeypatch.chdir(folder)
    done = launch("slurm", "--dry-run", "--set", "description=it's `id` $HOME")
    assert done.exit_code == 0, done.output
    put_program(tmp_path / "programs", "apptainer", INSIDE)
    code = f'#!/bin/bash\nexec {sys.executable} -m rlaif "$@"\n'
    put_program(tmp_path / "programs", "rlaif", code)
    root = str(Path(__file__).resolve().parents[2])
    environment = with_programs(tmp_path / "programs", PYTHONPATH=root)
    first, second = (run_script(done.stdout, env=environment) for _ in range(2))
    assert first.returncode == 0, first.stderr
    config = yaml.safe_load((folder / "runs" / "experiment" / "config.yaml").read_text("utf-8"))
    assert config["description"] == "it's `id` $HOME"
    assert second.returncode == 0 and "Nothing to do" in second.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["experiment.yaml", "--to", "slurm", "--gpus", "1", "--gpu", "h100 x", "--hours", "1"],
        ["nowhere.yaml", "--to", "slurm"],
        *(["experiment.yaml", "--to", "slurm", "--hours", n] for n in ("nan", "inf", "0.1")),
        ["experiment.yaml", "--to", "slurm", "--flops", "nan"],
        ["experiment.yaml", "--to", "kuberay"],
        ["experiment.yaml", "--to", "slurm", "--hours", "1", "--resource", "x"],
        ["experiment.yaml", "--to", "slurm", "--set", "models.policy.parameters=900B"],
    ],
)
def test_mistakes_end_in_a_sentence(words: list[str], experiment: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-m", "rlaif", "launch", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 2
    assert re.search(r"(?m)^(rlaif|Error): ", done.stderr) and "Traceback" not in done.stderr
    assert not Path("runs").exists()


def test_the_page_quotes_what_is_printed() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "cloud.md").read_text("utf-8")
    [command] = re.findall(r"(?m)^    rlaif (launch experiments/.*)$", page)
    said = CliRunner().invoke(cli, command.split())
    assert said.exit_code == 0, said.output
    [quoted] = re.findall(r"(?m)^    (note: the estimate.*)$", page)
    assert quoted in said.stderr.splitlines()


def test_the_page_has_every_target_and_its_arithmetic_is_right() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "cloud.md").read_text("utf-8")
    assert all(f"| `{target}` |" in page for target in TARGETS)
    sums = re.findall(r"(?m)^    on \w+: +([\d.x+() ]+) = ([\d.]+) \+ ([\d.]+) = ([\d.]+)$", page)
    assert len(sums) == 2
    for text, compute, storage, total in sums:
        # Numbers, brackets, + and x alone, by the pattern.
        value = eval(text.replace("x", "*"))
        assert value == pytest.approx(float(total), abs=0.006)
        assert float(compute) + float(storage) == pytest.approx(float(total), abs=0.006)
