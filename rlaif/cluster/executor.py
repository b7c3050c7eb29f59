"""A run's models on a Ray cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from rlaif.cluster.actor import EngineActor
from rlaif.cluster.engine import ActorEngine
from rlaif.cluster.settings import Actors, ClusterSettings, Node, plan_actors
from rlaif.config.models import ENGINES, EngineKind, ModelSpec
from rlaif.core.errors import EngineError
from rlaif.engines.base import Engine
from rlaif.engines.build import load_engine
from rlaif.engines.remote.meter import Account

if TYPE_CHECKING:
    from rlaif.train.loop import TrainJob, TrainOutcome

log = logging.getLogger(__name__)

RESTARTS = 10
"""How often Ray starts an actor again that has died."""


@contextmanager
def open_cluster(settings: ClusterSettings) -> Iterator[RayExecutor]:
    """Connect to a cluster, and leave it in the end: its actors end too."""
    if (settings.address or "").startswith("ray://"):
        raise EngineError(
            f"{settings.address}: a run starts on a node of the cluster: give HOST:PORT, such as "
            "that of `ray start --head`"
        )
    # Otherwise Ray reports to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(
            settings.address,
            # What actors print would tear up our own progress lines.
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = settings.address or "this machine"
        raise EngineError(f"there is no Ray cluster at {where}: {error}") from None
    try:
        yield RayExecutor(settings)
    finally:
        ray.shutdown()


def list_nodes() -> list[Node]:
    """The nodes of the cluster that are there."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(found.get("CPU", 0.0), found.get("GPU", 0.0)) for found in alive]


class RayExecutor:
    """See `rlaif.pipeline.experiment.Executor`."""

    def __init__(self, settings: ClusterSettings):
        self.settings = settings
        self._fleets: list[ModelFleet] = []

    def load(
        self, spec: ModelSpec, folder: str | Path | None, name: str, account: Account | None = None
    ) -> Engine:
        """An engine of `spec` on actors; one that counts its calls on the run's account is loaded
        in this process."""
        if ENGINES.get(spec.engine, EngineKind("")).accounted:
            return load_engine(spec, folder, name, account)
        fleet = ModelFleet(self, spec, folder, name)
        try:
            return ActorEngine(fleet, self.settings.in_flight)
        except BaseException:
            fleet.stop()
            raise

    def train(self, job: TrainJob[Any]) -> TrainOutcome:
        """See `rlaif.pipeline.experiment.Executor`."""
        from rlaif.cluster.training import train_by_ray

        return train_by_ray(job, list_nodes())

    def admit(self, fleet: ModelFleet, wanted: Actors) -> None:
        """Make room for the actors of a model, by ending those of others, which start again when
        they are asked."""
        while self._fleets and not _fits(wanted):
            self._fleets[0].stop()
        self._fleets.append(fleet)

    def leave(self, fleet: ModelFleet) -> None:
        """Its actors have ended."""
        if fleet in self._fleets:
            self._fleets.remove(fleet)


def _fits(wanted: Actors) -> bool:
    free = ray.available_resources()
    needs = {"CPU": wanted.cpus, "GPU": wanted.gpus}
    return all(wanted.count * each <= free.get(name, 0.0) for name, each in needs.items())


class ModelFleet:
    """The actors of one model. See `rlaif.cluster.engine.Fleet`."""

    def __init__(
        self, executor: RayExecutor, spec: ModelSpec, folder: str | Path | None, name: str
    ):
        self._executor = executor
        self._spec = spec
        self._arguments = (_describe(spec), None if folder is None else _absolute(folder), name)
        self._name = name
        self._actors: list[Any] = []

    def actors(self) -> Sequence[Any]:
        """See `Fleet`."""
        if not self._actors:
            wanted = plan_actors(self._spec, list_nodes(), self._executor.settings)
            self._executor.admit(self, wanted)
            log.info("model %s: %d actors", self._name, wanted.count)
            kind = ray.remote(
                num_cpus=wanted.cpus,
                num_gpus=wanted.gpus,
                max_restarts=RESTARTS,
                max_task_retries=0,
                scheduling_strategy="SPREAD",
            )(EngineActor)
            self._actors = [kind.remote(*self._arguments) for _ in range(wanted.count)]
        return self._actors

    def stop(self) -> None:
        """See `Fleet`."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        self._executor.leave(self)


def _describe(spec: ModelSpec) -> dict[str, Any]:
    """The spec for an actor: files by their whole paths, and the GPUs that Ray gives it."""
    files = {
        key: _absolute(value) for key in ("script", "adapter") if (value := getattr(spec, key))
    }
    device = "cuda" if spec.device.startswith("cuda") else spec.device
    given = spec.model_dump(mode="json", exclude_unset=True)
    return given | files | {"device": device, "gpus": None}


def _absolute(path: str | Path) -> str:
    return str(Path(path).absolute())
