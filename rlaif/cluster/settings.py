"""How a cluster is used. None of it is in a plan: it changes no result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.config.models import ModelSpec


@dataclass(frozen=True)
class ClusterSettings:
    """`address` of the cluster (None: as Ray finds it, else one is started on this machine).

    `actors` per model, and `cpus` and `gpus` of each; None: see `plan_actors`. `in_flight` is how
    many batches for each actor are dealt out and not stored yet, at most.
    """

    address: str | None = None
    actors: int | None = None
    cpus: float | None = None
    gpus: float | None = None
    in_flight: int = 4


@dataclass(frozen=True)
class Node:
    """What a node of the cluster has."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Actors:
    """How many actors a model gets, and what each of them holds."""

    count: int
    cpus: float
    gpus: float


def plan_actors(spec: ModelSpec, nodes: Sequence[Node], settings: ClusterSettings) -> Actors:
    """The actors of a model.

    A model on GPUs has one CPU and as many GPUs as it computes with for each actor, and as many
    actors as the nodes have room for. Another has an actor on each node, with the CPUs of the
    smallest node that has any.
    """
    gpus = settings.gpus
    if gpus is None:
        gpus = float(spec.processes) if uses_gpus(spec, nodes) else 0.0
    with_cpus = [node.cpus for node in nodes if node.cpus >= 1]
    cpus = settings.cpus
    if cpus is None:
        cpus = 1.0 if gpus else min(with_cpus, default=1.0)
    count = settings.actors
    if count is None:
        count = sum(int(node.gpus / gpus) for node in nodes) if gpus else len(with_cpus)
    return Actors(max(1, count), cpus, gpus)


def uses_gpus(spec: ModelSpec, nodes: Sequence[Node]) -> bool:
    """Whether a model computes on GPUs of the cluster: where it has some, unless `device` is
    cpu."""
    on_cpu = spec.engine == "fake" or spec.device.partition(":")[0] == "cpu"
    return not on_cpu and any(node.gpus for node in nodes)
