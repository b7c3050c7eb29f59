"""Training by Ray Train on a real cluster: `make test-ray`, in an environment of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ray", reason="RAY IS NOT INSTALLED HERE: make test-ray")

from rlaif.cluster.executor import RayExecutor, open_cluster
from rlaif.cluster.settings import ClusterSettings
from rlaif.config.models import ModelSpec
from rlaif.core.chat import ChatSettings
from rlaif.core.errors import RlaifError
from rlaif.core.records import Preference
from rlaif.train.loop import TrainJob, TrainOutcome, TrainProgress
from rlaif.train.methods.pairs import DpoTrain
from rlaif.train.run import train_on_preferences
from tests.support.clusters import started_cluster
from tests.support.processes import children

pytestmark = pytest.mark.ray

OPTIONS = {
    "batch_size": 4,
    "micro_batch_tokens": 60,
    "precision": "fp32",
    "learning_rate": 1e-3,
    "checkpoint_every": 2,
    "epochs": 2,
}


@pytest.fixture(scope="module")
def executor() -> Iterator[RayExecutor]:
    with (
        started_cluster([1, 1]) as cluster,
        open_cluster(ClusterSettings(cluster.address)) as made,
    ):
        yield made


def make_job(
    folder: Path, start: Path, preferences: Sequence[Preference], **changes: Any
) -> TrainJob[Any]:
    return TrainJob(
        options=DpoTrain(**(OPTIONS | changes)),
        start=start,
        out=folder / "out",
        work=folder / "work",
        seed=3,
        device=torch.device("cpu"),
        preferences=preferences,
        chat=ChatSettings(system_prompt="Be brief."),
        spec=ModelSpec(path="m"),
    )


def run(job: TrainJob[Any], launch: Any = None, progress: Any = None) -> TrainOutcome:
    return train_on_preferences(replace(job, launch=launch, progress=progress))


def assert_equal_models(one: Path, two: Path) -> None:
    for name in ("masters/model.safetensors", "model.safetensors"):
        assert (one / "out" / name).read_bytes() == (two / "out" / name).read_bytes()


def test_one_worker_equals_this_process(
    executor: RayExecutor,
    tmp_path: Path,
    make_model: Callable[[int], Path],
    make_preferences: Callable[[int], list[Preference]],
) -> None:
    start, preferences = make_model(0), make_preferences(10)
    here = run(make_job(tmp_path / "here", start, preferences))
    seen: list[TrainProgress] = []
    there = run(make_job(tmp_path / "there", start, preferences), executor.train, seen.append)
    assert here.steps == there.steps == 6
    assert [progress.step for progress in seen] == [1, 2, 3, 4, 5, 6]
    assert_equal_models(tmp_path / "here", tmp_path / "there")
    # What is done is not done again.
    again = run(make_job(tmp_path / "there", start, preferences), executor.train)
    assert again == there
    assert not (tmp_path / "there/work/ray").exists()


def test_workers_on_two_nodes_of_which_one_is_killed_equal_processes_here(
    executor: RayExecutor,
    tmp_path: Path,
    make_model: Callable[[int], Path],
    make_preferences: Callable[[int], list[Preference]],
) -> None:
    start, preferences = make_model(0), make_preferences(10)
    run(make_job(tmp_path / "here", start, preferences, processes=2, epochs=20))
    seen: list[int] = []
    killed: list[int] = []

    def kill_once(progress: TrainProgress) -> None:
        seen.append(progress.step)
        if progress.step == 3 and not killed:
            workers = children("RayTrainWorker")
            assert len(workers) == 2
            killed.append(workers[-1].pid)
            os.kill(killed[0], signal.SIGKILL)

    job = make_job(tmp_path / "there", start, preferences, processes=2, epochs=20)
    made = run(job, executor.train, kill_once)
    assert killed
    assert made.steps == 60
    assert seen == list(range(1, 61))
    assert_equal_models(tmp_path / "here", tmp_path / "there")
    assert not list((tmp_path / "there/work").glob("checkpoint-*"))


def test_what_a_worker_raises_is_raised_here(
    executor: RayExecutor,
    tmp_path: Path,
    make_model: Callable[[int], Path],
    make_preferences: Callable[[int], list[Preference]],
) -> None:
    job = make_job(tmp_path, make_model(0), make_preferences(4), processes=2, max_length=3)
    with pytest.raises(RlaifError, match="max_length"):
        run(job, executor.train)
