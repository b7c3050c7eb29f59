"""Ray clusters of several nodes on this machine, an engine that says what it computes, and runs
that are killed.

    python -m tests.support.clusters EXPERIMENT OUT ADDRESS BATCHES

runs an experiment on a cluster and kills itself (SIGKILL) after so many batches that it stored.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlaif.config.models import ModelSpec
from rlaif.core.store import StepFolder
from rlaif.engines import fake
from rlaif.engines.base import GenerateRequest, GenerateResult, Sampling, ScoreResult

POISON = "poison"


@contextmanager
def started_cluster(workers: Sequence[int]) -> Iterator[Any]:
    """A cluster with a head without CPUs and nodes with so many."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for cpus in workers:
            cluster.add_node(num_cpus=cpus)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def requests(count: int, text: str = "Question") -> list[GenerateRequest]:
    """Requests in the order of their ids."""
    return [
        GenerateRequest(f"r{i:04}", [{"role": "user", "content": f"{text} {i}"}], Sampling(seed=i))
        for i in range(count)
    ]


class LoggedEngine(fake.FakeEngine):
    """The scripted engine as a plugin. It writes which batch it begins, in which process and on
    which node, into SCRIPT.log, waits while SCRIPT.hold names the batch, and kills its process over
    a poisonous one."""

    def __init__(self, spec: ModelSpec, folder: Path | None, name: str):
        made = fake.load(spec, folder, name)
        super().__init__(made.script, name)
        assert spec.script is not None
        self.log, self.hold = (Path(f"{spec.script}.{end}") for end in ("log", "hold"))

    def answer(self, batch: list[Any]) -> list[GenerateResult] | list[ScoreResult]:
        """See `Divisible`."""
        import ray

        first = batch[0].request_id
        node = ray.get_runtime_context().get_node_id()
        with self.log.open("a") as file:
            file.write(json.dumps({"batch": first, "pid": os.getpid(), "node": node}) + "\n")
        while self.hold.exists() and self.hold.read_text() == first:
            time.sleep(0.05)
        if POISON in batch[0].messages[-1]["content"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(batch)


def logged_spec(folder: Path) -> ModelSpec:
    """A model with the logged engine."""
    script = folder / "script.yaml"
    script.write_text('rules: [{match: "", replies: ["One.", "Two.", "Three."]}]\n')
    engine = "tests.support.clusters:LoggedEngine"
    return ModelSpec(path="none", engine=engine, script=str(script))


def read_log(spec: ModelSpec) -> list[dict[str, Any]]:
    """What the engine wrote."""
    path = Path(f"{spec.script}.log")
    return [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []


def wait_for(spec: ModelSpec, count: int, batch: str = "") -> dict[str, Any]:
    """The last row, once so many batches have been begun whose ids begin so."""
    for _ in range(1200):
        found = [row for row in read_log(spec) if row["batch"].startswith(batch)]
        if len(found) >= count:
            return found[-1]
        time.sleep(0.05)
    raise AssertionError(f"{count} batches {batch} were not begun within a minute")


def main(path: Path, out: Path, address: str, batches: int) -> None:
    """See the module."""
    from rlaif.cluster.executor import open_cluster
    from rlaif.cluster.settings import ClusterSettings
    from rlaif.pipeline.experiment import run_experiment

    real, stored = StepFolder.append, 0

    def append(folder: StepFolder, name: str, records: Sequence[Any]) -> None:
        nonlocal stored
        real(folder, name, records)
        stored += 1
        if stored == batches:
            os.kill(os.getpid(), signal.SIGKILL)

    StepFolder.append = append  # type: ignore[method-assign]
    with open_cluster(ClusterSettings(address, actors=2, cpus=1)) as executor:
        run_experiment(path, out, executor=executor)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
