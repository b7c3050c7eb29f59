"""What a job is made of, and what is refused before anything is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlaif.core.errors import ConfigError
from rlaif.pipeline.launch.job import Request, make_job, name_job, read_resources
from tests.support.launching import JUDGE, STEPS

MODEL = {"path": "some/model", "parameters": "1B"}


@pytest.fixture
def experiment(
    tmp_path: Path, write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    monkeypatch.chdir(tmp_path)

    def write(**changes: Any) -> Path:
        given = {"models": {"policy": MODEL}, "rounds": 1, "steps": STEPS} | changes
        write_experiment(tmp_path, None, **given)
        return Path("experiment.yaml")

    return write


def slurm(path: Path, **more: Any) -> Request:
    return Request("slurm", path, **{"flops": 1e12, **more})


def test_the_command_is_the_run_with_everything_that_changes_it(
    experiment: Callable[..., Path],
) -> None:
    path = experiment(profiles={"full": {"rounds": 2}})
    job = make_job(slurm(path, profile="full", settings=("name=it's $5", "seed=8")))
    assert job.command == (
        *("rlaif", "run", "--profile=full", "--set=name=it's $5", "--set=seed=8"),
        *("--out=runs/experiment-full", "--", "experiment.yaml"),
    )
    assert job.name == "rlaif-it-s-5"


def test_a_mirror_is_passed_on_and_replaces_the_storage_of_skypilot(
    experiment: Callable[..., Path],
) -> None:
    path, url = experiment(), "s3://bucket/a run"
    for target, storage, out in (
        ("slurm", None, "runs/experiment"),
        ("kuberay", "disk", "/shared/runs/experiment"),
        ("skypilot", "bucket", "/shared/runs/experiment"),
        ("skypilot", None, "runs/experiment"),
    ):
        job = make_job(Request(target, path, flops=1e12, storage=storage, mirror=url))
        assert job.command[2:] == (f"--mirror={url}", f"--out={out}", "--", "experiment.yaml")
        assert any(url in note and "--secret" in note for note in job.notes)
    with pytest.raises(ConfigError, match="--storage is missing"):
        make_job(Request("kuberay", path, flops=1e12, mirror=url))
    with pytest.raises(ConfigError, match="no /shared without --storage"):
        make_job(Request("skypilot", path, flops=1e12, mirror=url, out="/shared/here"))
    for near in ("file:///data/run", "/data/run", "memory://run"):
        with pytest.raises(ConfigError, match="outlives the job's machine"):
            make_job(Request("skypilot", path, flops=1e12, mirror=near))
    assert make_job(slurm(path, mirror="/data/run"))


def test_the_run_folder_of_other_targets_is_on_their_storage(
    experiment: Callable[..., Path],
) -> None:
    path = experiment()
    for target in ("kuberay", "skypilot"):
        request = Request(target, path, flops=1e12, storage="disk")
        assert "--out=/shared/runs/experiment" in make_job(request).command
        job = make_job(replace(request, out="/shared/here"))
        assert "--out=/shared/here" in job.command


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"storage": None}, "--storage is missing"),
        ({"out": "runs/here"}, "must lie in /shared"),
        ({"out": "/shared2/here"}, "must lie in /shared"),
        ({"gpus": 0, "gpu": "L4"}, "the job has no GPU"),
        ({"secrets": ("sk-12345",)}, "takes the name of an environment variable"),
        ({"resources": ("spot",)}, "expected KEY=VALUE"),
        ({"resources": ("a=1", "a=2")}, "given twice"),
        ({"flops": None}, "give --hours; or --flops"),
    ],
)
def test_what_cannot_be_is_refused(
    experiment: Callable[..., Path], wrong: dict[str, Any], said: str
) -> None:
    request = Request("skypilot", experiment(), flops=1e12, storage="disk")
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        make_job(replace(request, **wrong))
    assert "sk-12345" not in str(caught.value)


def test_an_experiment_that_the_job_could_not_find_is_refused(
    experiment: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / experiment()
    with pytest.raises(ConfigError, match="give the path from the current folder"):
        make_job(Request("skypilot", path, flops=1e12, storage="disk"))
    with pytest.raises(ConfigError, match="give the path from the volume"):
        make_job(Request("kuberay", path, flops=1e12, storage="disk"))
    assert make_job(slurm(path)).command[-1] == str(path)
    with pytest.raises(ConfigError, match="/elsewhere/run: the container sees"):
        make_job(slurm(path, out="/elsewhere/run"))
    assert make_job(slurm(path, out="/elsewhere/run", storage="/elsewhere"))


def test_secrets_are_the_names_that_models_and_trackers_have(
    experiment: Callable[..., Path],
) -> None:
    rating = {"judge": {"id": "r", "kind": "rating", "by": "other"}}
    train = {"train": {"method": "dpo", "trackers": ["wandb"]}}
    models = {"policy": MODEL, "other": {"path": "x"} | JUDGE, "unused": {"path": "y"} | JUDGE}
    models["unused"] |= {"key_env": "UNUSED_KEY"}
    path = experiment(models=models, steps=[STEPS[0], rating, {"pair": {}}, train])
    job = make_job(slurm(path, hours=1.0, secrets=("HF_TOKEN",)))
    assert job.secrets == ("HF_TOKEN", "JUDGE_KEY", "WANDB_API_KEY")


def test_fewer_gpus_than_the_plan_uses_are_refused(experiment: Callable[..., Path]) -> None:
    path = experiment(steps=[*STEPS, {"train": {"method": "dpo", "processes": 4}}])
    with pytest.raises(ConfigError, match=r"--gpus 2: the plan uses 4 \(step train: `processes: 4"):
        make_job(slurm(path, gpus=2))
    assert make_job(slurm(path)).gpus == 4
    assert make_job(slurm(path, gpus=8)).cpus == 64
    alone = make_job(slurm(path, gpus=0))
    assert (alone.gpus, alone.types, alone.image.rpartition("-")[2]) == (0, (), "cpu")


def test_a_job_is_sized_for_the_plan_of_its_profile(experiment: Callable[..., Path]) -> None:
    steps = [*STEPS, {"train": {"method": "dpo", "processes": 1}}]
    path = experiment(steps=steps, profiles={"full": {"steps.train.processes": 4, "rounds": 3}})
    small, full = (make_job(slurm(path, flops=1e6, profile=name)) for name in (None, "full"))
    assert (small.gpus, full.gpus) == (1, 4)
    assert full.cpus == 4 * small.cpus and full.seconds > small.seconds


def test_the_limit_is_the_estimate_and_half_in_steps_of_ten_minutes(
    experiment: Callable[..., Path],
) -> None:
    path = experiment()
    # The seconds follow from FLOP/s: a tenth of the speed is ten times the time.
    fast, slow = (make_job(slurm(path, flops=flops)) for flops in (1e15, 1e6))
    assert fast.seconds == 1800
    assert slow.seconds > 1800 and slow.seconds % 600 == 0
    estimate = float(re.findall(r"estimate is ([\d.]+) h", slow.notes[0])[0])
    assert 1.5 * estimate <= slow.seconds / 3600 + 0.01
    assert slow.seconds / 3600 <= 1.5 * estimate + 1 / 6 + 0.01
    assert make_job(slurm(path, hours=2.5)).seconds == 9000


def test_a_note_has_the_arithmetic(experiment: Callable[..., Path]) -> None:
    path = experiment(steps=[*STEPS, {"train": {"method": "dpo", "processes": 4}}])
    note = make_job(slurm(path, hours=2.5)).notes[0]
    assert note.endswith("2.50 h x 4 GPU = 10.00 GPU-hours")


def test_skypilot_needs_a_type_where_the_memory_is_not_known(
    experiment: Callable[..., Path],
) -> None:
    path = experiment(models={"policy": {"path": "some/model"}})
    request = Request("skypilot", path, hours=1.0, storage="disk")
    with pytest.raises(ConfigError, match=r"`parameters` they have: .*some/model.* with --gpu"):
        make_job(request)
    assert make_job(replace(request, gpu="H100")).types == ("H100",)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("small", "rlaif-small"),
        ("My $(run)\n2", "rlaif-my-run-2"),
        ("é", "rlaif-experiment"),
        ("x" * 90, f"rlaif-{'x' * 32}"),
        (f"{'x' * 31}-y", f"rlaif-{'x' * 31}"),
    ],
)
def test_names_are_those_of_a_label(name: str, wanted: str) -> None:
    assert name_job(name) == wanted


def test_a_value_of_a_resource_may_hold_an_equals_sign() -> None:
    assert read_resources(("comment=a=b", "qos=")) == {"comment": "a=b", "qos": ""}
