"""A real Ray cluster of several nodes on this machine: `make test-ray`, in an environment of its
own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="RAY IS NOT INSTALLED HERE: make test-ray")

from rlaif.cluster import dealing
from rlaif.cluster.executor import RayExecutor, open_cluster
from rlaif.cluster.settings import ClusterSettings
from rlaif.config.models import ModelSpec
from rlaif.core.errors import EngineError
from rlaif.engines.base import RewardRequest
from rlaif.engines.fake import load
from rlaif.pipeline.experiment import run_experiment
from tests.pipeline.test_kills import rows
from tests.support.clusters import (
    POISON,
    logged_spec,
    read_log,
    requests,
    started_cluster,
    wait_for,
)
from tests.support.processes import gone

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with started_cluster([2, 2]) as made:
        yield made


@pytest.fixture
def executor(cluster: Any) -> Iterator[RayExecutor]:
    with open_cluster(ClusterSettings(cluster.address, actors=2, cpus=1)) as made:
        yield made


def test_batches_come_whole_and_in_order_and_are_spread(
    executor: RayExecutor, tmp_path: Path
) -> None:
    spec, asked = logged_spec(tmp_path), requests(320)
    plain = load(spec, None, "m")
    engine = executor.load(spec, None, "m")
    expected = list(plain.generate(asked))
    assert len(expected) == 10
    assert list(engine.generate(reversed(asked))) == expected
    begun = read_log(spec)
    assert len({row["pid"] for row in begun}) == len({row["node"] for row in begun}) == 2
    assert Counter(row["batch"] for row in begun) == {b[0].request_id: 1 for b in expected}
    done = {r.request_id for r in asked[:100]}
    assert list(engine.generate(asked, done)) == expected[3:]
    assert list(engine.generate(asked, {r.request_id for r in asked})) == []
    assert (engine.name, engine.weights_hash) == ("m", plain.weights_hash)
    engine.close()


def test_only_so_many_batches_are_in_flight(cluster: Any, tmp_path: Path) -> None:
    spec, asked = logged_spec(tmp_path), requests(640)
    settings = ClusterSettings(cluster.address, actors=2, cpus=1, in_flight=2)
    with open_cluster(settings) as executor:
        engine = executor.load(spec, None, "m")
        stream = engine.generate(asked)
        hold = tmp_path / "script.yaml.hold"
        hold.write_text("r0000")
        with ThreadPoolExecutor(1) as waiting:
            first = waiting.submit(next, stream)
            try:
                # One batch may lie behind the one that is held, with the same actor.
                wait_for(spec, 3)
            finally:
                hold.unlink()
            assert first.result()[0].request_id == "r0000"
        assert {row["batch"] for row in read_log(spec)} <= {f"r{32 * i:04}" for i in range(4)}
        stream.close()  # type: ignore[attr-defined]
        assert [len(b) for b in engine.generate(asked[:40])] == [32, 8]


def test_a_killed_actor_loses_nothing_and_repeats_what_it_held(
    executor: RayExecutor, tmp_path: Path
) -> None:
    spec, asked = logged_spec(tmp_path), requests(320)
    engine = executor.load(spec, None, "m")
    hold = tmp_path / "script.yaml.hold"
    hold.write_text("r0096")
    stream = engine.generate(asked)
    found = [next(stream) for _ in range(3)]
    victim = wait_for(spec, 1, "r0096")["pid"]
    os.kill(victim, signal.SIGKILL)
    hold.unlink()
    found += stream
    assert found == list(load(spec, None, "m").generate(asked))
    begun = Counter(row["batch"] for row in read_log(spec))
    # What it had not begun yet was lost too, and is begun once.
    assert begun == {f"r{32 * i:04}": 1 for i in range(10)} | {"r0096": 2}


def test_a_lost_node_loses_nothing_and_repeats_what_it_held(tmp_path: Path) -> None:
    spec, asked = logged_spec(tmp_path), requests(320)
    with (
        started_cluster([1, 1]) as cluster,
        open_cluster(ClusterSettings(cluster.address)) as executor,
    ):
        engine = executor.load(spec, None, "m")
        hold = tmp_path / "script.yaml.hold"
        hold.write_text("r0096")
        stream = engine.generate(asked)
        found = [next(stream) for _ in range(3)]
        held = wait_for(spec, 1, "r0096")
        where = held["node"]
        [node] = [node for node in cluster.worker_nodes if node.node_id == where]
        cluster.remove_node(node, allow_graceful=False)
        # Its processes learn of it by themselves; until then one could still answer.
        assert gone([held["pid"]], 60)
        hold.unlink()
        found += stream
        assert found == list(load(spec, None, "m").generate(asked))
        log = read_log(spec)
        begun = Counter(row["batch"] for row in log)
        assert begun == {f"r{32 * i:04}": 1 for i in range(10)} | {"r0096": 2}
        # Nothing takes the node's place, and the other goes on alone.
        assert log[-1]["node"] != where


def test_a_batch_that_kills_its_actors_ends_the_step(
    executor: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dealing, "MOST_LOSSES", 1)
    spec = logged_spec(tmp_path)
    engine = executor.load(spec, None, "m")
    with pytest.raises(EngineError, match="a batch was lost 2 times"):
        list(engine.generate(requests(20, POISON)))
    assert len({row["pid"] for row in read_log(spec)}) == 2


def test_what_an_actor_raises_is_raised_here(executor: RayExecutor, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no folder .*nowhere\. Keep run folders"):
        executor.load(ModelSpec(path="m"), tmp_path / "nowhere", "m")
    engine = executor.load(ModelSpec(path="none", engine="fake"), None, "m")
    asked = RewardRequest("r", [], {"role": "assistant", "content": "Yes."})
    with pytest.raises(EngineError, match="actor failed"):
        list(engine.reward([asked]))


def test_a_model_makes_room_for_another(cluster: Any, tmp_path: Path) -> None:
    # Each takes all four CPUs, so the first is ended and starts again.
    with open_cluster(ClusterSettings(cluster.address, actors=4, cpus=1)) as executor:
        one = executor.load(ModelSpec(path="none", engine="fake"), None, "one")
        two = executor.load(ModelSpec(path="none", engine="fake"), None, "two")
        for engine in (two, one, two):
            [results] = engine.generate(requests(2))
            assert [r.text for r in results] == ["I do not know."] * 2


def untimed_rows(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Every record of a run, without what was measured of time and memory."""
    return {name: [row | {"timing": None} for row in found] for name, found in rows(out).items()}


def weights(out: Path) -> dict[str, bytes]:
    """The files of every model that a run has made."""
    found = sorted((out / "models").rglob("*.safetensors"))
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


def rlaif(*words: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_run_goes_on_with_ray_and_back_to_the_same_bytes(
    cluster: Any, tmp_path: Path, small_model: Path, write_experiment: Callable[..., Path]
) -> None:
    policy = {"path": str(small_model), "dtype": "float32", "system_prompt": "drop"}
    models = {"policy": policy | {"batch_tokens": 256}}
    path = write_experiment(tmp_path, small_model, models=models)
    whole, out, alone = (tmp_path / name for name in ("whole", "both", "alone"))
    run_experiment(path, whole)
    # Killed here in the first training, then there while it evaluates, and ended here.
    begun = rlaif("tests.support.killed_training", path, out, 1)
    assert begun.returncode == -signal.SIGKILL, begun.stderr
    on_ray = rlaif("tests.support.clusters", path, out, cluster.address, 6)
    assert on_ray.returncode == -signal.SIGKILL, on_ray.stderr
    ended = rlaif("rlaif", "run", path, "--out", out, "--no-report", "-q")
    assert ended.returncode == 0, ended.stderr
    given = ["--executor", "ray", "--ray-address", cluster.address, "--actors", 2]
    given += ["--actor-cpus", 1, "--no-report", "-q"]
    there = rlaif("rlaif", "run", path, "--out", alone, *given)
    assert there.returncode == 0, there.stderr
    for other in (out, alone):
        assert untimed_rows(other) == untimed_rows(whole)
        assert weights(other) == weights(whole)
        assert len(weights(other)) >= 2
    again = rlaif("rlaif", "run", path, "--out", whole, *given)
    assert "Nothing to do" in again.stdout, again.stderr
    shutil.rmtree(out)
