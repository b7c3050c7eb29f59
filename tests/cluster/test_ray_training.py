"""Training by Ray Train on a real cluster: `make test-ray`, in an environment of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
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
from rlaif.train.loop import TrainJob, TrainProgress
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


def run(job: TrainJob[Any], launch: Any = None, progress: Any = None) -> Any:
    from dataclasses import replace

    return train_on_preferences(replace(job, launch=launch, progress=progress))


@pytest.mark.parametrize(
    "changes", [{}, {"processes": 2}, {"processes": 2, "sharding": "full"}], ids=["1", "2", "full"]
)
def test_workers_on_two_nodes_equal_processes_here(
    executor: RayExecutor,
    tmp_path: Path,
    make_model: Callable[[int], Path],
    make_preferences: Callable[[int], list[Preference]],
    changes: dict[str, Any],
) -> None:
    start, preferences = make_model(0), make_preferences(10)
    here = run(make_job(tmp_path / "here", start, preferences, **changes))
    seen: list[TrainProgress] = []
    killed: list[int] = []

    def kill_once(progress: TrainProgress) -> None:
        seen.append(progress)
        if progress.step == 3 and not killed:
            victim = children("RayTrainWorker")[-1].pid
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)

    there = run(make_job(tmp_path / "there", start, preferences, **changes), executor.train)
    job = make_job(tmp_path / "killed", start, preferences, **changes)
    again = run(job, executor.train, kill_once)
    assert killed
    assert here.steps == there.steps == again.steps == 6
    assert [progress.step for progress in seen] == [1, 2, 3, 4, 5, 6]
    for name in ("masters/model.safetensors", "model.safetensors"):
        expected = (tmp_path / "here/out" / name).read_bytes()
        assert (tmp_path / "there/out" / name).read_bytes() == expected
        assert (tmp_path / "killed/out" / name).read_bytes() == expected
    assert not list((tmp_path / "killed/work").glob("checkpoint-*"))
    assert not (tmp_path / "killed/work/ray").exists()


def test_what_a_worker_raises_is_raised_here(
    executor: RayExecutor,
    tmp_path: Path,
    make_model: Callable[[int], Path],
    make_preferences: Callable[[int], list[Preference]],
) -> None:
    job = make_job(tmp_path, make_model(0), make_preferences(4), processes=2, max_length=3)
    with pytest.raises(RlaifError, match="max_length"):
        run(job, executor.train)
